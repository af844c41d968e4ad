"""KServe V2 at our address, with a server elsewhere that is asked by gRPC: what passes, and what is refused and how."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import orjson
import pytest
from tritonclient.grpc import service_pb2

from app.kserve.forwarding import LARGE_BYTES, off_loop
from engines.base import Declaration
from tests.app.elsewhere import elsewhere
from tests.app.kserve_server import KServeServer, breakable, kserve_server
from tests.app.serving import Served, serving

INFER = "/v2/models/adder/infer"
PAIRS = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]]}
WAIT_S = 5.0
KEY = "a-key-of-ours"


def triton_at(*urls: str, **options: Any) -> dict[str, Declaration]:
    return {"box": Declaration(kind="triton", urls=urls, **options)}


def request(**changed: Any) -> dict[str, Any]:
    return {"inputs": [PAIRS | changed]}


@pytest.fixture
async def there() -> AsyncIterator[KServeServer]:
    async with kserve_server() as server:
        yield server


@pytest.fixture
async def served(there: KServeServer) -> AsyncIterator[Served]:
    async with serving(elsewhere=triton_at(there.url)) as one:
        yield one


def error_of(answer: httpx.Response) -> str:
    """The one field of an error in KServe's form."""
    document = answer.json()
    assert list(document) == ["error"]
    return str(document["error"])


# -- what passes -----------------------------------------------------------------------------------------------------


async def test_json_in_and_out(served: Served, there: KServeServer) -> None:
    answer = await served.post(
        INFER, request() | {"id": "a1", "parameters": {"deep": True, "n": -3, "f": 0.5, "s": "t"}}
    )
    output = {"name": "sum", "datatype": "FP32", "shape": [2], "data": [3.0, 7.5]}
    assert answer.json() == {"id": "a1", "model_name": "adder", "model_version": "7", "outputs": [output]}
    given = there.asked[0].parameters
    assert (given["deep"].bool_param, given["n"].int64_param) == (True, -3)
    assert (given["f"].double_param, given["s"].string_param) == (0.5, "t")


async def test_binary_tensors_in_and_out_packed_or_not(served: Served, there: KServeServer) -> None:
    tensor = np.array([[1, 2]], np.float32).tobytes()
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    head = orjson.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    for body, encoding in ((head + tensor, {}), (gzip.compress(head + tensor), {"Content-Encoding": "gzip"})):
        answer = await served.client.post(INFER, content=body, headers=headers | encoding)
        length = int(answer.headers["inference-header-content-length"])
        assert answer.headers["content-type"] == "application/octet-stream"
        assert orjson.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 4}
        assert answer.content[length:] == np.float32(3).tobytes()
    assert [list(asked.raw_input_contents) for asked in there.asked] == [[tensor], [tensor]]


