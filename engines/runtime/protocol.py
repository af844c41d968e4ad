"""What the app, the launchers and the keepers of engines say to each other.

Each message is one JSON object in one datagram of a unix SOCK_SEQPACKET socket, so that there is no framing and the
end of either side is seen by the other as end of file.

control socket, app ↔ launcher
    app → launcher   spawn {request}, with the keeper's end of the engine's channel as ancillary data
    launcher → app   imported {import_s, start_method, reason} · import_failed {error}
channel, app ↔ keeper of one engine
    app → keeper     stop {grace_s}; end of file means: kill at once
    keeper → app     started {pid, keeper_pid, start_method, reason} · ready
                     exited {exit_code, signal, error, ended_with} · gone
pipe, engine → keeper
    ready · failed {error}
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

MAX_MESSAGE_BYTES = 128 * 1024  # well under the kernel's default socket buffer, over which a datagram cannot be sent


class Event(StrEnum):
    SPAWN = "spawn"
    STOP = "stop"
    IMPORTED = "imported"
    IMPORT_FAILED = "import_failed"
    STARTED = "started"
    READY = "ready"
    FAILED = "failed"
    EXITED = "exited"
    GONE = "gone"


class StartMethod(StrEnum):
    FORK = "fork"
    EXEC = "exec"


def _nobody() -> None:
    return None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One engine to start. All but `notify` and `notify_fd` travels as JSON; paths are strings for that reason.

    `args` is read by the runtime module alone: a command line (list) or named values (mapping). `env` is set in the
    engine process before its runtime runs. `scratch`, if given, is a folder that does not exist yet: it is the engine's
    TMPDIR, and removed with it. `vital` begins the command line of processes without which the engine is of no use:
    when one of those that it has once it is ready ends, so does the engine.
    """

    name: str  # for people: log lines and errors
    uds: str
    model_path: str
    log_path: str
    served_names: tuple[str, ...] = ()
    args: list[Any] | Mapping[str, Any] = field(default_factory=list)
    env: Mapping[str, str] = field(default_factory=dict)
    scratch: str = ""
    vital: str = ""
    only_check: bool = False  # look whether it could be started, and end: with an error if not
    notify: Callable[[], None] = field(default=_nobody, compare=False, repr=False)
    notify_fd: int = field(default=-1, compare=False, repr=False)  # the same, for a runtime that execs another program

    def ready(self) -> None:
        """The runtime calls this once, when its server accepts connections on `uds`."""
        self.notify()

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("notify")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineRequest:
        return cls(**{**data, "served_names": tuple(data.get("served_names", ()))})


def encode(event: Event, **values: Any) -> bytes:
    """One datagram. Raises ValueError if it is too long to be sent as one."""
    data = json.dumps({"event": event, **values}, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a {event} message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """The message in one datagram; its `event` is one of Event."""
    message: dict[str, Any] = json.loads(data)
    message["event"] = Event(message["event"])
    return message


def socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
