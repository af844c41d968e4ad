"""What the retrieval routes do: check the request, have it computed, and write the answer.

Answers are bytes of JSON, or pieces of it where they may be large.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import orjson

from engines.runtime.answers import Pieces, dump, list_pieces, rows_pieces
from engines.runtime.batching import FIXED_TOKENS, BatchLimits
from engines.runtime.pipeline import CHARACTERS_PER_TOKEN, ModelFault, Pipeline, Result, characters_of, chunks
from engines.runtime.requests.cohere import cohere_embed_request
from engines.runtime.requests.embeddings import EmbedRequest, embeddings_request
from engines.runtime.requests.rerank import RerankRequest, rerank_request
from engines.runtime.requests.scoring import ScoreRequest, classify_request, score_request
from engines.runtime.requests.tei import (
    is_tei_rerank,
    predict_request,
    similarity_request,
    tei_embed_request,
    tei_rerank_request,
    tei_sparse_request,
)
from engines.runtime.requests.tokens import (
    decode_request,
    detokenize_request,
    is_tei_tokenize,
    tei_tokenize_request,
    tokenize_request,
)
from engines.runtime.retrieval import EncodeOptions, OutputKind, RetrievalModel, Rows, Source
from engines.runtime.shapes import (
    class_list,
    cohere_embeddings,
    cohere_floats,
    embedding_list,
    multi_vector_list,
    predictions,
    ranking,
    score_list,
    sparse_list,
    tei_ranking,
)
from engines.runtime.token_lists import ids_of, strings_of, token_lists, vocabulary_of
from engines.runtime.transformers_args import TransformersArgs
from models.errors import WrongTask

# What a model is, by what it gives, and its routes.
SERVED: Mapping[OutputKind, tuple[str, str]] = {
    "dense": ("an embedding model", "/v1/embeddings, /v2/embed, /embed and /v1/score"),
    "multi_vector": ("a multi-vector embedding model", "/v1/multi-vector and /embed_all"),
    "sparse": ("a sparse embedding model", "/embed_sparse"),
    "score": ("a reranker", "/v1/rerank, /v2/rerank, /rerank and /v1/score"),
    "labels": ("a classifier", "/v1/classify and /predict"),
}

MAX_NUMBERS = 2**25  # in an answer with a vector for each token: 128 MiB, and several times that as JSON

Body: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = bytes | Pieces


class RetrievalService:
    """One model behind the retrieval routes. Made inside a running event loop."""

    def __init__(self, model: RetrievalModel, name: str, args: TransformersArgs) -> None:
        self._model = model
        self._name = name
        limits = BatchLimits(args.resolved_batch_tokens, args.batch_items, FIXED_TOKENS[args.device])
        self._pipeline = Pipeline(model, limits, args.max_waiting_tokens)

    @property
    def healthy(self) -> bool:
        return self._pipeline.healthy

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when nothing can be computed any more. Whoever waits then waits for ever."""
        return self._pipeline.lost

    @property
    def batches(self) -> int:
        """Forward passes so far, failed ones included."""
        return self._pipeline.batches

    async def between_passes(self, work: Callable[[], None]) -> None:
        """Runs `work` while no forward pass runs. Raises what it raises."""
        await self._pipeline.between_passes(work)

    def close(self) -> None:
        self._pipeline.close()

    async def models(self) -> bytes:
        card = {
            "id": self._name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "roundhouse",
            "max_model_len": self._model.encoder.max_tokens,
        }
        return dump(object="list", data=[card])

    async def embeddings(self, body: Body) -> Answer:
        self._expect("dense")
        request = embeddings_request(body, self._model)
        result, rows = await self._embed(request)
        return embedding_list(rows, request.forms[0], result.tokens, request.model or self._name)

    async def multi_vector(self, body: Body) -> Answer:
        self._expect("multi_vector")
        request = embeddings_request(body, self._model)
        result = await self._run(request)
        outputs = [_shaped(output, request) for output in result.outputs]
        return multi_vector_list(outputs, request.forms[0], result.tokens, request.model or self._name)

    async def cohere_embed(self, body: Body) -> Answer:
        self._expect("dense")
        request = cohere_embed_request(body, self._model)
        result, rows = await self._embed(request)
        return cohere_embeddings(rows, request.forms, request.texts, result.tokens)

    async def cohere_embed_v1(self, body: Body) -> Answer:
        """As those clients still ask who use the first of its APIs, such as LangChain's."""
        if body.get("embedding_types") is not None:
            return await self.cohere_embed(body)
        self._expect("dense")
        request = cohere_embed_request(body, self._model)
        result, rows = await self._embed(request)
        return cohere_floats(rows, request.texts, result.tokens)

    async def tei_embed(self, body: Body) -> Answer:
        self._expect("dense")
        _, rows = await self._embed(tei_embed_request(body, self._model))
        return rows_pieces(rows)

    async def tei_embed_all(self, body: Body) -> Answer:
        """A vector for each token; of models that are made to give those."""
        self._expect("multi_vector")
        request = tei_embed_request(body, self._model, normalize=False)
        result = await self._run(request)
        return rows_pieces([_shaped(output, request) for output in result.outputs])

    async def tei_embed_sparse(self, body: Body) -> Answer:
        self._expect("sparse")
        result = await self._run(tei_sparse_request(body, self._model))
        return sparse_list(result.outputs)

    async def rerank(self, body: Body) -> Answer:
        """As TEI's clients ask, or as Jina's do."""
        if not is_tei_rerank(body):
            return await self.jina_rerank(body)
        self._expect("score")
        request = tei_rerank_request(body, self._model)
        _, scores = await self._scores(request)
        return tei_ranking(request, self._as_tei(scores, request.raw_scores))

    async def jina_rerank(self, body: Body) -> Answer:
        return await self._rerank(body, return_documents=True)

    async def cohere_rerank(self, body: Body) -> Answer:
        return await self._rerank(body, return_documents=False)

    async def _rerank(self, body: Body, *, return_documents: bool) -> Answer:
        self._expect("score")
        request = rerank_request(body, self._model, return_documents=return_documents)
        result, scores = await self._scores(request)
        return ranking(request, scores, result.tokens, request.model or self._name)

    async def score(self, body: Body) -> bytes:
        """Scores of a reranker, or of an embedder the similarities, for pairs of texts."""
        self._expect("score", "dense")
        request = score_request(body, self._model)
        scores, tokens = await (self._judge(request) if self._model.kind == "score" else self._compare(request))
        return score_list(scores, tokens, request.model or self._name)

    async def _judge(self, request: ScoreRequest) -> tuple[Rows, int]:
        """A reranker's score for each pair, and the tokens read."""
        many = len(request.second) // len(request.first)
        pairs: list[Source] = [*zip(request.first * many, request.second, strict=True)]
        result, rows = await self._rows(pairs, request.options, request.truncate, request.second_param)
        return rows[:, 0], result.tokens

    async def _compare(self, request: ScoreRequest) -> tuple[Rows, int]:
        """The cosine of each pair's embeddings, and the tokens read: of one text against many, only once its own."""
        options, truncate = request.options, request.truncate
        one, first = await self._rows(request.first, options, truncate, request.first_param)
        other, second = await self._rows(request.second, options, truncate, request.second_param)
        first, second = normalized(first), normalized(second)
        return np.einsum("ij,ij->i", np.broadcast_to(first, second.shape), second), one.tokens + other.tokens

    async def tei_similarity(self, body: Body) -> Answer:
        self._expect("dense")
        scores, _ = await self._compare(similarity_request(body, self._model))
        return rows_pieces(scores)

    async def classify(self, body: Body) -> bytes:
        self._expect("labels")
        request = classify_request(body, self._model)
        result, rows = await self._rows(request.inputs, request.options, request.truncate, "input")
        return class_list(rows, self._model.labels, result.tokens, request.model or self._name)

    async def tei_predict(self, body: Body) -> bytes:
        self._expect("labels")
        request = predict_request(body, self._model)
        _, rows = await self._rows(request.inputs, request.options, request.truncate, "inputs")
        return predictions(rows, self._model.labels, single=request.single)

    async def tokenize(self, body: Body) -> Answer:
        """As TEI's clients ask, or as vLLM's do."""
        if is_tei_tokenize(body):
            return await self._token_lists(body)
        request, tokenizer = tokenize_request(body), self._model.tokenizer
        ids = await self._pipeline.tokenizer_call(
            lambda: ids_of(tokenizer, request.prompt, special=request.add_special_tokens), len(request.prompt)
        )
        strings = strings_of(tokenizer, ids) if request.return_token_strs else None
        limit = self._model.encoder.max_tokens
        return dump(count=len(ids), max_model_len=limit, tokens=ids, token_strs=strings)

    async def _token_lists(self, body: Body) -> Pieces:
        request = tei_tokenize_request(body, self._model.prompts)
        entries: list[bytes] = []
        for _, chunk, characters in chunks(request.texts):
            listed = partial(token_lists, self._model.tokenizer, chunk, special=request.add_special_tokens)
            part = len(chunk) < len(request.texts)
            entries += await self._pipeline.tokenizer_call(listed, characters, part=part)
        return list_pieces(entries, b"[", b"]")

    async def detokenize(self, body: Body) -> bytes:
        tokenizer, given = self._model.tokenizer, body.get("tokens")
        text = await self._pipeline.tokenizer_call(
            # There may be millions to look at.
            lambda: tokenizer.decode(detokenize_request(body, vocabulary_of(tokenizer)), skip_special_tokens=False),
            characters_of(given) if isinstance(given, list) else 0,
        )
        return dump(prompt=text)

    async def tei_decode(self, body: Body) -> bytes:
        tokenizer = self._model.tokenizer

        def decode() -> list[str]:
            lists, skip = decode_request(body, vocabulary_of(tokenizer))
            return [tokenizer.decode(ids, skip_special_tokens=skip) for ids in lists]

        given = body.get("ids")
        size = sum(len(one) if isinstance(one, list) else 1 for one in given) if isinstance(given, list) else 0
        return orjson.dumps(await self._pipeline.tokenizer_call(decode, size * CHARACTERS_PER_TOKEN))

    def _expect(self, *kinds: OutputKind) -> None:
        """Raises WrongTask that says what this model is, and where it is served."""
        kind = self._model.kind
        if kind not in kinds:
            what, routes = SERVED[kind]
            raise WrongTask(f"{self._name} is {what}; it is served at {routes}.", param="model")

    async def _embed(self, request: EmbedRequest) -> tuple[Result, Rows]:
        result, rows = await self._rows(request.inputs, request.options, request.truncate, request.param)
        return result, _shaped(rows, request)

    async def _scores(self, request: RerankRequest) -> tuple[Result, Rows]:
        """One score for each document, in their order."""
        pairs: list[Source] = [(request.query, document) for document in request.documents]
        result, rows = await self._rows(pairs, request.options, request.truncate, request.param)
        return result, rows[:, 0]

    def _as_tei(self, scores: Rows, raw: bool) -> Rows:
        """TEI gives a sigmoid of the scores, or with `raw_scores` what went into it."""
        if raw == (not self._model.probabilities):
            return scores
        return logits(scores) if raw else sigmoid(scores)

    async def _rows(
        self, sources: Sequence[Source], options: EncodeOptions, truncate: bool, param: str
    ) -> tuple[Result, Rows]:
        result = await self._pipeline.run(sources, options, truncate=truncate, param=param)
        rows = result.outputs
        assert isinstance(rows, np.ndarray)  # multi-vector and sparse models have routes of their own
        check_finite(rows, param)
        return result, rows

    async def _run(self, request: EmbedRequest) -> Result:
        most_tokens = MAX_NUMBERS // self._model.width if self._model.kind == "multi_vector" else None
        result = await self._pipeline.run(
            request.inputs, request.options, truncate=request.truncate, param=request.param, most_tokens=most_tokens
        )
        for output in result.outputs:
            check_finite(output, request.param)
        return result


