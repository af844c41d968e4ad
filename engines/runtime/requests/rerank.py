"""Requests for reranking in Jina's, Cohere's and vLLM's shape, which are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from engines.runtime.requests.fields import (
    MAX_SHARED_CHARACTERS,
    Body,
    boolean,
    followed,
    integer,
    listed,
    optional_string,
    required,
    text,
)
from engines.runtime.requests.truncation import truncation
from engines.runtime.retrieval import EncodeOptions, InvalidRequest, RetrievalModel

MAX_DOCUMENTS = 10_000  # of one request

# vLLM's and Infinity's ways to ask for what the model gave before its softmax or sigmoid.
PROBABILITIES: Mapping[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(
        ("use_activation", "activation", "softmax"), ((True,), "scores are given after the model's own activation")
    ),
    "raw_scores": ((False,), "scores are given after the model's own activation"),
}
# Those of Voyage's and Jina's clients.
UNFOLLOWED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    **PROBABILITIES,
    "raw_scores": ((False,), "/rerank takes it beside `texts`, as TEI's clients ask"),
    "top_k": ((), "it is called top_n"),
    "return_embeddings": ((False,), "an embedding model gives those"),
}


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """`returned` has what the results show of each document, None for nothing. `raw_scores` are before a sigmoid."""

    query: str
    documents: list[str]
    param: str
    returned: list[Any] | None
    options: EncodeOptions
    truncate: bool
    top_n: int | None = None
    raw_scores: bool = False
    model: str | None = None
    named: str = "list"  # the answer's `object`


def rerank_request(body: Body, model: RetrievalModel, *, return_documents: bool = True) -> RerankRequest:
    """`return_documents` is the default of the field of that name: true for Jina, false for Cohere's /v2/rerank."""
    followed(body, UNFOLLOWED)
    cut = truncation(body, model.encoder.max_tokens)
    given = required(body, "documents")
    items = listed([given] if isinstance(given, str | dict) else given, "documents", MAX_DOCUMENTS)
    shown = boolean(body, "return_documents", return_documents)
    document_limit = document_tokens(body)
    return RerankRequest(
        query=query(body),
        documents=_documents(items, _rank_fields(body)),
        param="documents",
        returned=_returned(items) if shown else None,
        options=EncodeOptions(cut.limit, cut.left, optional_string(body, "instruction"), document_limit),
        truncate=cut.cut or document_limit is not None,
        top_n=integer(body, "top_n", 1, None, "it is the number of results"),
        model=optional_string(body, "model"),
        # Infinity's client, which always sends raw_scores, raises at any other than this.
        named="rerank" if body.get("raw_scores") is not None else "list",
    )


def query(body: Body) -> str:
    return text(required(body, "query"), "query", most=MAX_SHARED_CHARACTERS)


def _returned(items: list[Any]) -> list[Any]:
    """The documents as objects. Raises InvalidRequest for one that can be read, but not written, for its nesting."""
    for index, item in enumerate(items):
        if isinstance(item, dict):
            try:
                orjson.dumps(item)
            except TypeError as error:
                raise InvalidRequest(
                    f"documents[{index}] cannot be returned ({error}); set return_documents to false.",
                    param="documents",
                ) from None
    return [item if isinstance(item, dict) else {"text": item} for item in items]


def document_tokens(body: Body) -> int | None:
    """To how many tokens each document is cut. Who says so has asked for truncation of whatever is still too long."""
    return integer(body, "max_tokens_per_doc", 1, None, "documents are cut to so many tokens")


def _documents(items: list[Any], rank_fields: list[str] | None) -> list[str]:
    if rank_fields is None:
        return [text(item, "documents", index) for index, item in enumerate(items)]
    return [
        _fields_of(item, rank_fields, index) if isinstance(item, dict) else text(item, "documents", index)
        for index, item in enumerate(items)
    ]


def _rank_fields(body: Body) -> list[str] | None:
    """Cohere's: which fields of a document that is an object are read, in this order."""
    value = body.get("rank_fields")
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise InvalidRequest("rank_fields must be a list of names that is not empty.", param="rank_fields")
    if len(set(value)) < len(value):  # repeated often enough, a small body would make documents of terabytes
        raise InvalidRequest("rank_fields names a field twice.", param="rank_fields")
    return value


def _fields_of(document: dict[str, Any], names: list[str], index: int) -> str:
    """The value of the one field, or a line `name: value` for each, as Cohere advises for structured documents."""
    missing = next((name for name in names if not isinstance(document.get(name), str | int | float)), None)
    if missing is not None:
        raise InvalidRequest(f"documents[{index}] has no text in its field {missing!r}.", param="documents")
    if len(names) == 1:
        return text(str(document[names[0]]), "documents", index)
    return text("\n".join(f"{name}: {document[name]}" for name in names), "documents", index)
