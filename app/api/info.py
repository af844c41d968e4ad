"""GET /info, as clients of text-embeddings-inference (TEI) ask before they send anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.data_plane import ERRORS
from app.api.schemas import TeiError, TeiInfo
from app.default_model import default_model
from app.deps import State
from app.routes import INFO, check_task
from app.state import AppState
from engines.base import KnowsRetrieval, RetrievalFacts
from models.types import ModelSpec, Task
from utils.version import own_version

# TEI's own default. Clients cut what they send to requests of as many, and some wait five seconds for each, which is
# too little for the most that are taken.
CLIENT_BATCH = 32
KINDS = {Task.EMBED: "embedding", Task.RERANK: "reranker", Task.CLASSIFY: "classifier"}

router = APIRouter(tags=["TEI"])

Named = Annotated[
    str | None, Query(min_length=1, max_length=1024, description="A model's id, alias or last part of an id.")
]


@router.get(
    INFO.path,
    response_model=TeiInfo,
    responses={status: {**ERRORS[status], "model": TeiError} for status in (400, 401, 404, 503)},
)
async def info(state: State, model: Named = None) -> Any:
    """What a retrieval model is and takes, in TEI's fields; it is not loaded for that.

    Without `model`: of the one that a request goes to which names none.
    """
    manager = state.manager
    if model is None:
        spec = default_model(manager, INFO, state.settings.default_model)
    else:
        spec = manager.catalog.resolve(model)
        manager.check(spec)
        check_task(spec, INFO)
    factory = manager.factories[spec.engine]
    if not isinstance(factory, KnowsRetrieval):
        return _told(spec, RetrievalFacts(), state)
    return _told(spec, await asyncio.to_thread(factory.retrieval_facts, spec), state)


def _told(spec: ModelSpec, facts: RetrievalFacts, state: AppState) -> dict[str, Any]:
    """What is not known is null."""
    return {
        "model_id": spec.id,
        "model_sha": None,
        "model_dtype": facts.dtype or spec.dtype,
        "served_model_name": spec.id,
        "model_type": {
            KINDS[spec.task]: {"pooling": facts.pooling} if spec.task is Task.EMBED else _named(facts.labels)
        },
        "max_concurrent_requests": spec.overrides.concurrency or state.settings.concurrency,
        "max_input_length": facts.input_tokens or spec.overrides.max_model_len or spec.max_model_len,
        "max_batch_tokens": facts.pass_tokens,
        "max_batch_requests": facts.pass_inputs,
        "max_client_batch_size": CLIENT_BATCH,
        "auto_truncate": False,
        "tokenization_workers": facts.tokenizers,
        "version": own_version(),
        "sha": None,
        "docker_label": None,
    }


def _named(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": {str(place): label for place, label in enumerate(labels)},
        "label2id": {label: place for place, label in enumerate(labels)},
    }
