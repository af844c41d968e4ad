from __future__ import annotations

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.kserve import DTYPES, SLICE, TensorError, check_raw, from_json, from_values, split_bytes, to_json

WHOLE = [name for name, dtype in DTYPES.items() if dtype.kind in "iu" and name != "BF16"]
FLOATS = {"FP16": 16, "FP32": 32, "FP64": 64}


def through_json(datatype: str, raw: bytes) -> bytes:
    """What a client has that got `raw` as JSON and sends it back."""
    told = orjson.dumps(to_json(datatype, raw), option=orjson.OPT_SERIALIZE_NUMPY)
    values = orjson.loads(told)
    return from_json(datatype, [len(values)], values)


@given(st.sampled_from(WHOLE), st.data())
def test_whole_numbers_stay_the_same_through_json(datatype: str, data: st.DataObject) -> None:
    limits = np.iinfo(DTYPES[datatype])
    values = data.draw(st.lists(st.integers(int(limits.min), int(limits.max)), max_size=8))
    raw = np.array(values, DTYPES[datatype]).tobytes()
    assert from_json(datatype, [len(values)], values) == through_json(datatype, raw) == raw


@given(st.sampled_from(list(FLOATS)), st.data())
def test_floating_numbers_stay_the_same_through_json(datatype: str, data: st.DataObject) -> None:
    finite = st.floats(width=FLOATS[datatype], allow_nan=False, allow_infinity=False, allow_subnormal=False)  # type: ignore[arg-type]
    raw = np.array(data.draw(st.lists(finite, max_size=8)), DTYPES[datatype]).tobytes()
    assert through_json(datatype, raw) == raw


@given(
    st.lists(
        st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127, allow_subnormal=False), min_size=1, max_size=8
    )
)
def test_bf16_is_rounded_as_elsewhere_and_stays_the_same_through_json(values: list[float]) -> None:
    raw = np.array(values, np.float32).astype(ml_dtypes.bfloat16).tobytes()
    assert from_json("BF16", [len(values)], values) == raw
    assert through_json("BF16", raw) == raw


@given(st.lists(st.text("aß€😀\x00\n", max_size=8), max_size=8))
def test_strings_stay_the_same_through_json(values: list[str]) -> None:
    raw = from_values("BYTES", [value.encode() for value in values])
    assert through_json("BYTES", raw) == raw
    assert [element.decode() for element in split_bytes(raw)] == values


def test_lists_are_taken_flat_or_nested_and_of_any_length() -> None:
    assert from_json("INT8", [2, 2], [[1, 2], [3, 4]]) == from_json("INT8", [2, 2], [1, 2, 3, 4]) == bytes([1, 2, 3, 4])
    assert from_json("INT8", [], [5]) == b"\x05"
    assert from_json("FP32", [0, 3], []) == b""
    count = 2 * SLICE + 1
    assert from_json("INT32", [count], list(range(count))) == np.arange(count, dtype=np.int32).tobytes()


@pytest.mark.parametrize(
    ("datatype", "data", "told"),
    [
        ("INT8", [1.5], "whole numbers"),
        ("INT8", [True], "whole numbers"),
        ("INT8", [128], "beyond those of INT8"),
        ("UINT8", [-1], "beyond those of UINT8"),
        ("UINT64", [2**64], "beyond those of UINT64"),
        ("BOOL", [1], "true and false"),
        ("FP16", [70000], "beyond those of FP16"),
        ("BF16", [3.4e38], "beyond those of BF16"),
        ("FP32", [None], "numbers"),
        ("FP32", ["1"], "numbers"),
        ("BYTES", [1], "strings, not int"),
        ("INT8", [1, 2], "2 elements, and its shape [1] has 1"),
        ("INT8", [[1]], None),
        ("INT8", [[[1]]], "nested more deeply"),
    ],
)
def test_what_a_datatype_does_not_hold_is_refused(datatype: str, data: list[object], told: str | None) -> None:
    shape = [1, 1] if data in ([[1]], [[[1]]]) else [1]
    if told is None:
        assert from_json(datatype, shape, data) == b"\x01"
        return
    with pytest.raises(TensorError, match=told.replace("[", r"\[")):
        from_json(datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "raw", "told"),
    [
        ("INT32", b"12345678" * 2, "holds 16 bytes, and its shape .2. of INT32 needs 8"),
        ("BYTES", b"\x01\x00\x00\x00a", "holds 1 elements"),
        ("BYTES", b"\x01\x00\x00\x00a\x09\x00\x00\x00b", "an element of 9 bytes, of which 1 are there"),
        ("BYTES", b"\x01\x00\x00\x00a\x01", "ends within the length"),
    ],
)
def test_binary_tensors_have_exactly_the_elements_of_their_shape(datatype: str, raw: bytes, told: str) -> None:
    with pytest.raises(TensorError, match=told):
        check_raw(datatype, [2], raw)


def test_bytes_that_no_json_can_hold_are_refused() -> None:
    with pytest.raises(TensorError, match="ask for it as binary_data"):
        to_json("BYTES", from_values("BYTES", [b"\xff"]))
