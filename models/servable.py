"""Which of the models that exist some engine here can serve, why not the others, and what the scheduler is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.base import EngineFactory
from models.catalog import Catalog
from models.errors import UnknownModel
from models.footprints import Footprint
from models.scheduling.policy import Limits
from models.types import Availability, ModelSpec, Task

LOAD_COST_GUESS_S = 10.0  # before a model was ever measured
ESTIMATED = "estimated from weights, KV cache and overhead"
ELSEWHERE = "served elsewhere"
RETRIEVAL = frozenset({Task.EMBED, Task.RERANK, Task.CLASSIFY})
# What an engine was started with; a change of any other override needs no reload.
START_OVERRIDES = (
    *("engine_args", "max_model_len", "kv_cache_bytes", "speculative"),
    *("trust_remote_code", "allow_pickle"),
)
# Aliases are not among them: the proxy sends every engine its model's id.
START_FIELDS = ("fingerprint", "path", "engine", "task", "method")


class Servable:
    """Judges models by what the factories accept."""

    def __init__(self, catalog: Catalog, factories: Mapping[str, EngineFactory]) -> None:
        self._catalog = catalog
        self._factories = factories

    def refusal(self, spec: ModelSpec) -> str | None:
        """Why `spec` cannot be served, in a sentence or two; None where it can."""
        reasons = "; ".join(spec.reasons).rstrip(".") or "no reason was recorded"
        if spec.availability is Availability.INCOMPLETE:
            return f"The model '{spec.id}' is not complete yet: {reasons}."
        if spec.availability is Availability.UNUSABLE:
            return f"The model '{spec.id}' cannot be used: {reasons}."
        if spec.task is Task.ADAPTER:
            return self._base_refusal(spec)
        if spec.task is Task.UNSUPPORTED or not spec.engine:
            return f"The model '{spec.id}' is of a kind that no engine here serves: {reasons}."
        factory = self._factories.get(spec.engine)
        if factory is None:
            there = ", ".join(sorted(self._factories)) or "none"
            why = f"which is not one of those here ({there}). /health says which failed to start."
            return f"The model '{spec.id}' needs the engine '{spec.engine}', {why}"
        return self._verdict(spec, factory)

    def reasons(self, spec: ModelSpec) -> Sequence[str]:
        """How its engine would be started, and why; empty where it cannot be served or is an adapter."""
        if spec.task is Task.ADAPTER or self.refusal(spec) is not None:
            return ()
        try:
            return self._factories[spec.engine].reasons(spec, self.adapters(spec))
        except Exception as error:  # as in _verdict
            return (f"the engine '{spec.engine}' cannot say how it would be started: {type(error).__name__}: {error}",)

    def adapters(self, base: ModelSpec) -> list[ModelSpec]:
        """Those adapters of `base` that can be served: any other would keep their base's engine from starting."""
        return [adapter for adapter in self._catalog.adapters_of(base) if self.refusal(adapter) is None]

    def is_remote(self, spec: ModelSpec) -> bool:
        """Whether a server elsewhere serves it."""
        return bool(getattr(self._factories.get(spec.engine), "remote", False))

    def estimate_bytes(self, spec: ModelSpec) -> int:
        """What an engine for `spec`, as it is configured now, is expected to take."""
        return self._factories[spec.engine].estimate_bytes(spec, self.adapters(spec))

    def limits(self, spec: ModelSpec, known: Footprint) -> Limits:
        """What the scheduler is told of a model that can be served; `known` is what was measured of it."""
        if self.is_remote(spec):
            concurrency, priority = spec.overrides.concurrency, spec.overrides.priority
            return Limits(0, 0.0, concurrency=concurrency, priority=priority, size_source=ELSEWHERE, remote=True)
        estimate_bytes = self.estimate_bytes(spec)
        measured_bytes = known.measured_bytes(estimate_bytes)
        overrides = spec.overrides
        return Limits(
            # A fresh engine has touched little of its KV cache yet: what was measured may still grow to the estimate.
            footprint_bytes=max(estimate_bytes, measured_bytes),
            size_source="measured" if measured_bytes > estimate_bytes else ESTIMATED,
            load_cost_s=LOAD_COST_GUESS_S if known.load_s is None else known.load_s,
            cost_source=_cost_source(len(known.load_times_s)),
            pinned=overrides.pinned,
            concurrency=overrides.concurrency,
            keep_alive_s=overrides.keep_alive_s,
            priority=overrides.priority,
            lane="retrieval" if spec.task in RETRIEVAL else "generation",
            sleep_levels=self._sleep_levels(spec, known),
            wake_cost_s=known.wake_s,
            asleep_bytes=known.asleep_bytes,
            weights_bytes=spec.weights_bytes,
        )

    def _sleep_levels(self, spec: ModelSpec, known: Footprint) -> tuple[int, ...]:
        if not spec.overrides.sleep or known.no_sleep is not None:
            return ()
        return self._factories[spec.engine].sleep_levels(spec, self.adapters(spec))

    def _base_refusal(self, adapter: ModelSpec) -> str | None:
        try:
            base = self._catalog.base_of(adapter)
        except UnknownModel as error:
            return error.message
        refusal = self.refusal(base)
        if refusal:
            return f"The adapter '{adapter.id}' needs its base model. {refusal}"
        return self._verdict(adapter, self._factories[base.engine])

    def _verdict(self, spec: ModelSpec, factory: EngineFactory) -> str | None:
        """What `factory` says of `spec`; all else that the scheduler is told of it must be known, too."""
        try:
            verdict = factory.accepts(spec)
            if verdict.ok and spec.task is not Task.ADAPTER:
                factory.estimate_bytes(spec)
                factory.sleep_levels(spec)
        except Exception as error:  # third-party code: one model that it trips over must not take the others along
            return f"The model '{spec.id}' cannot be judged by its engine: {type(error).__name__}: {error}."
        return None if verdict.ok else f"The model '{spec.id}' cannot be served: {verdict.reason}."


def must_reload(before: ModelSpec, after: ModelSpec) -> bool:
    """True when a running engine of `before` would not serve `after` as configured."""
    if any(getattr(before, name) != getattr(after, name) for name in START_FIELDS):
        return True
    return any(getattr(before.overrides, name) != getattr(after.overrides, name) for name in START_OVERRIDES)


def _cost_source(loads: int) -> str:
    """Where the cost of a load is from, for people."""
    if loads == 0:
        return "guess: it was never loaded"
    return "measured at its last load" if loads == 1 else f"the median of its last {loads} loads"
