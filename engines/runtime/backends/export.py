"""From a transformer that torch has loaded to a file that the other libraries read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer

from engines.runtime.backends.bodies import INPUTS, OUTPUTS

OPSET = 18
# Traced with padding in it, so that nothing is left out of the graph that only padded batches need.
EXAMPLE = ["a", "an example of a text that is longer than the other one"]


class _Traced(torch.nn.Module):
    """The transformer with positional inputs and one output, as an exported graph has them."""

    def __init__(self, model: Any, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model = model
        self._inputs = inputs
        self._output = output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        features = dict(zip(self._inputs, tensors, strict=True))
        output: torch.Tensor = self.model(**features, return_dict=True)[self._output]
        return output


def export(first: Transformer, path: Path) -> None:
    """Writes the transformer of `first` to `path`: .onnx for ONNX Runtime, optimized for it, .xml for OpenVINO.

    Batch and length stay free. Raises whatever torch or the library raises at a model that it cannot take.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name("plain.onnx")
    _trace(first, plain)
    if path.suffix == ".xml":
        import openvino  # type: ignore[import-untyped]

        openvino.save_model(openvino.Core().read_model(str(plain)), str(path), compress_to_fp16=False)
    else:
        _optimize(plain, path)
    plain.unlink()


def _trace(first: Transformer, path: Path) -> None:
    tokenizer: Any = first.tokenizer
    example = tokenizer(EXAMPLE, padding=True, return_tensors="pt")
    inputs = tuple(name for name in INPUTS if name in example)
    names = [*inputs, "output"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    if OUTPUTS[first.transformer_task] == "logits":
        axes["output"] = {0: "batch"}
    traced = _Traced(first.model, inputs, OUTPUTS[first.transformer_task]).eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that become constants; the check finds those that matter
        torch.onnx.export(
            traced,
            tuple(example[name] for name in inputs),
            str(path),
            input_names=list(inputs),
            output_names=["output"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _optimize(plain: Path, path: Path) -> None:
    """Does once what ONNX Runtime would do at each load: optimizes the graph, and lays the weights out for this CPU.

    They get a file of their own beside `path`, which is mapped rather than read: a load takes a quarter of the time.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    for name, value in {
        "optimized_model_external_initializers_file_name": path.with_suffix(".bin").name,
        "optimized_model_external_initializers_min_size_in_bytes": "1024",
        "save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(f"session.{name}", value)
    onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
