"""Requests of Cohere's /v2/embed."""

from __future__ import annotations

from typing import Any

from engines.runtime.requests.embeddings import EmbedRequest, Form, dimensions, form
from engines.runtime.requests.fields import Body, listed, optional_string, required, text, texts
from engines.runtime.requests.input_types import kind_of
from engines.runtime.requests.truncation import truncation
from engines.runtime.retrieval import EncodeOptions, InvalidRequest, RetrievalModel

MAX_TEXTS = 10_000  # of one request; Cohere's own takes 96


def cohere_embed_request(body: Body, model: RetrievalModel) -> EmbedRequest:
    if body.get("images") is not None or body.get("input_type") == "image":
        param = "images" if body.get("images") is not None else "input_type"
        raise InvalidRequest(f"{param}: only texts can be embedded here.", param=param)
    cut = truncation(body, model.encoder.max_tokens, limit_param="max_tokens")
    side, prompt = kind_of(body, "input_type", model.prompts)
    param, found = _texts(body)
    return EmbedRequest(
        inputs=[*found],
        param=param,
        options=EncodeOptions(cut.limit, cut.left, prompt, side=side),
        truncate=cut.cut,
        forms=_forms(body),
        dimensions=dimensions(body, "output_dimension", model),
        model=optional_string(body, "model"),
        texts=found,
    )


def _texts(body: Body) -> tuple[str, list[str]]:
    """The field that holds them, and one text for each input."""
    if body.get("inputs") is None:
        required(body, "texts")
        return "texts", texts(listed(body["texts"], "texts", MAX_TEXTS), "texts", MAX_TEXTS)
    if body.get("texts") is not None:
        raise InvalidRequest("Send either texts or inputs, not both.", param="inputs")
    items = listed(body["inputs"], "inputs", MAX_TEXTS)
    return "inputs", [_content(item, index) for index, item in enumerate(items)]


def _content(item: Any, index: int) -> str:
    """The text of an input; several pieces of text are lines of it."""
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(content, list) or not content:
        raise InvalidRequest(f"inputs[{index}].content must be a list that is not empty.", param="inputs")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidRequest(f"inputs[{index}].content may hold only parts of type text.", param="inputs")
    return text("\n".join(text(part, "inputs", index) for part in content), "inputs", index)


def _forms(body: Body) -> tuple[Form, ...]:
    value = body.get("embedding_types")
    if value is None:
        return ("float",)
    if not isinstance(value, list) or not value:
        raise InvalidRequest("embedding_types must be a list that is not empty.", param="embedding_types")
    return tuple(dict.fromkeys(form(item, "embedding_types") for item in value))
