"""What the tests of retrieval models in this process share: texts, loading as an engine does, and comparing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineContext
from engines.runtime.retrieval import WHOLE, EncodeOptions, RetrievalModel, Source
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_runtime import load_model
from engines.transformers_engine import create_factory
from models.types import ModelSpec

QUERY = "Where stands the locomotive?"
DOCUMENTS = [
    "A stone.",
    "The locomotive stands on the turntable of the roundhouse, where it turns and waits for steam.",
    "Bread, water & coal; 日本語 too!",
    "dog " * 30,
]
TEXTS = [QUERY, *DOCUMENTS]


def load(spec: ModelSpec, **engine_args: Any) -> RetrievalModel:
    """As an engine process loads it, of what discovery judged."""
    context = EngineContext(Path("/nowhere"), Path("/nowhere"), Path("/nowhere"), "cpu", engine_args)
    factory = create_factory(context)
    assert factory.accepts(spec).ok, factory.accepts(spec)
    return load_model(str(spec.path), TransformersArgs.model_validate(factory._args(spec).model_dump(mode="json")))


def run(model: RetrievalModel, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[NDArray[np.float32]]:
    return list(model.forward(model.encoder.encode(sources, options)))


def pairs(documents: Sequence[str] = DOCUMENTS) -> list[Source]:
    return [(QUERY, document) for document in documents]


def same(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(given), np.asarray(expected), atol=1e-5)
