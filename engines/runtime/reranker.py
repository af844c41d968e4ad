"""A reranker: a CrossEncoder with one label, or one that its own modules make of a text generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from engines.runtime.backends.bodies import load
from engines.runtime.embedder import forward_alike, is_bare, limit_length, loading_options, to_device
from engines.runtime.retrieval import Encoded, InputEncoder, OutputKind, Rows, Weights
from engines.runtime.tokenizing import Prompts, make_encoder, read_as_text
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task


class Reranker:
    """Rows are one score for each pair, after the model's own activation, as `CrossEncoder.predict` gives them."""

    task = Task.RERANK
    width = 1
    kind: OutputKind = "score"
    labels: Sequence[str] = ()

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = load_cross_encoder(model_path, args)
        self.weights: Weights = ModuleWeights(self._model, args.device)
        if self._model.num_labels != 1:
            raise ValueError(
                f"{model_path} classifies into {self._model.num_labels} labels; a reranker has one score. "
                "Set this model's task to classify."
            )
        self.probabilities = isinstance(self._model.activation_fn, torch.nn.Sigmoid)
        self.prompts: Mapping[str, str] = Prompts(self._model).offered()
        self.tokenizer: Any = self._model.tokenizer
        self.encoder: InputEncoder = make_encoder(self._model, args.max_model_len)

    def forward(self, batch: Sequence[Encoded]) -> Rows:
        rows: Rows = np.asarray(forward_alike(batch, self._forward), dtype=np.float32)
        return rows

    def _forward(self, batch: Sequence[Encoded]) -> Rows:
        with torch.inference_mode():
            scores = logits(self._model, self.encoder, batch)
            if self._model.activation_fn is not None:
                scores = self._model.activation_fn(scores)
            rows: Rows = scores.reshape(len(batch), 1).cpu().numpy()
        return rows


def load_cross_encoder(model_path: str, args: TransformersArgs) -> CrossEncoder:
    model: CrossEncoder = load(CrossEncoder, model_path, args, loading_options(args))
    model.eval()
    if is_bare(model_path):
        read_as_text(model, pairs=args.task == "rerank")
    limit_length(model, args.max_model_len)
    config = model.config
    if config is not None and getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = model.tokenizer.pad_token_id  # without it a text generator's head refuses batches
    return model


def logits(model: CrossEncoder, encoder: InputEncoder, batch: Sequence[Encoded]) -> torch.Tensor:
    """What the head gives before any activation: float32 [batch, labels]."""
    features = to_device(encoder.collate(batch), model.device)
    values: torch.Tensor = model(features)["scores"].float()
    return values.reshape(len(batch), -1)
