"""The seam between the manager and whatever serves a model. Nothing above this line knows vLLM or transformers.

An `Engine` is one model being served by one process tree (or a remote server). An `EngineFactory` makes them, and owns
what they share (a warm launcher). Factories register under the entry-point group `roundhouse.engines`, or are declared
in the configuration; either way the value is a callable `(EngineContext) -> EngineFactory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from models.types import LoadReport, ModelSpec, Progress, SleepReport

CLIENT_HEADER = "X-Roundhouse-Client"  # whose request it is, in a word that tells nothing else of them


class Outcome(StrEnum):
    """How a request to an engine ended, as far as it says something of the engine."""

    ANSWERED = "answered"  # to the end, with a status below 500
    FAILED = "failed"  # 500 and above, no connection, an answer that is none, breaks off, or does not come in time
    ABANDONED = "abandoned"  # we or the client ended it: says nothing of the engine


class RequestWatcher(Protocol):
    """Is told of one request to an endpoint: `begin` and `end` come exactly once, in this order, and never block."""

    def begin(self) -> None: ...

    def answers(self) -> None:
        """The server has begun to answer, with a status below 500; need not come."""
        ...

    def end(self, outcome: Outcome, why: str = "") -> None:
        """`why`: of a failure, a phrase for people."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the data plane sends a request: HTTP on a unix socket, or at a base URL.

    `last_words`: what the engine writes, in an answer or a stream, when it is about to end. No client should read that:
    it says neither what became of the model nor what to do. `ends_with_us`: whatever it had of a request is gone once
    it is gone, so that one that it left unanswered may be sent again; not so a server of somebody else's, to which only
    what never reached it is sent again.
    """

    uds: Path | None = None
    base_url: str = "http://engine"  # or "grpc://host:port", for routes that are forwarded by gRPC
    api_path: str = "/v1"  # what the server has in place of the routes' /v1; "" where `base_url` ends with it
    proxy: str | None = field(default=None, repr=False)  # the URL of one, perhaps with a password; None: directly
    headers: Mapping[str, str] = field(default_factory=dict)
    last_words: tuple[bytes, ...] = ()
    model: str | None = None  # what the server calls the model; None: its id
    ends_with_us: bool = True
    watcher: RequestWatcher | None = None


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How an engine ended. `reason` is a sentence for people; `log_tail` the end of its log."""

    reason: str
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a factory takes a model, and why (not)."""

    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the configuration says of an engine besides its `args`: where its server is, or what its code needs.

    See `app.config.EngineConfig` for what may stand beside what, and the defaults.
    """

    kind: str | None = None  # "openai" or "triton": a server elsewhere
    urls: tuple[str, ...] = ()  # without a `/` at the end; of `openai` what stands before /chat/completions
    api_key_env: str | None = None  # the environment variable that holds its key
    models: Mapping[str, str] = field(default_factory=dict)  # our id → the server's name; empty: all that it lists
    prefix: str = ""  # before the ids of the models that it lists
    breaker_failures: int = 5  # in a row, which open the circuit …
    breaker_open_s: float = 30.0  # … for so long
    class_path: str | None = None  # "package.module:Class"
    path: str | None = None  # the folder that it is imported from; None: it is installed
    requirements: tuple[str, ...] = ()  # of an environment of its own
    python: str | None = None  # the interpreter that runs it, or that its environment is made with
    install: bool = False  # whether it may be made at all (allow_install)
    install_timeout_s: float = 1800.0  # how long that may take


@dataclass(frozen=True, slots=True)
class EngineContext:
    """What every factory is given. Folders exist and are private (0700)."""

    run_dir: Path  # sockets; one per app process, removed at exit; short, as a unix socket's path has at most 107 bytes
    log_dir: Path  # one file per engine
    cache_dir: Path  # compile caches, kept across restarts
    device: str  # "cuda" or "cpu"
    engine_args: Mapping[str, Any] = field(default_factory=dict)  # defaults of this engine from the configuration
    kv_cache_bytes: int | None = None
    budget_bytes: int = 0  # device memory for all models together; 0: not known
    retrieval_bytes: int = 0  # of it, kept for embedding and reranking models
    gpus: int = 1  # with as much memory as the first, of which the bytes above tell
    capability: int = 0  # of the GPU for computing, ten times: 90 for 9.0; 0 where that is not known
    models_dir: Path | None = None
    name: str = ""  # as registered, or as the configuration calls it
    declared: Declaration = field(default_factory=Declaration)


