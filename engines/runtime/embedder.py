"""An embedding model: a SentenceTransformer, its modules in its own order, fed by our batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from engines.runtime.backends.bodies import load
from engines.runtime.retrieval import Encoded, InputEncoder, OutputKind, Rows, Weights
from engines.runtime.routed import encoder_of
from engines.runtime.tokenizing import Prompts, read_as_text, same_options
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from models.types import Task


class Embedder:
    """Rows are embeddings, normalized where the model's own modules normalize (or `args.normalize` asks for it).

    A folder without modules.json is pooled as its 1_Pooling says, or by sentence-transformers' default: the mean of a
    plain encoder's token vectors, the last one of a text generator's. The last one is scaled to length 1, as such
    models are published.
    """

    task = Task.EMBED
    kind: OutputKind = "dense"
    labels: Sequence[str] = ()
    probabilities = False

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        self._model = load(SentenceTransformer, model_path, args, loading_options(args))
        self._model.eval()
        self.weights: Weights = ModuleWeights(self._model, args.device)
        limit_length(self._model, args.max_model_len)
        bare = is_bare(model_path)
        if bare:
            read_as_text(self._model, pairs=False)
            _pool_as_declared(self._model, model_path)
        self._normalize = bare and _takes_last_token(self._model) if args.normalize is None else args.normalize
        self.prompts: Mapping[str, str] = Prompts(self._model).offered()
        self.tokenizer: Any = self._model.tokenizer
        self.encoder: InputEncoder = encoder_of(self._model, args.max_model_len)
        self.width = int(self._model.get_embedding_dimension() or 0)

    def forward(self, batch: Sequence[Encoded]) -> Rows:
        rows: Rows = np.asarray(forward_alike(batch, self._forward), dtype=np.float32)
        return rows

    def _forward(self, batch: Sequence[Encoded]) -> Rows:
        with torch.inference_mode():
            features = to_device(self.encoder.collate(batch), self._model.device)
            # All of them, or as many as config_sentence_transformers.json keeps (truncate_dim).
            embeddings = self._model(features)["sentence_embedding"][:, : self._model.truncate_dim]
            if self._normalize:
                embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
            rows: Rows = embeddings.float().cpu().numpy()
        return rows


def is_bare(model_path: str) -> bool:
    """Whether sentence-transformers' defaults make the model, in place of modules.json."""
    return not Path(model_path, "modules.json").is_file()


def _pool_as_declared(model: SentenceTransformer, model_path: str) -> None:
    """What is left of a folder that was copied without modules.json may still hold how its tokens are pooled."""
    if Path(model_path, "1_Pooling", "config.json").is_file() and isinstance(model[-1], Pooling):
        model[-1] = Pooling.load(model_path, subfolder="1_Pooling", local_files_only=True)


def _takes_last_token(model: SentenceTransformer) -> bool:
    return any(isinstance(module, Pooling) and "lasttoken" in module.pooling_mode for module in model)


def loading_options(args: TransformersArgs) -> dict[str, Any]:
    """Keyword arguments for each kind of model: nothing from the network, no pickle and no foreign code unasked."""
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
    routes: Iterable[Any] = model[0].sub_modules.values() if isinstance(model[0], Router) else [model]
    for first in (route[0] for route in routes):
        if isinstance(first, StaticEmbedding):  # has no limit, and cuts nothing
            continue
        if max_model_len is not None and (getattr(first, "max_seq_length", None) or max_model_len) >= max_model_len:
            first.max_seq_length = max_model_len


def to_device(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
    }


def forward_alike(
    batch: Sequence[Encoded], forward: Callable[[Sequence[Encoded]], Sequence[NDArray[np.float32]] | Rows]
) -> Sequence[NDArray[np.float32]] | Rows:
    """`forward` over inputs of equal options at a time: mostly all of them at once. Outputs in the batch's order."""
    groups = same_options(batch)
    if len(groups) == 1:
        return forward(batch)
    outputs: dict[int, NDArray[np.float32]] = {}
    for places in groups:
        outputs.update(zip(places, forward([batch[place] for place in places]), strict=True))
    return [outputs[place] for place in range(len(batch))]