def check_finite(rows: Rows, param: str) -> None:
    """JSON has no NaN: a client would get null where it expects a number. Raises ModelFault."""
    if not np.isfinite(rows).all():
        raise ModelFault(
            "The model gave numbers that are not finite (NaN or infinity) for an input. Its weights may be damaged, or "
            "too large for half precision (engine_args: {dtype: float32}).",
            param=param,
        )


def _shaped(rows: Rows, request: EmbedRequest) -> Rows:
    rows = shorten(rows, request.dimensions)
    return normalized(rows) if request.normalize else rows


def sigmoid(scores: Rows) -> Rows:
    result: Rows = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    return result


def logits(probabilities: Rows) -> Rows:
    """The reverse of `sigmoid`, within ±16: float32 knows no numbers closer to 1."""
    bound = 2.0**-24
    inner = np.clip(probabilities.astype(np.float64), bound, 1 - bound)
    result: Rows = np.log(inner / (1 - inner)).astype(np.float32)
    return result


def normalized(rows: Rows) -> Rows:
    """Rows of length 1 (a row of zeros stays as it is)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: Rows = rows / np.maximum(lengths, np.float32(1e-12))
    return result


def shorten(rows: Rows, dimensions: int | None) -> Rows:
    """The first `dimensions` numbers of each row, scaled to length 1 again (Matryoshka)."""
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    return normalized(rows[:, :dimensions])
