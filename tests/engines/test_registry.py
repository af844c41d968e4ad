"""What installed packages register: engines, imported only when one of their models needs them, and architectures."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import Settings
from engines import registry
from engines.base import Declaration, EngineContext, ListsModels
from models.catalog import Catalog
from models.servable import Servable
from models.types import Registered, Task
from tests.models.specs import spec

SPEC = spec("org/model", engine="package")
PACKAGE = """
from tests.models.fake_engines import FakeFactory
class Factory(FakeFactory):
    started = False
    def __init__(self, context):
        super().__init__()
        self.context = context
    async def start(self):
        self.started = True
    def state(self):
        return {"state": "ready", "started": self.started}
def broken(context):
    raise OSError("no library there")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that nobody has imported yet, with a factory, and one that fails."""
    name = f"package_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("package", f"{name}:Factory", registry.GROUP),
        EntryPoint("bad", f"{name}:broken", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    return name


def context_for(name: str) -> EngineContext:
    return EngineContext(Path("/run"), Path("/log"), Path("/cache"), "cpu", name=name)


async def test_an_engine_of_a_package_is_imported_and_started_when_its_first_model_is_judged(package: str) -> None:
    engines = registry.create_factories(context_for)
    factory = engines.factories["package"]
    await factory.start()
    assert not isinstance(factory, ListsModels)
    assert (package in sys.modules, factory.state()) == (False, {"state": "not needed yet"})
    assert factory.accepts(SPEC).ok
    assert package in sys.modules
    assert factory.reasons(SPEC) == ("engine: it is a fake",)
    assert factory.create(SPEC).endpoint.uds is not None
    await factory.close()  # after what was begun
    assert factory.state() == {"state": "ready", "started": True}


async def test_one_that_cannot_be_imported_refuses_its_models_with_the_reason_and_no_others(package: str) -> None:
    engines = registry.create_factories(context_for)
    verdict = engines.factories["bad"].accepts(SPEC)
    assert (verdict.ok, verdict.reason) == (False, "its engine 'bad' cannot be imported: OSError: no library there")
    assert engines.factories["bad"].state() == {"state": "unavailable", "error": "OSError: no library there"}
    assert not Servable(Catalog([SPEC]), {SPEC.engine: engines.factories["bad"]}).is_remote(SPEC)  # asked of each model
    assert engines.factories["package"].accepts(SPEC).ok


def test_one_that_the_configuration_names_is_imported_at_once(package: str) -> None:
    engines = registry.create_factories(context_for, {"package": Declaration(), "bad": Declaration()})
    assert package in sys.modules
    assert engines.factories.keys() == {"package"}
    assert engines.errors == {"bad": "OSError: no library there"}


def test_packages_register_architectures_and_a_faulty_entry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("DeepseekOCRForCausalLM", "deepseek_ocr:chat", registry.ARCHITECTURES),
        EntryPoint("AForNothing", "some_engine:paint", registry.ARCHITECTURES),
        EntryPoint("BForNothing", "some_engine", registry.ARCHITECTURES),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ARCHITECTURES else [])
    found, faults = registry.registered_architectures()
    assert found == {"DeepseekOCRForCausalLM": Registered("deepseek_ocr", Task.CHAT)}
    assert [("AForNothing" in fault, "'some_engine:paint'" in fault) for fault in faults] == [
        (True, True),
        (False,) * 2,
    ]
    assert all("write engine:task" in fault and "chat" in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("a/b", {}, "pattern"),
        ("own", {"class": "no_class"}, "package.module:Class"),
        ("own", {"class": "a:B", "path": "relative"}, "the whole path"),
        ("own", {"class": "a:B", "requirements": ["one\ntwo"]}, "one requirement to each entry"),
        ("own", {"requirements": ["one"]}, "need `class: package.module:Class`"),
        ("own", {"class": "a:B", "kind": "openai", "url": "http://x"}, "exclude each other"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused(name: str, entry: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(engines={name: entry})


def test_a_declared_class_is_told_what_may_be_installed_and_for_how_long() -> None:
    entry = {"class": "a:B", "requirements": ["one==1"], "path": "/srv"}
    declared = Settings(engines={"own": entry}, allow_install=True, install_timeout_s=5).declarations()["own"]
    assert (declared.class_path, declared.path, declared.requirements) == ("a:B", "/srv", ("one==1",))
    assert (declared.install, declared.install_timeout_s) == (True, 5)
