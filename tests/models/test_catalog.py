import dataclasses

import pytest

from models.catalog import Catalog
from models.errors import AmbiguousModel, UnknownModel
from models.sources import FOLDER, Sources
from models.types import Availability, Task
from tests.models.specs import spec

QWEN = spec("Qwen/Qwen3-8B", aliases=("gpt-4o",))
LLAMA = spec("meta-llama/Llama-3.1-8B-Instruct")
CATALOG = Catalog([QWEN, LLAMA, spec("other/Same"), spec("another/same")])


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "qwen/qwen3-8b", "Qwen3-8B", "QWEN3-8B", "gpt-4o", "GPT-4O"])
def test_id_alias_and_last_part_mean_the_model_in_any_case(name: str) -> None:
    assert CATALOG.resolve(name) is QWEN


def test_an_ambiguous_last_part_names_the_choices() -> None:
    with pytest.raises(AmbiguousModel, match=r"another/same, other/Same"):
        CATALOG.resolve("same")


def test_an_unknown_name_is_answered_with_the_nearest_ids() -> None:
    with pytest.raises(UnknownModel, match=r"Nearest: Qwen/Qwen3-8B") as caught:
        CATALOG.resolve("qwen3-7b")
    assert caught.value.status == 404
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["", "../Qwen3-8B", "/etc/passwd", "a\0b", "x" * 100_000, "Qwen/Qwen3-8B/"])
def test_strange_names_are_unknown_and_nothing_else(name: str) -> None:
    with pytest.raises(UnknownModel):
        CATALOG.resolve(name)


def test_an_alias_goes_before_a_last_part() -> None:
    catalog = Catalog([spec("a/fast"), spec("b/x", aliases=("fast",))])
    assert catalog.resolve("fast").id == "b/x"


def test_an_empty_folder_is_said_to_be_empty() -> None:
    with pytest.raises(UnknownModel, match="no model that can be served"):
        Catalog([spec("a", availability=Availability.UNUSABLE)]).resolve("b")


@pytest.mark.parametrize("parent", ["Qwen/Qwen3-8B", "gpt-4o", "Qwen3-8B", "/home/me/checkpoints/Qwen3-8B/"])
def test_an_adapter_finds_its_base_by_id_alias_or_last_part(parent: str) -> None:
    adapter = spec("me/pirate", task=Task.ADAPTER, parent=parent)
    catalog = Catalog([QWEN, adapter])
    assert catalog.base_of(adapter) is QWEN
    assert catalog.adapters_of(QWEN) == [adapter]


@pytest.mark.parametrize("parent", [None, "missing/base", "me/pirate"])
def test_an_adapter_without_its_base_says_which_is_missing(parent: str | None) -> None:
    adapter = spec("me/pirate", task=Task.ADAPTER, parent=parent)
    with pytest.raises(UnknownModel, match="needs its base model"):
        Catalog([QWEN, adapter]).base_of(adapter)


def test_replacing_tells_the_listeners_and_forgets_what_went() -> None:
    catalog, told = Catalog([QWEN]), []
    catalog.subscribe(lambda: told.append(catalog.specs()))
    changed = dataclasses.replace(LLAMA, fingerprint="2")
    catalog.replace([changed])
    assert told == [[changed]]
    assert catalog.get(QWEN.id) is None


def test_a_thousand_adapters_without_a_base_cost_no_search_for_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("models.catalog.difflib.get_close_matches")  # 0.1 s each with 10,000 models
    orphans = [spec(f"me/{number}", task=Task.ADAPTER, parent="missing/base") for number in range(1000)]
    assert Catalog([QWEN, *orphans]).adapters_of(QWEN) == []


def test_of_one_id_the_source_that_is_named_first_has_it_whoever_tells_first() -> None:
    catalog = Catalog()
    sources = Sources(catalog, names=("box", "bax"))
    far, farther = (dataclasses.replace(QWEN, engine=engine, aliases=()) for engine in ("box", "bax"))
    expected = ["bax", "box", QWEN.engine]
    for source, told, engine in zip(("bax", "box", FOLDER), (farther, far, QWEN), expected, strict=True):
        sources.put(source, [told])
        assert catalog.resolve(QWEN.id).engine == engine
