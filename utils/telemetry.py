"""Counters and gauges in Prometheus' text form. Labels come from closed sets: clients cannot make new series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True, slots=True)
class ModelGauge:
    """What is shown of one model."""

    model: str
    state: str
    running: int
    queued: int
    loads: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class ServerGauge:
    """What is shown of one server elsewhere; `state` is that of its circuit."""

    engine: str
    server: str
    state: str
    running: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is read when somebody scrapes."""

    models: Iterable[ModelGauge]
    budget_bytes: int
    charged_bytes: int
    servers: Iterable[ServerGauge] = ()


class _ModelCollector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        state = GaugeMetricFamily(
            "roundhouse_model_state", "1: the state that a model is in", labels=["model", "state"]
        )
        running = GaugeMetricFamily("roundhouse_model_running", "Requests that an engine answers", labels=["model"])
        queued = GaugeMetricFamily("roundhouse_model_queued", "Requests that wait", labels=["model"])
        loads = CounterMetricFamily("roundhouse_model_loads", "Finished loads", labels=["model"])
        memory = GaugeMetricFamily("roundhouse_model_memory_bytes", "Measured while resident", labels=["model"])
        for row in now.models:
            state.add_metric([row.model, row.state], 1)
            running.add_metric([row.model], row.running)
            queued.add_metric([row.model], row.queued)
            loads.add_metric([row.model], row.loads)
            if row.memory_bytes is not None:
                memory.add_metric([row.model], row.memory_bytes)
        yield from (state, running, queued, loads, memory)
        yield from _of_servers(now.servers)
        yield GaugeMetricFamily("roundhouse_memory_budget_bytes", "For all models together", value=now.budget_bytes)
        yield GaugeMetricFamily("roundhouse_memory_charged_bytes", "Charged to models now", value=now.charged_bytes)


def _of_servers(servers: Iterable[ServerGauge]) -> Iterator[Metric]:
    text = "1: the state of the circuit to a server elsewhere"
    state = GaugeMetricFamily("roundhouse_server_state", text, labels=["engine", "server", "state"])
    text = "Requests that a server elsewhere answers"
    running = GaugeMetricFamily("roundhouse_server_running", text, labels=["engine", "server"])
    for row in servers:
        state.add_metric([row.engine, row.server, row.state], 1)
        running.add_metric([row.engine, row.server], row.running)
    yield from (state, running)


class Metrics:
    """One registry per app, none global, so that tests may have several apps."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "roundhouse_requests", "Answered requests", ["route", "model", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "roundhouse_request_seconds", "Until the last byte", ["route"], buckets=SECONDS, registry=self.registry
        )
        self._queue_seconds = Histogram(
            "roundhouse_request_queue_seconds",
            "From a request's arrival until it went to its engine",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queues: dict[str, Histogram] = {}
        self._changes = {
            "load_failed": self._per_model("model_load_failures", "Loads that ended with an error"),
            "woken": self._per_model("model_wakes", "Finished wakes"),
            "sleep": self._per_model("model_sleeps", "How often the model was put to sleep"),
            "exited": self._per_model("engine_exits", "Engines that ended by themselves, or were found hanging"),
        }
        self._evictions = self._per_model("model_evictions", "Departures to make room for another model", "to")
        self._swaps = Counter("roundhouse_swaps", "Models that came after others had to leave", registry=self.registry)
        self._swap_seconds = Counter(
            "roundhouse_swap_seconds", "From the first model's fencing until the other is ready", registry=self.registry
        )
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self.registry.register(_ModelCollector(snapshot))

    def count(self, route: str, model: str, status: int, seconds: float) -> None:
        """`route` and `model` must come from our own tables ("" where unknown), never from the request."""
        key = (route, model, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(route, model, str(status))
            self._histograms.setdefault(route, self._seconds.labels(route))
        counter.inc()
        self._histograms[route].observe(seconds)

    def waited(self, model: str, seconds: float) -> None:
        """A request for `model` may go to its engine, `seconds` after it asked."""
        histogram = self._queues.get(model)
        if histogram is None:
            histogram = self._queues[model] = self._queue_seconds.labels(model)
        histogram.observe(seconds)

    def count_change(self, model: str, trigger: str) -> None:
        """The state of `model` has changed by `trigger` (see models/scheduling/residency.py)."""
        counter = self._changes.get(trigger)
        if counter is not None:
            counter.labels(model).inc()

    def count_swap(self, seconds: float, evicted: Iterable[Mapping[str, Any]]) -> None:
        """A model has come; `evicted` left for it, each with its id as `model`, and `to`: sleep or unload."""
        self._swaps.inc()
        self._swap_seconds.inc(seconds)
        for left in evicted:
            self._evictions.labels(left["model"], left["to"]).inc()

    def _per_model(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"roundhouse_{name}", what, ["model", *labels], registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)
