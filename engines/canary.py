"""Whether an engine answers as it did before it slept: what is asked of it, and what counts as the same answer.

A canary is asked of an idle engine, so that its forward passes are of the same shape both times: what differs then is
not the arithmetic but the weights or the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engines.engine_http import EngineCallFailed, call

PROMPT = "The quick brown fox jumps over"  # shorter than a block of the KV cache, so that none of it is ever cached
MAX_TOKENS = 8
SEED = 7
TEXTS = ("The quick brown fox", "jumps over the lazy dog", "0123456789")
MAX_WEIGHTS = 8  # of one text
MAX_DISTANCE = 0.01  # of the first answer's length: vectors with a cosine under 0.99995 are further apart

Tokens = tuple[tuple[int, ...], ...]  # ids of the tokens that each name answered with
Numbers = tuple[float, ...]


class NotFinite(Exception):
    """The engine computes NaN or infinity; the message says where."""


async def tokens(uds: Path, names: Sequence[str]) -> Tokens:
    """A few tokens of each of `names` (a model and its adapters), greedily. Raises EngineCallFailed, NotFinite."""
    return tuple([await _completion(uds, name) for name in names])


async def embedding(uds: Path, name: str) -> Numbers:
    """The embeddings of a few texts, one after the other. Raises EngineCallFailed, NotFinite."""
    answer = await _ask(uds, "/v1/embeddings", {"model": name, "input": TEXTS})
    return _finite(name, (value for item in answer["data"] for value in item["embedding"]))


async def scores(uds: Path, name: str) -> Numbers:
    """The scores of a few pairs of texts. Raises EngineCallFailed, NotFinite."""
    answer = await _ask(uds, "/v1/score", {"model": name, "text_1": TEXTS[0], "text_2": TEXTS})
    return _finite(name, (item["score"] for item in answer["data"]))


async def probabilities(uds: Path, name: str) -> Numbers:
    """What a classifier makes of a few texts. Raises EngineCallFailed, NotFinite."""
    answer = await _ask(uds, "/v1/classify", {"model": name, "input": TEXTS})
    return _finite(name, (value for item in answer["data"] for value in item["probs"]))


async def token_vectors(uds: Path, name: str) -> Numbers:
    """The vectors of all tokens of a few texts. Raises EngineCallFailed, NotFinite."""
    answer = await _ask(uds, "/v1/multi-vector", {"model": name, "input": TEXTS})
    return _finite(name, (value for item in answer["data"] for vector in item["embeddings"] for value in vector))


async def word_weights(uds: Path, name: str) -> Numbers:
    """The largest weights that a sparse model gives; how many small ones there are may be rounding. Raises as above."""
    answer = await call(uds, "POST", "/embed_sparse", body={"model": name, "inputs": TEXTS})
    weights = [sorted((entry["value"] for entry in entries), reverse=True)[:MAX_WEIGHTS] for entries in answer]
    return _finite(name, (value for row in weights for value in row))


def close(before: Numbers, after: Numbers) -> bool:
    """Whether two answers in numbers are the same but for rounding."""
    if len(before) != len(after):
        return False
    return math.dist(before, after) <= MAX_DISTANCE * math.hypot(*before)


async def _completion(uds: Path, name: str) -> tuple[int, ...]:
    body = {
        "model": name,
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "seed": SEED,
        "ignore_eos": True,
        "return_token_ids": True,  # and no log-probabilities: for the first of them vLLM compiles for seconds
    }
    answer = await _ask(uds, "/v1/completions", body)
    try:
        ids = tuple(answer["choices"][0]["token_ids"])
    except (LookupError, TypeError) as error:
        raise EngineCallFailed(f"/v1/completions answered without ids of tokens: {error!r}") from error
    if not any(ids):
        raise NotFinite(f"{name} answers with token 0 alone, as a model does that computes NaN")
    return ids


async def _ask(uds: Path, path: str, body: dict[str, Any]) -> Any:
    answer = await call(uds, "POST", path, body=body)
    if not isinstance(answer, dict):
        raise EngineCallFailed(f"{path} answered nothing")
    return answer


def _finite(name: str, values: Iterable[float | None]) -> Numbers:
    """JSON has no NaN; orjson writes null for it."""
    found = tuple(math.nan if value is None else value for value in values)
    if not found or not all(map(math.isfinite, found)):
        raise NotFinite(f"{name} answers with numbers that are not finite")
    return found
