"""A classifier: a head with several labels on a text, or on a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engines.runtime.embedder import forward_alike
from engines.runtime.reranker import load_cross_encoder, logits
from engines.runtime.retrieval import Encoded, InputEncoder, OutputKind, Rows, Weights
from engines.runtime.tokenizing import Prompts, make_encoder
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task

Activation = Callable[[torch.Tensor], torch.Tensor]


class Classifier:
    """Rows are what transformers' text-classification pipeline gives: the labels' probabilities.

    Of labels that exclude each other they sum up to 1 (softmax); where several may hold (`problem_type`
    multi_label_classification), and of a single label, each is its own (sigmoid); a regression's values stay as they
    are.
    """

    task = Task.CLASSIFY
    kind: OutputKind = "labels"
    probabilities = False  # of a reranker only

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = load_cross_encoder(model_path, args)
        self.weights: Weights = ModuleWeights(self._model, args.device)
        self.prompts: Mapping[str, str] = Prompts(self._model).offered()
        self.tokenizer: Any = self._model.tokenizer
        self.encoder: InputEncoder = make_encoder(self._model, args.max_model_len)
        self.width = int(self._model.num_labels)
        config: Any = self._model.config
        names = getattr(config, "id2label", None) or {}
        self.labels: Sequence[str] = [str(names.get(index, f"LABEL_{index}")) for index in range(self.width)]
        self._activation = _activation(getattr(config, "problem_type", None), self.width)

    def forward(self, batch: Sequence[Encoded]) -> Rows:
        rows: Rows = np.asarray(forward_alike(batch, self._forward), dtype=np.float32)
        return rows

    def _forward(self, batch: Sequence[Encoded]) -> Rows:
        with torch.inference_mode():
            rows: Rows = self._activation(logits(self._model, self.encoder, batch)).cpu().numpy()
        return rows


def _activation(problem_type: str | None, count: int) -> Activation:
    if problem_type == "regression":
        return lambda values: values
    if problem_type == "multi_label_classification" or count == 1:
        return torch.sigmoid
    return lambda values: torch.softmax(values, dim=1)
