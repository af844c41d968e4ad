"""What is told of a retrieval model before it is loaded equals what it is then."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineContext, KnowsRetrieval
from engines.runtime.transformers_runtime import load_model
from engines.transformers_engine import create_factory
from engines.transformers_facts import labels_of
from tests.engines import retrieval_models as made

MODELS: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "mean-embed": (made.make_prompted_embedder, "mean"),
    "cls-embed": (partial(made.make_prompted_embedder, pooling_mode="cls"), "cls"),
    "both-embed": (partial(made.make_prompted_embedder, pooling_mode=("cls", "max")), "cls+max"),
    "Qwen3-Embedding-modules": (partial(made.make_qwen3_embedding, modules=True), "last_token"),
    "Qwen3-Embedding-bare": (partial(made.make_qwen3_embedding, modules=False), "last_token"),
    "roberta-embed": (partial(made.make_roberta, positions=66, task="embed"), "mean"),
    "static-embed": (made.make_static_embedder, "mean"),
    "model2vec-embed": (made.make_model2vec, "mean"),
    "splade": (made.make_splade, "splade"),
    "colbert": (made.make_colbert, None),
    "reranker": (made.make_cross_encoder, None),
    "Qwen3-Reranker": (made.make_qwen3_reranker, None),
    "classifier": (made.make_classifier, None),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_facts_of_a_model_are_those_of_the_one_that_is_loaded(tmp_path: Path, name: str) -> None:
    make, pooling = MODELS[name]
    spec = made.judged(make(tmp_path / name))
    factory = create_factory(EngineContext(tmp_path, tmp_path, tmp_path, "cpu", {"backend": "torch", "batch_items": 7}))
    assert isinstance(factory, KnowsRetrieval)
    facts, args = factory.retrieval_facts(spec), factory._args(spec)
    model: Any = load_model(str(spec.path), args)
    assert (facts.pooling, facts.dtype) == (pooling, "float32")
    assert facts.input_tokens == model.encoder.max_tokens
    assert (facts.pass_tokens, facts.pass_inputs) == (args.resolved_batch_tokens, 7)
    if model.kind == "labels":
        assert facts.labels == model.labels
    else:
        assert list(facts.labels) == (["LABEL_0"] if name == "reranker" else [])


def test_a_configured_limit_and_poolings_of_older_versions_are_told(tmp_path: Path) -> None:
    path = made.make_prompted_embedder(tmp_path / "old-embed")
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": false, "pooling_mode_lasttoken": true}')
    factory = create_factory(EngineContext(tmp_path, tmp_path, tmp_path, "cpu"))
    spec = made.judged(path, max_model_len=9, engine_args={"dtype": "bfloat16"})
    facts = factory.retrieval_facts(spec)
    assert (facts.pooling, facts.input_tokens, facts.dtype) == ("last_token", 9, "bfloat16")
    (path / "1_Pooling" / "config.json").write_text("[")
    assert factory.retrieval_facts(spec).pooling is None


def test_a_number_of_labels_that_no_model_has_takes_no_memory(tmp_path: Path) -> None:
    spec = made.judged(made.make_classifier(tmp_path / "classifier"))
    config = json.loads((spec.path / "config.json").read_bytes())
    (spec.path / "config.json").write_text(json.dumps(config | {"num_labels": 10**12}))
    assert list(labels_of(spec)) == list(config["id2label"].values())
