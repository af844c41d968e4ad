"""What the retrieval routes do: check the request, tokenize, wait for the forward passes, write the answer.

Tokenization runs in one thread of its own, in chunks, so that a large request lets others through; forward passes run
in the batch worker's thread. Answers are bytes of JSON, numbers written by orjson straight from the arrays.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import orjson

from engines.runtime.batching import BatchLimits, BatchWorker
from engines.runtime.retrieval import (
    Encoded,
    EncodeOptions,
    RetrievalModel,
    Rows,
    Source,
    encode_within,
)
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

CHUNK_TEXTS = 256  # of one turn of the tokenizer thread: about 10 ms
CHUNK_CHARACTERS = 262_144
CLOSE_S = 30.0  # for the forward pass that is running at the end

T = TypeVar("T")
Body = Mapping[str, Any]


class RetrievalService:
    """One model behind the retrieval routes. Made inside a running event loop."""

    def __init__(self, model: RetrievalModel, name: str, args: TransformersArgs) -> None:
        self._model = model
        self._name = name
        limits = BatchLimits(tokens=args.resolved_batch_tokens, items=args.batch_items)
        self._worker = BatchWorker(model.forward, limits, args.max_waiting_tokens)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    @property
    def healthy(self) -> bool:
        return self._worker.healthy

    @property
    def batches(self) -> int:
        """Forward passes so far, failed ones included."""
        return self._worker.batches

    async def between_passes(self, work: Callable[[], None]) -> None:
        """Runs `work` while no forward pass runs. Raises what it raises."""
        await self._worker.between_passes(work)

    def close(self) -> None:
        self._tokenizing.shutdown(cancel_futures=True)
        self._worker.close(CLOSE_S)

    async def models(self) -> bytes:
        card = {
            "id": self._name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "roundhouse",
            "max_model_len": self._model.encoder.max_tokens,
        }
        return orjson.dumps({"object": "list", "data": [card]})

    async def embeddings(self, body: Body) -> bytes:
        self._expect(Task.EMBED, "embeddings")
        request = embeddings_request(body, self._model.encoder.max_tokens, self._model.width)
        encoded = await self._encode(request.inputs, request.truncate_to, "input")
        rows = shorten(await self._worker.run(encoded), request.dimensions)
        written: list[Any] = [to_base64(row) for row in rows] if request.base64 else list(rows)
        data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(written)]
        return _dump(object="list", data=data, model=request.model or self._name, usage=_usage(encoded))

    async def rerank(self, body: Body) -> bytes:
        self._expect(Task.RERANK, "reranking")
        request = rerank_request(body, self._model.encoder.max_tokens)
        pairs: list[Source] = [(request.query, document) for document in request.documents]
        encoded = await self._encode(pairs, request.truncate_to, "documents")
        scores = (await self._worker.run(encoded))[:, 0]
        order = np.argsort(-scores, kind="stable")[: request.top_n]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if request.return_documents:
            for result in results:
                result["document"] = {"text": request.documents[result["index"]]}
        return _dump(
            id=f"rerank-{uuid.uuid4().hex}",
            model=request.model or self._name,
            results=results,
            usage=_usage(encoded),
        )

    async def score(self, body: Body) -> bytes:
        """Scores of a reranker, or of an embedder the cosine similarities, for pairs of texts."""
        request = score_request(body, self._model.encoder.max_tokens)
        if self._model.task is Task.RERANK:
            encoded = await self._encode(list(request.pairs), request.truncate_to, "text_2")
            scores = (await self._worker.run(encoded))[:, 0]
        else:
            encoded = await self._encode(
                [text for pair in request.pairs for text in pair], request.truncate_to, "text_2"
            )
            rows = normalized(await self._worker.run(encoded))
            scores = np.einsum("ij,ij->i", rows[0::2], rows[1::2])
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        return _dump(
            id=f"score-{uuid.uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=request.model or self._name,
            data=data,
            usage=_usage(encoded),
        )

    async def tokenize(self, body: Body) -> bytes:
        request = tokenize_request(body)
        ids = await self._tokenizer_call(
            lambda: self._model.tokenizer.encode(
                request.prompt, add_special_tokens=request.add_special_tokens, verbose=False
            )
        )
        strings = self._model.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
        limit = self._model.encoder.max_tokens
        return _dump(count=len(ids), max_model_len=limit, tokens=ids, token_strs=strings)

    async def detokenize(self, body: Body) -> bytes:
        ids = detokenize_request(body, len(self._model.tokenizer))
        return _dump(prompt=await self._tokenizer_call(lambda: self._model.tokenizer.decode(ids)))

    def _expect(self, task: Task, what: str) -> None:
        if self._model.task is not task:
            kind = "an embedding model" if self._model.task is Task.EMBED else "a reranker"
            raise WrongTask(f"{self._name} is {kind}; it does not do {what}.", param="model")

    async def _encode(self, sources: Sequence[Source], truncate_to: int | None, param: str) -> list[Encoded]:
        encoded: list[Encoded] = []
        for start, chunk in _chunks(sources):
            encoded += await self._tokenizer_call(
                lambda start=start, chunk=chunk: encode_within(  # type: ignore[misc]  # bound now, not when it runs
                    self._model.encoder,
                    chunk,
                    EncodeOptions(limit=truncate_to),
                    param,
                    truncate=truncate_to is not None,
                    first_index=start,
                )
            )
        return encoded

    async def _tokenizer_call(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, call)


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


def to_base64(row: Rows) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii")


def _chunks(sources: Sequence[Source]) -> Iterator[tuple[int, Sequence[Source]]]:
    """Runs of `sources`, small enough for one turn of the tokenizer thread, with the index of their first."""
    start = size = 0
    for index, source in enumerate(sources):
        length = sum(map(len, source)) if isinstance(source, tuple) else len(source)
        if index > start and (index - start == CHUNK_TEXTS or size + length > CHUNK_CHARACTERS):
            yield start, sources[start:index]
            start, size = index, 0
        size += length
    yield start, sources[start:]


def _usage(encoded: Sequence[Encoded]) -> dict[str, int]:
    tokens = sum(item.tokens for item in encoded)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _dump(**fields: Any) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
