"""vLLM's routes, as far as the router and the app use them (entrypoints/serve/dev, entrypoints/openai)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import web

from tests.engines.standin.core import CallFailed, Core

MODES = ("abort", "wait", "keep")
DEFAULT_MAX_TOKENS = 16


def make_app(core: Core, names: Sequence[str], token_s: float, *, dev_mode: bool, lora: bool) -> web.Application:
    """`names`: under which it serves its model. Only in `dev_mode` are there routes for sleeping."""
    app = web.Application(middlewares=[render_errors])
    serving = Serving(core, names, token_s)
    app.router.add_get("/health", serving.health)
    app.router.add_get("/v1/models", serving.models)
    app.router.add_post("/v1/completions", serving.completions)
    app.router.add_post("/v1/chat/completions", serving.chat_completions)
    if lora:
        app.router.add_post("/v1/load_lora_adapter", serving.load_lora_adapter)
        app.router.add_post("/v1/unload_lora_adapter", serving.unload_lora_adapter)
    if dev_mode:
        sleeping = Sleeping(core)
        app.router.add_post("/sleep", sleeping.sleep)
        app.router.add_post("/wake_up", sleeping.wake_up)
        app.router.add_get("/is_sleeping", sleeping.is_sleeping)
        app.router.add_post("/collective_rpc", sleeping.collective_rpc)
        app.router.add_post("/reset_prefix_cache", sleeping.reset_prefix_cache)
    return app


@web.middleware
async def render_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except CallFailed as error:
        envelope = {"message": str(error), "type": "InternalServerError", "param": None, "code": 500}
        return web.json_response({"error": envelope}, status=500)
    return response


class Sleeping:
    """The routes of development mode; query parameters only, a body of /sleep is ignored."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def sleep(self, request: web.Request) -> web.Response:
        level, mode = request.query.get("level", "1"), request.query.get("mode", "abort")
        if level not in ("0", "1", "2") or mode not in MODES:
            return web.json_response({"error": f"level {level!r}, mode {mode!r}"}, status=422)
        await self._core.sleep(int(level), mode)
        return web.json_response({"status": "sleeping", "level": int(level)})

    async def wake_up(self, request: web.Request) -> web.Response:
        tags = request.query.getall("tags", [])
        awake = await self._core.wake_up(tags)
        return web.json_response({"status": "awake" if awake else "sleeping", "tags": tags or None})

    async def is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": self._core.is_sleeping})

    async def collective_rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["method"] != "reload_weights":
            raise CallFailed(f"Call to collective_rpc method failed: no method {body['method']}")
        self._core.reload_weights()
        return web.json_response({"results": [None]})

    async def reset_prefix_cache(self, _: web.Request) -> web.Response:
        return web.json_response({"success": self._core.reset_prefix_cache()})


class Serving:
    """OpenAI's routes. What arrives while the core is paused waits for ever; /health answers 200 all the same."""

    def __init__(self, core: Core, names: Sequence[str], token_s: float) -> None:
        self._core = core
        self._names = names
        self._adapters: dict[str, str] = {}  # name → path
        self._token_s = token_s

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def models(self, _: web.Request) -> web.Response:
        names = [*self._names, *self._adapters]
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def load_lora_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["lora_name"] in self._adapters:
            return web.json_response({"error": {"message": "it has already been loaded"}}, status=400)
        self._adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success: added successfully.")

    async def unload_lora_adapter(self, request: web.Request) -> web.Response:
        if self._adapters.pop((await request.json())["lora_name"], None) is None:
            return web.json_response({"error": {"message": "it cannot be found"}}, status=404)
        return web.Response(text="Success: removed successfully.")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, str(body["prompt"]), "text_completion", _completion_choice)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, json.dumps(body["messages"]), "chat.completion", _chat_choice)

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: str, kind: str, choice: Any
    ) -> web.StreamResponse:
        name = body["model"]
        if name not in self._names and name not in self._adapters:
            error = {"message": f"The model `{name}` does not exist.", "type": "NotFoundError", "code": 404}
            return web.json_response({"error": error}, status=404)
        # Aliases name the same weights, adapters others.
        weights = self._adapters.get(name, self._core.model)
        count = body.get("max_tokens") or DEFAULT_MAX_TOKENS
        tokens = self._core.generate(weights, prompt, count, self._token_s)
        if body.get("stream"):
            return await self._stream(
                request, name, tokens, kind + (".chunk" if kind.startswith("chat") else ""), choice
            )
        ids = [token async for token in tokens]
        done = choice(ids, "length" if len(ids) == count else "abort", delta=False)
        return web.json_response({"id": "x", "object": kind, "created": 1, "model": name, "choices": [done]})

    async def _stream(
        self, request: web.Request, name: str, tokens: AsyncIterator[int], kind: str, choice: Any
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        prepared = False
        async for token in tokens:
            if not prepared:  # vLLM answers nothing, not even a status, before it has a token
                await response.prepare(request)
                prepared = True
            chunk = {"id": "x", "object": kind, "created": 1, "model": name}
            chunk["choices"] = [choice([token], None, delta=True)]
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if not prepared:
            await response.prepare(request)
        await response.write(b"data: [DONE]\n\n")
        return response


def _text(ids: list[int]) -> str:
    return "".join(f" w{token}" for token in ids)


def _completion_choice(ids: list[int], finish: str | None, *, delta: bool) -> Any:
    return {"index": 0, "text": _text(ids), "finish_reason": finish, "token_ids": ids}


def _chat_choice(ids: list[int], finish: str | None, *, delta: bool) -> Any:
    message = {"role": "assistant", "content": _text(ids)}
    return {"index": 0, "delta" if delta else "message": message, "finish_reason": finish}
