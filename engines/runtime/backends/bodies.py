"""The libraries that run an exported transformer, and how one takes the place of torch's inside the model.

A body is a function from padded token ids to one output: [batch, tokens, width], or [batch, labels] of a classification
head. All else (tokenizing, pooling, normalization, activations) stays with sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer

from engines.runtime.backends.candidates import ENCODERS
from engines.runtime.backends.cores import usable_cores
from engines.runtime.transformers_args import TransformersArgs

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PRECISIONS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}

Model = TypeVar("Model")


class Unsuitable(Exception):
    """A model that only torch can run here; the message says why."""


class Body(Protocol):
    inputs: tuple[str, ...]  # of INPUTS, those that the exported model reads

    def run(self, features: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]: ...


class OnnxBody:
    """ONNX Runtime on the CPU."""

    def __init__(self, path: Path, args: TransformersArgs) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads or usable_cores()
        # Threads that spin are no faster alone (6 ms a short text), and cost others their cores: beside a load of 9 on
        # 2 cores a text took 22 ms without spinning, and 35 with it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without the arena what a large batch took goes back to the system after it, and a pass is no slower.
        options.enable_cpu_mem_arena = False
        # The graph was optimized when it was exported.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(each.name for each in self._session.get_inputs())

    def run(self, features: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        [output] = self._session.run(None, {name: features[name] for name in self.inputs})
        values: NDArray[np.float32] = output
        return values


class OpenVinoBody:
    """OpenVINO on the CPU; the weights of its file are mapped, not read."""

    def __init__(self, path: Path, args: TransformersArgs) -> None:
        import openvino  # type: ignore[import-untyped]

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": args.threads or usable_cores(),
            "CACHE_DIR": str(path.parent),  # what it compiles, it need not compile again
            "CACHE_MODE": "OPTIMIZE_SPEED",
            "INFERENCE_PRECISION_HINT": PRECISIONS[args.dtype or "float32"],
        }
        self._model: Any = openvino.Core().compile_model(str(path), "CPU", config)
        self._request: Any = self._model.create_infer_request()
        self.inputs = tuple(each.get_any_name() for each in self._model.inputs)

    def run(self, features: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        results = self._request.infer({name: features[name] for name in self.inputs}, share_inputs=True)
        values: NDArray[np.float32] = results[0]  # a copy: the request's own memory is written by the next pass
        return values


BODIES: Mapping[str, Callable[[Path, TransformersArgs], Body]] = {"onnx": OnnxBody, "openvino": OpenVinoBody}


class BodyModule(torch.nn.Module):
    """Stands where the model's first module has its transformers model. It holds no weights of torch's."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, config: Any, body: Body, output: str) -> None:
        super().__init__()
        self.config = config
        self._body = body
        self._output = output
        # In a tuple, as a module it would be counted among this one's weights: only its shape is of interest.
        self._embeddings = (torch.nn.Embedding(config.vocab_size, 1, device="meta"),)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self._embeddings[0]

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        given = {name: features[name].numpy() for name in self._body.inputs if name in features}
        for name in self._body.inputs:
            if name not in given:  # segment ids, of inputs that came as ids
                given[name] = np.zeros_like(given["input_ids"])
        return {self._output: torch.from_numpy(self._body.run(given))}


def load(kind: Callable[..., Model], model_path: str, args: TransformersArgs, options: Mapping[str, Any]) -> Model:
    """`kind(model_path, **options)`, a SentenceTransformer or CrossEncoder, run by the backend of `args`.

    A model that was exported before is loaded without torch's weights. One that was not is exported to `args.body_path`
    first, by torch in float32. Raises Unsuitable where only torch can run this model.
    """
    if args.backend not in BODIES:
        return kind(model_path, **options)
    path = Path(args.body_path)
    if not path.is_file():
        from engines.runtime.backends.export import export

        export(plain_transformer(kind(model_path, **options)), path)
    body = BODIES[args.backend](path, args)

    # The one adjustment of sentence-transformers: the place where its module loads torch's model.
    def stand_in(_: Any, __: str, task: str, config: Any, *___: Any, **____: Any) -> BodyModule:
        return BodyModule(config, body, OUTPUTS[task])

    with patch.object(Transformer, "_load_model", stand_in):
        return kind(model_path, **options)


def plain_transformer(model: Any) -> Any:
    """The first module of `model`, a Transformer, if other libraries can run what it does. Raises Unsuitable."""
    first = model[0]
    if type(first) is not Transformer or first.transformer_task not in OUTPUTS:
        raise Unsuitable(f"its first module is no plain text encoder ({type(first).__name__})")
    if first.model.config.model_type not in ENCODERS:
        raise Unsuitable(f"models of type {first.model.config.model_type} are run by torch only")
    how = first.modality_config.get("text", {})
    if set(first.modality_config) != {"text"} or how.get("method") != "forward":
        raise Unsuitable("it takes more than plain text")
    if how.get("method_output_name") != OUTPUTS[first.transformer_task] or first.model.config.output_hidden_states:
        raise Unsuitable("it gives more than its last layer")
    return first


def set_threads(args: TransformersArgs) -> None:
    """Threads of torch: those of the forward pass, or a single one where another library runs it with its own."""
    torch.set_num_threads(1 if args.backend in BODIES else args.threads or usable_cores())
