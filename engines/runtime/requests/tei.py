"""Requests as clients of text-embeddings-inference (TEI) send them, and what only they send: `texts` at /rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.runtime.requests.embeddings import EmbedRequest, dimensions
from engines.runtime.requests.fields import (
    Body,
    boolean,
    inputs,
    integer,
    listed,
    optional_string,
    required,
    text,
    texts,
)
from engines.runtime.requests.input_types import named_prompt, what_they_are
from engines.runtime.requests.rerank import MAX_DOCUMENTS, RerankRequest, query
from engines.runtime.requests.scoring import ScoreRequest
from engines.runtime.requests.truncation import truncation
from engines.runtime.retrieval import EncodeOptions, InvalidRequest, RetrievalModel, Source
from engines.runtime.transformers_args import MAX_TEXTS

SOURCE, SENTENCES = "inputs.source_sentence", "inputs.sentences"


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """`single`: there was one input, not a list of them; the answer then is not one either."""

    inputs: list[Source]
    single: bool
    options: EncodeOptions
    truncate: bool


def tei_embed_request(body: Body, model: RetrievalModel, *, normalize: bool = True) -> EmbedRequest:
    """`normalize` is the default of the field of that name."""
    cut = truncation(body, model.encoder.max_tokens)
    side, prompt = what_they_are(body, model.prompts)
    return EmbedRequest(
        inputs=inputs(required(body, "inputs"), "inputs", MAX_TEXTS),
        param="inputs",
        options=EncodeOptions(cut.limit, cut.left, prompt, side=side),
        truncate=cut.cut,
        dimensions=dimensions(body, "dimensions", model),
        normalize=boolean(body, "normalize", normalize),
        model=optional_string(body, "model"),
    )


def tei_sparse_request(body: Body, model: RetrievalModel) -> EmbedRequest:
    for name in ("dimensions", "normalize"):
        if body.get(name):
            raise InvalidRequest(f"{name} is for dense embeddings; this model's are sparse.", param=name)
    return tei_embed_request(body, model, normalize=False)


def similarity_request(body: Body, model: RetrievalModel) -> ScoreRequest:
    """`inputs`: an object with the `source_sentence` and the `sentences` to compare it with."""
    given = required(body, "inputs")
    if not isinstance(given, dict):
        raise InvalidRequest("inputs must be an object with source_sentence and sentences.", param="inputs")
    given = {f"inputs.{name}": value for name, value in given.items()}
    parameters = body.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object.", param="parameters")
    cut = truncation(parameters, model.encoder.max_tokens)
    return ScoreRequest(
        first=[text(required(given, SOURCE), SOURCE)],
        second=texts(listed(required(given, SENTENCES), SENTENCES, MAX_TEXTS), SENTENCES, MAX_TEXTS),
        first_param=SOURCE,
        second_param=SENTENCES,
        options=EncodeOptions(cut.limit, cut.left, named_prompt(parameters, model.prompts)),
        truncate=cut.cut,
    )


def is_tei_rerank(body: Body) -> bool:
    """/rerank is a path of several protocols: TEI's has `texts` where the others have `documents`."""
    return "texts" in body


def tei_rerank_request(body: Body, model: RetrievalModel) -> RerankRequest:
    cut = truncation(body, model.encoder.max_tokens)
    documents = texts(listed(body["texts"], "texts", MAX_DOCUMENTS), "texts", MAX_DOCUMENTS)
    return RerankRequest(
        query=query(body),
        documents=documents,
        param="texts",
        returned=documents if boolean(body, "return_text", False) else None,
        options=EncodeOptions(cut.limit, cut.left),
        truncate=cut.cut,
        top_n=integer(body, "top_n", 1, None, "it is the number of results"),  # not TEI's, but Elasticsearch's client's
        raw_scores=boolean(body, "raw_scores", False),
        model=optional_string(body, "model"),
    )


def predict_request(body: Body, model: RetrievalModel) -> PredictRequest:
    """`inputs`: a text, a pair of texts, or a list of lists of one text or two."""
    if boolean(body, "raw_scores", False):
        raise InvalidRequest("raw_scores: this server gives a classifier's probabilities only.", param="raw_scores")
    cut = truncation(body, model.encoder.max_tokens)
    value = required(body, "inputs")
    single = isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))
    items = [value] if single else listed(value, "inputs", MAX_TEXTS)
    sources = [_text_or_pair(item, index) for index, item in enumerate(items)]
    if len({type(source) for source in sources}) > 1:
        raise InvalidRequest("inputs must be all texts or all pairs of texts in one request.", param="inputs")
    return PredictRequest(
        inputs=sources,
        single=single,
        options=EncodeOptions(cut.limit, cut.left),
        truncate=cut.cut,
    )


def _text_or_pair(value: Any, index: int) -> Source:
    if isinstance(value, str):
        return text(value, "inputs")
    if not isinstance(value, list) or len(value) not in (1, 2):
        raise InvalidRequest(f"inputs[{index}] must be a list of one text or two.", param="inputs")
    found = [text(item, "inputs", index) for item in value]
    return found[0] if len(found) == 1 else (found[0], found[1])
