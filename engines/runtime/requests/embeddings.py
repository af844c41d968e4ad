"""Requests for embeddings as OpenAI's and Jina's clients send them, for one vector or several of each input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from engines.runtime.requests.fields import Body, boolean, followed, inputs, integer, optional_string, required, shown
from engines.runtime.requests.input_types import what_they_are
from engines.runtime.requests.truncation import truncation
from engines.runtime.retrieval import EncodeOptions, InvalidRequest, RetrievalModel, Source

MAX_INPUTS = 2048  # of one request, as OpenAI

# Fields of Jina's, vLLM's, Mistral's, Voyage's and Infinity's clients.
UNFOLLOWED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "late_chunking": ((False,), "send each chunk as an input"),
    "return_multivector": ((False,), "/v1/multi-vector gives several vectors for each input"),
    "add_special_tokens": ((True,), "send token ids to leave special tokens out"),
    "use_activation": ((True,), "embeddings are given as the model's own modules make them"),
    "output_dimension": ((), "it is called dimensions"),
    "output_dtype": (("float",), "it is called embedding_type"),
    "instruction": ((), "input_type chooses one of the model's own prompts, and any other goes into the texts"),
    "modality": (("text", ["text"]), "only texts can be embedded"),
}

Form: TypeAlias = Literal["float", "base64", "binary", "ubinary"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """`param` is the field that the inputs stood in. `texts` are given back in the answer."""

    inputs: list[Source]
    param: str
    options: EncodeOptions
    truncate: bool
    forms: tuple[Form, ...] = ("float",)
    dimensions: int | None = None
    normalize: bool = False
    model: str | None = None
    texts: list[str] | None = None


def embeddings_request(body: Body, model: RetrievalModel) -> EmbedRequest:
    """OpenAI's fields, with Jina's `task`, `embedding_type`, `normalized`, `truncate` and Cohere's `input_type`."""
    followed(body, UNFOLLOWED)
    optional_string(body, "user")
    cut = truncation(body, model.encoder.max_tokens)
    side, prompt = what_they_are(body, model.prompts)
    return EmbedRequest(
        inputs=inputs(required(body, "input"), "input", MAX_INPUTS),
        param="input",
        options=EncodeOptions(cut.limit, cut.left, prompt, side=side),
        truncate=cut.cut,
        forms=(_form(body),),
        dimensions=_dimensions(body, model),
        normalize=boolean(body, "normalized" if body.get("normalized") is not None else "normalize", False),
        model=optional_string(body, "model"),
    )


def _form(body: Body) -> Form:
    """How the numbers are written: Jina's `embedding_type`, else OpenAI's `encoding_format`."""
    param = "embedding_type" if body.get("embedding_type") is not None else "encoding_format"
    value = body.get(param)
    if isinstance(value, list) and param == "embedding_type":
        if len(value) != 1:
            raise InvalidRequest("embedding_type must name one type here; /v2/embed gives several.", param=param)
        [value] = value
    return "float" if value is None else form(value, param)


def form(value: Any, param: str) -> Form:
    for known in FORMS:
        if value == known:
            return known
    if value in ("int8", "uint8"):
        raise InvalidRequest(
            f"{param} {value} needs ranges that are calibrated on a corpus, which this model does not have; "
            f"use one of {', '.join(FORMS)}.",
            param=param,
        )
    raise InvalidRequest(f"{param} must be one of {', '.join(FORMS)}, not {shown(value)}.", param=param)


def _dimensions(body: Body, model: RetrievalModel) -> int | None:
    """Infinity's client, which is known by its `modality`, always sends some: 0 for all."""
    if body.get("modality") is not None and body.get("dimensions") == 0:
        return None
    return dimensions(body, "dimensions", model)


def dimensions(body: Body, param: str, model: RetrievalModel) -> int | None:
    return integer(body, param, 1, model.width, f"this model's embeddings have {model.width} dimensions")
