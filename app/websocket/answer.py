"""Reads the answer to a chat request, as the data plane sends it, into what a WebSocket client is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson

from app.asgi import ClientGone, Message
from app.websocket import messages

MAX_EVENT_BYTES = 1 << 20  # one event holds a token or a few
MAX_ANSWER_CHARS = 1 << 24  # far more than any context; a server elsewhere may never end
ERROR_BYTES = 1 << 16
EVENT_STREAM = b"text/event-stream"
FIRST_FAULT_OF_ENGINE = 500


class BadAnswer(Exception):
    """What came is no answer, or tells of an error."""

    def __init__(self, message: str, code: str = "engine_error") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class ChatStream:
    """The events of a streamed chat completion."""

    def __init__(self) -> None:
        self.ended = False  # it says itself that nothing more comes
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yields the pieces of content in what has come; reasoning is none. Raises BadAnswer after those before it."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:") and (content := self._read(line[5:].strip())):
                yield content
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadAnswer(f"The engine sent an event of more than {MAX_EVENT_BYTES} bytes.")

    def _read(self, data: bytes) -> str | None:
        if data == b"[DONE]":
            self.ended = True
            return None
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise BadAnswer("The engine sent an event that is not JSON.") from None
        if not isinstance(event, dict):
            raise BadAnswer("The engine sent an event that is no JSON object.")
        if event.get("error") is not None:
            raise told_error(event["error"], FIRST_FAULT_OF_ENGINE)
        try:
            choices = event.get("choices") or [{}]  # usage comes without any
            choice = choices[0]
            self.ended = self.ended or choice.get("finish_reason") is not None
            content = (choice.get("delta") or {}).get("content")
        except (AttributeError, KeyError, TypeError):
            raise BadAnswer("The engine sent an event that is no part of a chat completion.") from None
        return content if isinstance(content, str) else None


def told_error(told: Any, status: int) -> BadAnswer:
    """The error in an engine's answer or in ours; codes that are numbers, as vLLM's, say less than ours."""
    fields = told if isinstance(told, dict) else {"message": str(told)}
    code = fields.get("code")
    if not isinstance(code, str) or not code or code.isdigit():
        number = code if isinstance(code, int) else status
        code = "engine_error" if number >= FIRST_FAULT_OF_ENGINE else "invalid_request"
    return BadAnswer(str(fields.get("message") or "The engine tells of an error without saying which."), code)


class Answer:
    """An ASGI `send` for one chat request: tells its tokens at once, and knows in the end how it went."""

    def __init__(self, session_id: str, tell: Callable[[str], Awaitable[None]]) -> None:
        self._session_id = session_id
        self._tell = tell
        self._stream = ChatStream()
        self._streams = False
        self._status = 0
        self._body = b""  # of what is no stream
        self._content: list[str] = []
        self._chars = 0
        self._fault: BadAnswer | None = None

    async def send(self, message: Message) -> None:
        """Raises ClientGone for what need not go on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
            self._streams = self._status == 200 and kind.lower().startswith(EVENT_STREAM)
        elif not self._streams:
            self._body += message["body"][: ERROR_BYTES - len(self._body)]
        elif self._fault is None:
            try:
                await self._take(message["body"])
            except BadAnswer as fault:
                self._fault = fault
                if message["more_body"]:
                    raise ClientGone from None

    async def _take(self, chunk: bytes) -> None:
        for content in self._stream.feed(chunk):
            self._chars += len(content)
            if self._chars > MAX_ANSWER_CHARS:
                raise BadAnswer(f"The answer is longer than {MAX_ANSWER_CHARS} characters, and did not end.")
            self._content.append(content)
            await self._tell(messages.token(content, self._session_id))

    def result(self) -> str:
        """The message that ends the session: `done`, or the error."""
        fault = self._fault or self._missing()
        if fault is None:
            return messages.done("".join(self._content), self._session_id)
        return messages.error(fault.message, fault.code, self._session_id)

    def _missing(self) -> BadAnswer | None:
        if self._streams:
            text = "The engine ended while it answered; what came before is incomplete."
            return None if self._stream.ended else BadAnswer(text)
        try:
            told = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            told = None
        if self._status >= 400 and isinstance(told, dict) and "error" in told:
            return told_error(told["error"], self._status)
        return BadAnswer(f"The engine answered with status {self._status} and no stream.")
