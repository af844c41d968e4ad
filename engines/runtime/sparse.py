"""A sparse embedding model (SPLADE): weighs words of its vocabulary, most of them 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.util import select_max_active_dims

from engines.runtime.embedder import forward_alike, limit_length, loading_options, to_device
from engines.runtime.retrieval import Encoded, InputEncoder, OutputKind, Weights
from engines.runtime.tokenizing import Prompts, make_encoder
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task

# SPLADE weighs the whole vocabulary for each token before it takes the largest; so many numbers in one pass.
MAX_WEIGHTS = 64 * 1024**2


class SparseEmbedder:
    """Outputs are the entries that are not 0, by position: [entries, 2], as `SparseEncoder.encode` gives them."""

    task = Task.EMBED
    kind: OutputKind = "sparse"
    labels: Sequence[str] = ()
    probabilities = False

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = SparseEncoder(model_path, **loading_options(args))
        self._model.eval()
        self.weights: Weights = ModuleWeights(self._model, args.device)
        limit_length(self._model, args.max_model_len)
        self.prompts: Mapping[str, str] = Prompts(self._model).offered()
        self.tokenizer: Any = self._model.tokenizer
        self.encoder: InputEncoder = make_encoder(self._model, args.max_model_len)
        self.width = len(self.tokenizer)  # the first pass tells it exactly

    def forward(self, batch: Sequence[Encoded]) -> Sequence[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = []
        for part in self._parts(batch):
            outputs += forward_alike(part, self._forward)
        return outputs

    def _parts(self, batch: Sequence[Encoded]) -> Sequence[Sequence[Encoded]]:
        longest = max(item.tokens for item in batch)
        count = max(1, MAX_WEIGHTS // (longest * max(1, self.width)))
        return [batch[start : start + count] for start in range(0, len(batch), count)]

    def _forward(self, batch: Sequence[Encoded]) -> Sequence[NDArray[np.float32]]:
        most = self._model.max_active_dims
        with torch.inference_mode():
            features = to_device(self.encoder.collate(batch), self._model.device)
            options = {} if most is None else {"max_active_dims": most}
            embeddings = select_max_active_dims(self._model(features, **options)["sentence_embedding"], most)
            rows: NDArray[np.float32] = embeddings.float().cpu().numpy()
        self.width = rows.shape[1]
        return [_entries(row) for row in rows]


def _entries(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positions are below 2^24, which float32 holds exactly."""
    positions = np.flatnonzero(row)
    return np.stack((positions.astype(np.float32), row[positions]), axis=1)
