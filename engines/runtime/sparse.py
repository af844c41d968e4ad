"""A sparse embedding model (SPLADE): weighs words of its vocabulary, most of them 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.util import select_max_active_dims

from engines.runtime.embedder import forward_alike, limit_length, loading_options, to_device
from engines.runtime.retrieval import Encoded, InputEncoder, OutputKind, Weights
from engines.runtime.routed import encoder_of
from engines.runtime.tokenizing import Prompts
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task

# SPLADE weighs the whole vocabulary for each token before it takes the largest; so many numbers at once, 64 MB.
MAX_WEIGHTS = 16 * 1024**2


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
        self.encoder: InputEncoder = encoder_of(self._model, args.max_model_len)
        self.width = len(self.tokenizer)  # the first pass tells it exactly
        self._by_chunks = _weigh_by_chunks(self._model)

    def forward(self, batch: Sequence[Encoded]) -> Sequence[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = []
        for part in self._parts(batch):
            outputs += forward_alike(part, self._forward)
        return outputs

    def _parts(self, batch: Sequence[Encoded]) -> Sequence[Sequence[Encoded]]:
        at_once = 1 if self._by_chunks else max(item.tokens for item in batch)
        count = max(1, MAX_WEIGHTS // (at_once * max(1, self.width)))
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


class LateLinear(torch.nn.Linear):
    """A layer that is computed later: it gives what it takes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input


class ChunkedPooling(SpladePooling):
    """SpladePooling that computes the last layer of the model's head itself, for so many tokens at a time.

    8,192 tokens times a vocabulary of 30,522 would be 1 GB for one input, and as much again while it is pooled.
    """

    def __init__(self, pooling: SpladePooling, head: torch.nn.Linear) -> None:
        super().__init__(pooling.pooling_strategy, pooling.activation_function, pooling.embedding_dimension)
        self._head = (head,)  # as a module it would be counted among this one's weights

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        hidden, mask, [head] = features["token_embeddings"], features["attention_mask"], self._head
        tokens = max(1, MAX_WEIGHTS // (len(hidden) * head.out_features))
        pooled: torch.Tensor | None = None
        for start in range(0, hidden.shape[1], tokens):
            span = slice(start, start + tokens)
            logits = torch.nn.functional.linear(hidden[:, span], head.weight, head.bias)
            chunk = super().forward({"token_embeddings": logits, "attention_mask": mask[:, span]})
            weights = chunk["sentence_embedding"]
            if pooled is None:
                pooled = weights
            else:
                pooled = torch.maximum(pooled, weights) if self.pooling_strategy == "max" else pooled + weights
        assert pooled is not None
        return {**features, "sentence_embedding": pooled}


def _weigh_by_chunks(model: SparseEncoder) -> bool:
    """Makes the last layer of a masked language model's head a part of the pooling, if that changes nothing."""
    routes: Any = model[0].sub_modules if isinstance(model[0], Router) else {"document": model}
    modules = routes["document"]
    if any(modules[0] in list(route) for name, route in routes.items() if name != "document"):
        return False
    if len(modules) != 2 or not isinstance(modules[0], Transformer) or type(modules[1]) is not SpladePooling:
        return False
    head, pooling = modules[0].model.get_output_embeddings(), modules[1]
    if type(head) is not torch.nn.Linear:
        return False
    example = to_device(model.preprocess(["an example"], task="document"), model.device)
    with torch.inference_mode():
        expected = modules(dict(example))["sentence_embedding"]
        head.__class__, modules[1] = LateLinear, ChunkedPooling(pooling, head)
        try:
            if torch.allclose(modules(dict(example))["sentence_embedding"], expected, atol=1e-3):
                return True
        except RuntimeError:  # something follows that layer, which takes no other width
            pass
        head.__class__, modules[1] = torch.nn.Linear, pooling
    return False


def _entries(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positions are below 2^24, which float32 holds exactly."""
    positions = np.flatnonzero(row)
    return np.stack((positions.astype(np.float32), row[positions]), axis=1)
