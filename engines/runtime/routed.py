"""Models with one way for queries and another for documents: sentence-transformers' Router.

Each way has an encoder of its own, as if it were a model: a static one for queries, say, and a transformer's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sentence_transformers.base.modules import Router

from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, InputEncoder, InvalidRequest, Side, Source
from engines.runtime.tokenizing import Prompts, make_encoder

SIDES: tuple[Side, ...] = ("query", "document")


def encoder_of(model: Any, max_model_len: int | None) -> InputEncoder:
    """The encoder for a SentenceTransformer or SparseEncoder, with a Router or without."""
    return RoutedEncoder(model, max_model_len) if isinstance(model[0], Router) else make_encoder(model, max_model_len)


class Route:
    """One way through `model`, as an encoder looks at a model."""

    def __init__(self, model: Any, side: Side) -> None:
        self._model = model
        self._side = side
        self._modules = [*model[0].sub_modules[side], *list(model)[1:]]
        self.tokenizer = self._modules[0].tokenizer
        self.max_seq_length = getattr(self._modules[0], "max_seq_length", None)
        self.prompts, self.default_prompt_name = model.prompts, model.default_prompt_name

    def __getitem__(self, index: int) -> Any:
        return self._modules[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules)

    def preprocess(self, inputs: Sequence[Source], **options: Any) -> dict[str, Any]:
        features: dict[str, Any] = self._model.preprocess(inputs, **{**options, "task": self._side})
        return features


class RoutedEncoder:
    """Tokenizes by the way of each request's side; without one by the router's default."""

    def __init__(self, model: Any, max_model_len: int | None) -> None:
        self._ways = {side: make_encoder(Route(model, side), max_model_len) for side in SIDES}
        self._default: Side | None = model[0].default_route
        self._prompts = Prompts(model)
        self.max_tokens = max(way.max_tokens for way in self._ways.values())
        self.lock = threading.Lock()
        for way in self._ways.values():
            way.lock = self.lock

    @property
    def splits_at_spaces(self) -> bool:
        return all(way.splits_at_spaces for way in self._ways.values())

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        side = options.side or self._default
        if side is None:
            raise InvalidRequest(
                "This model embeds queries and documents in different ways: say which these are (query, document).",
                param="input_type",
            )
        way = self._ways[side]
        limit = None if options.limit is None else min(options.limit, way.max_tokens)
        options = replace(options, limit=limit, side=side, prompt=self._prompts.of(options))
        return [
            replace(
                item, options=replace(item.options, side=side), most=min(item.most or way.max_tokens, way.max_tokens)
            )
            for item in way.encode(sources, options)
        ]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Of inputs of one side."""
        side = batch[0].options.side
        assert side is not None
        return {**self._ways[side].collate(batch), "task": side}
