"""The answers of the retrieval routes in the shape that each client expects, as JSON or pieces of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from engines.runtime.answers import Pieces, base64_of, dump, list_pieces, object_pieces
from engines.runtime.requests.embeddings import Form
from engines.runtime.requests.rerank import RerankRequest
from engines.runtime.retrieval import Outputs, Rows

SIGNED = 128  # what sentence-transformers takes off the packed bits of a `binary` embedding


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def cohere_meta(tokens: int, units: Mapping[str, int], version: str = "2") -> dict[str, Any]:
    return {"api_version": {"version": version}, "billed_units": units, "tokens": {"input_tokens": tokens}}


def embedding_list(rows: Rows, form: Form, tokens: int, model: str) -> Pieces:
    """OpenAI's."""
    entries = (
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, row)
        for index, row in enumerate(written(rows, form))
    )
    return object_pieces({"object": "list"}, "data", entries, {"model": model, "usage": usage(tokens)})


def multi_vector_list(outputs: Outputs, form: Form, tokens: int, model: str) -> Pieces:
    """Jina's: a list of vectors for each input."""
    entries = (
        b'{"object":"embeddings","index":%d,"embeddings":%b}' % (index, _vectors(output, form))
        for index, output in enumerate(outputs)
    )
    return object_pieces({"object": "list"}, "data", entries, {"model": model, "usage": usage(tokens)})


def _vectors(output: NDArray[np.float32], form: Form) -> bytes:
    return b"[" + b",".join(written(output, form)) + b"]"


def cohere_embeddings(rows: Rows, forms: Sequence[Form], texts: list[str] | None, tokens: int) -> Pieces:
    """Cohere's: all embeddings in each of `forms`, and the texts again."""
    head = dump(id=uuid.uuid4().hex, response_type="embeddings_by_type")
    opening = head[:-1] + b',"embeddings":{'
    for form in forms:
        yield from list_pieces(written(rows, form), opening + b'"%b":[' % form.encode(), b"]")
        opening = b","
    yield b"}," + dump(texts=texts, meta=cohere_meta(tokens, {"input_tokens": tokens}))[1:]


def cohere_floats(rows: Rows, texts: list[str] | None, tokens: int) -> Pieces:
    """Those of its first API where no types were asked for."""
    head = {"id": uuid.uuid4().hex, "response_type": "embeddings_floats"}
    tail = {"texts": texts, "meta": cohere_meta(tokens, {"input_tokens": tokens}, "1")}
    return object_pieces(head, "embeddings", written(rows, "float"), tail)


def written(rows: Rows, form: Form) -> Iterator[bytes]:
    """Each row as JSON. `binary` and `ubinary` have a bit for each number: whether it is greater than 0."""
    for row in rows:
        if form == "base64":
            yield b'"%b"' % base64_of(row)
        elif form == "float":
            yield _json(row)
        else:
            bits = np.packbits(row > 0)
            yield _json(bits if form == "ubinary" else (bits.astype(np.int16) - SIGNED).astype(np.int8))


def sparse_list(outputs: Outputs) -> Pieces:
    """TEI's: for each input the entries that are not 0, as {"index", "value"}."""
    return list_pieces(map(_sparse, outputs), b"[", b"]")


def _sparse(entries: NDArray[np.float32]) -> bytes:
    places = entries[:, 0].astype(np.int64).tolist()
    values = _json(np.ascontiguousarray(entries[:, 1]))[1:-1].split(b",") if places else []
    pairs = zip(places, values, strict=True)
    return b"[" + b",".join(b'{"index":%d,"value":%b}' % pair for pair in pairs) + b"]"


def ranking(request: RerankRequest, scores: Rows, tokens: int, model: str) -> Pieces:
    """Jina's, Cohere's, vLLM's and Infinity's, whose fields do not contradict each other but for `object`."""
    head = {"id": f"rerank-{uuid.uuid4().hex}", "object": request.named, "model": model}
    tail = {"usage": usage(tokens), "meta": cohere_meta(tokens, {"search_units": 1})}
    entries = _ranked(request, scores, "relevance_score", "document")
    return object_pieces(head, "results", entries, tail)


def tei_ranking(request: RerankRequest, scores: Rows) -> Pieces:
    return list_pieces(_ranked(request, scores, "score", "text"), b"[", b"]")


def _ranked(request: RerankRequest, scores: Rows, score_name: str, document_name: str) -> Iterator[bytes]:
    """The best first; of equal ones the first first."""
    for index in np.argsort(-scores, kind="stable")[: request.top_n].tolist():
        entry = {"index": index, score_name: scores[index]}
        yield _json(entry if request.returned is None else entry | {document_name: request.returned[index]})


def score_list(scores: Rows, tokens: int, model: str) -> bytes:
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return _list("score", data, tokens, model)


def class_list(rows: Rows, labels: Sequence[str], tokens: int, model: str) -> bytes:
    """vLLM's: the likeliest label of each input, and the probabilities of all in the model's order."""
    best = rows.argmax(axis=1).tolist()
    data = [
        {"index": index, "label": labels[place], "probs": row, "num_classes": len(row)}
        for index, (place, row) in enumerate(zip(best, rows, strict=True))
    ]
    return _list("classify", data, tokens, model)


def _list(kind: str, data: list[dict[str, Any]], tokens: int, model: str) -> bytes:
    return dump(
        id=f"{kind}-{uuid.uuid4().hex}",
        object="list",
        created=int(time.time()),
        model=model,
        data=data,
        usage=usage(tokens),
    )


def predictions(rows: Rows, labels: Sequence[str], *, single: bool) -> bytes:
    """TEI's: every label of each input with its score, the best first."""
    found = [
        [{"score": row[place], "label": labels[place]} for place in np.argsort(-row, kind="stable").tolist()]
        for row in rows
    ]
    return _json(found[0] if single else found)


def _json(value: Mapping[str, Any] | Sequence[Any] | NDArray[Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
