"""The allowlist of the data plane: every path that reaches an engine, and for which kinds of model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import WrongTask
from models.types import Method, ModelSpec, Task
from utils.openai_compat import Protocol

GENERATE = frozenset({Task.CHAT, Task.COMPLETION, Task.ADAPTER})
CHAT = frozenset({Task.CHAT, Task.ADAPTER})
EMBED = frozenset({Task.EMBED})
RERANK = frozenset({Task.RERANK})
SCORE = frozenset({Task.RERANK, Task.EMBED})
CLASSIFY = frozenset({Task.CLASSIFY})
RETRIEVAL = EMBED | RERANK | CLASSIFY
TENSOR = frozenset({Task.TENSOR})
ONE_VECTOR: frozenset[Method | None] = frozenset({None})
MANY_VECTORS: frozenset[Method | None] = frozenset({Method.MULTI_VECTOR})
SPARSE: frozenset[Method | None] = frozenset({Method.SPARSE})
ALL = frozenset({Task.CHAT, Task.COMPLETION, Task.ADAPTER, Task.EMBED, Task.RERANK, Task.CLASSIFY})


@dataclass(frozen=True, slots=True)
class Route:
    """A POST route: its path, here and at the engine, the tasks that it serves, the protocol of its errors."""

    path: str
    tasks: frozenset[Task]
    protocol: Protocol = "openai"
    streams: bool = False  # whether `stream: true` makes it answer in server-sent events
    methods: frozenset[Method | None] | None = None  # of the embedding models that it serves; None: all
    tei_field: str | None = None  # a body that has it is one of TEI, on a path that others have, too

    def protocol_of(self, document: Mapping[str, Any]) -> Protocol:
        """That of the client who sent this body; the engine tells them apart by the same field."""
        return "tei" if self.tei_field is not None and self.tei_field in document else self.protocol

    def serves(self, spec: ModelSpec) -> bool:
        if spec.task is Task.EMBED and self.methods is not None:
            return spec.task in self.tasks and spec.overrides.engine_args.get("method", spec.method) in self.methods
        return spec.task in self.tasks


TEI_ROOT = "/"  # where clients ask who know only the address of a server, such as huggingface_hub's

ROUTES: Mapping[str, Route] = {
    route.path: route
    for route in (
        Route("/v1/chat/completions", CHAT, streams=True),
        Route("/v1/completions", GENERATE, streams=True),
        Route("/v1/responses", CHAT, "responses", streams=True),
        Route("/v1/messages", CHAT, "anthropic", streams=True),
        Route("/v1/messages/count_tokens", CHAT, "anthropic"),
        Route("/v1/embeddings", EMBED, methods=ONE_VECTOR),
        Route("/embeddings", EMBED, methods=ONE_VECTOR),
        Route("/v1/multi-vector", EMBED, methods=MANY_VECTORS),
        Route("/v1/embed", EMBED, "cohere", methods=ONE_VECTOR),
        Route("/v2/embed", EMBED, "cohere", methods=ONE_VECTOR),
        Route(TEI_ROOT, EMBED, "tei", methods=ONE_VECTOR),
        Route("/embed", EMBED, "tei", methods=ONE_VECTOR),
        Route("/similarity", EMBED, "tei", methods=ONE_VECTOR),
        Route("/embed_all", EMBED, "tei", methods=MANY_VECTORS),
        Route("/embed_sparse", EMBED, "tei", methods=SPARSE),
        Route("/v1/rerank", RERANK),
        Route("/v2/rerank", RERANK, "cohere"),
        Route("/rerank", RERANK, tei_field="texts"),
        Route("/v1/score", SCORE, methods=ONE_VECTOR),
        Route("/score", SCORE, methods=ONE_VECTOR),
        Route("/v1/classify", CLASSIFY),
        Route("/classify", CLASSIFY),
        Route("/predict", CLASSIFY, "tei"),
        Route("/tokenize", ALL),
        Route("/detokenize", ALL),
        Route("/decode", RETRIEVAL, "tei"),
    )
}

TEI_TOKENIZE = Route("/tokenize", RETRIEVAL, "tei")  # vLLM's /tokenize has other fields
INFO = Route("/info", RETRIEVAL, "tei")  # a GET, which the app itself answers

# KServe V2 names the model in the path, so that these are no keys of ROUTES; see app.kserve.
TENSOR_ROUTES = tuple(Route(f"/v2/models/{{name}}{end}", TENSOR, "kserve") for end in ("", "/ready", "/infer"))


def meant(route: Route, document: Mapping[str, Any]) -> Route:
    """`route`, or what a request of TEI's clients is for: which TEI knows by its one model, we by the fields."""
    if route.path == TEI_TOKENIZE.path and "inputs" in document:
        return TEI_TOKENIZE
    if route.path != TEI_ROOT:
        return route
    if "texts" in document:
        return ROUTES["/rerank"]
    return ROUTES["/similarity" if isinstance(document.get("inputs"), dict) else "/embed"]


def routes_of(spec: ModelSpec) -> list[str]:
    return [route.path for route in (*ROUTES.values(), *TENSOR_ROUTES) if route.serves(spec)]


def check_task(spec: ModelSpec, route: Route) -> None:
    """Raises WrongTask, naming the routes that `spec` does serve."""
    if route.serves(spec):
        return
    asked = f"{route.path} with `inputs`" if route is TEI_TOKENIZE else route.path
    served = ", ".join(routes_of(spec))
    kinds = " or ".join(sorted(str(task) for task in route.tasks if task is not Task.ADAPTER))
    needed = f"{kinds} of another kind" if spec.task in route.tasks else kinds
    raise WrongTask(
        f"{asked} needs a model for {needed}; '{spec.id}' is a model for {spec.task}, served at {served}.",
        param="model",
    )
