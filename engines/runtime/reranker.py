"""A reranker: a CrossEncoder with one label, fed by our batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from engines.runtime.embedder import default_prompt, limit_length, loading_options, to_device
from engines.runtime.retrieval import Encoded, OutputKind, Rows, Weights
from engines.runtime.tokenizing import make_encoder
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task


class Reranker:
    """Rows are one score for each pair, after the model's own activation, as `CrossEncoder.predict` gives them."""

    task = Task.RERANK
    width = 1
    kind: OutputKind = "score"
    labels: Sequence[str] = ()
    prompts: Mapping[str, str] = MappingProxyType({})

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = CrossEncoder(model_path, **loading_options(args))
        self._model.eval()
        self.weights: Weights = ModuleWeights(self._model, args.device)
        if self._model.num_labels != 1:
            raise ValueError(
                f"{model_path} classifies into {self._model.num_labels} labels; a reranker has one score. "
                "Set this model's task to classify."
            )
        self.probabilities = isinstance(self._model.activation_fn, torch.nn.Sigmoid)
        limit_length(self._model, args.max_model_len)
        self.tokenizer: Any = self._model.tokenizer
        self.encoder = make_encoder(self._model, args.max_model_len, default_prompt(self._model))

    def forward(self, batch: Sequence[Encoded]) -> Rows:
        with torch.inference_mode():
            features = to_device(self.encoder.collate(batch), self._model.device)
            scores = self._model(features)["scores"].float()
            if self._model.activation_fn is not None:
                scores = self._model.activation_fn(scores)
            rows: Rows = scores.reshape(len(batch), 1).cpu().numpy()
        return rows
