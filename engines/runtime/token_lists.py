"""The tokens of texts one by one, as TEI's /tokenize tells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

TOKENS_AT_ONCE = 4096  # as Python objects, each 20 times as large as it is in JSON

Token: TypeAlias = tuple[int, str, bool, tuple[int, int] | None]  # id, text, special, characters of the input


def vocabulary_of(tokenizer: Any) -> int:
    """Static embeddings have a tokenizer of the tokenizers library itself, all others one of transformers."""
    return len(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else int(tokenizer.get_vocab_size())


def ids_of(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """`special`: with the tokens that the model has around a text."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return [*tokenizer.encode(text, add_special_tokens=special).ids]
    return [*tokenizer.encode(text, add_special_tokens=special, verbose=False)]


def strings_of(tokenizer: Any, ids: list[int]) -> list[str]:
    """As they stand in the vocabulary."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return [tokenizer.id_to_token(token) for token in ids]
    return [*tokenizer.convert_ids_to_tokens(ids)]


def token_lists(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[bytes]:
    """For each text a JSON list of `{"id", "text", "special", "start", "stop"}`, special ones as `special` says.

    `start` and `stop` count bytes of UTF-8, as TEI does; both are null for special tokens, and for all of a tokenizer
    that is written in Python and does not know its tokens' places. A character of several tokens is in each of them.
    """
    return [
        _json(tokens, _bytes_before(text))
        for text, tokens in zip(texts, _tokens(tokenizer, texts, special), strict=True)
    ]


def _tokens(tokenizer: Any, texts: Sequence[str], special: bool) -> Iterator[Iterator[Token]]:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        output = tokenizer([*texts], add_special_tokens=special, truncation=False, verbose=False)
        if output.encodings is None:
            known = set(tokenizer.all_special_ids)
            for ids in output["input_ids"]:
                strings = strings_of(tokenizer, ids)
                yield ((id_, string, id_ in known, None) for id_, string in zip(ids, strings, strict=True))
            return
        encodings = output.encodings
    else:
        encodings = tokenizer.encode_batch([*texts], add_special_tokens=special)
    for text, encoding in zip(texts, encodings, strict=True):
        yield _found(text, encoding)


def _found(text: str, encoding: Any) -> Iterator[Token]:
    places = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    for id_, string, special, (start, stop) in places:
        yield (id_, string, True, None) if special else (id_, text[start:stop], False, (start, stop))


def _json(tokens: Iterator[Token], before: NDArray[np.int64] | None) -> bytes:
    parts: list[bytes] = []
    while some := [*islice(tokens, TOKENS_AT_ONCE)]:
        parts.append(orjson.dumps([_entry(token, before) for token in some])[1:-1])
    return b"[" + b",".join(parts) + b"]"


def _entry(token: Token, before: NDArray[np.int64] | None) -> dict[str, Any]:
    id_, text, special, place = token
    start, stop = place or (None, None)
    if place is not None and before is not None:
        start, stop = int(before[place[0]]), int(before[place[1]])
    return {"id": id_, "text": text, "special": special, "start": start, "stop": stop}


def _bytes_before(text: str) -> NDArray[np.int64] | None:
    """How many bytes stand before each character of `text`, and before its end; None where each has one."""
    if text.isascii():
        return None
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    return np.concatenate(([0], np.cumsum(sizes)))
