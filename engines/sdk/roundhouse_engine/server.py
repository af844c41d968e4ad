"""HTTP on a unix socket, with a thread for each connection: Roundhouse keeps few, and bounds them."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from . import Engine, RequestError
from .routes import DONE, Events, NotSupported, call, dump, error, event
from .tensors import infer

LOOK_S = 0.2  # how often one that waits for its turn looks whether its client is still there
QUIET_S = 120  # so long a call may do nothing that shows; afterwards Roundhouse judges by its CPU time
STEP_S = 5
HEADER_BYTES = "Inference-Header-Content-Length"


class ClientGone(Exception):
    pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, uds: str, engine: Engine) -> None:
        self.engine = engine
        self._places = threading.BoundedSemaphore(engine.concurrency)
        self._lock = threading.Lock()
        self._steps = 0
        self._running: dict[int, float] = {}  # by thread: since when
        super().__init__(uds, Handler)

    def close(self) -> None:
        """Returns when the running calls have ended."""
        self.shutdown()
        while self._running:
            time.sleep(LOOK_S)

    @contextmanager
    def turn(self, handler: Handler) -> Iterator[None]:
        """One of the calls that may run at a time. Raises ClientGone."""
        while not self._places.acquire(timeout=LOOK_S):
            handler.check_client()
        thread = threading.get_ident()
        self._running[thread] = time.monotonic()
        try:
            handler.check_client()
            yield
        finally:
            del self._running[thread]
            self._places.release()
            self.step()

    def step(self) -> None:
        with self._lock:
            self._steps += 1

    def progress(self) -> int:
        """Changes with each piece and each answer, and for a while with time: what a call does, only it knows."""
        now_s = time.monotonic()
        ages_s = [now_s - since_s for since_s in self._running.copy().values()]
        return self._steps + sum(int(min(age_s, QUIET_S) // STEP_S) for age_s in ages_s)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path == "/engine/progress":
            self._send(200, str(self.server.progress()).encode(), "text/plain")
        elif self.path == "/health" or self.path.endswith("/ready"):
            healthy = self._is_healthy()
            self._send(200 if healthy else 503, dump({"status": "ok" if healthy else "unhealthy"}))
        else:
            self._send_error("This path does not exist.", 404)

    def do_POST(self) -> None:
        try:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with self.server.turn(self):
                if self.path.startswith("/v2/models/") and hasattr(self.server.engine, "predict"):
                    self._infer(raw)
                    return
                answer = call(self.server.engine, self.path, json.loads(raw), self._follow)
                if isinstance(answer, (dict, list)):
                    self._send(200, dump(answer))
                else:
                    self._stream(answer)
        except (ClientGone, ConnectionError):
            self.close_connection = True
        except NotSupported as refusal:
            self._send_error(str(refusal), 404, code="not_supported")
        except (RequestError, json.JSONDecodeError) as refusal:
            param = refusal.param if isinstance(refusal, RequestError) else None
            self._send_error(str(refusal), 400, param=param)
        except BaseException as failure:  # of the engine's, sys.exit() too: the next request may well be answered
            traceback.print_exc()
            self._send_error(_told(failure), 500, code="engine_error")

    def _infer(self, raw: bytes) -> None:
        given = self.headers.get(HEADER_BYTES)
        body, header_bytes = infer(self.server.engine, raw, int(given) if given else None)
        if header_bytes is None:
            self._send(200, body)
        else:
            self._send(200, body, "application/octet-stream", (HEADER_BYTES, str(header_bytes)))

    def check_client(self) -> None:
        """Raises ClientGone once the connection is closed from the other side."""
        try:
            if self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                raise ClientGone
        except BlockingIOError:
            pass

    def _follow(self, pieces: Iterable[Any]) -> Iterator[Any]:
        try:
            for piece in pieces:
                self.server.step()
                self.check_client()
                yield piece
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def _stream(self, events: Events) -> None:
        """An engine that fails before its first piece is answered with a status, later with an event."""
        first = next(events)
        self._head(200, "text/event-stream; charset=utf-8", ("Transfer-Encoding", "chunked"))
        self._chunk(first)
        try:
            for data in events:
                self._chunk(data)
        except (ClientGone, ConnectionError):
            raise
        except BaseException as failure:
            traceback.print_exc()
            kind, code = ("invalid_request_error", None) if isinstance(failure, RequestError) else ERROR_500
            self._chunk(event(error(self.path, _told(failure), 500, kind, None, code)) + DONE)
        finally:
            events.close()
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%X\r\n%b\r\n" % (len(data), data))

    def _is_healthy(self) -> bool:
        try:
            return bool(self.server.engine.health())
        except Exception:
            traceback.print_exc()
            return False

    def _send_error(self, message: str, status: int, *, param: str | None = None, code: str | None = None) -> None:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self._send(status, dump(error(self.path, message, status, kind, param, code)))

    def _send(self, status: int, body: bytes, kind: str = "application/json", *more: tuple[str, str]) -> None:
        self._head(status, kind, ("Content-Length", str(len(body))), *more)
        self.wfile.write(body)

    def _head(self, status: int, kind: str, *more: tuple[str, str]) -> None:
        self.send_response_only(status)
        for name, value in (("Content-Type", kind), *more):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Roundhouse has an access log."""


ERROR_500 = ("server_error", "engine_error")


def _told(failure: BaseException) -> str:
    return str(failure) if isinstance(failure, RequestError) else f"{type(failure).__name__}: {failure}"
