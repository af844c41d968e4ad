"""KServe V2 at our address: what clients and servers do to each other by way of it, and what it spares them."""

from __future__ import annotations

import gzip
import threading
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from tritonclient.grpc import service_pb2

from app.kserve import grpc_messages
from app.kserve.infer_request import STEP_BYTES, parse, unpacked
from models.types import Task
from tests.app.elsewhere import elsewhere, http
from tests.app.kserve_server import kserve_server
from tests.app.serving import serving, spec
from tests.app.test_kserve import INFER, error_of, request, triton_at
from utils.kserve import SLICE

READY = "/v2/models/adder/ready"
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


def test_what_is_packed_comes_out_in_parts_that_can_be_counted() -> None:
    rng = np.random.default_rng(5)
    for content in (b"0" * (3 * STEP_BYTES + 7), rng.bytes(STEP_BYTES * 2 + 3), b"1" * STEP_BYTES):
        parts = list(unpacked(gzip.compress(content, 1), "gzip", len(content)))
        assert b"".join(parts) == content
        assert max(map(len, parts)) <= STEP_BYTES


async def test_a_bomb_is_stopped_where_all_bodies_together_are_too_large() -> None:
    bomb = gzip.compress(b"0" * (8 * STEP_BYTES))
    async with kserve_server() as there, serving(elsewhere=triton_at(there.url)) as served:
        bodies = served.roundhouse.app._bodies
        bodies.total_bytes = 2 * STEP_BYTES
        answer = await served.client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, "of bodies already" in error_of(answer)) == (503, True)
        assert f"hold {len(bomb) + STEP_BYTES >> 20} MiB" in error_of(answer)
        assert bodies.held_bytes == 0


async def test_small_bodies_with_large_tensors_in_them_are_converted_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    encode = grpc_messages.encode
    monkeypatch.setattr(
        grpc_messages, "encode", lambda *given: threads.append(threading.current_thread()) or encode(*given)
    )
    tensor = bytes(2 * STEP_BYTES)
    entry = {"name": "x", "datatype": "FP32", "shape": [len(tensor) // 8, 2]}
    head = orjson.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(tensor)}}]})
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Encoding": "gzip"}
    async with kserve_server() as there, serving(elsewhere=triton_at(there.url)) as served:
        answer = await served.client.post(INFER, content=gzip.compress(head + tensor), headers=headers)
        assert answer.status_code == 200
    assert threads[0] is not threading.main_thread()


async def test_requests_that_are_too_much_for_a_server_do_not_count_against_it() -> None:
    async with kserve_server() as there, serving(elsewhere=triton_at(there.url, breaker_failures=1)) as served:
        there.status = grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(2):
            answer = await served.post(INFER, request())
            assert (answer.status_code, "answered: the model says no" in error_of(answer)) == (429, True)


async def test_a_model_that_is_not_ready_does_not_count_against_its_server() -> None:
    async with elsewhere(answer=http(b"{}", 503)) as there:
        declared = triton_at(there.url, models={"adder": "adder"}, breaker_failures=1)
        async with serving(elsewhere=declared) as served:
            for _ in range(2):
                answer = await served.client.get(READY)
                assert (answer.status_code, "says that it is not ready" in error_of(answer)) == (503, True)


async def test_asking_whether_a_model_is_ready_loads_none() -> None:
    async with serving([spec("own", Task.TENSOR)]) as served:
        answer = await served.client.get("/v2/models/own/ready")
        assert (answer.status_code, "'own' is not ready (cold)" in error_of(answer)) == (503, True)
        assert (await served.client.get("/v1/models/own")).json()["state"] == "cold"


async def test_an_answer_with_binary_tensors_and_a_header_that_cannot_be_sent_is_a_failure_of_the_server() -> None:
    headers = {"inference-header-content-length": "2"}
    async with elsewhere(answer=http(b"{}1234", kind="a\x01b", headers=headers)) as there:
        declared = triton_at(there.url, models={"adder": "adder"}, breaker_failures=1)
        async with serving(elsewhere=declared) as served:
            answer = await served.post(INFER, request())
            assert (answer.status_code, "control characters" in error_of(answer)) == (502, True)
            assert (await served.post(INFER, request())).status_code == 503


async def test_a_server_that_refuses_in_no_known_form_has_answered() -> None:
    async with elsewhere(answer=http(b"{}", 500)) as there:
        declared = triton_at(there.url, models={"adder": "adder"})
        async with serving(elsewhere=declared) as served:
            assert (await served.post(INFER, request())).status_code == 502
            there.answer = http(b"no", 422)
            assert (await served.post(INFER, request())).status_code == 400
            server = (await served.client.get("/health")).json()["engines"]["box"]["servers"][0]
            assert server["failures"] == 0


def test_many_numbers_are_written_as_json_by_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(2 * SLICE + 5, dtype=np.float32)
    answer = service_pb2.ModelInferResponse(raw_output_contents=[values.tobytes(), b""])
    answer.outputs.add(name="sum", datatype="FP32", shape=[len(values)])
    answer.outputs.add(name="none", datatype="FP32", shape=[0])
    asked = parse(orjson.dumps(request()), None)
    sizes: list[int] = []
    dumps = orjson.dumps
    monkeypatch.setattr(
        orjson, "dumps", lambda what, **options: sizes.append(getattr(what, "size", 0)) or dumps(what, **options)
    )
    _, parts = grpc_messages.decode(answer.SerializeToString(), asked, "adder")
    outputs = orjson.loads(b"".join(parts))["outputs"]
    assert [output["data"] for output in outputs] == [values.tolist(), []]
    assert max(sizes) == SLICE


SHARED = b'{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"shared_memory_region": "r"}}'


@pytest.mark.parametrize("spelled", [b"shared_memory_region", b"shared\\u005Fmemory_region"])
async def test_shared_memory_is_not_hidden_behind_a_second_member_of_the_same_name(spelled: bytes) -> None:
    """Triton takes the first, where most others take the last."""
    body = b'{"inputs": [' + SHARED.replace(b"shared_memory_region", spelled) + b"], " + orjson.dumps(request())[1:]
    async with (
        elsewhere(answer=http(b"{}")) as there,
        serving(elsewhere=triton_at(there.url, models={"adder": "adder"})) as served,
    ):
        answer = await served.client.post(INFER, content=body)
        assert (answer.status_code, "names a field of an object twice" in error_of(answer)) == (400, True)
        assert not any(asked.body for asked in there.asked)


async def test_addresses_that_clients_make_up_are_not_kept() -> None:
    async with (
        elsewhere(answer=http(b"{}")) as there,
        serving(elsewhere=triton_at(there.url, models={"adder": "adder"})) as served,
    ):
        for version in range(3):
            assert (await served.post(f"/v2/models/adder/versions/{version}/infer", request())).status_code == 200
        pools = served.roundhouse.app._kserve._forwarding._upstreams._pools
        assert [len(pool._urls) for pool in pools.values()] == [0]
