"""What the parts of the retrieval engine hand each other: tokenized inputs in, rows of numbers out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.runtime import long_texts
from models.errors import RoundhouseError
from models.types import Task

Rows: TypeAlias = NDArray[np.float32]  # one row for each input: [n, dimension], [n, 1] for scores, [n, labels]
# One array for each input: a row of `Rows`; [tokens, dimension] of a multi-vector model; [entries, 2] of a sparse one,
# each entry a position in the vocabulary and its weight.
Outputs: TypeAlias = Rows | Sequence[NDArray[np.float32]]
Ids: TypeAlias = NDArray[np.int32]  # [tokens]; an eighth of the memory of a list of ints

MAX_TOKEN_ID = 2**31 - 1

OutputKind: TypeAlias = Literal["dense", "multi_vector", "sparse", "score", "labels"]

Side: TypeAlias = Literal["query", "document"]
Source: TypeAlias = str | tuple[str, str] | list[int]  # a text, a pair of texts, or the ids of tokens


class InvalidRequest(RoundhouseError):
    """A request that cannot be answered as it is; `param` names the field."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class TooLong(InvalidRequest):
    """An input of more tokens than the model takes, where the client did not ask for truncation."""

    code = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How the inputs of one request are tokenized.

    `limit` cuts an input to so many tokens, special ones included, on its right; None leaves it whole. `left` cuts on
    its left instead. `side` says what the texts are to a model that treats queries and documents differently: by its
    prompts, and, of a multi-vector model, by length and expansion too. `prompt` goes before every text in place of the
    one that the model has for `side`, or by default; None leaves it that one. Of a reranker made of a text generator it
    is the instruction. `document_limit` cuts the second text of a pair to so many of its own tokens before the two are
    put together.
    """

    limit: int | None = None
    left: bool = False
    prompt: str | None = None
    document_limit: int | None = None
    side: Side | None = None


WHOLE = EncodeOptions()


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One input, tokenized. `tokens` counts what the model reads, its special tokens included, without padding.

    `ids` and `type_ids` are what the tokenizer gave; both are None where the model's own module tokenizes `source`,
    by `options`. `most` is the longest that this input may be, where that is less than the model's `max_tokens`.
    """

    source: Source
    tokens: int
    ids: Ids | None = None
    type_ids: Ids | None = None
    options: EncodeOptions = WHOLE
    most: int | None = None


class InputEncoder(Protocol):
    """Tokenizes inputs and puts them together into the features that the model's first module takes."""

    max_tokens: int
    lock: threading.Lock  # held by whoever uses the tokenizer

    @property
    def splits_at_spaces(self) -> bool:
        """Whether of a text that is cut no more than a beginning need be tokenized (`long_texts`)."""
        ...

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        """Tokenizes each input. The caller holds `lock` where there are other threads.

        Raises InvalidRequest for options that the model cannot follow.
        """
        ...

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """The padded features of a batch. Takes `lock` itself where it uses the tokenizer."""
        ...


class Weights(Protocol):
    """A model's weights: on its device, or in host memory meanwhile."""

    def to_host(self) -> None:
        """Gives the device's memory back."""
        ...

    def to_device(self) -> None:
        """After a move that failed half-way, for want of memory, it may be tried again."""
        ...


class RetrievalModel(Protocol):
    """A loaded model. `forward` runs in the one worker thread, everything else in the one tokenizer thread."""

    task: Task
    encoder: InputEncoder
    width: int  # numbers for each input, or for each of its tokens
    tokenizer: Any
    weights: Weights
    kind: OutputKind
    prompts: Mapping[str, str]  # those that the model defines, by name: "query", "document"; may be empty
    labels: Sequence[str]  # of a classifier, in the order of a row's probabilities; else empty
    probabilities: bool  # whether a reranker's scores are from 0 to 1, a sigmoid or the like having been applied

    def forward(self, batch: Sequence[Encoded]) -> Outputs:
        """One forward pass: one array for each input, in their order."""
        ...


def encode_within(
    encoder: InputEncoder,
    sources: Sequence[Source],
    options: EncodeOptions,
    param: str,
    *,
    truncate: bool,
    first_index: int = 0,
) -> list[Encoded]:
    """Tokenizes `sources`; those over `options.limit` (None: the model's own) are cut to it, or refused.

    `first_index` is the place of the first of them in the whole request. Raises TooLong, naming the first input that
    is too long and its count of tokens, and InvalidRequest for ids that are none.
    """
    for index, source in enumerate(sources, start=first_index):
        if isinstance(source, list) and not all(map(is_token_id, source)):
            raise InvalidRequest(f"{param}[{index}] must hold only token ids: integers from 0.", param=param)
    limit = options.limit or encoder.max_tokens
    read = _beginnings(encoder, sources, options, limit) if truncate else list(sources)
    encoded = _encoded(encoder, read, replace(options, limit=None), param)
    for index, source in enumerate(sources):
        if read[index] is not source and encoded[index].tokens <= long_texts.needed_tokens(source, limit):
            [encoded[index]] = _encoded(encoder, [source], replace(options, limit=None), param)
            read[index] = source
    over = [index for index, item in enumerate(encoded) if item.tokens > min(limit, item.most or limit)]
    if not over:
        return encoded
    if not truncate:
        first = encoded[over[0]]
        most = min(limit, first.most or limit)
        raise TooLong(
            f"{param}[{first_index + over[0]}] has {first.tokens} tokens{_counted(first.source)}, but this model takes "
            f"at most {most}. Send less, or ask for truncation (truncate).",
            param=param,
        )
    cut = _encoded(encoder, [read[index] for index in over], replace(options, limit=limit), param)
    for index, item in zip(over, cut, strict=True):
        encoded[index] = item
    return encoded


def _beginnings(encoder: InputEncoder, sources: Sequence[Source], options: EncodeOptions, limit: int) -> list[Source]:
    """What need be tokenized of each of `sources`: of one that is far over `limit`, its beginning."""
    read = list(sources)
    if options.left or options.document_limit is not None:
        return read
    for index, source in enumerate(sources):
        if long_texts.is_long(source) and encoder.splits_at_spaces:
            read[index] = long_texts.beginning(source, long_texts.needed_tokens(source, limit))
    return read


def is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID


def _encoded(encoder: InputEncoder, sources: Sequence[Source], options: EncodeOptions, param: str) -> list[Encoded]:
    """As `encoder` has it; what it refuses without naming a field is the fault of `param`."""
    try:
        return encoder.encode(sources, options)
    except InvalidRequest as error:
        if error.param is not None:
            raise
        raise InvalidRequest(f"{param}: {error.message}", param=param) from None


def _counted(source: Source) -> str:
    return " (both texts of the pair)" if isinstance(source, tuple) else ""
