"""The texts, answers and comparisons of bench.retrieval."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import numpy as np
import pytest

from bench._embedding import texts, vectors
from bench.retrieval import Exactness


def answer(*indexed: tuple[int, Sequence[float]]) -> bytes:
    """As from /v1/embeddings with base64."""
    rows = [(index, base64.b64encode(np.array(row, np.float32).tobytes()).decode()) for index, row in indexed]
    return json.dumps({"data": [{"index": index, "embedding": row} for index, row in rows]}).encode()


def test_texts_are_the_same_on_every_call_and_have_as_many_words_as_asked_for() -> None:
    assert texts(100) == texts(100)
    assert {len(text.split()) for text in texts(2000)} == set(range(5, 61))
    assert {len(text.split()) for text in texts(200, 4, 6)} == {4, 5, 6}


def test_vectors_are_read_from_base64() -> None:
    assert vectors(answer((0, [1, 2]), (1, [3, 4]))).tolist() == [[1, 2], [3, 4]]


def test_an_answer_in_another_order_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="order"):
        vectors(answer((1, [1, 2]), (0, [3, 4])))


def test_exactness_keeps_the_worst_of_all_answers() -> None:
    exactness = Exactness(np.array([[1, 0], [0, 1]], np.float32))
    exactness.check(np.array([[1, 0], [0.6, 0.8]], np.float32))
    exactness.check(np.array([[1, 0], [0, 1]], np.float32))
    assert exactness.max_error == pytest.approx(0.6)
    assert exactness.least_cosine == pytest.approx(0.8)
