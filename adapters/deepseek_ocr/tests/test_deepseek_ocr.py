"""DeepSeek-OCR from its wheel to an answer: recognised by its config.json, loaded and asked in real vLLM."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from shutil import copytree, ignore_patterns
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import tiny_deepseek_ocr
from PIL import Image

from engines.base import EngineFactory
from engines.process import ProcessEngine
from engines.registry import create_factories, registered_architectures
from models.discovery.scanner import Scanner
from models.types import Availability, ModelOverrides, ModelSpec, Task
from tests.engines.process_support import engine_folders

PACKAGE = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 90.0  # with the launcher's import, on a busy machine
GRACE_S = 15.0
QUICKER = {"dtype": "float32", "skip_mm_profiling": True}  # on a CPU without bfloat16
MODEL = "DeepSeek-OCR"
ARCHITECTURE = "DeepseekOCRForCausalLM"
TOKENS = 40
NGRAM = 30
# tokens of a prompt: the whole image in 16 rows of 16 and a line break each, and one at its end; tiles in rows of 10
BOS, WHOLE_IMAGE, TWO_TILES = 1, 16 * 17 + 1, 10 * 21

# A plugin of vLLM's, run where that is imported. torchvision's CPU build is on PyTorch's own index only: here are the
# three things of it that vLLM takes for this model.
PLUGIN = f"""
import sys
from types import ModuleType

import numpy
import torch


class Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous().float() / 255


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image):
        return (image - self.mean) / self.std


def register():
    transforms = sys.modules["torchvision.transforms"] = ModuleType("torchvision.transforms")
    transforms.Compose, transforms.ToTensor, transforms.Normalize = Compose, ToTensor, Normalize
    sys.modules["torchvision"] = ModuleType("torchvision")
    sys.modules["torchvision"].transforms = transforms
    exec({tiny_deepseek_ocr.SMALL_ENCODERS!r}, {{}})
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on Python's path, here and in launchers, with the package from its wheel."""
    folder = tmp_path_factory.mktemp("installed")
    source = copytree(PACKAGE, tmp_path_factory.mktemp("source") / "package", ignore=ignore_patterns("tests"))
    build = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(folder)!r}))"
    made = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True, timeout=60
    )
    with zipfile.ZipFile(folder / made.stdout.split()[-1]) as wheel:
        wheel.extractall(folder)
    plugin = folder / "for_tests-0.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: for-tests\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text("[vllm.general_plugins]\nfor_tests = for_tests:register\n")
    (folder / "for_tests.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def spec(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The model as it was found."""
    models = tmp_path_factory.mktemp("models")
    tiny_deepseek_ocr.make(models / MODEL)
    registered, faults = registered_architectures()
    assert faults == []
    [found] = Scanner(models, registered=registered).scan()
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory(spec: ModelSpec) -> AsyncIterator[EngineFactory]:
    with engine_folders() as context:
        engines = create_factories(lambda name: context)
        factory = engines.factories["deepseek_ocr"]
        factory.accepts(spec)  # it is imported for this, and so before it is started
        await factory.start()
        try:
            yield factory
        finally:
            await factory.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(factory: EngineFactory, spec: ModelSpec) -> AsyncIterator[ProcessEngine]:
    engine = factory.create(replace(spec, overrides=ModelOverrides(engine_args=QUICKER)))
    assert isinstance(engine, ProcessEngine)
    await engine.start(START_TIMEOUT_S)
    try:
        yield engine
    finally:
        await engine.stop(GRACE_S)


def picture(width: int, height: int, colour: str) -> dict[str, Any]:
    """A part of a message."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def text(line: str) -> dict[str, Any]:
    return {"type": "text", "text": line}


async def post(engine: ProcessEngine, path: str, **body: Any) -> dict[str, Any]:
    """vLLM's answer to a client that says no more than `body`."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.endpoint.uds))) as session,
        session.post(f"{engine.endpoint.base_url}{path}", json={"model": MODEL, **body}) as response,
    ):
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


