"""Large JSON documents, decoded in pieces: what they say is what orjson says, and others get their turn meanwhile."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import orjson
import pytest

from utils import json_pieces

TEXTS = ("", "a", '"', "\\", '\\"', "[1,", "]}", ',"', "жд", "x" * 30)
SPOILING = b'[]{},:"\\ 1a\xff'


def value(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(9)
    if kind < 3 or depth > 4:
        return random.choice([*TEXTS, 1, -2.5, True, None])
    if kind < 7:
        return [value(random, depth + 1) for _ in range(random.randrange(8))]
    return {random.choice(TEXTS): value(random, depth + 1) for _ in range(random.randrange(4))}


def spoiled(random: Random, raw: bytes) -> bytes:
    place = random.randrange(len(raw))
    return raw[:place] + bytes([random.choice(SPOILING)]) + raw[place + random.randrange(2) :]


def said_by_orjson(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return str(error)


async def said(raw: bytes) -> Any:
    try:
        return (await json_pieces.decode(raw)).document
    except orjson.JSONDecodeError as error:
        return str(error)


async def test_pieces_say_what_the_whole_says_be_it_json_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(5)
    monkeypatch.setattr(json_pieces, "WHOLE_BYTES", 0)
    for _ in range(500):
        monkeypatch.setattr(json_pieces, "PIECE_BYTES", random.choice([1, 2, 5, 20, 60]))
        document = {name: value(random) for name in random.sample(["model", "input", "e", '"'], 3)}
        written = json.dumps(document, indent=random.choice([None, 1]), ensure_ascii=random.random() < 0.5).encode()
        for raw in (written, spoiled(random, written), orjson.dumps(value(random))):
            assert await said(raw) == said_by_orjson(raw), raw
    for depth in range(1020, 1026):  # around orjson's limit
        raw = b'{"a":%b}' % (b"[" * depth + b"]" * depth)
        assert isinstance(await said(raw), str) == isinstance(said_by_orjson(raw), str), depth


@pytest.mark.parametrize(
    "entries",
    [["dog " * 1000] * 1500, [list(range(1000))] * 1500, list(range(1_500_000)), [{"text": 'a "dog"' * 600}] * 1500],
    ids=["texts", "lists of numbers", "numbers", "objects"],
)
async def test_others_get_their_turn_with_each_piece(entries: list[Any]) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    raw = orjson.dumps({"model": "m", "input": entries, "dimensions": 3})
    task = asyncio.create_task(other())
    assert (await json_pieces.decode(raw)).document == {"model": "m", "input": entries, "dimensions": 3}
    task.cancel()
    assert turns >= len(raw) // (2 * json_pieces.PIECE_BYTES)


async def test_a_document_of_too_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(json_pieces, "MOST_PARTS", 1000)
    with pytest.raises(json_pieces.TooManyParts):
        await json_pieces.decode(orjson.dumps({"input": [[]] * 1000}))
