"""Long lists of numbers in a KServe request's JSON: read piece by piece, and to the same end as in one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import orjson
import pytest

from app.errors import InvalidRequest
from app.kserve import number_lists
from app.kserve.infer_request import InferRequest, parse
from utils import kserve

COUNT = 300_000
CASES = 1500


def body(data: Any, datatype: str = "FP32", **more: Any) -> bytes:
    shape = list(np.shape(data))
    entry = {"name": "x", "datatype": datatype, "shape": shape, "data": data} | more
    return orjson.dumps({"inputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.mark.parametrize("shape", [(COUNT,), (COUNT // 100, 100), (COUNT // 100, 50, 2)])
def test_no_more_than_a_piece_is_parsed_at_a_time(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).random(shape, np.float32)
    raw, sizes, loads = body(values), [], orjson.loads
    monkeypatch.setattr(orjson, "loads", lambda text: sizes.append(len(text)) or loads(text))
    (given,) = parse(raw, None).inputs
    assert bytes(given.raw) == values.tobytes()
    assert sum(sizes) >= len(raw) - len(sizes)
    assert max(sizes) < kserve.PIECE_BYTES + 1000


def outcome(raw: bytes) -> InferRequest | None:
    """None: refused."""
    try:
        return parse(raw, None)
    except InvalidRequest:
        return None


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_lists, "LONG_BYTES", 1)
    monkeypatch.setattr(kserve, "PIECE_BYTES", 6)


CHARACTERS = b'[],,, 1.5e"{}:datrue-'


def test_in_pieces_a_body_is_read_or_refused_as_it_is_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    seeds = [
        body([[1, 2], [3, 4]], "INT8"),
        body([1, 2.5, 3, 10, -7.25, 8]),
        body([], "INT8"),
        body([[[True], [False]], [[True], [True]]], "BOOL"),
        body([1, 2, 3, 4], "INT8", parameters={"data": [1, 2, 3], "note": 'a "data": [1,2,3] b'}),
        body([1, 2, 3, 4], "UINT64", parameters={"data": [[1], 2]}).replace(b":", b" : ").replace(b",", b" ,\n"),
    ]
    mutants = list(seeds)
    for _ in range(CASES):
        raw = bytearray(chance.choice(seeds))
        for _ in range(chance.choice([1, 1, 2])):
            at = chance.randrange(raw.index(b"data") - 2, len(raw))
            raw[at : at + chance.choice([0, 1])] = bytes([chance.choice(CHARACTERS)]) * chance.choice([0, 1, 1])
        mutants.append(bytes(raw))
    expected = [outcome(raw) for raw in mutants]
    assert all(expected[: len(seeds)])
    assert sum(one is not None for one in expected) > CASES / 10
    small_pieces(monkeypatch)
    for raw, one in zip(mutants, expected, strict=True):
        assert outcome(raw) == one, raw


def test_of_very_many_lists_no_more_than_some_are_looked_at() -> None:
    lists = number_lists.take_out(b'"data":[' * 100_000 + body(list(range(COUNT))))
    assert not lists.spans


def test_what_stands_for_a_list_is_in_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch)
    request = parse(body([1, 2, 3], parameters={"data": [4, 5, 6]}), None)
    assert request.inputs[0].parameters == {"data": [4, 5, 6]}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            body([1, 2, 3] * 9)[:-3] + b",]}]}",
            "is not valid JSON: unexpected character, expected a string key: line 1 column 118",
        ),
        (body([1, 2, 3] * 9)[:-1], "is not valid JSON: unexpected end of data: line 1 column 1"),
        (body([1, 2, 3] * 9, shape=[26]), "holds 27 elements, and its shape [26] has 26"),
        (body([1, 2, None] * 9), "must hold numbers, as FP32 does"),
        (body([1, 2, 1e39] * 9), "holds numbers beyond those of FP32"),
        (body([[[1]], [[2]]], shape=[2]), "is nested more deeply than its shape"),
        (body([1, 2, 3], "BYTES"), "must hold strings, not int"),
        (body(list(range(50))), "The body holds more than 40 values."),
        (body([[1]] * 20), "The body holds more than 20 lists and objects."),
    ],
)
def test_errors_in_long_lists_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch, raw: bytes, told: str) -> None:
    small_pieces(monkeypatch)
    monkeypatch.setattr(number_lists, "MAX_COMMAS", 40)
    monkeypatch.setattr(number_lists, "MAX_CONTAINERS", 20)
    with pytest.raises(InvalidRequest) as refused:
        parse(raw, None)
    assert told in refused.value.message
