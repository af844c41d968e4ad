"""Large answers are written in pieces, and are the same JSON as if written at once."""

from __future__ import annotations

import base64
import json

import numpy as np

from engines.runtime.answers import PIECE_BYTES, base64_of, list_pieces, object_pieces, rows_pieces

ROWS = np.random.default_rng(4).standard_normal((300, 384), dtype=np.float32)


def test_rows_in_pieces_are_the_same_numbers_to_the_last_bit() -> None:
    pieces = list(rows_pieces(ROWS))
    assert len(pieces) > 1
    assert all(len(piece) < PIECE_BYTES + 16 * 384 for piece in pieces)
    assert np.array_equal(np.array(json.loads(b"".join(pieces)), dtype=np.float32), ROWS)


def test_a_small_answer_is_one_piece() -> None:
    pieces = list(object_pieces({"object": "list"}, "data", [b"1", b"2"], {"usage": {"total_tokens": 3}}))
    assert pieces == [b'{"object":"list","data":[1,2],"usage":{"total_tokens":3}}']


def test_an_object_needs_nothing_around_its_list_and_nothing_in_it() -> None:
    assert b"".join(object_pieces({}, "results", [], {})) == b'{"results":[]}'
    assert b"".join(list_pieces([], b"[", b"]")) == b"[]"


def test_entries_as_large_as_a_piece_stand_between_commas() -> None:
    entry = b'"' + b"x" * PIECE_BYTES + b'"'
    pieces = list(list_pieces([entry] * 3, b"[", b"]"))
    assert len(pieces) == 3
    assert json.loads(b"".join(pieces)) == [json.loads(entry)] * 3


def test_base64_is_of_little_endian_float32_whatever_the_array_is_a_view_of() -> None:
    for row in (ROWS[0], ROWS[:, 0], ROWS[0].astype(">f4")):
        assert np.array_equal(np.frombuffer(base64.b64decode(base64_of(row)), dtype="<f4"), row)
