"""Triton itself behind Roundhouse: tritonclient gets the same tensors through us as from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from bench._triton import MODELS, Triton, lacks_library, triton
from engines.base import Declaration
from tests.app.serving import Served, serving

T = TypeVar("T")
BACK_S = 10.0  # for a server that is back to be found so
OPEN_S = 0.2

IMAGES = np.arange(2 * 3 * 224 * 224, dtype=np.float32).reshape(2, 3, 224, 224)
SAMPLES = np.sin(np.arange(1600, dtype=np.float32))[None, :]
ECHOED: Mapping[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.1, -65504]], np.float16),
    "FP32": np.array([[0.1, np.finfo(np.float32).max]], np.float32),
    "FP64": np.array([[0.1, np.finfo(np.float64).tiny]], np.float64),
    "BF16": np.array([[0.1, -3e38]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"\x00\xff", "größer".encode()]], np.object_),
}
IN_JSON = [name for name in ECHOED if name not in ("BYTES", "FP16", "BF16")]  # Triton takes no halves in JSON


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    if lack := lacks_library():
        pytest.skip(lack)
    with triton(tmp_path_factory.mktemp("triton")) as one:
        yield one


@pytest.fixture(params=["grpc", "http"])
def behind(running: Triton, request: pytest.FixtureRequest) -> dict[str, Declaration]:
    """Roundhouse asks Triton by gRPC, or by HTTP."""
    return {"box": Declaration(kind="triton", urls=(getattr(running, request.param),))}


def inputs(client: Any, arrays: Mapping[str, np.ndarray[Any, Any]], binary: bool | None = None) -> list[Any]:
    given = []
    for name, array in arrays.items():
        one = client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array, **({} if binary is None else {"binary_data": binary}))
        given.append(one)
    return given


def by_http(url: str, model: str, arrays: Mapping[str, Any], *, binary: bool = True, **options: Any) -> Any:
    """tritonclient's answer; of one thread, as its gevent wants it."""
    with http_client.InferenceServerClient(url.removeprefix("http://"), network_timeout=30) as client:
        return client.infer(model, inputs(http_client, arrays, binary), **options)


def by_grpc(url: str, model: str, arrays: Mapping[str, Any], **options: Any) -> Any:
    with grpc_client.InferenceServerClient(url.removeprefix("grpc://")) as client:
        return client.infer(model, inputs(grpc_client, arrays), client_timeout=30, **options)


def told_by(url: str, ask: Callable[[Any], T]) -> T:
    with http_client.InferenceServerClient(url.removeprefix("http://"), network_timeout=30) as client:
        return ask(client)


def url_of(served: Served) -> str:
    return f"http://127.0.0.1:{served.port}"


def same(one: Any, other: Any, names: Sequence[str]) -> None:
    for name in names:
        assert one.as_numpy(name).dtype == other.as_numpy(name).dtype
        assert one.as_numpy(name).tolist() == other.as_numpy(name).tolist(), name


async def test_an_image_classifier_answers_through_us_as_directly(
    running: Triton, behind: dict[str, Declaration]
) -> None:
    async with serving(elsewhere=behind) as served:
        listed = {one["id"]: one for one in (await served.client.get("/v1/models")).json()["data"]}
        assert (listed["classifier"]["task"], listed["classifier"]["state"]) == ("tensor", "ready")
        for version in ("", "1", "2"):
            ask = partial(by_http, model="classifier", arrays={"image": IMAGES}, model_version=version)
            through, direct = await asyncio.to_thread(ask, url_of(served)), await asyncio.to_thread(ask, running.http)
            reference = await asyncio.to_thread(
                by_grpc, running.grpc, "classifier", {"image": IMAGES}, model_version=version
            )
            same(through, direct, ["scores"])
            same(through, reference, ["scores"])
            assert through.get_response()["model_version"] == direct.get_response()["model_version"]


async def test_metadata_and_readiness_are_told_as_triton_tells_them(
    running: Triton, behind: dict[str, Declaration]
) -> None:
    def ask(client: Any) -> tuple[Any, ...]:
        ready = [client.is_server_live(), client.is_server_ready(), client.is_model_ready("audio")]
        ready += [client.is_model_ready("classifier", "2"), client.is_model_ready("classifier", "3")]
        known = [client.get_model_metadata("audio"), client.get_model_metadata("classifier", "2")]
        return ready, known, client.is_model_ready("nothing")

    async with serving(elsewhere=behind) as served:
        assert await asyncio.to_thread(told_by, url_of(served), ask) == await asyncio.to_thread(
            told_by, running.http, ask
        )
        detail = (await served.client.get("/v1/models/audio")).json()
        assert "takes samples FP32 [1, -1], rate INT32 [1]" in detail["reasons"]
        assert detail["routes"] == ["/v2/models/{name}", "/v2/models/{name}/ready", "/v2/models/{name}/infer"]


