"""Two ways to turn inputs into a model's features, with the same result as sentence-transformers' own.

`TokenizerEncoder` calls the tokenizer itself, so that each input is tokenized once, counted exactly, and batched by its
length; it serves every model whose first module is a plain text Transformer. `ModuleEncoder` leaves it to the model's
own module (chat templates, static embeddings, pooling that leaves out the prompt, late interaction), at the price of
tokenizing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SparseStaticEmbedding
from transformers import PreTrainedTokenizerBase

from engines.runtime import long_texts
from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, Ids, InputEncoder, InvalidRequest, Side, Source
from engines.runtime.transformers_args import STATIC_MAX_TOKENS, UNDECLARED_MAX_TOKENS

Pair = tuple[str, str]
CUTS_ENDS = "truncation_side (or truncate: START): this model cuts its inputs at their end only."
PLAIN_TASKS = ("feature-extraction", "sequence-classification", "fill-mask")
# Where sentence-transformers' encode_query and encode_document look for their prompt.
SIDE_PROMPTS: Mapping[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


class Prompts:
    """What goes before the texts of a request: what it says, or what the model has for queries, documents, or both."""

    def __init__(self, model: Any) -> None:
        self.named: Mapping[str, str] = dict(model.prompts)
        name = model.default_prompt_name
        self.default = (self.named.get(name) if name is not None else None) or ""

    def of(self, options: EncodeOptions) -> str:
        if options.prompt is not None:
            return options.prompt
        names = SIDE_PROMPTS[options.side] if options.side is not None else ()
        return next((self.named[name] for name in names if name in self.named), self.default)

    def offered(self) -> Mapping[str, str]:
        """Those that a client may ask for. An empty one says something only where it replaces a default."""
        return {name: text for name, text in self.named.items() if text or self.default}


def make_encoder(model: Any, max_model_len: int | None) -> InputEncoder:
    """The encoder for a SentenceTransformer, CrossEncoder or SparseEncoder."""
    require_vocabulary(model.tokenizer)
    declared = STATIC_MAX_TOKENS if isinstance(model[0], StaticEmbedding) else model.max_seq_length
    max_tokens = longest_input(declared, max_model_len)
    prompts = Prompts(model)
    return (
        TokenizerEncoder(model, max_tokens, prompts) if _is_plain(model) else ModuleEncoder(model, max_tokens, prompts)
    )


def read_as_text(model: Any, *, pairs: bool) -> None:
    """Of a folder without modules.json: a chat template that is for chats says nothing of how texts are embedded,
    scored or classified, so that they go to the tokenizer as they are. With `pairs`, one that knows queries and
    documents stays: it is for scoring."""
    first = model[0]
    if not isinstance(first, Transformer) or not {"text", "message"} <= set(first.modality_config):
        return
    if not pairs or first.input_formatter.pair_roles_failure({}) is not None:
        first.modality_config = {"text": first.modality_config["text"]}


def longest_input(declared: object, max_model_len: int | None) -> int:
    """In tokens; `declared` is what the model says, which may be nothing, or tokenizers' 1e30."""
    most = declared if isinstance(declared, int) and 0 < declared < UNDECLARED_MAX_TOKENS * 128 else None
    return min(most or UNDECLARED_MAX_TOKENS, max_model_len or UNDECLARED_MAX_TOKENS * 128)


