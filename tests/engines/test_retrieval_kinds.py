"""Every kind of retrieval model, in this process, against the library or the published code that defines it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from engines.base import EngineContext
from engines.runtime.batching import BatchLimits
from engines.runtime.pipeline import CHUNK_CHARACTERS, INLINE_CHARACTERS, Pipeline
from engines.runtime.retrieval import (
    WHOLE,
    EncodeOptions,
    TooLong,
    encode_within,
)
from engines.runtime.whole_weights import MissingWeights
from engines.transformers_engine import create_factory
from models.types import Method, Task
from tests.engines import retrieval_models as made
from tests.engines.retrieval_running import DOCUMENTS, QUERY, TEXTS, load, pairs, run, same

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT = EngineContext(Path("/nowhere"), Path("/nowhere"), Path("/nowhere"), "cpu", {})


# Embeddings


def test_a_plain_encoder_gives_the_mean_of_its_token_vectors_and_says_so(folder: Path) -> None:
    path = made.save_bert(folder / "e5-bare", made.BertModel(made.bert_config()))
    spec = made.judged(path)
    assert any("the mean of the token vectors" in reason for reason in spec.reasons)
    model = load(spec)
    same(run(model, TEXTS), SentenceTransformer(str(path), device="cpu").encode(TEXTS))
    assert (model.task, model.kind, model.width) == (Task.EMBED, "dense", 32)


def test_a_folder_without_modules_is_pooled_as_its_1_pooling_says(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "no-modules", pooling_mode="cls")
    reference = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    (path / "modules.json").unlink()
    same(run(load(made.judged(path)), TEXTS), reference)


def test_prompts_by_name_and_by_side_equal_encode_query_and_encode_document(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "prompted")
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    assert model.prompts == {"query": "query : ", "document": "passage : "}
    same(run(model, TEXTS), reference.encode(TEXTS))
    for side in ("query", "document"):
        expected = getattr(reference, f"encode_{side}")(TEXTS)
        same(run(model, TEXTS, EncodeOptions(side=side)), expected)
        same(run(model, TEXTS, EncodeOptions(prompt=model.prompts[side])), expected)
    same(run(model, TEXTS, EncodeOptions(prompt="", side="query")), reference.encode(TEXTS))


def test_embeddings_have_the_dimensions_that_the_model_keeps(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "truncated-embed")
    made.edit(path, "config_sentence_transformers.json", truncate_dim=8, default_prompt_name="document")
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    same(run(model, TEXTS), reference.encode(TEXTS))
    assert model.width == 8


def test_texts_are_cut_at_the_length_of_their_side_or_refused(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "sided-embed")
    made.edit(path, "sentence_bert_config.json", query_length=6)
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    options = EncodeOptions(side="query")
    with pytest.raises(TooLong, match="at most 6"):
        encode_within(model.encoder, TEXTS, options, "input", truncate=False)
    cut = encode_within(model.encoder, TEXTS, options, "input", truncate=True)
    same(model.forward(cut), reference.encode_query(TEXTS))


@pytest.mark.parametrize(
    ("make", "part"), [(made.make_prompted_embedder, "layer.1."), (made.make_cross_encoder, "classifier")]
)
def test_a_model_of_which_weights_are_missing_is_not_loaded_with_random_ones(
    folder: Path, make: Callable[[Path], Path], part: str
) -> None:
    path = made.drop_weights(make(folder / f"lacking-{part.strip('.')}"), part)
    with pytest.raises(MissingWeights, match=f"no weights for .*{part}"):
        load(made.judged(path))


def test_a_pooler_that_nothing_uses_may_be_missing(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "without-pooler")
    reference = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    same(run(load(made.judged(made.drop_weights(path, "pooler"))), TEXTS), reference)


@pytest.mark.parametrize("make", [made.make_static_embedder, made.make_model2vec])
def test_a_static_embedder_equals_sentence_transformers(folder: Path, make: Callable[[Path], Path]) -> None:
    path = make(folder / f"{make.__name__}-embed")
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    same(run(model, TEXTS), reference.encode(TEXTS))
    assert [item.tokens for item in model.encoder.encode(TEXTS)] == [
        len(reference.tokenizer.encode(t).ids) for t in TEXTS
    ]


def test_a_prompt_that_pooling_leaves_out_is_left_out_of_each_input_of_a_mixed_batch(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "unpooled-prompt", include_prompt=False)
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    mixed = [
        item
        for text in TEXTS
        for options in (EncodeOptions(side="query"), WHOLE)
        for item in model.encoder.encode([text], options)
    ]
    rows = model.forward(mixed)
    same(rows[0::2], reference.encode_query(TEXTS))
    same(rows[1::2], reference.encode(TEXTS))


def test_a_causal_embedder_takes_the_last_token_behind_its_instruction(folder: Path) -> None:
    path = made.make_qwen3_embedding(folder / "Qwen3-Embedding-tiny", modules=True)
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    assert model.prompts == {"query": made.QUERY_PROMPT}
    same(run(model, TEXTS), reference.encode(TEXTS))
    same(run(model, TEXTS, EncodeOptions(side="query")), reference.encode_query(TEXTS))


def test_a_causal_embedder_without_modules_equals_the_published_computation(folder: Path) -> None:
    path = made.make_qwen3_embedding(folder / "Qwen3-Embedding-bare", modules=False)
    spec = made.judged(path)
    assert any("the last token's vector, scaled to length 1" in reason for reason in spec.reasons)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    body = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().model
    with torch.no_grad():
        last = body(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state[:, -1]
    same(run(load(spec), TEXTS), torch.nn.functional.normalize(last, dim=1))


# Classifiers


@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_a_classifier_equals_the_text_classification_pipeline(folder: Path, problem_type: str | None) -> None:
    path = made.make_classifier(folder / f"classifier-{problem_type}", problem_type)
    spec = made.judged(path)
    model = load(spec)
    assert (spec.task, model.kind, model.labels) == (
        Task.CLASSIFY,
        "labels",
        ["entailment", "neutral", "contradiction"],
    )
    classify: Any = pipeline("text-classification", model=str(path), device="cpu", top_k=None)
    expected = [
        [next(item["score"] for item in answer if item["label"] == label) for label in model.labels]
        for answer in classify(TEXTS)
    ]
    rows = np.asarray(run(model, TEXTS))
    same(rows, expected)
    if problem_type != "multi_label_classification":
        same(rows.sum(axis=1), np.ones(len(TEXTS)))
    [pair] = classify([{"text": QUERY, "text_pair": DOCUMENTS[1]}])
    assert max(run(model, pairs()[1:2])[0]) == pytest.approx(pair[0]["score"], abs=1e-5)


# Sparse and multi-vector embeddings


@pytest.mark.parametrize("modules", [True, False])
def test_splade_weighs_the_words_that_sentence_transformers_weighs(folder: Path, modules: bool) -> None:
    path = made.make_splade(folder / f"splade-{'st' if modules else 'bare'}", modules=modules)
    spec = made.judged(path)
    assert (spec.task, spec.method) == (Task.EMBED, Method.SPARSE)
    model = load(spec)
    expected = SparseEncoder(str(path), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert (model.kind, model.width) == ("sparse", expected.shape[1])
    for entries, row in zip(run(model, TEXTS), expected, strict=True):
        dense = np.zeros_like(row)
        dense[entries[:, 0].astype(int)] = entries[:, 1]
        same(dense, row)
        assert 0 < len(entries) < len(row)


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_a_long_input_of_splade_never_weighs_all_its_tokens_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    path = made.make_splade(folder / f"splade-{pooling}")
    made.edit(path, "1_SpladePooling/config.json", pooling_strategy=pooling)
    model = load(made.judged(path))
    whole = run(model, TEXTS)
    sizes: list[int] = []
    forward = SpladePooling.forward

    def noted(module: SpladePooling, features: dict[str, Any]) -> dict[str, Any]:
        sizes.append(features["token_embeddings"].numel())
        pooled: dict[str, Any] = forward(module, features)
        return pooled

    monkeypatch.setattr(SpladePooling, "forward", noted)
    monkeypatch.setattr("engines.runtime.sparse.MAX_WEIGHTS", 9 * model.width)
    for one, other in zip(run(model, TEXTS), whole, strict=True):
        same(one, other)
    assert max(sizes) <= 9 * model.width < sum(sizes)


@pytest.mark.parametrize(
    ("make", "prompts"),
    [
        (made.make_colbert, {"query": "query ", "document": "document "}),
        (made.make_stanford_colbert, {"query": "[unused0] ", "document": "[unused1] "}),
    ],
)
def test_colbert_vectors_equal_encode_query_and_encode_document_in_one_batch(
    folder: Path, make: Callable[[Path], Path], prompts: dict[str, str]
) -> None:
    path = make(folder / make.__name__)
    spec = made.judged(path)
    assert (spec.task, spec.method) == (Task.EMBED, Method.MULTI_VECTOR)
    model, reference = load(spec), MultiVectorEncoder(str(path), device="cpu")
    assert (model.kind, model.width, model.prompts) == ("multi_vector", 8, prompts)
    queries, documents = [QUERY, "steam"], DOCUMENTS
    batch = model.encoder.encode(queries, EncodeOptions(side="query")) + model.encoder.encode(documents)
    given = list(model.forward(batch))
    expected = [
        *reference.encode_query(queries, convert_to_numpy=True),
        *reference.encode_document(documents, convert_to_numpy=True),
    ]
    assert [len(rows) for rows in given[:2]] == [16, 16]
    for rows, known in zip(given, expected, strict=True):
        same(rows, known)


def test_a_colbert_query_over_its_fixed_length_is_refused_or_cut_where_asked(folder: Path) -> None:
    path = made.make_colbert(folder / "colbert-long")
    model, reference = load(made.judged(path)), MultiVectorEncoder(str(path), device="cpu")
    long = "steam " * 30
    options = EncodeOptions(side="query")
    with pytest.raises(TooLong, match=r"input\[0\] has 33 tokens, but this model takes at most 16"):
        encode_within(model.encoder, [long], options, "input", truncate=False)
    cut = encode_within(model.encoder, [long], options, "input", truncate=True)
    same(model.forward(cut)[0], reference.encode_query([long], convert_to_numpy=True)[0])
    assert len(encode_within(model.encoder, [long], WHOLE, "input", truncate=False)) == 1


def test_a_colbert_document_is_cut_at_the_length_of_documents_not_of_the_encoder(folder: Path) -> None:
    path = made.make_colbert(folder / "colbert-documents")
    model, reference = load(made.judged(path)), MultiVectorEncoder(str(path), device="cpu")
    long = "steam " * 200
    [cut] = encode_within(model.encoder, [long], EncodeOptions(side="document"), "input", truncate=True)
    assert cut.tokens == 64
    same(model.forward([cut])[0], reference.encode_document([long], convert_to_numpy=True)[0])


def test_a_module_that_tokenizes_and_others_that_use_its_tokenizer_wait_for_each_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load(made.judged(made.make_prompted_embedder(folder / "turns-embed", include_prompt=False)))
    preprocess = model._model.preprocess
    taken: list[bool] = []

    def noted(*args: Any, **options: Any) -> Any:
        taken.append(model.encoder.lock.locked())
        return preprocess(*args, **options)

    monkeypatch.setattr(model._model, "preprocess", noted)

    async def use() -> None:
        line = Pipeline(model, BatchLimits(1000, 8, 0), 10_000)
        for characters in (1, INLINE_CHARACTERS + 1, CHUNK_CHARACTERS + 1):
            taken.append(await line.tokenizer_call(model.encoder.lock.locked, characters))
        await line.run(TEXTS)
        line.close()

    asyncio.run(use())
    assert len(taken) >= 4
    assert all(taken)


# Truncation


def test_inputs_are_cut_at_their_beginning_where_asked(folder: Path) -> None:
    path = made.save_bert(folder / "e5-left", made.BertModel(made.bert_config()))
    model, reference = load(made.judged(path)), SentenceTransformer(str(path), device="cpu")
    text = "the city turns the locomotive"
    same(run(model, [text], EncodeOptions(limit=4, left=True)), reference.encode(["the locomotive"]))
    same(run(model, [text], EncodeOptions(limit=4)), reference.encode(["the city"]))
    ids = model.tokenizer.encode(text)
    assert model.encoder.encode([ids], EncodeOptions(limit=3, left=True))[0].ids.tolist() == ids[-3:]  # type: ignore[union-attr]


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_positions_that_begin_behind_the_padding_index_are_not_counted_as_room_for_text(
    folder: Path, task: str
) -> None:
    model = load(made.judged(made.make_roberta(folder / f"roberta-{task}", positions=66, task=task)))
    long = "dog " * 200
    assert model.encoder.max_tokens == 64
    with pytest.raises(TooLong, match="at most 64"):
        encode_within(model.encoder, [long], WHOLE, "input", truncate=False)
    [row] = model.forward(encode_within(model.encoder, [long], WHOLE, "input", truncate=True))
    assert np.isfinite(row).all()


# What is not accepted


def test_quantized_weights_are_refused_before_a_load_that_would_fail(folder: Path) -> None:
    path = made.make_prompted_embedder(folder / "quantized-embed")
    made.edit(path, "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    verdict = create_factory(CONTEXT).accepts(made.judged(path))
    assert not verdict.ok
    assert "quantized (awq)" in verdict.reason


def test_a_method_of_another_task_is_refused_naming_it(folder: Path) -> None:
    path = made.save_bert(folder / "e5-method", made.BertModel(made.bert_config()))
    verdict = create_factory(CONTEXT).accepts(made.judged(path, engine_args={"method": "qwen3_reranker"}))
    assert not verdict.ok
    assert "engine_args.method" in verdict.reason
