"""KServe V2 at our address: what clients and servers do to each other by way of it, and what it spares them."""

from __future__ import annotations

from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.app.kserve_server import kserve_server
from tests.app.serving import serving
from tests.app.test_kserve import INFER, error_of, request, triton_at

SECRET = "the text of somebody's request"


async def test_what_a_server_says_to_one_client_is_told_to_no_other() -> None:
    def too_wide(asked: Any) -> Any:
        answer = service_pb2.ModelInferResponse(model_name="adder")
        answer.outputs.add(name="sum", datatype="INT8", shape=[1]).contents.int_contents.append(300)
        return answer

    async with kserve_server() as there, serving(elsewhere=triton_at(there.url, breaker_failures=1)) as served:
        there.status, there.said = grpc.StatusCode.INTERNAL, SECRET
        assert SECRET in error_of(await served.post(INFER, request()))
        refused = await served.post(INFER, request())
        assert (refused.status_code, "at last: it answered with INTERNAL" in error_of(refused)) == (503, True)
        assert SECRET not in (await served.client.get("/health")).text

    async with kserve_server() as there, serving(elsewhere=triton_at(there.url, breaker_failures=1)) as served:
        there.answer = too_wide
        assert "is no tensors: " in error_of(await served.post(INFER, request()))
        refused = await served.post(INFER, request())
        assert "at last: it gave an answer that is no tensors; it is tried" in error_of(refused)
