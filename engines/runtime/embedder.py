"""An embedding model: a SentenceTransformer, its modules in its own order, fed by our batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from engines.runtime.retrieval import Encoded, OutputKind, Rows, Weights
from engines.runtime.tokenizing import make_encoder
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task


class Embedder:
    """Rows are embeddings, normalized where the model's own modules normalize (or `args.normalize` asks for it).

    A folder without modules.json is a plain encoder: sentence-transformers' default, mean pooling, applies.
    """

    task = Task.EMBED
    kind: OutputKind = "dense"
    labels: Sequence[str] = ()
    probabilities = False

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = SentenceTransformer(model_path, **loading_options(args))
        self._model.eval()
        self.weights: Weights = ModuleWeights(self._model, args.device)
        limit_length(self._model, args.max_model_len)
        self._normalize = bool(args.normalize)
        self.prompts: Mapping[str, str] = {name: text for name, text in self._model.prompts.items() if text}
        self.tokenizer: Any = self._model.tokenizer
        self.encoder = make_encoder(self._model, args.max_model_len, default_prompt(self._model))
        self.width = int(self._model.get_embedding_dimension() or 0)

    def forward(self, batch: Sequence[Encoded]) -> Rows:
        with torch.inference_mode():
            features = to_device(self.encoder.collate(batch), self._model.device)
            embeddings = self._model(features)["sentence_embedding"]
            if self._normalize:
                embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
            rows: Rows = embeddings.float().cpu().numpy()
        return rows


def loading_options(args: TransformersArgs) -> dict[str, Any]:
    """Keyword arguments for both kinds of model: nothing from the network, no pickle and no foreign code unasked."""
    return {
        "device": args.device,
        "local_files_only": True,
        "trust_remote_code": args.trust_remote_code,
        "model_kwargs": {
            "dtype": args.resolved_dtype,
            "use_safetensors": None if args.allow_pickle else True,
        },
    }


def limit_length(model: Any, max_model_len: int | None) -> None:
    if max_model_len is not None and (model.max_seq_length or max_model_len) >= max_model_len:
        model.max_seq_length = max_model_len


def default_prompt(model: Any) -> str | None:
    """The prompt that the model puts before every text unless told otherwise."""
    name = model.default_prompt_name
    return model.prompts.get(name) if name is not None else None


def to_device(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
    }