def require_vocabulary(tokenizer: Any) -> None:
    """Without its files transformers makes a tokenizer that knows special tokens only, and every text is unknown."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError("the folder has no tokenizer: tokenizer.json, vocab.txt or a .model file is missing")


def same_options(batch: Sequence[Encoded]) -> list[list[int]]:
    """Places of the inputs that may share a forward pass: where the module tokenizes, those of equal options."""
    places: dict[EncodeOptions | Side | None, list[int]] = {}
    for place, item in enumerate(batch):
        places.setdefault(item.options if item.ids is None else item.options.side, []).append(place)
    return list(places.values())


def declared_length(module: Any, side: Side | None) -> int | None:
    """Tokens that an input of `side` may have at most where the Transformer `module` says so."""
    length = getattr(module, f"{side}_length", None) if side is not None else None
    return length if isinstance(length, int) else None


def within_side(module: Any, options: EncodeOptions) -> tuple[EncodeOptions, int | None]:
    """`options` that cut to the length of their side too, and that length."""
    most = declared_length(module, options.side)
    if most is not None and options.limit is not None:
        options = replace(options, limit=min(most, options.limit))
    return options, most


class TextCutter:
    """What every encoder has: the tokenizer, and how texts that are too long for it are told beforehand."""

    def __init__(self, tokenizer: Any, max_tokens: int, *, cuts: bool = True) -> None:
        """`cuts`: whether the model's own module, or the encoder, cuts at the tokens that it is told."""
        self.max_tokens = max_tokens
        self.lock = threading.Lock()
        self._tokenizer = tokenizer
        self._cuts = cuts

    @cached_property
    def splits_at_spaces(self) -> bool:
        return self._cuts and long_texts.splits_at_spaces(self._tokenizer)

    def cut_documents(self, sources: Sequence[Source], limit: int | None) -> Sequence[Source]:
        """`sources` with the second text of each pair ended after `limit` of its tokens.

        It ends before a character that has tokens on both sides of the limit.
        """
        if limit is None or not sources or not isinstance(sources[0], tuple):
            return sources
        if not getattr(self._tokenizer, "is_fast", False):
            raise InvalidRequest(
                "max_tokens_per_doc: this model's tokenizer cannot cut documents.", param="max_tokens_per_doc"
            )
        pairs = [source for source in sources if isinstance(source, tuple)]
        read = [self._beginning(pair, limit) for pair in pairs]
        cut = self._cut([document for _, document in read], limit)
        for index, pair in enumerate(pairs):
            if cut[index] is None and read[index] is not pair:
                [cut[index]] = self._cut([pair[1]], limit)
        return [(pair[0], pair[1] if text is None else text) for pair, text in zip(pairs, cut, strict=True)]

    def _beginning(self, pair: Pair, limit: int) -> Pair:
        if not long_texts.is_long(pair) or not self.splits_at_spaces:
            return pair
        begun = long_texts.beginning(pair, limit + long_texts.MARGIN_TOKENS)
        return begun if isinstance(begun, tuple) else pair

    def _cut(self, documents: list[str], limit: int) -> list[str | None]:
        """What each has within `limit` tokens; None where that is all of it."""
        with cutting(self._tokenizer, "right"):
            encoded = self._tokenizer(
                documents,
                add_special_tokens=False,
                truncation=True,
                max_length=limit + 1,
                return_attention_mask=False,
                return_offsets_mapping=True,
                verbose=False,
            )
        return [
            document[: min(offsets[limit - 1][1], offsets[limit][0])] if len(offsets) > limit else None
            for document, offsets in zip(documents, encoded["offset_mapping"], strict=True)
        ]


def require_room(tokenizer: Any, sources: Sequence[Source], limit: int | None) -> None:
    """Raises InvalidRequest for a limit below the special tokens: such a one leaves inputs as long as they are."""
    if limit is None or not sources:
        return
    special = tokenizer.num_special_tokens_to_add(pair=isinstance(sources[0], tuple))
    if limit < special:
        raise InvalidRequest(
            f"truncate_prompt_tokens (max_tokens on /v2/embed) must be at least {special} here, the special tokens of "
            f"an input, not {limit}.",
            param="truncate_prompt_tokens",
        )


def longest_first(sequences: Sequence[int | None], limit: int, *, left: bool) -> NDArray[np.bool_]:
    """Which of an input's tokens are kept when it is cut to `limit`, as tokenizers' strategy of that name does.

    `sequences` says of each token whether it is of the first text (0), the second (1), or special (None). tokenizers
    itself makes an object of each pair of what it cuts off both texts: 12 GB for a query of 10 KB and a document of
    160 KB cut to 64 tokens.
    """
    of = np.array([-1 if sequence is None else sequence for sequence in sequences])
    places = [np.flatnonzero(of == text) for text in (0, 1)]
    room = limit - int((of < 0).sum())
    shorter, longer = sorted(map(len, places))
    if 2 * shorter <= room:
        longer = min(longer, room - shorter)
    else:
        shorter, longer = room // 2, room - room // 2
    counts = (shorter, longer) if len(places[0]) <= len(places[1]) else (longer, shorter)
    kept = of < 0
    for place, count in zip(places, counts, strict=True):
        kept[place[len(place) - count :] if left else place[:count]] = True
    return kept


