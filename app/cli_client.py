"""What the command line knows of HTTP: one blocking request at a time, on the standard library alone.

Every failure is a CliError, which carries the exit code that scripts see.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

CONNECT_TIMEOUT_S = 5.0  # a server on this machine accepts at once; one beyond a network within seconds
ANSWER_TIMEOUT_S = 30.0  # for what the router knows by itself
LOAD_TIMEOUT_S = 960.0  # the router's own bounds (draining 300 s, loading 600 s) and a minute more: its error says more
MAX_ANSWER_BYTES = 64 << 20  # 10,000 models with their reasons are 10 MB


class ExitCode(IntEnum):
    """Exit codes of `roundhouse`, for scripts."""

    OK = 0
    SERVER_ERROR = 1
    USAGE = 2
    NO_CONNECTION = 3
    UNKNOWN_MODEL = 4
    OVERLOADED = 5
    REFUSED = 6


class CliError(Exception):
    """Ends the command: `message` goes to stderr, `exit_code` to the shell; `code` is the server's, if it sent one."""

    def __init__(self, message: str, exit_code: ExitCode, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code
        self.status = status

    def document(self) -> dict[str, Any]:
        """For `--json`: the same facts as one JSON document."""
        return {"error": {"message": self.message, "code": self.code, "status": self.status}}


def default_url(environ: Mapping[str, str] | None = None) -> str:
    """ROUNDHOUSE_URL, or where `roundhouse serve` would listen with this environment and configuration file."""
    environ = os.environ if environ is None else environ
    if url := environ.get("ROUNDHOUSE_URL"):
        return url
    host, port = environ.get("ROUNDHOUSE_HOST"), environ.get("ROUNDHOUSE_PORT")
    if not (host and port):
        file_host, file_port = _configured_address(environ)
        host, port = host or file_host, port or str(file_port)
    return f"http://{_reachable(host)}:{port}"


def default_key(environ: Mapping[str, str] | None = None) -> str | None:
    """ROUNDHOUSE_API_KEY, or the first of ROUNDHOUSE_API_KEYS."""
    environ = os.environ if environ is None else environ
    return environ.get("ROUNDHOUSE_API_KEY") or environ.get("ROUNDHOUSE_API_KEYS", "").split(",")[0].strip() or None


def _configured_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the configuration file, read only where there is one: pydantic costs 0.2 s."""
    file = Path(environ.get("ROUNDHOUSE_MODELS_DIR") or "models-data") / "roundhouse.yaml"
    if environ.get("ROUNDHOUSE_CONFIG") or os.path.isfile(file):  # also where we may not look, unlike Path's
        from app.config import ConfigError, load_settings

        try:
            settings = load_settings()
        except ConfigError:
            return "127.0.0.1", 8000  # `roundhouse serve` is who says what is wrong with it
        return settings.host, settings.port
    return "127.0.0.1", 8000


def _reachable(host: str) -> str:
    """An address to connect to, where `host` may be one that only means "listen everywhere"."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


class Client:
    """A connection per request to one Roundhouse server."""

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise CliError(f"{url!r} is no URL: {error}.", ExitCode.USAGE) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CliError(f"{url!r} is no URL; write it like http://127.0.0.1:8000.", ExitCode.USAGE)
        self.url = parts.geturl().rstrip("/").removesuffix("/v1")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, port
        self._prefix = urlsplit(self.url).path
        self._key = key

    def get(self, path: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The JSON answer to GET `path`."""
        with self._answer("GET", path, None, timeout_s) as answer:
            return _document(answer, path)

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The JSON answer to POST `path`."""
        with self._answer("POST", path, body, timeout_s) as answer:
            return _document(answer, path)

    def health(self) -> dict[str, Any]:
        """What /health says; an empty dict where it is no object."""
        document = self.get("/health")
        return document if isinstance(document, dict) else {}

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Iterator[Iterator[str]]:
        """The lines of the answer to POST `path` as they come; `timeout_s` bounds the silence between two of them."""
        with self._answer("POST", path, body, timeout_s) as answer:
            yield self._lines(answer, timeout_s)

    @contextmanager
    def follow(self, path: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterator[Iterator[str]]:
        """As `stream`, of the answer to GET `path`."""
        with self._answer("GET", path, None, timeout_s) as answer:
            yield self._lines(answer, timeout_s)

    def _lines(self, answer: http.client.HTTPResponse, timeout_s: float) -> Iterator[str]:
        try:
            while line := answer.readline(MAX_ANSWER_BYTES):
                yield line.decode("utf-8", "replace").rstrip("\r\n")
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error, timeout_s) from error

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        with ExitStack() as open_things:
            connection = open_things.enter_context(closing(self._connect()))
            try:
                connection.sock.settimeout(timeout_s)
                data = None if body is None else json.dumps(body).encode()
                connection.request(method, self._prefix + path, data, self._headers())
                # an answer that ends with its connection outlives the connection object: close both
                answer = open_things.enter_context(closing(connection.getresponse()))
                if answer.status >= 400:
                    raise _server_error(answer, self.url)
            except (OSError, http.client.HTTPException) as error:
                raise self._failure(error, timeout_s) from error
            yield answer

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            reason = str(error) if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or str(error)
            hint = "Start it with `roundhouse serve`, or say where it is with --url or ROUNDHOUSE_URL."
            raise CliError(f"No server at {self.url}: {reason}. {hint}", ExitCode.NO_CONNECTION) from error
        return connection

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "roundhouse-cli"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _failure(self, error: OSError | http.client.HTTPException, timeout_s: float) -> CliError:
        if isinstance(error, socket.timeout | TimeoutError):
            return CliError(f"{self.url} sent nothing for {timeout_s:g} s.", ExitCode.OVERLOADED)
        return CliError(f"The connection to {self.url} broke: {error or type(error).__name__}.", ExitCode.NO_CONNECTION)


def model_path(model: str) -> str:
    """The path of one model; ids keep their slash."""
    return f"/v1/models/{quote(model, safe='/')}"


def error_of(document: Any, status: int | None = None, retry_after: str | None = None) -> CliError:
    """The CliError for an error envelope, `{"error": {"message", "code", …}}`, of an answer or an SSE event."""
    error = document.get("error") if isinstance(document, dict) else None
    error = error if isinstance(error, dict) else {}
    code = str(error["code"]) if error.get("code") is not None else None
    message = str(error.get("message") or f"The server answered {status or 'an error'}.")
    if retry_after:
        message += f" Try again in {retry_after} s."
    return CliError(message, _exit_code(status, code), code, status)


def _exit_code(status: int | None, code: str | None) -> ExitCode:
    if code in ("model_not_found", "model_ambiguous"):
        return ExitCode.UNKNOWN_MODEL
    if status in (401, 403):
        return ExitCode.REFUSED
    if status in (408, 429, 504) or code in ("overloaded", "shutting_down"):
        return ExitCode.OVERLOADED
    return ExitCode.SERVER_ERROR


def _server_error(answer: http.client.HTTPResponse, url: str) -> CliError:
    try:
        document = json.loads(answer.read(MAX_ANSWER_BYTES))
    except ValueError:
        what = f"{answer.status} {answer.reason}"
        return CliError(f"{url} answered {what}; is it Roundhouse?", ExitCode.SERVER_ERROR, status=answer.status)
    error = error_of(document, answer.status, answer.headers.get("Retry-After"))
    if error.exit_code == ExitCode.REFUSED:
        error.message += " Set ROUNDHOUSE_API_KEY to one of the server's keys."
    return error


def _document(answer: http.client.HTTPResponse, path: str) -> Any:
    try:
        return json.loads(answer.read(MAX_ANSWER_BYTES))
    except ValueError as error:
        message = f"The answer to {path} is not JSON; is this a Roundhouse server?"
        raise CliError(message, ExitCode.SERVER_ERROR) from error
    except (OSError, http.client.HTTPException) as error:
        raise CliError(f"The answer to {path} broke off: {error}.", ExitCode.NO_CONNECTION) from error
