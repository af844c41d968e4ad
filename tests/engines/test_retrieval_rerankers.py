"""Rerankers of every kind, in this process, against the library or the published code that defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from engines.runtime.retrieval import EncodeOptions, InvalidRequest
from models.types import Method, Task
from tests.engines import retrieval_models as made
from tests.engines.retrieval_running import DOCUMENTS, QUERY, load, pairs, run, same

pytestmark = pytest.mark.usefixtures("one_thread")


def qwen3_reference(path: Path, instruction: str, documents: Sequence[str], max_length: int) -> list[float]:
    """The computation of Qwen3-Reranker's model card."""
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    system = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".'
    )
    head = tokenizer.encode(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n", add_special_tokens=False)
    tail = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", add_special_tokens=False)
    asked = [f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: {document}" for document in documents]
    inputs = tokenizer(
        asked, truncation="longest_first", return_attention_mask=False, max_length=max_length - len(head) - len(tail)
    )
    inputs["input_ids"] = [head + ids + tail for ids in inputs["input_ids"]]
    padded = tokenizer.pad({"input_ids": inputs["input_ids"]}, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**padded).logits[:, -1, :]
    answers = tokenizer.convert_tokens_to_ids(["no", "yes"])
    scores: list[float] = torch.log_softmax(logits[:, answers], dim=1)[:, 1].exp().tolist()
    return scores


def test_qwen3_reranker_equals_its_published_computation_cut_or_whole(folder: Path) -> None:
    path = made.make_qwen3_reranker(folder / "Qwen3-Reranker-tiny")
    spec = made.judged(path)
    assert (spec.task, spec.method) == (Task.RERANK, Method.QWEN3_RERANKER)
    assert any("scored as Qwen3-Reranker is published" in reason for reason in spec.reasons)
    model = load(spec)
    default = "Given a web search query, retrieve relevant passages that answer the query"
    same(np.ravel(run(model, pairs())), qwen3_reference(path, default, DOCUMENTS, 512))
    asked = EncodeOptions(prompt="find dogs", limit=160)
    cut = model.encoder.encode(pairs(), asked)
    assert max(item.tokens for item in cut) == 160 < max(item.tokens for item in model.encoder.encode(pairs()))
    same(np.ravel(model.forward(cut)), qwen3_reference(path, "find dogs", DOCUMENTS, 160))
    assert np.ptp(qwen3_reference(path, default, DOCUMENTS, 512)) > 0.01


def bge_reference(path: Path, documents: Sequence[str], max_length: int) -> list[float]:
    """The computation of bge-reranker-v2-gemma's model card, its scores mapped to 0 to 1 as the card says."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def plain(text: str, **cut: Any) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, **cut)["input_ids"]
        return ids

    question = plain(
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'."
    )
    line = plain("\n")
    rows = []
    for document in documents:
        query = [tokenizer.bos_token_id, *plain(f"A: {QUERY}", max_length=max_length * 3 // 4, truncation=True)]
        passage = [*line, *plain(f"B: {document}", max_length=max_length, truncation=True)]
        rows.append([*query, *passage[: max_length - len(query)], *line, *question])
    padded = tokenizer.pad({"input_ids": rows}, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    with torch.no_grad():
        logits = model(**padded).logits[:, -1, plain("Yes")[0]]
    scores: list[float] = torch.sigmoid(logits).tolist()
    return scores


def test_bge_reranker_v2_gemma_equals_its_published_computation_cut_or_whole(folder: Path) -> None:
    path = made.make_bge_gemma(folder / "bge-reranker-v2-gemma-tiny")
    spec = made.judged(path)
    assert (spec.task, spec.method) == (Task.RERANK, Method.BGE_RERANKER)
    model = load(spec)
    same(np.ravel(run(model, pairs())), bge_reference(path, DOCUMENTS, 512))
    tokenizer = model.tokenizer
    taken = len(tokenizer("\n", add_special_tokens=False)["input_ids"]) + len(
        tokenizer(model._template.QUESTION, add_special_tokens=False)["input_ids"]  # type: ignore[attr-defined]
    )
    cut = model.encoder.encode(pairs(), EncodeOptions(limit=40 + taken))
    assert max(item.tokens for item in cut) == 40 + taken
    same(np.ravel(model.forward(cut)), bge_reference(path, DOCUMENTS, 40))


def test_a_limit_below_the_template_s_own_length_is_refused(folder: Path) -> None:
    model = load(made.judged(made.make_qwen3_reranker(folder / "Qwen3-Reranker-small")))
    with pytest.raises(InvalidRequest, match="own prompt takes") as refused:
        model.encoder.encode(pairs(), EncodeOptions(limit=20))
    assert refused.value.param == "truncate_prompt_tokens"


@pytest.mark.parametrize("make", [made.make_logit_score_reranker, made.make_dense_cross_encoder])
def test_a_model_whose_last_module_scores_equals_the_cross_encoder(folder: Path, make: Callable[[Path], Path]) -> None:
    path = make(folder / f"{make.__name__}-reranker")
    model, reference = load(made.judged(path)), CrossEncoder(str(path), device="cpu")
    same(np.ravel(run(model, pairs())), reference.predict([(QUERY, document) for document in DOCUMENTS]))


def test_a_text_generator_with_a_head_of_one_label_reads_pairs_as_texts_whatever_its_chat_template(
    folder: Path,
) -> None:
    path = made.make_qwen3_sequence_classifier(folder / "reranker-seq-cls")
    tokenizer = AutoTokenizer.from_pretrained(path)
    head = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    texts = [QUERY] * len(DOCUMENTS)
    with torch.no_grad():
        expected = torch.sigmoid(head(**tokenizer(texts, DOCUMENTS, padding=True, return_tensors="pt")).logits[:, 0])
    same(np.ravel(run(load(made.judged(path)), pairs())), expected)


def test_rerank_order_equals_the_cross_encoder_s_on_two_hundred_queries(folder: Path) -> None:
    path = made.make_cross_encoder(folder / "cross-encoder-tiny")
    model, reference = load(made.judged(path)), CrossEncoder(str(path), device="cpu")
    chance = np.random.default_rng(11)
    sets = [
        [
            (" ".join(chance.choice(made.WORDS, 5)), " ".join(chance.choice(made.WORDS, chance.integers(1, 25))))
            for _ in range(6)
        ]
        for _ in range(200)
    ]
    everything = [pair for one in sets for pair in one]
    expected = reference.predict(everything, batch_size=64).reshape(200, 6)
    given = np.ravel([run(model, everything[start : start + 50]) for start in range(0, 1200, 50)]).reshape(200, 6)
    same(given, expected)
    assert np.array_equal(np.argsort(-given, kind="stable"), np.argsort(-expected, kind="stable"))
    assert len(np.unique(expected.round(4))) > 600


def test_documents_are_cut_to_their_own_limit_before_they_meet_the_query(folder: Path) -> None:
    path = made.make_cross_encoder(folder / "cross-encoder-cut")
    model, reference = load(made.judged(path)), CrossEncoder(str(path), device="cpu")
    long = "the locomotive turns on the track of the city"
    given = run(model, pairs([long, "steam"]), EncodeOptions(document_limit=4))
    same(np.ravel(given), reference.predict([(QUERY, "the locomotive turns on"), (QUERY, "steam")]))


def test_a_document_ends_before_a_character_of_which_only_a_part_would_be_left(folder: Path) -> None:
    model: Any = load(made.judged(made.make_qwen3_reranker(folder / "Qwen3-Reranker-bytes")))
    for limit, kept in ((1, "A"), (2, "A"), (4, "A"), (5, "A🚂"), (6, "A🚂B")):
        assert model.encoder.cut_documents([(QUERY, "A🚂B dog")], limit) == [(QUERY, kept)]