@contextmanager
def cutting(tokenizer: Any, side: str) -> Iterator[None]:
    """Within, `tokenizer` cuts what is too long on that side: "left", "right"."""
    own = tokenizer.truncation_side
    tokenizer.truncation_side = side
    try:
        yield
    finally:
        tokenizer.truncation_side = own


def cutting_as(tokenizer: Any, options: EncodeOptions) -> AbstractContextManager[None]:
    """As `options` say; else as the tokenizer does."""
    return cutting(tokenizer, "left") if options.left else nullcontext()


def _is_plain(model: Any) -> bool:
    first = model[0]
    if type(first) not in (Transformer, MLMTransformer) or first.transformer_task not in PLAIN_TASKS:
        return False
    if set(first.modality_config) != {"text"} or first.processing_kwargs or first.can_flatten_inputs:
        return False
    if not getattr(first.tokenizer, "is_fast", False):
        return False
    return all(getattr(module, "include_prompt", True) for module in model)


class Padding:
    """Puts rows of token ids together, filled up on the side where the tokenizer pads."""

    def __init__(self, tokenizer: Any, *, left: bool) -> None:
        self._pad_id = tokenizer.pad_token_id or 0
        self._pad_type_id = getattr(tokenizer, "pad_token_type_id", 0)
        self._left = left

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and, where an input has them, `token_type_ids`: [batch, longest]."""
        ones = [np.ones(item.tokens, dtype=np.int32) for item in batch]
        features: dict[str, Any] = {
            "input_ids": self._pad([item.ids for item in batch], ones, self._pad_id),
            "attention_mask": self._pad(ones, ones, 0),
        }
        if any(item.type_ids is not None for item in batch):
            features["token_type_ids"] = self._pad([item.type_ids for item in batch], ones, self._pad_type_id)
        return features

    def _pad(self, rows: Sequence[Ids | None], ones: Sequence[Ids], value: int) -> torch.Tensor:
        """A row of None is zeros."""
        longest = max(len(row) for row in ones)
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for place, row, one in zip(padded, rows, ones, strict=True):
            span = slice(longest - len(one), None) if self._left else slice(len(one))
            place[span] = one - 1 if row is None else row
        return torch.from_numpy(padded)


class TokenizerEncoder(TextCutter):
    """Tokenizes with the model's tokenizer and pads here."""

    def __init__(self, model: Any, max_tokens: int, prompts: Prompts) -> None:
        super().__init__(model.tokenizer, max_tokens)
        self._prompts = prompts
        self._first = model[0]
        self._padding = Padding(model.tokenizer, left=model.tokenizer.padding_side == "left")
        self._vocabulary = model[0].model.get_input_embeddings().weight.shape[0]

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        options, most = within_side(self._first, options)
        if sources and isinstance(sources[0], list):
            return [self._encode_ids(source, options, most) for source in sources]
        if options.prompt is not None and sources and isinstance(sources[0], tuple):
            raise InvalidRequest(
                "instruction is for rerankers made of a text generator; this one was trained without instructions.",
                param="instruction",
            )
        return self._encode_texts(self.cut_documents(sources, options.document_limit), options, most)

    def _encode_ids(self, source: Source, options: EncodeOptions, most: int | None) -> Encoded:
        """Nothing goes before ids: whoever made them knows what the model reads."""
        assert isinstance(source, list)
        ids = source
        if options.limit is not None and len(ids) > options.limit:
            ids = ids[-options.limit :] if options.left else ids[: options.limit]
        if max(ids) >= self._vocabulary:
            raise InvalidRequest(
                f"Token id {max(ids)} is not in this model's vocabulary of {self._vocabulary}. Token ids must come "
                "from this model's own tokenizer (POST /tokenize); send text where they come from another."
            )
        return Encoded(source, len(ids), np.asarray(ids, dtype=np.int32), most=most)

    def _encode_texts(self, sources: Sequence[Source], options: EncodeOptions, most: int | None) -> list[Encoded]:
        prompt = self._prompts.of(options)
        texts = [prompt + (source[0] if isinstance(source, tuple) else str(source)) for source in sources]
        pairs = [source[1] for source in sources if isinstance(source, tuple)] or None
        require_room(self._tokenizer, sources, options.limit)
        output = self._tokenizer(texts, pairs, truncation=False, return_attention_mask=False, verbose=False)
        type_ids = output.get("token_type_ids")
        left = options.left or self._tokenizer.truncation_side == "left"
        encoded: list[Encoded] = []
        for index, (source, row) in enumerate(zip(sources, output["input_ids"], strict=True)):
            ids, types = np.asarray(row, np.int32), np.asarray(type_ids[index], np.int32) if type_ids else None
            if options.limit is not None and len(ids) > options.limit:
                kept = longest_first(output.sequence_ids(index), options.limit, left=left)
                ids, types = ids[kept], types if types is None else types[kept]
            encoded.append(Encoded(source, len(ids), ids, types, most=most))
        return encoded

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        return {**self._padding.collate(batch), "modality": "text"}


