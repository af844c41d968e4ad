"""What an engine written with the SDK answers, to the clients that people have; in this process, on a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import onnx
import openai
import pytest
import tokenizers
import tritonclient.http as kserve
from roundhouse_engine.server import Server

from tests.engines.plugin_engines import Echo
from tests.engines.process_support import until

WAIT_S = 10.0
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def uds() -> Iterator[Path]:
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:
        yield Path(folder, "engine.sock")


@pytest.fixture(scope="module")
def engine(uds: Path) -> Iterator[Echo]:
    engine = Echo()
    engine.load("/nowhere", {})
    server = Server(str(uds), engine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield engine
    server.close()
    thread.join(WAIT_S)
    server.server_close()


@pytest.fixture
async def http(engine: Echo, uds: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(uds))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="none", base_url="http://engine/v1", http_client=http, max_retries=0)


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


async def test_pieces_are_one_message_or_a_stream_of_them(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**say("one two"))
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.model) == ("one two", "stop", "m")
    chunks = [chunk async for chunk in await client.chat.completions.create(**say("one two", stream=True))]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["one", " two", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]


async def test_a_prompt_is_completed_with_the_parameters_of_the_request(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="m", prompt="a", max_tokens=7)
    assert answer.choices[0].text == "a 7"
    stream = await client.completions.create(model="m", prompt=["a"], max_tokens=7, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "a 7"


async def test_vectors_come_as_numbers_or_packed(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    packed = await client.embeddings.create(model="m", input=["a", "bcd"])  # base64, which the client unpacks
    assert [item.embedding for item in packed.data] == [[1.0, 0.5], [3.0, 0.5]]
    plain = await client.embeddings.create(model="m", input="ab", encoding_format="float")
    assert plain.data[0].embedding == [2.0, 0.5]
    assert (await http.post("/embed", json={"inputs": "ab"})).json() == [[2.0, 0.5]]


async def test_documents_are_ranked_in_each_of_the_known_forms(http: httpx.AsyncClient) -> None:
    body = {"query": "a", "documents": ["b", {"text": "aa"}, "a"], "top_n": 2, "return_documents": True}
    results = (await http.post("/v1/rerank", json=body)).json()["results"]
    assert [(result["index"], result["relevance_score"]) for result in results] == [(1, 2.0), (2, 1.0)]
    assert results[0]["document"] == {"text": "aa"}
    ranked = (await http.post("/rerank", json={"query": "a", "texts": ["b", "a"]})).json()
    assert ranked == [{"index": 1, "score": 1.0}, {"index": 0, "score": 0.0}]


@pytest.mark.parametrize("binary", [True, False])
async def test_tensors_come_and_go_as_the_reference_client_has_them(http: httpx.AsyncClient, binary: bool) -> None:
    arrays = {"a": np.array([[1.5, 2.5]], np.float32), "b": np.array(["x", "ä"], np.object_), "c": np.array([7, -7])}
    inputs = []
    for name, array in arrays.items():
        datatype = {"f": "FP32", "O": "BYTES", "i": "INT64"}[array.dtype.kind]
        given = kserve.InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array, binary_data=binary)
        inputs.append(given)
    outputs = [kserve.InferRequestedOutput(f"two_{name}", binary_data=binary) for name in arrays]
    client = kserve.InferenceServerClient
    body, header_bytes = client.generate_request_body(inputs, outputs=outputs, request_id="7")
    headers = {"Inference-Header-Content-Length": str(header_bytes)} if header_bytes else {}
    answer = await http.post("/v2/models/m/infer", content=body, headers=headers)
    length = answer.headers.get("Inference-Header-Content-Length")
    assert (length is not None) == binary
    result = client.parse_response_body(answer.content, header_length=int(length) if length else None)
    assert result.get_response()["id"] == "7"
    for name, array in arrays.items():
        found = result.as_numpy(f"two_{name}")
        if name == "b":
            found = np.vectorize(lambda text: text if isinstance(text, str) else text.decode())(found)
        assert found.tolist() == np.stack([array, array]).tolist()


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([{"name": "a", "datatype": "INT8", "shape": [2], "data": [1]}], [], "1 values for the shape [2]"),
        ([{"name": "a", "datatype": "INT8", "shape": [1], "data": [999]}], [], "none of INT8"),
        ([{"name": "a", "datatype": "INT8", "shape": [1], "data": [1]}], [{"name": "b"}], "no output 'b'"),
    ],
)
async def test_tensors_that_are_none_are_refused(
    http: httpx.AsyncClient, inputs: list[Any], outputs: list[Any], said: str
) -> None:
    answer = await http.post("/v2/models/m/infer", json={"inputs": inputs, "outputs": outputs})
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "said"),
    [
        (CHAT, say("refuse"), 400, "messages", "no such thing is said here"),
        (CHAT, say("a", n=2), 400, "n", "one choice"),
        (CHAT, {"messages": []}, 400, "messages", "at least one message"),
        (CHAT, {"messages": [{"content": "a"}]}, 400, "messages[0]", "role"),
        (CHAT, say("raise"), 500, None, 'KeyError: "a fault of the engine\'s"'),
        (CHAT, say("exit"), 500, None, "SystemExit: a fault of the engine's"),
        ("/v1/completions", {"prompt": [1, 2]}, 400, "prompt", "a text"),
        ("/v1/embeddings", {"input": [1]}, 400, "input", "a list of texts"),
        ("/v1/embeddings", {"input": "a", "dimensions": 1}, 400, "dimensions", "not shorten"),
        ("/v1/embeddings", {"input": "nan"}, 500, None, "not finite"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": "1"}, 400, "top_n", "1 or more"),
        ("/v1/classify", {"input": "a"}, 404, None, "needs the method classify"),
        ("/v1/responses", {"input": "a"}, 404, None, "it serves /v1/chat/completions, /v1/completions"),
    ],
)
async def test_what_is_at_fault_is_told_in_the_api_s_form(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    answer = await http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert said in error["message"]


async def test_errors_have_the_form_of_their_route(http: httpx.AsyncClient) -> None:
    anthropic = (await http.post("/v1/messages", json={})).json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "invalid_request_error")
    assert "message" in (await http.post("/v2/rerank", json={"documents": ["a"]})).json()
    assert (await http.post("/embed", json={"inputs": []})).json()["error_type"] == "validation"


@pytest.mark.parametrize("fault", ["raise", "exit"])
async def test_a_fault_in_the_middle_of_a_stream_is_an_event_of_it(client: openai.AsyncOpenAI, fault: str) -> None:
    stream = aiter(await client.chat.completions.create(**say(f"one {fault}", stream=True)))
    assert (await anext(stream)).choices[0].delta.content == "one"
    with pytest.raises(openai.APIError, match="a fault of the engine's"):
        await anext(stream)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_what_was_generated_for_it(uds: Path, engine: Echo, stream: bool) -> None:
    engine.began.clear()
    engine.ended.clear()
    transport = httpx.AsyncHTTPTransport(uds=str(uds))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=WAIT_S) as leaver:
        asked = asyncio.create_task(leaver.post(CHAT, json=say("endless", stream=stream)))
        await until(engine.began.is_set)
        assert not engine.ended.is_set()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await until(engine.ended.is_set)


async def test_as_many_calls_run_at_a_time_as_the_class_says(http: httpx.AsyncClient, engine: Echo) -> None:
    engine.may_end.clear()
    waiting = [asyncio.create_task(http.post("/v1/completions", json={"prompt": "wait"})) for _ in range(3)]
    await until(lambda: engine.running == engine.concurrency)
    assert (await http.get("/health")).status_code == 200  # asked for its health, it answers beside them
    engine.may_end.set()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200, 200]
    assert engine.most == engine.concurrency == 2


async def test_its_health_is_what_the_engine_says_and_its_steps_go_on(http: httpx.AsyncClient, engine: Echo) -> None:
    before = int((await http.get("/engine/progress")).text)
    await http.post(CHAT, json=say("one two"))
    assert int((await http.get("/engine/progress")).text) >= before + 3
    engine.args["ill"] = True
    assert (await http.get("/health")).status_code == 503
    engine.args.clear()
    assert (await http.get("/elsewhere")).status_code == 404


def test_the_example_in_the_docs_serves(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    module: dict[str, Any] = {}
    exec(code, module)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"bad": 0, "good": 1}, unk_token="bad"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_bag_of_words(tmp_path / "model.onnx", [[2.0, -2.0], [-2.0, 2.0]])
    engine = module["Sentiment"]()
    engine.load(str(tmp_path), {"labels": ["no", "yes"]})
    [no], [yes] = engine.classify(["bad"]), engine.classify(["good"])
    assert no["no"] == pytest.approx(yes["yes"], rel=1e-4) == pytest.approx(0.982, abs=1e-3)


def save_bag_of_words(path: Path, table: list[list[float]]) -> None:
    """A model that adds up a row of logits for each token."""
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [1, None])
    mask = onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, [1, None])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 2])
    rows = onnx.numpy_helper.from_array(np.array(table, np.float32), "table")
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        onnx.helper.make_node("ReduceSum", ["rows", "axes"], ["logits"], keepdims=0),
    ]
    graph = onnx.helper.make_graph(nodes, "bag", [ids, mask], [logits], [rows, axes])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
