"""Models of servers elsewhere that speak KServe V2: Triton, MLServer, OpenVINO Model Server. They take tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engines.base import EngineContext, Verdict
from engines.remote.remote_factory import ASK_DOWN_S, ASK_S, RemoteFactory
from engines.remote.servers import Server
from engines.triton.listing import Lists, ask, lists_at
from models.types import ModelSpec, Signature, Task, Tensor


class TritonFactory(RemoteFactory[Signature]):
    """All models of one engine that is declared with `kind: triton`."""

    kind = "triton"
    listing = Signature

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        super().__init__(context, ask_s=ask_s, ask_down_s=ask_down_s)
        self._askers: dict[Server, Lists] = {}

    def accepts(self, spec: ModelSpec) -> Verdict:
        verdict = super().accepts(spec)
        if verdict.ok and spec.task is not Task.TENSOR:
            return Verdict(False, f"the engine '{self.name}' serves models for tensor, not for {spec.task}")
        return verdict

    def _open(self) -> None:
        self._askers = {server: lists_at(server.url, self._headers, server.proxy) for server in self._servers.all}

    async def _ask(self, server: Server) -> dict[str, Signature]:
        return await ask(self._askers[server], self._mapped.values() or None)

    async def _shut(self) -> None:
        for asker in self._askers.values():
            await asker.close()

    def _spec(self, model_id: str, name: str, listing: Signature | None) -> ModelSpec:
        how = "it lists it" if listing else "the configuration names it"
        reasons = [f"a server of the engine {self.name}: {how}"]
        if listing:
            reasons += [f"takes {_shown(listing.inputs)}", f"gives {_shown(listing.outputs)}"]
        return ModelSpec(
            id=model_id,
            path=Path(),
            task=Task.TENSOR,
            engine=self.name,
            model_type=listing.platform if listing else "",
            signature=listing,
            fingerprint=f"{self.name}:{name}",
            reasons=tuple(reasons),
        )


def _shown(tensors: Iterable[Tensor]) -> str:
    told = (f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)
    return ", ".join(told) or "what its server does not tell"


def create_factory(context: EngineContext) -> TritonFactory:
    return TritonFactory(context)
