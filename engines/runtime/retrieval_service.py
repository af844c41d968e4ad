"""What the retrieval routes do: check the request, have it computed, and write the answer.

Answers are bytes of JSON, or pieces of it where they may be large.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from engines.runtime.answers import Pieces, dump, embeddings_pieces
from engines.runtime.batching import BatchLimits
from engines.runtime.pipeline import Pipeline, Result
from engines.runtime.retrieval import EncodeOptions, RetrievalModel, Rows, Source
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_requests import (
    detokenize_request,
    embeddings_request,
    rerank_request,
    score_request,
    tokenize_request,
)
from models.errors import WrongTask
from models.types import Task

Body: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = bytes | Pieces


class RetrievalService:
    """One model behind the retrieval routes. Made inside a running event loop."""

    def __init__(self, model: RetrievalModel, name: str, args: TransformersArgs) -> None:
        self._model = model
        self._name = name
        limits = BatchLimits(tokens=args.resolved_batch_tokens, items=args.batch_items)
        self._pipeline = Pipeline(model, limits, args.max_waiting_tokens)

    @property
    def healthy(self) -> bool:
        return self._pipeline.healthy

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
        self._expect(Task.EMBED, "embeddings")
        request = embeddings_request(body, self._model.encoder.max_tokens, self._model.width)
        result, rows = await self._rows(request.inputs, request.truncate_to, "input")
        return embeddings_pieces(
            shorten(rows, request.dimensions),
            base64=request.base64,
            model=request.model or self._name,
            usage=_usage(result),
        )

    async def rerank(self, body: Body) -> bytes:
        self._expect(Task.RERANK, "reranking")
        request = rerank_request(body, self._model.encoder.max_tokens)
        pairs: list[Source] = [(request.query, document) for document in request.documents]
        result, rows = await self._rows(pairs, request.truncate_to, "documents")
        scores = rows[:, 0]
        order = np.argsort(-scores, kind="stable")[: request.top_n]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if request.return_documents:
            for entry in results:
                entry["document"] = {"text": request.documents[entry["index"]]}
        return dump(
            id=f"rerank-{uuid.uuid4().hex}",
            model=request.model or self._name,
            results=results,
            usage=_usage(result),
        )

    async def score(self, body: Body) -> bytes:
        """Scores of a reranker, or of an embedder the cosine similarities, for pairs of texts."""
        request = score_request(body, self._model.encoder.max_tokens)
        if self._model.task is Task.RERANK:
            result, rows = await self._rows(list(request.pairs), request.truncate_to, "text_2")
            scores = rows[:, 0]
        else:
            texts: list[Source] = [text for pair in request.pairs for text in pair]
            result, rows = await self._rows(texts, request.truncate_to, "text_2")
            rows = normalized(rows)
            scores = np.einsum("ij,ij->i", rows[0::2], rows[1::2])
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        return dump(
            id=f"score-{uuid.uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=request.model or self._name,
            data=data,
            usage=_usage(result),
        )

    async def tokenize(self, body: Body) -> bytes:
        request = tokenize_request(body)
        ids = await self._pipeline.tokenizer_call(
            lambda: self._model.tokenizer.encode(
                request.prompt, add_special_tokens=request.add_special_tokens, verbose=False
            )
        )
        strings = self._model.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
        limit = self._model.encoder.max_tokens
        return dump(count=len(ids), max_model_len=limit, tokens=ids, token_strs=strings)

    async def detokenize(self, body: Body) -> bytes:
        ids = detokenize_request(body, len(self._model.tokenizer))
        return dump(prompt=await self._pipeline.tokenizer_call(lambda: self._model.tokenizer.decode(ids)))

    def _expect(self, task: Task, what: str) -> None:
        if self._model.task is not task:
            kind = "an embedding model" if self._model.task is Task.EMBED else "a reranker"
            raise WrongTask(f"{self._name} is {kind}; it does not do {what}.", param="model")

    async def _rows(self, sources: Sequence[Source], truncate_to: int | None, param: str) -> tuple[Result, Rows]:
        options = EncodeOptions(limit=truncate_to)
        result = await self._pipeline.run(sources, options, truncate=truncate_to is not None, param=param)
        assert isinstance(result.outputs, np.ndarray)  # multi-vector and sparse models have routes of their own
        return result, result.outputs


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


def _usage(result: Result) -> dict[str, int]:
    return {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
