"""Requests for scores of pairs of texts and for classification, as vLLM's clients send them."""

from __future__ import annotations

from dataclasses import dataclass

from engines.runtime.requests.embeddings import MAX_INPUTS
from engines.runtime.requests.fields import (
    MAX_SHARED_CHARACTERS,
    Body,
    followed,
    inputs,
    optional_string,
    required,
    text,
    texts,
)
from engines.runtime.requests.rerank import MAX_DOCUMENTS, PROBABILITIES, document_tokens
from engines.runtime.requests.truncation import truncation
from engines.runtime.retrieval import EncodeOptions, InvalidRequest, RetrievalModel, Source

SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """`first` holds one text, or one for each of `second`. The params are the fields that they stood in."""

    first: list[str]
    second: list[str]
    first_param: str
    second_param: str
    options: EncodeOptions
    truncate: bool
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    inputs: list[Source]
    options: EncodeOptions
    truncate: bool
    model: str | None = None


def score_request(body: Body, model: RetrievalModel) -> ScoreRequest:
    left, right = next((names for names in SIDES if all(name in body for name in names)), _nearest(body))
    first = texts(required(body, left), left, MAX_DOCUMENTS)
    second = texts(required(body, right), right, MAX_DOCUMENTS)
    if len(first) == 1 < len(second):
        text(first[0], left, most=MAX_SHARED_CHARACTERS)
    elif len(first) != len(second):
        raise InvalidRequest(
            f"{left} has {len(first)} texts and {right} has {len(second)}; send one text against many, or as many.",
            param=right,
        )
    followed(body, PROBABILITIES)
    if model.kind != "score":
        _only_of_rerankers(body)
    cut = truncation(body, model.encoder.max_tokens)
    document_limit = document_tokens(body)
    return ScoreRequest(
        first=first,
        second=second,
        first_param=left,
        second_param=right,
        options=EncodeOptions(cut.limit, cut.left, optional_string(body, "instruction"), document_limit),
        truncate=cut.cut or document_limit is not None,
        model=optional_string(body, "model"),
    )


def _only_of_rerankers(body: Body) -> None:
    for name in ("max_tokens_per_doc", "instruction"):
        if body.get(name) is not None:
            raise InvalidRequest(f"{name} is for rerankers; this model embeds each text by itself.", param=name)


def _nearest(body: Body) -> tuple[str, str]:
    """The pair of fields that a request without both of any probably means."""
    return next((names for names in SIDES if any(name in body for name in names)), SIDES[0])


def classify_request(body: Body, model: RetrievalModel) -> ClassifyRequest:
    if body.get("labels") is not None:
        raise InvalidRequest(
            f"labels: this model has its own, {', '.join(model.labels)}; it takes no others.", param="labels"
        )
    followed(body, PROBABILITIES)
    cut = truncation(body, model.encoder.max_tokens)
    return ClassifyRequest(
        inputs=inputs(required(body, "input"), "input", MAX_INPUTS),
        options=EncodeOptions(cut.limit, cut.left),
        truncate=cut.cut,
        model=optional_string(body, "model"),
    )
