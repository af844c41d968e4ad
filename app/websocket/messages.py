"""The messages of the WebSocket protocol: what clients may send, checked, and what they get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from app.errors import InvalidRequest, RequestError
from app.request_body import MODEL_NAME_MAX, parse_document

SESSION_ID_MAX = 256
FAULTS_TOLD = 3  # of one message
FIELDS_MAX = 64  # several times as many as any message has: each that is not known would be a fault of its own
SAMPLING = {"max_tokens", "temperature", "top_k", "top_p"}


class SessionRunning(RequestError):
    status, code = 409, "session_running"


class SessionNotFound(RequestError):
    status, code = 404, "session_not_found"


class Incoming(BaseModel):
    """Types are taken as they are: "5" is no number, and a field that a message does not have is no slip to pass over.

    null stands for "not given" wherever a field may be left out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Auth(Incoming):
    """The API key of a client that cannot send it as a header."""

    type: Literal["auth"]
    key: str


class LoadAdapter(Incoming):
    """Which adapter answers from now on, where a generate names no model; null: none."""

    type: Literal["load_adapter"]
    adapter_path: str | None


class Generate(Incoming):
    """One answer. What is left out of the sampling parameters is the model's own default."""

    type: Literal["generate"]
    session_id: str = Field(min_length=1, max_length=SESSION_ID_MAX)
    messages: Annotated[list[dict[str, Any]], FailFast()] = Field(min_length=1)
    system_prompt: str | None = None
    model: str | None = Field(None, min_length=1, max_length=MODEL_NAME_MAX)
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def chat_request(self, model: str) -> bytes:
        """The same as the body of a streaming chat completion of `model`. Raises InvalidRequest."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        sampling = self.model_dump(include=SAMPLING, exclude_none=True)
        request = {"model": model, "messages": system + self.messages, "stream": True} | sampling
        try:
            return orjson.dumps(request)
        except orjson.JSONEncodeError as error:  # orjson reads more levels than it writes
            raise InvalidRequest(f"`messages` cannot be passed on: {error}.", param="messages") from None


class Cancel(Incoming):
    type: Literal["cancel"]
    session_id: str


class Ping(Incoming):
    """Clients keep the connection alive with it; whatever else they put in does no harm."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["ping"]


KINDS: Mapping[str, type[Incoming]] = {
    "auth": Auth,
    "load_adapter": LoadAdapter,
    "generate": Generate,
    "cancel": Cancel,
    "ping": Ping,
}


def read_document(text: str) -> dict[str, Any]:
    """The JSON object in a message. Raises InvalidRequest."""
    return parse_document(text.encode(), "message")


def read_message(document: dict[str, Any]) -> Incoming:
    """Raises InvalidRequest that names the fields at fault."""
    name = document.get("type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        problem = "is missing" if name is None else f"cannot be {str(name)[:80]!r}"
        raise InvalidRequest(f"`type` {problem}; it is one of {', '.join(KINDS)}.", param="type")
    if len(document) > FIELDS_MAX:
        raise InvalidRequest(f"The message has more than {FIELDS_MAX} fields; it has {', '.join(kind.model_fields)}.")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        text = "; ".join(_fault(kind, fault) for fault in faults[:FAULTS_TOLD])
        raise InvalidRequest(f"{text}.", param=str(faults[0]["loc"][0])) from None


def _fault(kind: type[Incoming], fault: Mapping[str, Any]) -> str:
    field = f"`{'.'.join(str(part)[:80] for part in fault['loc'])}`"
    match fault["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not known; such a message has {', '.join(kind.model_fields)}"
    return f"{field}: {str(fault['msg']).removeprefix('Input ')}"


def session_of(document: Mapping[str, Any]) -> str | None:
    """The session that a message is about, as far as that can be told, for the error about the rest of it."""
    given = document.get("session_id")
    return given[:SESSION_ID_MAX] if isinstance(given, str) else None


def adapter_loaded(adapter_path: str) -> str:
    return _text({"type": "adapter_loaded", "adapter_path": adapter_path})


def adapter_unloaded() -> str:
    return _text({"type": "adapter_unloaded"})


def token(content: str, session_id: str) -> str:
    return _text({"type": "token", "content": content, "session_id": session_id})


def done(content: str, session_id: str) -> str:
    """`content`: the whole answer."""
    return _text({"type": "done", "content": content, "session_id": session_id})


def pong() -> str:
    return _text({"type": "pong"})


def error(message: str, code: str, session_id: str | None) -> str:
    """`session_id`: null where the error is of no session."""
    return _text({"type": "error", "message": message, "code": code, "session_id": session_id})


def _text(message: dict[str, Any]) -> str:
    return orjson.dumps(message).decode()