class ModuleEncoder(TextCutter):
    """Leaves tokenizing to the model's own module; here inputs are only counted."""

    def __init__(self, model: Any, max_tokens: int, prompts: Prompts) -> None:
        super().__init__(model.tokenizer, max_tokens, cuts=not isinstance(model[0], StaticEmbedding))
        self._model = model
        self._prompts = prompts
        self._transformer = model[0] if isinstance(model[0], Transformer) else None
        self._is_text = self._transformer is not None and set(self._transformer.modality_config) == {"text"}
        self._weighs_tokens = isinstance(model[0], SparseStaticEmbedding)
        if self._weighs_tokens:
            model.tokenizer.model_max_length = max_tokens  # there it cuts, whatever it is told

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        if sources and isinstance(sources[0], list):
            raise InvalidRequest("This model takes texts, not token ids.")
        if self._transformer is None and options.limit is not None and options.limit < self.max_tokens:
            raise InvalidRequest(
                f"This model cuts its inputs at {self.max_tokens} tokens only; set truncate_prompt_tokens to -1.",
                param="truncate_prompt_tokens",
            )
        if self._is_text:
            require_room(self._model.tokenizer, sources, options.limit)
        if options.left and not self._is_text:
            raise InvalidRequest(CUTS_ENDS, param="truncation_side")
        sources = self.cut_documents(sources, self._document_limit(options))
        counts = self._count_texts(sources, options) if self._is_text else self._count_each(sources, options)
        if not self._cuts and options.limit is not None and max(counts) > options.limit:
            raise InvalidRequest(f"This model cannot cut its inputs; send at most {options.limit} tokens.")
        return [self._encoded(source, count, options) for source, count in zip(sources, counts, strict=True)]

    def _document_limit(self, options: EncodeOptions) -> int | None:
        """Of pairs that the module will cut, documents are cut beforehand: see `longest_first`. Where the query is too
        long as well, of an odd number of tokens the query then gets one more than half."""
        if not self._is_text or options.limit is None or not getattr(self._tokenizer, "is_fast", False):
            return options.document_limit
        most = options.limit + long_texts.MARGIN_TOKENS
        return min(options.document_limit or most, most)

    def _encoded(self, source: Source, count: int, options: EncodeOptions) -> Encoded:
        options, most = within_side(self._transformer, options)
        if self._cuts and options.limit is not None:
            count = min(count, options.limit)
        return Encoded(source, count, options=options, most=most)

    def _count_texts(self, sources: Sequence[Source], options: EncodeOptions) -> list[int]:
        prompt = self._prompts.of(options)
        texts = [prompt + (source[0] if isinstance(source, tuple) else str(source)) for source in sources]
        pairs = [source[1] for source in sources if isinstance(source, tuple)] or None
        encoded = self._model.tokenizer(texts, pairs, truncation=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def _count_each(self, sources: Sequence[Source], options: EncodeOptions) -> list[int]:
        whole = {"processing_kwargs": {"text": {"truncation": False}}} if self._transformer is not None else {}
        prompt = self._prompts.of(options)
        if self._weighs_tokens:
            texts = [prompt + str(source) for source in sources]
            return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        return [
            int(self._model.preprocess([source], prompt=prompt, **whole)["input_ids"].numel()) for source in sources
        ]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Of inputs with the same options."""
        options = batch[0].options
        extra: dict[str, Any] = {}
        if self._transformer is not None and options.limit is not None:
            extra["processing_kwargs"] = {"text": {"max_length": options.limit}}
        if options.side is not None:
            extra["task"] = options.side
        with self.lock, cutting_as(self._model.tokenizer, options):
            features: dict[str, Any] = self._model.preprocess(
                [item.source for item in batch], prompt=self._prompts.of(options), **extra
            )
        return features