async def test_values_that_a_server_does_not_give_as_raw_are_the_same_tensors(
    served: Served, there: KServeServer
) -> None:
    def typed(asked: Any) -> Any:
        answer = service_pb2.ModelInferResponse(model_name="adder")
        answer.outputs.add(name="sum", datatype="FP32", shape=[1]).contents.fp32_contents.append(0.1)
        answer.outputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append("ß".encode())
        answer.outputs.add(name="flag", datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
        return answer

    there.answer = typed
    outputs = (await served.post(INFER, request())).json()["outputs"]
    assert [output["data"] for output in outputs] == [[0.1], ["ß"], [True]]


async def test_ids_are_ours_and_the_server_hears_its_own_name_and_key(
    there: KServeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOX_KEY", "secret")
    declared = triton_at(there.url, models={"team/adder": "adder"}, api_key_env="BOX_KEY")
    async with serving(elsewhere=declared) as served:
        answer = await served.post("/v2/models/team/adder/versions/7/infer", request())
        assert answer.json()["model_name"] == "team/adder"
        assert (await served.post("/v2/models/adder/infer", request())).json()["model_name"] == "team/adder"
    assert (there.asked[0].model_name, there.asked[0].model_version) == ("adder", "7")
    assert there.headers["authorization"] == "Bearer secret"


async def test_large_tensors_are_converted_where_they_hold_up_nobody() -> None:
    loop_went_on = threading.Event()
    asyncio.get_running_loop().call_soon(loop_went_on.set)
    assert await off_loop(LARGE_BYTES + 1, lambda: loop_went_on.wait(WAIT_S))


# -- what is refused before anything is sent -------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (request(shape=[4], data=[1, 2, 3, 4]), "`inputs[0]` 'x': shape [4] is given, and 'adder' takes [-1, 2]"),
    "rank": (request(shape=[2, 2, 1]), "'x': shape [2, 2, 1] is given"),
    "datatype": (request(datatype="INT64", data=[1, 2, 3, 4]), "'x': datatype INT64 is given, and 'adder' takes FP32"),
    "no datatype": (request(datatype="FLOAT"), "'x': `datatype` must be one of BOOL, UINT8"),
    "input": (request(name="y"), "`inputs[0]`: 'adder' has no input 'y'; it takes x"),
    "output": (request() | {"outputs": [{"name": "product"}]}, "`outputs[0]`: 'adder' has no output 'product'"),
    "count": (request(data=[1, 2, 3]), "'x' holds 3 elements, and its shape [2, 2] has 4"),
    "kind": (request(data=[1, 2, 3, "4"]), "'x' must hold numbers, as FP32 does"),
    "range": (request(data=[1, 2, 3, 1e39]), "'x' holds numbers beyond those of FP32"),
    "depth": (request(data=[[[1], [2]], [[3], [4]]]), "'x' is nested more deeply than its shape"),
    "no data": (request(data=None), "'x' has neither a list in `data` nor `binary_data_size`"),
    "binary size": (
        request(parameters={"binary_data_size": 16}),
        "'x' should have 16 bytes behind the JSON, of which 0",
    ),
    "negative shape": (request(shape=[-1, 2]), "'x': `shape` must be a list of at most 32 lengths"),
    "twice": ({"inputs": [PAIRS, PAIRS]}, "`inputs[1]` 'x' is given twice"),
    "output twice": (request() | {"outputs": [{"name": "sum"}] * 2}, "`outputs[1]` 'sum' is asked for twice"),
    "no inputs": ({"inputs": []}, "`inputs` is missing or empty"),
    "inputs no list": ({"inputs": 3}, "`inputs` must be a list"),
    "input no object": ({"inputs": [3]}, "`inputs[0]` must be an object with a `name`"),
    "parameters": (request() | {"parameters": []}, "`parameters` must be an object"),
    "parameter": (request() | {"parameters": {"p": None}}, "`parameters`: 'p' must be a string, a number or a boolean"),
    "shared memory": (request(parameters={"shared_memory_region": "r"}), "shared memory does not reach"),
    "id": (request() | {"id": 7}, "`id` must be a string"),
}


async def test_what_cannot_be_right_names_its_field_and_never_reaches_the_server(
    served: Served, there: KServeServer
) -> None:
    for what, (body, told) in REFUSED.items():
        answer = await served.post(INFER, body)
        assert answer.status_code == 400, what
        assert told in error_of(answer), what
    assert there.asked == []


BAD_BODIES: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "not JSON": (b"{", {}, 400, "not valid JSON"),
    "nothing": (b"", {}, 400, "no body"),
    "header length beyond": (b"{}", {"Inference-Header-Content-Length": "9"}, 400, "is 9, and the body has 2 bytes"),
    "header length no number": (b"{}", {"Inference-Header-Content-Length": "x"}, 400, "must be a count of bytes"),
    "bytes left over": (
        orjson.dumps(request()) + b"more",
        {"Inference-Header-Content-Length": ""},
        400,
        "4 bytes behind",
    ),
    "not packed": (b"{}", {"Content-Encoding": "gzip"}, 400, "not compressed as Content-Encoding gzip says"),
    "cut off": (gzip.compress(b"{}" * 99)[:-9], {"Content-Encoding": "gzip"}, 400, "ends too early"),
    "more behind": (
        gzip.compress(b"{}") + gzip.compress(b"{}"),
        {"Content-Encoding": "gzip"},
        400,
        "bytes behind the end",
    ),
    "unknown packing": (b"{}", {"Content-Encoding": "br"}, 400, "Content-Encoding 'br' is not known"),
    "a bomb": (
        gzip.compress(b"0" * 100_000),
        {"Content-Encoding": "gzip"},
        413,
        "larger than 65536 bytes once unpacked",
    ),
    "too large": (b"0" * 70_000, {}, 413, "larger than 65536 bytes"),
}


async def test_bodies_that_are_none(there: KServeServer) -> None:
    async with serving(elsewhere=triton_at(there.url), max_body_bytes=65536) as served:
        for what, (body, headers, status, told) in BAD_BODIES.items():
            if headers.get("Inference-Header-Content-Length") == "":
                headers = {"Inference-Header-Content-Length": str(len(orjson.dumps(request())))}
            answer = await served.client.post(INFER, content=body, headers=headers)
            assert (answer.status_code, told in error_of(answer)) == (status, True), (what, answer.text)
        assert there.asked == []
        assert served.roundhouse.app._bodies.held_bytes == 0


async def test_models_and_routes_that_do_not_go_together(served: Served) -> None:
    refused = {
        ("POST", "/v2/models/nothing/infer"): (404, "Nearest: "),
        ("POST", "/v2/models/chatty/infer"): (400, "'org/chatty' is a model for chat"),
        ("POST", "/v2/models/adder/versions/8/infer"): (404, "no version '8'; it has 7"),
        ("GET", "/v2/models/adder/infer"): (405, "it takes POST"),
        ("POST", "/v2/models/adder"): (405, "it takes GET"),
        ("POST", "/v2/repository/models/adder/unload"): (404, "There is no route"),
        ("POST", "/v2/systemsharedmemory/region/a/register"): (404, "There is no route"),
    }
    for (method, path), (status, told) in refused.items():
        answer = await served.client.request(method, path, json=request() if method == "POST" else None)
        assert (answer.status_code, told in error_of(answer)) == (status, True), (path, answer.text)
    chat = await served.chat("adder", messages=[])
    assert chat.json()["error"]["code"] == "wrong_model_task"
    assert "'adder' is a model for tensor, served at /v2/models/{name}" in chat.json()["error"]["message"]


