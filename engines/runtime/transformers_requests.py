"""The requests of the retrieval routes, checked: every value that reaches the model has passed here.

Each function takes the decoded JSON object and raises InvalidRequest naming the field. Fields that are not known are
ignored, as the OpenAI API does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.runtime.retrieval import InvalidRequest, Source

MAX_INPUTS = 2048  # of one embeddings request, as OpenAI
MAX_DOCUMENTS = 10_000  # of one rerank or score request
MAX_TOKEN_ID = 2**31 - 1

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    model: str | None
    inputs: list[Source]
    base64: bool
    dimensions: int | None
    truncate_to: int | None


@dataclass(frozen=True, slots=True)
class RerankRequest:
    model: str | None
    query: str
    documents: list[str]
    top_n: int | None
    return_documents: bool
    truncate_to: int | None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    model: str | None
    pairs: list[tuple[str, str]]
    truncate_to: int | None


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    model: str | None
    prompt: str
    add_special_tokens: bool
    return_token_strs: bool


def embeddings_request(body: Body, max_tokens: int, width: int) -> EmbeddingsRequest:
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise InvalidRequest("encoding_format must be 'float' or 'base64'.", param="encoding_format")
    return EmbeddingsRequest(
        model=_optional_string(body, "model"),
        inputs=_inputs(_required(body, "input")),
        base64=encoding == "base64",
        dimensions=_integer(body, "dimensions", 1, width, f"this model's embeddings have {width} dimensions"),
        truncate_to=_truncate_to(body, max_tokens),
    )


def rerank_request(body: Body, max_tokens: int) -> RerankRequest:
    query = _text(_required(body, "query"), "query")
    return RerankRequest(
        model=_optional_string(body, "model"),
        query=query,
        documents=_texts(_required(body, "documents"), "documents"),
        top_n=_integer(body, "top_n", 1, None, "it is the number of results"),
        return_documents=_boolean(body, "return_documents", True),
        truncate_to=_truncate_to(body, max_tokens),
    )


def score_request(body: Body, max_tokens: int) -> ScoreRequest:
    left, right = ("text_1", "text_2") if "text_1" in body or "queries" not in body else ("queries", "documents")
    first = _texts(_required(body, left), left)
    second = _texts(_required(body, right), right)
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            f"{left} has {len(first)} texts and {right} has {len(second)}; send one text against many, or as many.",
            param=right,
        )
    return ScoreRequest(
        model=_optional_string(body, "model"),
        pairs=list(zip(first, second, strict=True)),
        truncate_to=_truncate_to(body, max_tokens),
    )


def tokenize_request(body: Body) -> TokenizeRequest:
    prompt = _required(body, "prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be a string.", param="prompt")
    return TokenizeRequest(
        model=_optional_string(body, "model"),
        prompt=prompt,
        add_special_tokens=_boolean(body, "add_special_tokens", True),
        return_token_strs=_boolean(body, "return_token_strs", False),
    )


def detokenize_request(body: Body, vocabulary: int) -> list[int]:
    tokens = _required(body, "tokens")
    if not isinstance(tokens, list) or not all(_is_id(token) and token < vocabulary for token in tokens):
        raise InvalidRequest(f"tokens must be a list of token ids from 0 to {vocabulary - 1}.", param="tokens")
    return tokens


def _inputs(value: Any) -> list[Source]:
    """One text, several, the ids of one input, or of several."""
    if isinstance(value, str):
        return [_text(value, "input")]
    if not isinstance(value, list):
        raise InvalidRequest("input must be a string, a list of strings, or token ids.", param="input")
    if not value:
        raise InvalidRequest("input is an empty list; send at least one text.", param="input")
    if isinstance(value[0], int):
        return [_token_ids(value, "input")]
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(
            f"input has {len(value)} entries, but at most {MAX_INPUTS} are taken in one request.", param="input"
        )
    if isinstance(value[0], list):
        return [_token_ids(item, f"input[{index}]") for index, item in enumerate(value)]
    return [_text(item, "input", index) for index, item in enumerate(value)]


def _token_ids(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{where} must be a list of token ids that is not empty.", param="input")
    if not all(map(_is_id, value)):
        raise InvalidRequest(f"{where} must hold only token ids: integers from 0.", param="input")
    return value


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID


def _texts(value: Any, param: str) -> list[str]:
    """One text or several; a text may also stand in an object, under `text`."""
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{param} must be a list of texts that is not empty.", param=param)
    if len(value) > MAX_DOCUMENTS:
        raise InvalidRequest(
            f"{param} has {len(value)} entries, but at most {MAX_DOCUMENTS} are taken in one request.", param=param
        )
    return [_text(item["text"] if _holds_text(item) else item, param, index) for index, item in enumerate(value)]


def _holds_text(value: Any) -> bool:
    return isinstance(value, dict) and "text" in value


def _text(value: Any, param: str, index: int | None = None) -> str:
    where = param if index is None else f"{param}[{index}]"
    if not isinstance(value, str):
        raise InvalidRequest(f"{where} must be a string.", param=param)
    if not value:
        raise InvalidRequest(f"{where} is an empty string.", param=param)
    return value


def _truncate_to(body: Body, max_tokens: int) -> int | None:
    """To how many tokens inputs are cut; None where the client did not ask for it."""
    if body.get("truncate_prompt_tokens") == -1:
        return max_tokens
    return _integer(
        body, "truncate_prompt_tokens", 1, max_tokens, f"this model takes {max_tokens} tokens, and -1 means just that"
    )


def _required(body: Body, param: str) -> Any:
    value = body.get(param)
    if value is None:
        raise InvalidRequest(f"{param} is missing.", param=param)
    return value


def _optional_string(body: Body, param: str) -> str | None:
    value = body.get(param)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{param} must be a string.", param=param)
    return value


def _boolean(body: Body, param: str, default: bool) -> bool:
    value = body.get(param)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"{param} must be true or false.", param=param)
    return value


def _integer(body: Body, param: str, low: int, high: int | None, why: str) -> int | None:
    value = body.get(param)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        span = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise InvalidRequest(f"{param} must be an integer {span}: {why}.", param=param)
    return value
