"""The table: folders as published, and what discovery must say of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.discovery.scanner import Scanner, scan
from models.types import Availability, ModelOverrides, Registered, Task
from tests.models.discovery import published_chat, published_retrieval
from tests.models.discovery.folders import Row, build

ROWS = [*published_chat.ROWS, *published_retrieval.ROWS]
RETRIEVAL = {Task.EMBED, Task.RERANK, Task.CLASSIFY}
VLLM = {Task.CHAT, Task.COMPLETION, Task.ADAPTER}


def expected_engine(row: Row) -> str:
    if row.engine is not None:
        return row.engine
    return "vllm" if row.task in VLLM else "transformers" if row.task in RETRIEVAL else ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_published_folder_is_judged_as_what_it_is(tmp_path: Path, row: Row) -> None:
    build(tmp_path, row)
    [spec] = scan(tmp_path, {row.id: row.overrides} if row.overrides else None)
    assert (spec.id, spec.task, spec.availability) == (row.id, row.task, row.availability), spec.reasons
    assert spec.engine == expected_engine(row)
    assert any(row.reason in reason for reason in spec.reasons), spec.reasons
    assert {name: getattr(spec, name) for name in row.facts} == row.facts


def test_the_table_has_at_least_sixty_folders_and_no_id_twice() -> None:
    assert len(ROWS) >= 60
    assert len({row.id for row in ROWS}) == len(ROWS)


def test_the_whole_table_in_one_folder_is_one_list_sorted_by_id(tmp_path: Path) -> None:
    for row in ROWS:
        build(tmp_path, row)
    specs = scan(tmp_path, {row.id: row.overrides for row in ROWS if row.overrides})
    assert [spec.id for spec in specs] == sorted(row.id for row in ROWS)


def test_every_verdict_has_a_reason_and_every_refusal_says_what_to_do_or_why(tmp_path: Path) -> None:
    for row in ROWS:
        build(tmp_path, row)
    for spec in scan(tmp_path):
        assert spec.reasons, spec.id
        assert all(reason.isprintable() for reason in spec.reasons)


def test_the_configuration_overrules_all_evidence(tmp_path: Path) -> None:
    build(tmp_path, Row("a/b-reranker", published_chat.chat("Qwen3ForCausalLM", "qwen3"), Task.CHAT))
    overrides = ModelOverrides(task=Task.CHAT, aliases=("small", "default"))
    [spec] = scan(tmp_path, {"a/b-reranker": overrides, "not/there": ModelOverrides(pinned=True)})
    assert (spec.task, spec.engine, spec.availability) == (Task.CHAT, "vllm", Availability.AVAILABLE)
    assert spec.aliases == ("small", "default")
    assert spec.overrides is overrides
    assert "configuration: task chat" in spec.reasons


def test_an_engine_named_in_the_configuration_lifts_the_refusal_that_no_engine_serves_it(tmp_path: Path) -> None:
    build(
        tmp_path, Row("a/classifier", published_retrieval.encoder("BertForSequenceClassification", "bert"), Task.CHAT)
    )
    [spec] = scan(tmp_path, {"a/classifier": ModelOverrides(engine="triton")})
    assert (spec.task, spec.engine, spec.availability) == (Task.CLASSIFY, "triton", Availability.AVAILABLE)
    assert "configuration: engine triton" in spec.reasons


REGISTERED = {"NewForCausalLM": Registered("package", Task.CHAT), "Qwen3ForCausalLM": Registered("package", Task.CHAT)}


def test_a_registered_architecture_has_the_engine_and_task_of_its_package(tmp_path: Path) -> None:
    config = published_chat.chat("NewForCausalLM", "new", auto_map={"AutoModel": "modeling.New"})
    build(tmp_path, Row("a/new", config, Task.CHAT))
    [spec] = Scanner(tmp_path, None, REGISTERED).scan()
    assert (spec.task, spec.engine, spec.availability) == (Task.CHAT, "package", Availability.AVAILABLE), spec.reasons
    assert any("NewForCausalLM, registered by a package → chat, engine package" in reason for reason in spec.reasons)
    assert not spec.overrides.trust_remote_code


@pytest.mark.parametrize(
    ("overrides", "task", "engine"),
    [
        (ModelOverrides(engine="vllm"), Task.CHAT, "vllm"),
        (ModelOverrides(task=Task.EMBED), Task.EMBED, "transformers"),
        (ModelOverrides(task=Task.CHAT), Task.CHAT, "package"),
    ],
)
def test_the_configuration_overrules_a_registered_architecture(
    tmp_path: Path, overrides: ModelOverrides, task: Task, engine: str
) -> None:
    build(tmp_path, Row("a/b", published_chat.chat("Qwen3ForCausalLM", "qwen3"), Task.CHAT))
    [spec] = Scanner(tmp_path, {"a/b": overrides}, REGISTERED).scan()
    assert (spec.task, spec.engine) == (task, engine)


def test_what_a_folder_is_made_of_goes_before_a_registered_architecture(tmp_path: Path) -> None:
    embedder = published_retrieval.embedder("Qwen3ForCausalLM", "qwen3")
    build(tmp_path, Row("a/b", embedder, Task.EMBED))
    [spec] = Scanner(tmp_path, None, REGISTERED).scan()
    assert (spec.task, spec.engine) == (Task.EMBED, "transformers")


OWN = ModelOverrides(engine="mine", task=Task.CHAT)


@pytest.mark.parametrize("model_id", ["flat", "a/nested"])
def test_a_model_that_the_configuration_gives_to_an_engine_of_its_own_may_consist_of_anything(
    tmp_path: Path, model_id: str
) -> None:
    build(tmp_path, Row(model_id, {"weights.onnx": 5000, "config.json": "not for us"}, Task.CHAT))
    build(tmp_path, Row("b/empty", {}, Task.CHAT))
    specs = {spec.id: spec for spec in scan(tmp_path, {model_id: OWN, "b/empty": OWN})}
    assert {spec.availability for spec in specs.values()} == {Availability.AVAILABLE}
    assert (specs[model_id].task, specs[model_id].engine) == (Task.CHAT, "mine")
    assert specs[model_id].weights_bytes > 5000  # its other file counts, too
    assert specs.keys() == {model_id, "b/empty"}


def test_what_is_unsafe_or_half_copied_is_so_for_engines_of_ones_own_too(tmp_path: Path) -> None:
    build(tmp_path, Row("a/pickled", {"net.pt": 100}, Task.CHAT))
    build(tmp_path, Row("a/under-way", {"net.onnx": 100, "more.onnx.part": 100}, Task.CHAT))
    pickled, under_way = scan(tmp_path, {"a/pickled": OWN, "a/under-way": OWN})
    assert pickled.availability is Availability.UNUSABLE
    assert "allow_pickle: true" in " ".join(pickled.reasons)
    assert under_way.availability is Availability.INCOMPLETE


def test_a_task_that_nothing_serves_stays_refused_when_configured(tmp_path: Path) -> None:
    build(tmp_path, Row("a/b", published_chat.chat("Qwen3ForCausalLM", "qwen3"), Task.CHAT))
    [spec] = scan(tmp_path, {"a/b": ModelOverrides(task=Task.UNSUPPORTED)})
    assert spec.availability is Availability.UNUSABLE
    assert "no engine serves the task unsupported yet" in spec.reasons