async def ask(engine: ProcessEngine, *content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Its answer to one message with `content`."""
    messages = [{"role": "user", "content": list(content)}]
    return await post(engine, "/v1/chat/completions", **{"messages": messages, "max_tokens": TOKENS, **fields})


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def is_kept_from_repeating(answer: str, token: str) -> bool:
    """Whether `answer` begins with `token` as often as the recipe allows, and goes on otherwise."""
    return answer.startswith(token * NGRAM) and not answer.startswith(token * (NGRAM + 1))


async def test_it_is_recognised_by_its_config_json(spec: ModelSpec) -> None:
    assert (spec.engine, spec.task, spec.availability) == ("deepseek_ocr", Task.CHAT, Availability.AVAILABLE)
    assert spec.architecture == ARCHITECTURE


async def test_it_is_refused_only_where_torchvision_is_missing_and_other_models_always(
    factory: EngineFactory, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "torchvision" in factory.accepts(spec).reason
    torchvision = ModuleType("torchvision")
    torchvision.__spec__ = ModuleSpec("torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    assert factory.accepts(spec).ok
    assert not factory.accepts(replace(spec, architecture="Qwen3ForCausalLM")).ok


async def test_an_argument_that_is_configured_goes_before_that_of_the_package(installed: Path, spec: ModelSpec) -> None:
    with engine_folders(engine_args={"mm_processor_cache_gb": 4, "enable_prefix_caching": True}) as context:
        engines = create_factories(lambda name: context)
        args = engines.factories["deepseek_ocr"].create(spec)._request().args  # type: ignore[attr-defined]
    assert args[args.index("--mm-processor-cache-gb") + 1] == "4"
    assert "--enable-prefix-caching" in args
    assert "--no-enable-prefix-caching" not in args
    assert "--logits-processors" in args


async def test_an_image_alone_is_asked_for_markdown_and_what_is_in_it_changes_the_answer(
    engine: ProcessEngine,
) -> None:
    fields = {"max_tokens": 1, "logprobs": True, "top_logprobs": 2}
    white, black, wide = await asyncio.gather(
        ask(engine, picture(320, 200, "white"), **fields),
        ask(engine, picture(320, 200, "black"), **fields),
        ask(engine, text("Free OCR."), picture(1280, 640, "white"), max_tokens=1),
    )
    assert white["usage"]["prompt_tokens"] == BOS + WHOLE_IMAGE + 2 + len("Convert the document to markdown.")
    assert wide["usage"]["prompt_tokens"] == BOS + WHOLE_IMAGE + TWO_TILES + len("\nFree OCR.")
    assert white["choices"][0]["logprobs"] != black["choices"][0]["logprobs"]


@pytest.mark.parametrize(
    ("path", "field", "find"),
    [
        ("/v1/chat/completions", "messages", lambda answer: answer["choices"][0]["message"]["content"]),
        ("/v1/completions", "prompt", lambda answer: answer["choices"][0]["text"]),
        ("/v1/responses", "input", lambda answer: answer["output"][0]["content"][0]["text"]),
        ("/v1/messages", "messages", lambda answer: answer["content"][0]["text"]),
    ],
)
async def test_it_does_not_repeat_itself_for_ever_whatever_the_client_speaks(
    engine: ProcessEngine, path: str, field: str, find: Callable[[dict[str, Any]], str]
) -> None:
    question = [{"role": "user", "content": "Free OCR."}] if field == "messages" else "Free OCR."
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    answer = await post(engine, path, **{field: question, limit: TOKENS})
    assert is_kept_from_repeating(find(answer), ".")


async def test_cells_of_tables_may_repeat_and_the_tokens_for_them_are_in_the_answer(engine: ProcessEngine) -> None:
    assert said(await ask(engine, text("Free OCR.<td>"))) == "<td>" * TOKENS


async def test_a_client_that_says_something_else_is_obeyed(engine: ProcessEngine) -> None:
    off = {"vllm_xargs": {"ngram_size": 1000}}
    without_marks, repeating = await asyncio.gather(
        ask(engine, text("Free OCR.<td>"), skip_special_tokens=True), ask(engine, text("Free OCR."), **off)
    )
    assert said(without_marks) == ""
    assert said(repeating) == "." * TOKENS
