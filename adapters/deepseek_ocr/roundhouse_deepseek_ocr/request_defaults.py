"""What each request to DeepSeek-OCR should say, so that no client need know. Runs in vLLM's server (`--middleware`).

By the recipe of its authors and vLLM: greedy; no 30 tokens twice within 90, but in the cells of a table, where a page's
text may well repeat itself; and the answer with the tokens that mark what is where. A client that says one of these
itself is obeyed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SAMPLING = {
    "temperature": 0,
    # for NGramPerReqLogitsProcessor; the two ids are <td> and </td>
    "vllm_xargs": {"ngram_size": 30, "window_size": 90, "whitelist_token_ids": [128821, 128822]},
}
OPENAI = {**SAMPLING, "skip_special_tokens": False}
DEFAULTS = {
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/responses": OPENAI,
    "/v1/messages": SAMPLING,  # vLLM's Messages know no skip_special_tokens
}


class RequestDefaults:
    """Puts the defaults first in the JSON object of a request: of two equal keys the later one, the client's, counts.

    So nothing is parsed or collected, however large the images in a request are. What is no JSON object stays as it is,
    for vLLM to refuse.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        defaults = DEFAULTS.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if defaults is None:
            return await self._app(scope, receive, send)
        message = await receive()
        while not message.get("body", b"").strip() and message.get("more_body"):
            following = await receive()
            message = {**following, "body": message["body"] + following.get("body", b"")}
        body = message.get("body", b"")
        changed = with_defaults(body, defaults)
        first: list[Message] = [{**message, "body": changed}]

        async def receive_changed() -> Message:
            return first.pop() if first else await receive()

        headers = longer(scope["headers"], len(changed) - len(body))
        return await self._app({**scope, "headers": headers}, receive_changed, send)


def with_defaults(body: bytes, defaults: dict[str, Any]) -> bytes:
    """`body`, the beginning of a JSON object, with `defaults` as its first members."""
    start = body.lstrip()
    if not start.startswith(b"{"):
        return body
    members = start[1:].lstrip()
    comma = b"" if members.startswith(b"}") else b","
    return json.dumps(defaults).encode()[:-1] + comma + members


def longer(headers: list[tuple[bytes, bytes]], by_bytes: int) -> list[tuple[bytes, bytes]]:
    """The headers of a request whose body has grown."""
    return [
        (name, str(int(value) + by_bytes).encode() if name == b"content-length" else value) for name, value in headers
    ]
