"""Documents health, the events and the data plane in /openapi.json.

These handlers are never called: `app.gate` answers before.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app import event_stream
from app.api import schemas
from app.api.schemas import ErrorAnswer
from app.errors import protocol_of
from utils.openai_compat import Protocol

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "Malformed, or a model of another kind"},
    401: {"model": ErrorAnswer, "description": "Missing or wrong API key"},
    404: {"model": ErrorAnswer, "description": "Unknown model"},
    413: {"model": ErrorAnswer, "description": "Body too large"},
    502: {"model": ErrorAnswer, "description": "The engine ended while it answered"},
    503: {"model": ErrorAnswer, "description": "Overloaded, not loadable or shutting down; see Retry-After"},
}
ERROR_MODELS: dict[Protocol, type[BaseModel]] = {"cohere": schemas.CohereError, "tei": schemas.TeiError}
HEALTH = {
    "/health": "What the server is doing, in counts, with the names of models for callers with a key",
    "/health/live": "200 as long as the process answers",
    "/health/ready": "200 while requests are taken and the scheduler makes progress",
    "/v2/health/live": "As /health/live, for clients of KServe V2",
    "/v2/health/ready": "As /health/ready, for clients of KServe V2",
}
EVENTS = """What happens, as server-sent events. First comes `snapshot`: every model's state and queue. Then `state`: a
model's state has changed; `swap`: a model has come for which others had to leave; `queues`: how many requests run and
wait; `lost`: so many events came faster than they were read. They are numbered; one who comes back with `Last-Event-ID`
gets those missed, after the snapshot."""
DOCUMENTED: dict[str, tuple[type[schemas.Open], str, str]] = {
    "/v1/chat/completions": (schemas.ChatCompletionRequest, "OpenAI", "Chat completion, streaming or not"),
    "/v1/completions": (schemas.CompletionRequest, "OpenAI", "Text completion, streaming or not"),
    "/v1/responses": (schemas.ResponsesRequest, "OpenAI", "OpenAI Responses, streaming or not"),
    "/v1/embeddings": (schemas.EmbeddingRequest, "OpenAI", "Embeddings"),
    "/v1/messages": (schemas.AnthropicMessagesRequest, "Anthropic", "Anthropic Messages, streaming or not"),
    "/v1/messages/count_tokens": (schemas.AnthropicCountRequest, "Anthropic", "Tokens of an Anthropic request"),
    "/v1/multi-vector": (schemas.EmbeddingRequest, "retrieval", "A vector for each token (Jina's shape)"),
    "/embeddings": (schemas.EmbeddingRequest, "OpenAI", "Embeddings"),
    "/v1/embed": (schemas.CohereEmbedRequest, "retrieval", "Embeddings (the shape of Cohere's first API)"),
    "/v2/embed": (schemas.CohereEmbedRequest, "retrieval", "Embeddings (Cohere's shape)"),
    "/embed": (schemas.TeiEmbedRequest, "TEI", "Embeddings"),
    "/": (schemas.TeiEmbedRequest, "TEI", "As /embed, /similarity or /rerank, by the body's fields"),
    "/similarity": (schemas.TeiSimilarityRequest, "TEI", "Cosines of one text with others"),
    "/embed_all": (schemas.TeiEmbedRequest, "TEI", "A vector for each token, of multi-vector models"),
    "/embed_sparse": (schemas.TeiEmbedRequest, "TEI", "Sparse embeddings"),
    "/v1/rerank": (schemas.RerankRequest, "retrieval", "Rerank documents (Jina's shape)"),
    "/v2/rerank": (schemas.RerankRequest, "retrieval", "Rerank documents (Cohere's shape)"),
    "/rerank": (schemas.SharedRerankRequest, "retrieval", "Rerank documents (Jina's shape, or TEI's)"),
    "/v1/score": (schemas.ScoreRequest, "retrieval", "Scores of pairs of texts"),
    "/score": (schemas.ScoreRequest, "retrieval", "Scores of pairs of texts"),
    "/v1/classify": (schemas.ClassifyRequest, "retrieval", "Probabilities of a classifier's labels"),
    "/classify": (schemas.ClassifyRequest, "retrieval", "Probabilities of a classifier's labels"),
    "/predict": (schemas.TeiPredictRequest, "TEI", "A classifier's labels with their scores, best first"),
    "/tokenize": (schemas.TokenizeRequest, "tokens", "Text or messages to token ids; or as TEI's clients ask"),
    "/detokenize": (schemas.DetokenizeRequest, "tokens", "Token ids to text"),
    "/decode": (schemas.TeiDecodeRequest, "TEI", "Token ids to texts"),
}


def documentation_router() -> APIRouter:
    router = APIRouter()
    for path, (schema, tag, summary) in DOCUMENTED.items():
        router.add_api_route(
            path,
            _handler(schema),
            methods=["POST"],
            summary=summary,
            tags=[tag],
            responses=_errors_of(path),
            operation_id=path.strip("/").replace("/", "_") or "root",
            response_description="The engine's answer, byte for byte; `text/event-stream` when `stream` is true",
        )
    for path, summary in HEALTH.items():
        router.add_api_route(
            path,
            _health,
            methods=["GET"],
            summary=summary,
            tags=["health"],
            response_model=schemas.Health,
            responses={503: {"model": ErrorAnswer}} if path.endswith("ready") else {},
            operation_id=path.strip("/").replace("/", "_"),
            openapi_extra={"security": []},
        )
    router.add_api_route(
        event_stream.PATH,
        _health,
        methods=["GET"],
        summary="State changes, swaps and queues as they happen",
        description=EVENTS,
        tags=["control"],
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}}, **{code: ERRORS[code] for code in (401, 503)}},
        operation_id="v1_events",
    )
    return router


def _errors_of(path: str) -> dict[int | str, dict[str, Any]]:
    model = ERROR_MODELS.get(protocol_of(path), ErrorAnswer)
    return {status: {**entry, "model": model} for status, entry in ERRORS.items()}


async def _health() -> dict[str, Any]:
    raise AssertionError("the gate answers this path")


def _handler(schema: type[schemas.Open]) -> Any:
    async def documented(body: schemas.Open) -> dict[str, Any]:
        raise AssertionError("the data plane answers this path")

    documented.__annotations__["body"] = schema
    return documented
