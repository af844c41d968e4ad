"""The runtime of the retrieval engine: what its launcher imports beforehand, and what an engine process runs.

Importing torch, transformers and sentence-transformers takes seconds; building a small model from its files takes a
quarter of one. So all imports, the model classes of common architectures included, happen in `preload`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from engines.runtime.protocol import EngineRequest
from engines.runtime.transformers_args import TransformersArgs
from models.types import Method

if TYPE_CHECKING:
    from engines.runtime.retrieval import RetrievalModel

# Read when the libraries are imported. OpenBLAS (numpy's and scipy's) would start threads at once, and a process with
# threads cannot be forked; numpy is not where this engine computes. The progress monitor of tqdm is a thread too.
# OpenMP's threads spin at their barriers unless told otherwise; where other engines want the same cores, each waits for
# a thread that has none: a short text took 1,150 ms beside a load of 9 on 2 cores, against 50, and 16 alone both ways.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
# Lazily imported by transformers when a model of that type is loaded; named here, they are loaded before the fork.
ARCHITECTURES = (
    "bert",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "mpnet",
    "electra",
    "deberta_v2",
    "modernbert",
    "nomic_bert",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3",
    "llama",
    "mistral",
)
MODULES = (
    "sentence_transformers.models.Normalize",
    "sentence_transformers.models.Pooling",
    "sentence_transformers.models.Transformer",
    "sentence_transformers.base.modules",
    "sentence_transformers.sentence_transformer.modules",
    "sentence_transformers.cross_encoder.modules",
    "engines.runtime.embedder",
    "engines.runtime.reranker",
    "engines.runtime.causal_reranker",
    "engines.runtime.classifier",
    "engines.runtime.sparse",
    "engines.runtime.multi_vector",
    "engines.runtime.whole_weights",
    "engines.runtime.backends.choosing",
    "engines.runtime.transformers_server",
    "uvloop",
)
WARM_UP_TEXT = "warm up"

logger = logging.getLogger(__name__)


def preload() -> None:
    """Imports all that an engine needs. Starts no thread, runs no tensor operation, does not touch CUDA."""
    os.environ.update(ENVIRONMENT)
    for module in MODULES:
        importlib.import_module(module)
    for architecture in ARCHITECTURES:
        _import_architecture(architecture)
    _fill_caches()


def _import_architecture(name: str) -> None:
    """Imports the classes of one architecture; one that this release of transformers has not got is passed over."""
    package = f"transformers.models.{name}"
    for module in (f"modeling_{name}", f"tokenization_{name}"):
        if importlib.util.find_spec(package) and importlib.util.find_spec(f"{package}.{module}"):
            importlib.import_module(f"{package}.{module}")


def _fill_caches() -> None:
    """Computes what transformers computes on the first load and keeps: 750 regular expressions, 0.1 s."""
    from transformers import conversion_mapping
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    fill = getattr(conversion_mapping, "get_checkpoint_conversion_mapping", None)
    if fill is not None:
        fill("bert")


def cuda_initialized() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.cuda.is_initialized())


def run_engine(request: EngineRequest) -> None:
    """Loads the model, announces it, and serves until SIGTERM. Raises what made the load fail."""
    preload()
    import uvloop

    from engines.runtime.transformers_server import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    args = TransformersArgs.model_validate(request.args)
    begin_s = time.monotonic()
    model, args = load_chosen(request.model_path, args)
    logger.info("%s: loaded in %.2f s, %s", request.name, time.monotonic() - begin_s, args)
    uvloop.run(serve(request, model, args))


def load_chosen(model_path: str, args: TransformersArgs) -> tuple[RetrievalModel, TransformersArgs]:
    """The model on the backend that was chosen for it; on torch where the exported one does not load any more."""
    from engines.runtime.backends.bodies import set_threads
    from engines.runtime.backends.choosing import choose, without_export

    chosen = choose(model_path, args)
    set_threads(chosen)
    try:
        return load_model(model_path, chosen), chosen
    except Exception:
        if not chosen.body_path or args.backend != "auto":
            raise
        logger.exception("%s does not load on %s; torch takes its place", model_path, chosen.backend)
    plain = without_export(model_path, args)
    set_threads(plain)
    return load_model(model_path, plain), plain


def load_model(model_path: str, args: TransformersArgs) -> RetrievalModel:
    """The model, after one forward pass: that starts torch's threads, and shows a broken model before anybody asks."""
    from engines.runtime.retrieval import EncodeOptions

    model = make_model(model_path, args)
    warm_up = (WARM_UP_TEXT, WARM_UP_TEXT) if args.task == "rerank" else WARM_UP_TEXT
    [output] = model.forward(model.encoder.encode([warm_up], EncodeOptions(side="document")))
    if model.kind in ("dense", "multi_vector"):
        model.width = output.shape[-1]  # what it really gives: modules may change the dimension that it declares
    return model


def make_model(model_path: str, args: TransformersArgs) -> RetrievalModel:
    """The model of the kind that `args` say. Raises MissingWeights."""
    from engines.runtime.whole_weights import only_whole_models

    with only_whole_models():
        return _make_model(model_path, args)


def _make_model(model_path: str, args: TransformersArgs) -> RetrievalModel:
    from engines.runtime.causal_reranker import TEMPLATES, CausalReranker
    from engines.runtime.classifier import Classifier
    from engines.runtime.embedder import Embedder
    from engines.runtime.multi_vector import MultiVectorEmbedder
    from engines.runtime.reranker import Reranker
    from engines.runtime.sparse import SparseEmbedder

    if args.method in TEMPLATES:
        return CausalReranker(model_path, args)
    if args.task == "rerank":
        return Reranker(model_path, args)
    if args.task == "classify":
        return Classifier(model_path, args)
    if args.method is Method.SPARSE:
        return SparseEmbedder(model_path, args)
    if args.method is Method.MULTI_VECTOR:
        return MultiVectorEmbedder(model_path, args)
    return Embedder(model_path, args)
