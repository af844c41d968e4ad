"""Models of servers elsewhere that speak KServe V2: Triton, MLServer, OpenVINO Model Server. They take tensors.

As with those that speak OpenAI's API, each server is asked every few seconds what it has, and has a circuit breaker of
its own. What they said last is kept in a file, so that a server that is down when Roundhouse starts is one that is
down, and not one without models.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from engines.base import Endpoint, EngineContext, Verdict
from engines.remote.breaker import CircuitState
from engines.remote.remote_factory import ASK_DOWN_S, ASK_S, RemoteFactory
from engines.remote.servers import Server
from engines.triton.listing import ListingFailed, Lists, ask, lists_at
from models.types import ModelSpec, Signature, Task, Tensor

log = logging.getLogger(__name__)

Listed = dict[str, Signature]  # by the servers' names
_KEPT = TypeAdapter(dict[str, Listed])  # by URL


class TritonFactory(RemoteFactory):
    """All models of one engine that is declared with `kind: triton`."""

    kind = "triton"

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        super().__init__(context, ask_s=ask_s, ask_down_s=ask_down_s)
        name = hashlib.sha256(context.name.encode()).hexdigest()[:16]
        self._file = context.cache_dir / f"kserve-{name}.json"
        kept = self._read()
        self._lists: dict[Server, Listed] = {s: kept[s.url] for s in self._servers.all if s.url in kept}
        self._names: dict[str, str] = {}  # our id → the servers' name

    # -- what the seam asks ----------------------------------------------------------------------------------------

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.id not in self._names:
            return Verdict(False, f"the servers of the engine '{self.name}' have no model of this id")
        if spec.task is not Task.TENSOR:
            return Verdict(False, f"the engine '{self.name}' serves models for tensor, not for {spec.task}")
        return Verdict(True, f"it is served by {self._hosts(spec.id)}")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        name = self._names.get(spec.id, spec.id)
        told = "" if name == spec.id else f", as '{name}'"
        return (f"engine: {self.name}: it is served elsewhere, by {self._hosts(spec.id)}{told}",)

    async def start(self) -> None:
        self._renew()
        if self._has_key():
            await self._begin(self._ask_for_ever, [s for s in self._servers.all if s not in self._lists])

    # -- requests --------------------------------------------------------------------------------------------------

    def endpoint(self, model_id: str) -> Endpoint:
        """Raises EngineUnavailable."""
        self._key.check(self.name)
        server = self._servers.choose(self._having(model_id))
        return Endpoint(
            base_url=server.url,
            proxy=server.proxy,
            headers=self._key.headers(),
            model=self._names.get(model_id, model_id),
            ends_with_us=False,
            watcher=server.breaker.request(),
        )

    def healthy(self, model_id: str) -> bool:
        return any(server.breaker.state is CircuitState.CLOSED for server in self._having(model_id))

    # -- what there is ---------------------------------------------------------------------------------------------

    async def _ask_for_ever(self, server: Server) -> None:
        lists = lists_at(server.url, self._key.headers(), server.proxy)
        try:
            while True:
                try:
                    await self._ask(server, lists)
                except Exception:  # the top of a task: it must go on asking
                    log.exception("%s: the models of %s cannot be taken in", self.name, server.host)
                await self._pause(server)
        finally:
            await lists.close()

    async def _ask(self, server: Server, lists: Lists) -> None:
        try:
            listed = await ask(lists, self._mapped.values() or None)
        except ListingFailed as error:
            self._asked(server, str(error))
            return
        self._asked(server, None)
        if listed != self._lists.get(server):
            self._lists[server] = listed
            self._renew()
            self._keep()

    def _renew(self) -> None:
        """Works out what there is, and tells it where it has changed."""
        listed = dict.fromkeys(name for names in self._lists.values() for name in names)
        self._names = self._mapped or {self._prefix + name: name for name in listed}
        self._publish([self._spec(model_id, name) for model_id, name in self._names.items()])

    def _having(self, model_id: str) -> tuple[Server, ...]:
        """Those that list it; else those that never said what they have; else all."""
        name, servers = self._names.get(model_id, model_id), self._servers.all
        listing = tuple(server for server in servers if name in self._lists.get(server, ()))
        return listing or tuple(server for server in servers if server not in self._lists) or servers

    def _spec(self, model_id: str, name: str) -> ModelSpec:
        signature = next((listed[name] for listed in self._lists.values() if name in listed), None)
        how = "it lists it" if signature else "the configuration names it"
        reasons = [f"a server of the engine {self.name}: {how}"]
        if signature:
            reasons += [f"takes {_shown(signature.inputs)}", f"gives {_shown(signature.outputs)}"]
        return ModelSpec(
            id=model_id,
            path=Path(),
            task=Task.TENSOR,
            engine=self.name,
            model_type=signature.platform if signature else "",
            signature=signature,
            fingerprint=f"{self.name}:{name}",
            reasons=tuple(reasons),
        )

    def _hosts(self, model_id: str) -> str:
        return ", ".join(server.host for server in self._having(model_id))

    def _read(self) -> dict[str, Listed]:
        try:
            return _KEPT.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.warning("cannot read %s (%s): servers are asked anew what they have", self._file, error)
            return {}

    def _keep(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        try:
            temporary.write_bytes(_KEPT.dump_json({server.url: listed for server, listed in self._lists.items()}))
            os.replace(temporary, self._file)
        except OSError as error:
            log.warning("cannot write %s (%s): what servers have is forgotten at exit", self._file, error)


def _shown(tensors: Iterable[Tensor]) -> str:
    told = (f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)
    return ", ".join(told) or "what its server does not tell"


def create_factory(context: EngineContext) -> TritonFactory:
    return TritonFactory(context)
