"""Two ways to turn inputs into a model's features, with the same result as sentence-transformers' own.

`TokenizerEncoder` calls the tokenizer itself, so that each input is tokenized once, counted exactly, and batched by its
length; it serves every model whose first module is a plain text Transformer. `ModuleEncoder` leaves it to the model's
own module (chat templates, static embeddings, routers), at the price of tokenizing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedTokenizerBase

from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, Ids, InputEncoder, InvalidRequest, Source

UNDECLARED_MAX_TOKENS = 8192  # for models that declare no limit: attention over a 1 MB text would take all memory
PLAIN_TASKS = ("feature-extraction", "sequence-classification")


def make_encoder(model: Any, max_model_len: int | None, prompt: str | None) -> InputEncoder:
    """The encoder for a SentenceTransformer or CrossEncoder; `prompt` is the model's default one."""
    _require_vocabulary(model)
    declared = model.max_seq_length
    max_tokens = declared if isinstance(declared, int) and 0 < declared < UNDECLARED_MAX_TOKENS * 128 else None
    max_tokens = min(max_tokens or UNDECLARED_MAX_TOKENS, max_model_len or UNDECLARED_MAX_TOKENS * 128)
    if _is_plain(model, prompt):
        return TokenizerEncoder(model, max_tokens, prompt)
    return ModuleEncoder(model, max_tokens, prompt)


def _require_vocabulary(model: Any) -> None:
    """Without its files transformers makes a tokenizer that knows special tokens only, and every text is unknown."""
    tokenizer = model.tokenizer
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError("the folder has no tokenizer: tokenizer.json, vocab.txt or a .model file is missing")


def _is_plain(model: Any, prompt: str | None) -> bool:
    first = model[0]
    if type(first) is not Transformer or first.transformer_task not in PLAIN_TASKS:
        return False
    if set(first.modality_config) != {"text"} or first.processing_kwargs or first.can_flatten_inputs:
        return False
    if not getattr(first.tokenizer, "is_fast", False):
        return False
    return not prompt or all(getattr(module, "include_prompt", True) for module in model)


class TokenizerEncoder:
    """Tokenizes with the model's tokenizer and pads here."""

    def __init__(self, model: Any, max_tokens: int, prompt: str | None) -> None:
        self.max_tokens = max_tokens
        self._prompt = prompt or ""
        self._tokenizer = model.tokenizer
        self._pad_id = self._tokenizer.pad_token_id or 0
        self._pad_type_id = getattr(self._tokenizer, "pad_token_type_id", 0)
        self._left = self._tokenizer.padding_side == "left"
        self._vocabulary = model[0].model.get_input_embeddings().weight.shape[0]

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        limit = options.limit
        if sources and isinstance(sources[0], list):
            return [self._encode_ids(source, limit) for source in sources]
        return self._encode_texts(sources, limit)

    def _encode_ids(self, source: Source, limit: int | None) -> Encoded:
        assert isinstance(source, list)
        ids = source[:limit]
        if max(ids) >= self._vocabulary:
            raise InvalidRequest(
                f"Token id {max(ids)} is not in this model's vocabulary of {self._vocabulary}. Token ids must come "
                "from this model's own tokenizer (POST /tokenize); send text where they come from another.",
                param="input",
            )
        return Encoded(source, len(ids), np.asarray(ids, dtype=np.int32))

    def _encode_texts(self, sources: Sequence[Source], limit: int | None) -> list[Encoded]:
        texts = [self._prompt + (source[0] if isinstance(source, tuple) else str(source)) for source in sources]
        pairs = [source[1] for source in sources if isinstance(source, tuple)] or None
        output = self._tokenizer(
            texts,
            pairs,
            truncation="longest_first" if limit is not None else False,
            max_length=limit,
            return_attention_mask=False,
            verbose=False,
        )
        type_ids = output.get("token_type_ids") or [None] * len(texts)
        return [
            Encoded(source, len(ids), np.asarray(ids, dtype=np.int32), types and np.asarray(types, dtype=np.int32))
            for source, ids, types in zip(sources, output["input_ids"], type_ids, strict=True)
        ]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        ones = [np.ones(item.tokens, dtype=np.int32) for item in batch]
        features: dict[str, Any] = {
            "input_ids": self._pad([item.ids for item in batch], ones, self._pad_id),
            "attention_mask": self._pad(ones, ones, 0),
        }
        if any(item.type_ids is not None for item in batch):
            features["token_type_ids"] = self._pad([item.type_ids for item in batch], ones, self._pad_type_id)
        features["modality"] = "text"
        return features

    def _pad(self, rows: Sequence[Ids | None], ones: Sequence[Ids], value: int) -> torch.Tensor:
        """[batch, longest], filled up with `value` on the side where this tokenizer pads; a row of None is zeros."""
        longest = max(len(row) for row in ones)
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for place, row, one in zip(padded, rows, ones, strict=True):
            span = slice(longest - len(one), None) if self._left else slice(len(one))
            place[span] = one - 1 if row is None else row
        return torch.from_numpy(padded)


class ModuleEncoder:
    """Leaves tokenizing to the model's own module; here inputs are only counted."""

    def __init__(self, model: Any, max_tokens: int, prompt: str | None) -> None:
        self.max_tokens = max_tokens
        self._model = model
        self._prompt = prompt
        self._is_transformer = isinstance(model[0], Transformer)

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        limit = options.limit
        if limit is not None and limit < self.max_tokens:
            raise InvalidRequest(
                f"This model cuts its inputs at {self.max_tokens} tokens only; set truncate_prompt_tokens to -1.",
                param="truncate_prompt_tokens",
            )
        if sources and isinstance(sources[0], list):
            raise InvalidRequest("This model takes texts, not token ids.", param="input")
        return [Encoded(source, self._count(source, limit)) for source in sources]

    def _count(self, source: Source, limit: int | None) -> int:
        options: dict[str, Any] = {}
        if self._is_transformer and limit is None:
            options["processing_kwargs"] = {"text": {"truncation": False}}
        features = self._model.preprocess([source], prompt=self._prompt, **options)
        return int(features["input_ids"].numel())

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        features: dict[str, Any] = self._model.preprocess([item.source for item in batch], prompt=self._prompt)
        return features
