"""HTTP on the engine's unix socket: decodes requests, calls the service, writes errors as the client expects them.

What stands under /engine/ is for the app itself; the router knows no such paths.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from itertools import chain
from typing import Any

import orjson
from aiohttp import web

from engines.base import CLIENT_HEADER
from engines.runtime.pipeline import CLIENT
from engines.runtime.protocol import EngineRequest
from engines.runtime.requests.tei import is_tei_rerank
from engines.runtime.requests.tokens import is_tei_tokenize
from engines.runtime.retrieval import InvalidRequest, RetrievalModel, TooLong
from engines.runtime.retrieval_service import Answer, RetrievalService
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import Residence
from models.errors import Busy, RoundhouseError
from utils import json_pieces
from utils.openai_compat import Protocol, error_object

MAX_BODY_BYTES = 256 * 1024 * 1024  # the router's own limit is lower; this one bounds whatever gets past it
BACKLOG = 1024  # connections that wait to be accepted
DRAIN_S = 60.0  # for running requests after SIGTERM; the manager drains first and kills after its own grace
RETRY_AFTER_S = 1
EXIT_LOST = 70  # of a process that cannot compute any more
PROTOCOL: web.RequestKey[Protocol] = web.RequestKey("protocol", str)  # type: ignore[arg-type]  # of its client
SHARED_PATHS = {"/rerank": is_tei_rerank, "/tokenize": is_tei_tokenize}  # with other protocols; the body tells

logger = logging.getLogger(__name__)

Action = Callable[[Mapping[str, Any]], Awaitable[Answer]]


def make_app(service: RetrievalService, residence: Residence) -> web.Application:
    """The routes. `GET /health` answers 200 with an empty body, as vLLM's does; but not while the model sleeps."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[render_errors])

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if service.healthy and not residence.asleep else 503)

    async def progress(_: web.Request) -> web.Response:
        return web.Response(text=str(service.batches))

    async def models(_: web.Request) -> web.Response:
        return web.Response(body=await service.models(), content_type="application/json")

    async def sleep(_: web.Request) -> web.Response:
        await residence.sleep()
        return web.Response()

    async def wake(_: web.Request) -> web.Response:
        await residence.wake()
        return web.Response()

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/engine/progress", progress)
    app.router.add_post("/engine/sleep", sleep)
    app.router.add_post("/engine/wake", wake)
    for path, (action, protocol) in actions(service).items():
        app.router.add_post(path, _endpoint(action, protocol, residence))
    return app


def actions(service: RetrievalService) -> dict[str, tuple[Action, Protocol]]:
    """What is done for each path, and the protocol of its errors."""
    return {
        "/v1/embeddings": (service.embeddings, "openai"),
        "/v1/multi-vector": (service.multi_vector, "openai"),
        "/embeddings": (service.embeddings, "openai"),
        "/v1/embed": (service.cohere_embed_v1, "cohere"),
        "/v2/embed": (service.cohere_embed, "cohere"),
        "/embed": (service.tei_embed, "tei"),
        "/similarity": (service.tei_similarity, "tei"),
        "/embed_all": (service.tei_embed_all, "tei"),
        "/embed_sparse": (service.tei_embed_sparse, "tei"),
        "/v1/rerank": (service.jina_rerank, "openai"),
        "/v2/rerank": (service.cohere_rerank, "cohere"),
        "/rerank": (service.rerank, "openai"),
        "/v1/score": (service.score, "openai"),
        "/score": (service.score, "openai"),
        "/v1/classify": (service.classify, "openai"),
        "/classify": (service.classify, "openai"),
        "/predict": (service.tei_predict, "tei"),
        "/tokenize": (service.tokenize, "openai"),
        "/detokenize": (service.detokenize, "openai"),
        "/decode": (service.tei_decode, "tei"),
    }


def _endpoint(
    action: Action, protocol: Protocol, residence: Residence
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        request[PROTOCOL] = protocol
        CLIENT.set(request.headers.get(CLIENT_HEADER, ""))
        body = await decode_body(await request.read())
        is_tei = SHARED_PATHS.get(request.path)
        if is_tei is not None and is_tei(body):
            request[PROTOCOL] = "tei"
        with residence.request():
            answer = await action(body)
        return await _send(request, answer)

    return handle


async def _send(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Sends one piece with its length, and several as they are written."""
    pieces = iter((answer,)) if isinstance(answer, bytes) else answer
    first, second = next(pieces), next(pieces, None)
    if second is None:
        return web.Response(body=first, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for piece in chain((first, second), pieces):
        await response.write(piece)
        await asyncio.sleep(0)  # a write need not wait, and others must not
    await response.write_eof()
    return response


async def decode_body(data: bytes) -> Mapping[str, Any]:
    """The JSON object in `data`. Raises InvalidRequest (NaN, invalid UTF-8 and nesting beyond 1,024 are not JSON), and
    Busy where the memory does not suffice for it."""
    try:
        body = (await json_pieces.decode(data)).document
    except orjson.JSONDecodeError as error:
        if json_pieces.is_short_of_memory(error):
            raise Busy("There is no memory to read this request now; try again.", retry_after_s=RETRY_AFTER_S) from None
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
    except json_pieces.TooManyParts:
        raise InvalidRequest(
            f"The request body has more than {json_pieces.MOST_PARTS} strings, lists and objects."
        ) from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


@web.middleware
async def render_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RoundhouseError as error:
        headers = {"Retry-After": str(math.ceil(error.retry_after_s or RETRY_AFTER_S))} if error.status == 503 else {}
        return _refusal(request, error, headers)
    except web.HTTPException as error:
        refused = InvalidRequest(f"{request.method} {request.path}: {error.reason}")
        refused.status = error.status
        return _refusal(request, refused, {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {})
    except Exception:  # the top of a request: whatever it was, this client gets an answer and the engine lives on
        logger.exception("%s %s failed", request.method, request.path)
        return _refusal(request, RoundhouseError("The engine failed on this request; its log says why."), {})


def _refusal(request: web.Request, error: RoundhouseError, headers: Mapping[str, str]) -> web.Response:
    protocol = request.get(PROTOCOL, "openai")
    # TEI's status for an input that is too long, which some of its clients answer by cutting it.
    status = 413 if protocol == "tei" and isinstance(error, TooLong) else error.status
    body = error_object(
        protocol,
        status,
        error.message,
        type_=error.type,
        code=error.code,
        param=error.param,
        request_id=request.headers.get("X-Request-Id", ""),
    )
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


async def serve(request: EngineRequest, model: RetrievalModel, args: TransformersArgs) -> None:
    """Serves `model` on the request's unix socket until SIGTERM; then running requests finish, and it returns.

    A process that cannot compute any more ends at once.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    name = request.served_names[0] if request.served_names else request.name
    service = RetrievalService(model, name, args)
    residence = Residence(model.weights, service.between_passes)
    runner = web.AppRunner(
        make_app(service, residence), access_log=None, handler_cancellation=True, shutdown_timeout=DRAIN_S
    )
    try:
        await runner.setup()
        await web.UnixSite(runner, request.uds, backlog=BACKLOG).start()
        request.ready()
        ended = asyncio.ensure_future(stopped.wait())
        await asyncio.wait((ended, service.lost), return_when=asyncio.FIRST_COMPLETED)
        if service.lost.done():
            # Connections close without an answer, so that the router has a fresh engine give those.
            os._exit(EXIT_LOST)
    finally:
        await runner.cleanup()
        service.close()
