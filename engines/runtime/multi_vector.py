"""A late-interaction model (ColBERT): one vector for each token that counts in the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder

from engines.runtime.embedder import forward_alike, limit_length, loading_options, to_device
from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, InputEncoder, OutputKind, Source, Weights
from engines.runtime.tokenizing import ModuleEncoder, Prompts, longest_input, require_vocabulary
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task


class MultiVectorEmbedder:
    """Outputs are [tokens, width], as `encode_query` and `encode_document` give them; without a side, a document's.

    Queries may be filled up to a fixed length (query expansion), and documents left without punctuation: the model's
    own modules say so.
    """

    task = Task.EMBED
    kind: OutputKind = "multi_vector"
    labels: Sequence[str] = ()
    probabilities = False

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = MultiVectorEncoder(model_path, **loading_options(args))
        self._model.eval()
        self.weights: Weights = ModuleWeights(self._model, args.device)
        limit_length(self._model, args.max_model_len)
        self.prompts: Mapping[str, str] = Prompts(self._model).offered()
        self.tokenizer: Any = self._model.tokenizer
        require_vocabulary(self.tokenizer)
        longest = longest_input(self._model.max_seq_length, args.max_model_len)
        self.encoder: InputEncoder = SidedEncoder(self._model, longest, Prompts(self._model))
        self._normalize = bool(args.normalize)
        self.width = int(self._model.get_embedding_dimension() or 0)

    def forward(self, batch: Sequence[Encoded]) -> Sequence[NDArray[np.float32]]:
        return list(forward_alike(batch, self._forward))

    def _forward(self, batch: Sequence[Encoded]) -> Sequence[NDArray[np.float32]]:
        with torch.inference_mode():
            features = to_device(self.encoder.collate(batch), self._model.device)
            features = self._model(features, task=batch[0].options.side)
            vectors = features["token_embeddings"].float()
            if self._normalize:
                vectors = torch.nn.functional.normalize(vectors, p=2, dim=-1)
            counts = features["attention_mask"].bool()
            return [row[count].cpu().numpy() for row, count in zip(vectors, counts, strict=True)]


class SidedEncoder(ModuleEncoder):
    """Queries and documents have lengths of their own here."""

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        return super().encode(sources, replace(options, side=options.side or "document"))

    def _encoded(self, source: Source, count: int, options: EncodeOptions) -> Encoded:
        most, least = self._bounds(options)
        if options.limit is not None:
            most_allowed = min(options.limit, most)  # a longer one would take the place of the side's own
            options = replace(options, limit=most_allowed)
            count = min(count, most_allowed)
        return Encoded(source, max(count, least), options=options, most=most)

    def _bounds(self, options: EncodeOptions) -> tuple[int, int]:
        """Tokens that an input of this side may have at most, and has at least."""
        first = self._transformer
        if first is None:
            return self.max_tokens, 0
        expansion = first.query_expansion if options.side == "query" else None
        if expansion is not None:
            return (expansion["length"] if expansion["strategy"] == "fixed" else self.max_tokens), expansion["length"]
        declared = first.query_length if options.side == "query" else first.document_length
        return min(declared or self.max_tokens, self.max_tokens), 0