class EngineStartError(Exception):
    """A load failed. `message` names the cause; `log_tail` is the end of the engine's log.

    `interrupted`: the engine was killed or stopped from outside, so that another try may well succeed.
    """

    def __init__(self, message: str, log_tail: str = "", *, interrupted: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.log_tail = log_tail
        self.interrupted = interrupted


class SleepFailed(Exception):
    """Falling asleep or waking went wrong. The engine cannot be trusted any more: its caller stops it.

    `forever`: the same would happen again (another answer than before, memory that does not come back), so this model
    in this version should not sleep any more.
    """

    def __init__(self, message: str, *, forever: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.forever = forever


class EngineUnavailable(Exception):
    """A server elsewhere that takes no request now, or an engine that cannot be prepared.

    `message` says which, why, and what to do.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class AdapterRefused(Exception):
    """An engine did not take a LoRA adapter; `message` says why.

    `reload`: it would, if it were started anew (another rank, LoRA at all).
    """

    def __init__(self, message: str, *, reload: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reload = reload


class Engine(Protocol):
    """One model on one process tree. Made cold; used by the manager only, one call at a time but for `wait_exited`."""

    @property
    def endpoint(self) -> Endpoint:
        """Where the next request goes; asked once for each. Raises EngineUnavailable (servers elsewhere only)."""
        ...

    async def start(self, timeout_s: float) -> LoadReport:
        """Returns when the engine answers requests. Raises EngineStartError (the tree is then gone already).

        Cancelled, it ends the tree before the cancellation goes on.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """TERM, wait up to `grace_s`, KILL; returns only when the whole process tree is confirmed gone. Idempotent."""
        ...

    async def sleep(self, level: int, timeout_s: float) -> SleepReport:
        """Leaves the device, keeps the process. Only while nothing runs; returns when the memory is confirmed free.

        Raises SleepFailed.
        """
        ...

    async def wake(self, timeout_s: float) -> float:
        """Returns the seconds that it took, once the engine answers, and as it did before. Raises SleepFailed."""
        ...

    async def health(self) -> bool:
        """Whether it takes requests now; False while it sleeps. Never raises, and takes a few seconds at most."""
        ...

    async def progress(self) -> Progress:
        """Never raises, never takes longer than a few seconds, and costs a busy engine next to nothing."""
        ...

    def memory_bytes(self) -> int:
        """Memory of the whole tree now: PSS on CPU, NVML on CUDA, 0 where that cannot tell. Blocks for some 100 ms."""
        ...

    async def wait_exited(self) -> ExitReport:
        """Returns when the engine's main process has ended, for whatever reason, `stop` included."""
        ...


@runtime_checkable
class TakesAdapters(Protocol):
    """An engine may also have this: LoRA adapters that come and go while it serves.

    Any number of calls at a time, those for one adapter one after the other.
    """

    async def add_adapter(self, adapter: ModelSpec) -> None:
        """Returns once requests may name `adapter.id`; replaces an adapter of the same id. Raises AdapterRefused."""
        ...

    async def remove_adapter(self, adapter_id: str) -> None:
        """Never raises; an adapter that it has not got is no fault."""
        ...


class EngineFactory(Protocol):
    """Makes engines of one kind.

    One whose engines are servers elsewhere has `remote = True`: they take no memory here, are there from the moment
    that the catalog has the model, and never leave for another. Their `start` is never called, `stop` at the end is.
    """

    name: str

    def accepts(self, spec: ModelSpec) -> Verdict: ...

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        """How an engine for `spec` would be started and why, a sentence each. May read the model's folder."""
        ...

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        """Memory that `spec` is expected to take before it was ever measured: weights, KV cache, overhead.

        With room for `adapters`, the LoRA adapters found for it.
        """
        ...

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Engine:
        """A cold engine for `spec`; `adapters` are the LoRA adapters found for it."""
        ...

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        """The sleep levels that an engine for `spec` with `adapters` has here; () where it cannot sleep."""
        ...

    async def start(self) -> None:
        """Begins warming up (importing the framework) in the background and returns at once."""
        ...

    def state(self) -> Mapping[str, Any]:
        """For /health: `{"state": "importing|ready|restarting|stopped", "start_method": "fork|exec", …}`."""
        ...

    async def close(self) -> None:
        """Ends the launcher and everything that it started; returns when all are confirmed gone."""
        ...


@dataclass(frozen=True, slots=True)
class RetrievalFacts:
    """What is known of a retrieval model before it is loaded; None: unknown.

    `pooling` is how an embedding model makes one vector of its tokens', in the words of TEI where it has one: cls,
    mean, last_token, splade. `labels` are those of a cross-encoder or a classifier, in order.
    """

    dtype: str | None = None
    pooling: str | None = None
    labels: Sequence[str] = ()
    input_tokens: int | None = None  # at most
    pass_tokens: int | None = None  # of one forward pass, at most
    pass_inputs: int | None = None
    tokenizers: int | None = None  # threads


@runtime_checkable
class KnowsRetrieval(Protocol):
    """A factory may also have this: it knows the retrieval models that it serves."""

    def retrieval_facts(self, spec: ModelSpec) -> RetrievalFacts:
        """May read the model's folder; raises nothing for what it finds there."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A factory may also have this: something that has to be made, once, before any of its engines can be loaded.

    The device is not taken for it: others load and serve meanwhile.
    """

    def prepared(self, spec: ModelSpec) -> bool:
        """Asked for each request: costs microseconds."""
        ...

    async def prepare(self, spec: ModelSpec) -> None:
        """Returns once that is made. Any number may wait; cancelled, the making goes on.

        Raises EngineUnavailable, or EngineStartError where the model cannot be started as it is configured.
        """
        ...

    def preparing(self, spec: ModelSpec) -> str:
        """What is being made and how far it is, a phrase for those who wait."""
        ...


@runtime_checkable
class ListsModels(Protocol):
    """A factory may also have this: models that lie in no folder of ours, listed by asking a server."""

    def follow(self, tell: Callable[[Sequence[ModelSpec]], None]) -> None:
        """Before `start`: from then on `tell` is called in the event loop with all its models, whenever they change."""
        ...
