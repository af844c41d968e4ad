"""What README and docs say is what the code has: settings and their defaults, routes, errors, files, targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from app import errors as request_errors
from app import health
from app.config import ModelConfig, Settings
from app.health import PATHS
from app.reload import LIVE
from app.routes import ROUTES, TENSOR_ROUTES
from app.websocket.endpoint import PATHS as WEBSOCKET_PATHS
from models import errors as model_errors
from utils.telemetry import Metrics, ModelGauge, Snapshot

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CONTROL_ROUTES = {
    "/v1/models",
    "/v1/models/{id}",
    "/v1/model/load",
    "/v1/model/unload",
    "/v1/model/explain",
    "/v1/events",
    "/info",
    "/metrics",
    "/docs",
}
DERIVED = {"measured", "by model"}  # defaults that are no constants
CODE = re.compile(r"`([^`]+)`")


def table(first_heading: str) -> list[list[str]]:
    """The rows of README's table whose first column has this heading."""
    lines = README.split(f"| {first_heading} |", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def documented_settings() -> dict[str, tuple[str, bool]]:
    """Default as written, and whether it is said to apply without a restart; by setting."""
    found = {}
    for names, defaults, meaning in table("Setting"):
        columns = [part.strip() for part in defaults.split(",")]
        for position, name in enumerate(CODE.findall(names)):
            default = columns[position] if len(columns) > 1 else columns[0]
            found[name] = (default.strip("`"), meaning.startswith("*live*"))
    return found


def test_every_setting_is_documented_and_nothing_else() -> None:
    assert documented_settings().keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_documented_default_is_the_setting_s(name: str) -> None:
    written = documented_settings()[name][0]
    value = getattr(Settings(), name)
    if written in DERIVED or written == "none":
        assert not value
    elif isinstance(value, bool):
        assert written == str(value).lower()
    elif isinstance(value, ByteSize):
        assert TypeAdapter(ByteSize).validate_python(written) == value
    elif isinstance(value, float | int):
        assert float(written) == value
    elif isinstance(value, Path):
        assert Path(written).expanduser() == value
    else:
        assert written == value


def test_what_applies_without_a_restart_is_marked() -> None:
    assert {name for name, (_, live) in documented_settings().items() if live} == LIVE


def test_every_setting_of_a_model_is_documented() -> None:
    [row] = [row for row in table("Setting") if row[0] == "`models`"]
    assert set(CODE.findall(row[2])) == ModelConfig.model_fields.keys()


def test_the_example_of_a_configuration_is_valid() -> None:
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "max_wait_s" in block]
    assert Settings(**yaml.safe_load(example)).models


def test_every_metric_is_documented_and_no_other() -> None:
    counters = Metrics(lambda: Snapshot([ModelGauge("m", "ready", 1, 1, 1, 1)], 1, 1)).registry.collect()
    exposed = {family.name + "_total" * (family.type == "counter") for family in counters}
    listed = set()
    for names in (CODE.findall(row[0]) for row in table("`/metrics`")):
        listed |= {name if name.startswith("roundhouse_") else f"roundhouse_model{name}" for name in names}
    assert listed == exposed


def test_every_route_is_documented_and_no_other() -> None:
    listed = {path.partition(" ")[2] or path for row in table("Route") for path in CODE.findall(row[0])}
    kserve = {"/v2", *(route.path for route in TENSOR_ROUTES)}
    assert listed == ROUTES.keys() | PATHS | WEBSOCKET_PATHS | CONTROL_ROUTES | kserve | {"/openapi.json"}


def test_the_errors_that_are_explained_exist() -> None:
    classes = [*vars(request_errors).values(), *vars(model_errors).values(), *vars(health).values()]
    known = {(kind.status, kind.code) for kind in classes if hasattr(kind, "code") and hasattr(kind, "status")}
    explained = set(re.findall(r"\| (\d{3}) `(\w+)` \|", README))
    assert explained
    assert {(int(status), code) for status, code in explained} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_targets_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:app|engines|models|utils|demo|bench|tests|docs|scripts)/[\w/.]+\.\w+)`", text)
    linked = re.findall(r"\]\((?!http|#)([^)#]+)\)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [name for name in linked if not (page.parent / name).exists()]
    assert missing == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    modules = re.findall(r"python -m ([\w.]+)", text)
    paths = [ROOT / Path(*module.split(".")) for module in modules if module.split(".")[0] in ("bench", "demo", "app")]
    assert all(path.with_suffix(".py").exists() or (path / "__main__.py").exists() for path in paths)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_at_120_columns(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
