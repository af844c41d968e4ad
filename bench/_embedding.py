"""Texts to embed, clients that have them embedded, and what sentence-transformers makes of them in a process."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from bench._load import Clients, together

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

SEED = 20251123
LEAST_WORDS, MOST_WORDS = 5, 60
BATCHES = (4, 8, 16, 32, 64)  # that sentence-transformers is tried with
WORDS = """
the of and model memory engine swap graph queue token river mountain quickly answer question retrieval document server
client batch light garden history science people water language number system morning evening letter travel market price
company window building street because between without through information research development international government
university important different national special
"""


def texts(count: int, least: int = LEAST_WORDS, most: int = MOST_WORDS, seed: int = SEED) -> list[str]:
    """The same on every call: `least` to `most` words each."""
    random, words = Random(seed), WORDS.split()
    return [" ".join(random.choices(words, k=random.randint(least, most))) for _ in range(count)]


# -- clients -----------------------------------------------------------------------------------------------------------


async def embed(clients: Clients, model: str, given: Sequence[str]) -> bytes:
    """The answer as it came, asked for as OpenAI's client does. Raises RuntimeError for an error."""
    return await clients.post_raw("/v1/embeddings", {"model": model, "input": given, "encoding_format": "base64"})


def vectors(answer: bytes) -> NDArray[np.float32]:
    """[inputs, dimensions], in the order of the inputs. Raises RuntimeError where the answer has another order."""
    data: list[dict[str, Any]] = json.loads(answer)["data"]
    if [item["index"] for item in data] != list(range(len(data))):
        raise RuntimeError("the answer's vectors are not in the order of their texts")
    return np.stack([np.frombuffer(base64.b64decode(item["embedding"]), np.float32) for item in data])


async def one_by_one(
    clients: Clients, model: str, given: Sequence[str], count: int
) -> tuple[float, NDArray[np.float32]]:
    """`count` clients, each sending the next text as soon as it is answered: texts/s, and the vectors."""
    answers: dict[int, bytes] = {}
    rest = iter(enumerate(given))

    async def client() -> None:
        for index, text in rest:
            answers[index] = await embed(clients, model, [text])

    began = time.monotonic()
    await together(client() for _ in range(count))
    rate = len(given) / (time.monotonic() - began)
    return rate, np.concatenate([vectors(answers[index]) for index in range(len(given))])


async def at_once(clients: Clients, model: str, given: Sequence[str]) -> tuple[float, NDArray[np.float32]]:
    """One request: texts/s, and the vectors."""
    began = time.monotonic()
    answer = await embed(clients, model, given)
    return len(given) / (time.monotonic() - began), vectors(answer)


# -- in a process ------------------------------------------------------------------------------------------------------

_models: dict[str, SentenceTransformer] = {}  # in the child, by dtype


class InProcess:
    """sentence-transformers on all cores of a child process, without any server."""

    def __init__(self, pool: ProcessPoolExecutor, model: Path) -> None:
        self._pool = pool
        self._model = str(model)

    def vectors(self, given: Sequence[str]) -> NDArray[np.float32]:
        """In float32."""
        return self._pool.submit(_vectors, self._model, list(given)).result()

    def rate(self, dtype: str, given: Sequence[str], batch: int) -> float:
        """Texts/s in one call of `encode`."""
        return self._pool.submit(_rate, self._model, dtype, list(given), batch).result()

    def most(self, given: Sequence[str]) -> float:
        """Texts/s if all else took no time: the model's matrix products alone, in float32, without any padding, at the
        highest rate that ONNX Runtime's have here. No library that computes in float32 can be faster."""
        return self._pool.submit(_most, self._model, list(given)).result()

    def best_batch(self, dtype: str, given: Sequence[str]) -> int:
        """The batch size of the highest rate."""
        self.rate(dtype, given[: BATCHES[0]], BATCHES[0])  # its first pass is slower
        return max(BATCHES, key=lambda batch: self.rate(dtype, given, batch))


@contextmanager
def in_process(model: Path) -> Iterator[InProcess]:
    """The child ends with the block."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield InProcess(pool, model)


def _loaded(path: str, dtype: str) -> SentenceTransformer:
    if dtype not in _models:
        from sentence_transformers import SentenceTransformer

        arguments = {"dtype": dtype}
        _models[dtype] = SentenceTransformer(path, device="cpu", local_files_only=True, model_kwargs=arguments)
    return _models[dtype]


def _vectors(path: str, given: list[str]) -> NDArray[np.float32]:
    return np.asarray(_loaded(path, "float32").encode(given, show_progress_bar=False), np.float32)


def _rate(path: str, dtype: str, given: list[str], batch: int) -> float:
    model = _loaded(path, dtype)
    began = time.monotonic()
    model.encode(given, batch_size=batch, show_progress_bar=False)
    return len(given) / (time.monotonic() - began)


def _most(path: str, given: list[str]) -> float:
    from torch.nn import Linear

    model: Any = _loaded(path, "float32")
    transformer, tokenizer = model[0].model, model[0].tokenizer
    named = [(name, layer) for name, layer in transformer.named_modules() if isinstance(layer, Linear)]
    layers = [layer for name, layer in named if "pooler" not in name]
    per_token = sum(2 * layer.in_features * layer.out_features for layer in layers)
    attention = 4 * transformer.config.hidden_size * transformer.config.num_hidden_layers  # of each pair of tokens
    counts = [len(ids) for ids in tokenizer(given)["input_ids"]]
    operations = sum(count * per_token + count**2 * attention for count in counts)
    shapes = {(layer.in_features, layer.out_features) for layer in layers}
    return float(len(given) * max(_operations_per_s(*shape) for shape in shapes) / operations)


def _operations_per_s(inputs: int, outputs: int, rows: int = 1024, rounds: int = 20) -> float:
    """Of the fastest of so many products of [rows, inputs] and [inputs, outputs], on all cores."""
    import onnxruntime  # type: ignore[import-untyped]
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((inputs, outputs), np.float32), "weights")
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT, [rows, inputs])
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, [rows, outputs])
    node = helper.make_node("MatMul", ["given", "weights"], ["product"])
    graph = helper.make_graph([node], "product", [given], [product], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features = {"given": np.ones((rows, inputs), np.float32)}
    took: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        session.run(None, features)
        took.append(time.perf_counter() - began)
    return 2 * rows * inputs * outputs / min(took)
