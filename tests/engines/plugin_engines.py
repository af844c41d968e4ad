"""Engines as somebody would write them, for tests; run by the SDK in other processes, and in this one."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roundhouse_engine import Engine, RequestError, Tensor


class Echo(Engine):
    """Says what it was told; `args` say what it does besides."""

    concurrency = 2

    def load(self, path: str, args: dict[str, Any]) -> None:
        if "raise" in args:
            raise RuntimeError(args["raise"])
        self.path = path
        self.args = args
        self.began, self.ended, self.may_end = threading.Event(), threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = 0

    def chat(self, messages: list[dict[str, Any]], params: dict[str, Any]) -> Iterator[str]:
        text = messages[-1]["content"]
        if text == "refuse":
            raise RequestError("no such thing is said here", "messages")
        try:
            for number, word in enumerate(text.split()):
                if word == "raise":
                    raise KeyError("a fault of the engine's")
                if word == "exit":
                    sys.exit("a fault of the engine's")
                if word == "endless":
                    self.began.set()
                    while True:
                        yield "and "
                yield word if number == 0 else f" {word}"
        finally:
            self.ended.set()

    def complete(self, prompt: str, params: dict[str, Any]) -> str:
        if prompt == "wait":
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            assert self.may_end.wait(15)
            with self.lock:
                self.running -= 1
        return f"{prompt} {params.get('max_tokens')}"

    def embed(self, texts: list[str]) -> list[list[float]]:
        return [[float(len(text)), 0.5] if text != "nan" else [float("nan")] for text in texts]

    def rerank(self, query: str, documents: list[str]) -> list[float]:
        return [float(document.count(query)) for document in documents]

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each twice as long."""
        return {
            f"two_{name}": Tensor(given.datatype, [2, *given.shape], given.raw * 2) for name, given in inputs.items()
        }

    def health(self) -> bool:
        return not self.args.get("ill")


class Versions(Engine):
    """Tells which interpreter and which version of a package it runs with."""

    def load(self, path: str, args: dict[str, Any]) -> None:
        self.package = args["package"]

    def chat(self, messages: list[dict[str, Any]], params: dict[str, Any]) -> str:
        return f"{importlib.metadata.version(self.package)} {sys.prefix}"

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"version": Tensor.of("BYTES", [1], [importlib.metadata.version(self.package)])}


class Nothing(Engine):
    """Has none of the methods."""


class Asynchronous(Engine):
    async def chat(self, messages: list[dict[str, Any]], params: dict[str, Any]) -> str:
        return ""


class Environment(Engine):
    def chat(self, messages: list[dict[str, Any]], params: dict[str, Any]) -> str:
        return "\n".join(f"{name}={value}" for name, value in os.environ.items()) + f"\n{Path.cwd()}"
