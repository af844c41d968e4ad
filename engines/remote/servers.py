"""The servers of an engine that is declared in the configuration: which gets the next request, and how they are."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.base import Declaration, EngineUnavailable
from engines.remote.breaker import Breaker, CircuitState, Clock, choose
from engines.remote.proxies import proxy_for

API = "/v1"  # where the API is at most servers; beside it are the routes that do not begin with it
TRIAL_RETRY_S = 1.0  # for those who come while the one trial is under way
KEY_RETRY_S = 60.0  # the environment of a running process does not change; its operator may start it anew


@dataclass(eq=False, slots=True)
class Server:
    """One of them. `url`: what stands before its routes.

    `asked_error`: why it could not be asked what it has, the last time.
    """

    url: str
    breaker: Breaker
    proxy: str | None = field(default=None, repr=False)  # by which it is asked; may hold a password
    host: str = field(init=False)  # with its port and path, where they are named
    asked_error: str | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # once, with or without an answer

    def __post_init__(self) -> None:
        self.host = self.url.partition("://")[2].removesuffix(API)

    def state(self) -> dict[str, Any]:
        """For /health and the metrics."""
        breaker = self.breaker
        return {
            "host": self.host,
            "state": str(breaker.state),
            "failures": breaker.failures,
            "retry_after_s": round(breaker.retry_after_s, 1),
            "running": breaker.running,
            "error": breaker.last_error if breaker.failures else self.asked_error,
        }


class Servers:
    """All of one engine, in the order of the configuration."""

    def __init__(self, engine: str, declared: Declaration, clock: Clock = time.monotonic) -> None:
        failures, open_s = declared.breaker_failures, declared.breaker_open_s
        self._engine = engine
        self.all = tuple(Server(url, Breaker(failures, open_s, clock), proxy_for(url)) for url in declared.urls)

    def choose(self, among: Sequence[Server]) -> Server:
        """The one for the next request, whose watcher begins before anything else is awaited.

        Raises EngineUnavailable where none takes any now.
        """
        index = choose([server.breaker for server in among])
        if index is None:
            raise self._unavailable(among)
        return among[index]

    def state(self) -> list[dict[str, Any]]:
        return [server.state() for server in self.all]

    def _unavailable(self, among: Sequence[Server]) -> EngineUnavailable:
        told = "; ".join(_why(server) for server in among)
        retry_after_s = min((server.breaker.retry_after_s for server in among), default=TRIAL_RETRY_S)
        what = "Its server takes no" if len(among) == 1 else "None of its servers takes"
        text = f"{what} requests now (engine '{self._engine}'): {told}."
        return EngineUnavailable(text, retry_after_s=max(TRIAL_RETRY_S, retry_after_s))


def _why(server: Server) -> str:
    breaker = server.breaker
    failed = f"{server.host} failed {breaker.failures} times in a row"
    error = f", at last: {breaker.last_error.rstrip('.')}" if breaker.last_error else ""
    if breaker.state is CircuitState.OPEN:
        return f"{failed}{error}; it is tried again in {math.ceil(breaker.retry_after_s)} s"
    return f"{failed}{error}; it is being tried with one request now"


@dataclass(frozen=True, slots=True)
class Key:
    """The key of an engine's servers: `value` where one is there, `missing` why not where one is wanted."""

    value: str | None = None
    missing: str | None = None

    @staticmethod
    def read(declared: Declaration, environment: Mapping[str, str] = os.environ) -> Key:
        name = declared.api_key_env
        if name is None:
            return Key()
        value = environment.get(name, "").strip()
        if not value:
            return Key(
                missing=f"the environment variable {name} (api_key_env), which holds its servers' key, is not set"
            )
        if not (value.isascii() and value.isprintable()):
            return Key(missing=f"the environment variable {name} (api_key_env) holds what cannot be a key")
        return Key(value)

    def headers(self) -> dict[str, str]:
        return {} if self.value is None else {"Authorization": f"Bearer {self.value}"}

    def check(self, engine: str) -> None:
        """Raises EngineUnavailable where it is missing."""
        if self.missing is not None:
            text = f"The engine '{engine}' cannot be used: {self.missing}. Set it and start Roundhouse anew."
            raise EngineUnavailable(text, retry_after_s=KEY_RETRY_S)

    def __repr__(self) -> str:
        return f"Key({'missing' if self.missing else 'set' if self.value else 'none'})"
