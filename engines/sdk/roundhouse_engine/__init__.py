"""What an engine of one's own is written with: a class with `load` and whichever of the methods it can do.

Roundhouse runs it in a process of its own, with the Python and the libraries that the configuration names, and answers
the API's routes with it. This package needs nothing but Python 3.9 or later.

    from roundhouse_engine import Engine

    class Echo(Engine):
        def load(self, path, args):
            self.prefix = args.get("prefix", "")

        def chat(self, messages, params):
            for word in messages[-1]["content"].split():
                yield f"{self.prefix}{word} "
"""

from __future__ import annotations

from typing import Any

from .errors import RequestError
from .tensors import Tensor

__all__ = ["Engine", "RequestError", "Tensor"]


class Engine:
    """To be derived from. Beside `load` and `health` a class has those of these methods that it can do:

    `chat(messages, params)` and `complete(prompt, params)` return a text, or yield it piece by piece, which is
    streamed; a client that leaves ends the generator (GeneratorExit) at its next piece. `params` is the rest of the
    request.
    `embed(texts)` returns a vector of floats for each text.
    `rerank(query, documents)` returns a score for each document.
    `classify(texts)` returns `{label: probability}` for each text.
    `predict(inputs)` takes and returns a `Tensor` for each name (KServe V2).

    They are plain methods, not `async`. An exception is told to the client as the engine's error, and its traceback is
    in the log; `RequestError` is the client's fault.
    """

    concurrency = 1
    """How many calls run at a time, each in a thread of its own. Others wait."""

    def load(self, path: str, args: dict[str, Any]) -> None:
        """Once, before all else. `path` is the model's folder, `args` the model's `engine_args` over the engine's."""

    def health(self) -> bool:
        """Whether it can serve. Called in a thread of its own, at any time after `load`."""
        return True