async def test_keys_are_asked_for_but_by_health(there: KServeServer) -> None:
    async with serving(elsewhere=triton_at(there.url), api_key=KEY) as served:
        for path in ("/v2", "/v2/models/adder", "/v2/models/adder/ready", INFER):
            answer = await served.client.request("POST" if path == INFER else "GET", path)
            assert answer.status_code == 401
            assert "No API key" in error_of(answer)
        assert (await served.client.get("/v2/health/live")).status_code == 200
        assert (await served.client.get("/v2/health/ready")).status_code == 200
        told = (await served.client.get("/v2", headers={"x-api-key": KEY})).json()
        assert (told["name"], "binary_tensor_data" in told["extensions"]) == ("roundhouse", True)


# -- servers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "failures"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, 0),
        (grpc.StatusCode.NOT_FOUND, 404, 0),
        (grpc.StatusCode.UNIMPLEMENTED, 501, 0),
        (grpc.StatusCode.UNAUTHENTICATED, 503, 0),
        (grpc.StatusCode.UNAVAILABLE, 503, 1),
        (grpc.StatusCode.INTERNAL, 502, 1),
    ],
)
async def test_what_a_server_says_is_told_and_counts_where_it_is_its_fault(
    served: Served, there: KServeServer, code: grpc.StatusCode, status: int, failures: int
) -> None:
    there.status = code
    answer = await served.post(INFER, request())
    assert answer.status_code == status
    told = "refuses the key" if code is grpc.StatusCode.UNAUTHENTICATED else "answered: the model says no"
    assert told in error_of(answer)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert (await _server_state(served))["failures"] == failures
    assert len(there.asked) == 1


async def test_a_server_that_dies_while_it_answers_is_not_asked_again(there: KServeServer) -> None:
    there.may_answer.clear()
    async with breakable(there) as (url, cut), serving(elsewhere=triton_at(url)) as served:
        asking = asyncio.create_task(served.post(INFER, request()))
        await asyncio.wait_for(there.arrived.wait(), WAIT_S)
        cut()
        answer = await asking
        told = "The server of 'adder' closed the connection before the end of its answer."
        assert (answer.status_code, error_of(answer)) == (502, told)
        assert (await _server_state(served))["failures"] == 1
    assert len(there.asked) == 1


async def test_garbage_is_not_passed_on(served: Served, there: KServeServer) -> None:
    def short(asked: Any) -> Any:
        answer = service_pb2.ModelInferResponse(model_name="adder")
        answer.outputs.add(name="sum", datatype="FP32", shape=[1])
        answer.outputs.add(name="sum", datatype="FP32", shape=[1])
        answer.raw_output_contents.append(b"1234")
        return answer

    for garbage in (b"\xff\xff\xff", short):
        there.answer = garbage if callable(garbage) else lambda asked, raw=garbage: raw  # type: ignore[misc]
        answer = await served.post(INFER, request())
        assert answer.status_code == 502
        assert "an answer that is no tensors" in error_of(answer)
    assert (await _server_state(served))["failures"] == 2


async def test_what_reached_no_server_is_sent_to_another(there: KServeServer) -> None:
    async with kserve_server() as other, serving(elsewhere=triton_at(there.url, other.url)) as served:
        await there.stop()
        answers = [await served.post(INFER, request()) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        await other.stop()
        answer = await served.post(INFER, request())
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert "cannot be reached: no connection to 127.0.0.1:" in error_of(answer)


async def test_a_client_that_leaves_ends_its_request_at_the_server(served: Served, there: KServeServer) -> None:
    there.may_answer.clear()
    asking = asyncio.create_task(served.post(INFER, request()))
    await asyncio.wait_for(there.arrived.wait(), WAIT_S)
    asking.cancel()
    await asyncio.wait_for(there.left.wait(), WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while (await _server_state(served))["running"]:  # noqa: ASYNC110  # another task's progress
            await asyncio.sleep(0.01)
    assert (await _server_state(served))["failures"] == 0


async def test_an_http_server_that_answers_no_tensors() -> None:
    async with elsewhere(answer=b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nAhoy") as there:
        declared = triton_at(there.url, models={"adder": "adder"})
        async with serving(elsewhere=declared) as served:
            answer = await served.post(INFER, request())
            assert (answer.status_code, "no JSON" in error_of(answer)) == (502, True)
            there.answer = None
            answer = await served.post(INFER, request())
            assert (answer.status_code, "closed the connection" in error_of(answer)) == (502, True)
            await there.kill()
            answer = await served.post(INFER, request())
            assert (answer.status_code, "cannot be reached" in error_of(answer)) == (503, True)


async def _server_state(served: Served) -> dict[str, Any]:
    state: dict[str, Any] = (await served.client.get("/health")).json()["engines"]["box"]["servers"][0]
    return state