async def test_an_audio_model_gets_samples_of_any_length_optional_inputs_and_parameters(
    running: Triton, behind: dict[str, Declaration]
) -> None:
    options: dict[str, Any] = {
        "request_id": "seven",
        "priority": 3,
        "timeout": 5_000_000,
        "parameters": {"voice": "low", "beam": 4, "fast": True},
    }
    asked = {
        "all": partial(by_http, model="audio", arrays={"samples": SAMPLES, "rate": np.array([16000], np.int32)}),
        "optional left out": partial(by_http, model="audio", arrays={"samples": SAMPLES[:, :480]}),
        "one output": partial(
            by_http, model="audio", arrays={"samples": SAMPLES}, outputs=[http_client.InferRequestedOutput("words")]
        ),
        "JSON": partial(
            by_http,
            model="audio",
            arrays={"samples": SAMPLES},
            binary=False,
            outputs=[http_client.InferRequestedOutput(name, binary_data=False) for name in ("energy", "words")],
        ),
        "packed": partial(by_http, model="audio", arrays={"samples": SAMPLES}, request_compression_algorithm="gzip"),
    }
    async with serving(elsewhere=behind) as served:
        for what, ask in asked.items():
            through = await asyncio.to_thread(ask, url_of(served), **options)
            direct = await asyncio.to_thread(ask, running.http, **options)
            assert through.get_response()["id"] == "seven"
            names = [output["name"] for output in direct.get_response()["outputs"]]
            assert [output["name"] for output in through.get_response()["outputs"]] == names, what
            same(through, direct, names)
    assert b'"beam": 4, "fast": true, "voice": "low"' in through.as_numpy("words")[2]


@pytest.mark.parametrize("binary", [True, False])
async def test_every_datatype_comes_back_as_it_went(behind: dict[str, Declaration], binary: bool) -> None:
    arrays = {f"in_{name}": array for name, array in ECHOED.items() if binary or name in IN_JSON}
    outputs = [http_client.InferRequestedOutput(name.replace("in_", "out_"), binary_data=binary) for name in arrays]
    async with serving(elsewhere=behind) as served:
        ask = partial(by_http, url_of(served), "echo", arrays, binary=binary, outputs=outputs)
        answer = await asyncio.to_thread(ask)
        for name, array in arrays.items():
            back = answer.as_numpy(name.replace("in_", "out_"))
            assert back.tolist() == array.tolist(), name


async def test_requests_at_the_same_time_are_put_together_by_triton(behind: dict[str, Declaration]) -> None:
    async with serving(elsewhere=behind) as served:
        ask = partial(by_http, url_of(served), "classifier", {"image": IMAGES[:1]}, model_version="1")
        answers = await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4)))
        assert max(int(answer.as_numpy("together").max()) for answer in answers) > 1
        classes = [http_client.InferRequestedOutput("scores", binary_data=True, class_count=1)]
        assert (await asyncio.to_thread(ask, outputs=classes)).as_numpy("scores")[0][0].endswith(b":2")


async def test_what_triton_refuses_and_what_a_model_raises_is_told_to_the_client(
    behind: dict[str, Declaration],
) -> None:
    async with serving(elsewhere=behind) as served:
        too_many = np.zeros((9, 3, 224, 224), np.float32)
        with pytest.raises(InferenceServerException, match="batch-size must be <= 8") as refused:
            await asyncio.to_thread(by_http, url_of(served), "classifier", {"image": too_many})
        assert refused.value.status() == "400"
        with pytest.raises(InferenceServerException, match="the first pixel is not a number"):
            await asyncio.to_thread(by_http, url_of(served), "classifier", {"image": IMAGES[:1] * np.nan})
        servers = (await served.client.get("/health")).json()["engines"]["box"]["servers"]
        assert [server["failures"] for server in servers] == [1]


async def test_a_server_that_goes_away_is_left_alone_and_serves_again_when_it_is_back(
    running: Triton, tmp_path: Path
) -> None:
    """The last in this file, as it takes the server away from the others."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "audio").symlink_to(MODELS / "audio")
    declared = Declaration(kind="triton", urls=(running.grpc,), breaker_failures=2, breaker_open_s=OPEN_S)
    async with serving(elsewhere={"box": declared}) as served:
        ask = partial(by_http, url_of(served), "audio", {"samples": SAMPLES})
        before = await asyncio.to_thread(ask)
        running.kill()
        for _ in range(3):
            with pytest.raises(InferenceServerException, match=r"no connection to|closed the connection") as refused:
                await asyncio.to_thread(ask)
        assert refused.value.status() == "503"
        server = (await served.client.get("/health")).json()["engines"]["box"]["servers"][0]
        assert server["failures"] >= 2
        assert (await served.client.get("/v2/models/audio")).status_code == 200
        with triton(tmp_path, models=tmp_path / "models", http=running.http, grpc=running.grpc):
            after = await asyncio.wait_for(_answered(ask), BACK_S)
    same(after, before, ["energy", "words"])


async def _answered(ask: Callable[[], Any]) -> Any:
    while True:
        try:
            return await asyncio.to_thread(ask)
        except InferenceServerException:
            await asyncio.sleep(OPEN_S / 4)
