"""Requests of /tokenize and /detokenize, as vLLM's clients send them, and of /tokenize and /decode, as TEI's do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.runtime.requests.fields import (
    MAX_CHARACTERS,
    Body,
    boolean,
    listed,
    optional_string,
    required,
    texts,
    token_ids,
)
from engines.runtime.requests.input_types import Prompts, named_prompt
from engines.runtime.retrieval import InvalidRequest, is_token_id
from engines.runtime.transformers_args import MAX_TEXTS

MAX_TOKENIZED_CHARACTERS = 1_000_000  # of all texts of a request, whose answer has some twenty times as many


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    prompt: str
    add_special_tokens: bool
    return_token_strs: bool


def tokenize_request(body: Body) -> TokenizeRequest:
    prompt = required(body, "prompt")
    if not isinstance(prompt, str) or len(prompt) > MAX_CHARACTERS:
        raise InvalidRequest(f"prompt must be a string of at most {MAX_CHARACTERS} characters.", param="prompt")
    optional_string(body, "model")
    return TokenizeRequest(
        prompt=prompt,
        add_special_tokens=boolean(body, "add_special_tokens", True),
        return_token_strs=boolean(body, "return_token_strs", False),
    )


@dataclass(frozen=True, slots=True)
class TeiTokenizeRequest:
    """`texts` begin with the prompt that was asked for."""

    texts: list[str]
    add_special_tokens: bool


def is_tei_tokenize(body: Body) -> bool:
    """/tokenize is a path of vLLM's protocol and of TEI's, which has `inputs` where the other has `prompt`."""
    return "inputs" in body


def tei_tokenize_request(body: Body, prompts: Prompts) -> TeiTokenizeRequest:
    prompt = named_prompt(body, prompts) or ""
    given = [prompt + one for one in texts(required(body, "inputs"), "inputs", MAX_TEXTS)]
    characters = sum(map(len, given))
    if characters > MAX_TOKENIZED_CHARACTERS:
        raise InvalidRequest(
            f"inputs has {characters} characters in all, but at most {MAX_TOKENIZED_CHARACTERS} are tokenized in one "
            "request. Send it in several.",
            param="inputs",
        )
    optional_string(body, "model")
    return TeiTokenizeRequest(given, boolean(body, "add_special_tokens", True))


def detokenize_request(body: Body, vocabulary: int) -> list[int]:
    return _known_ids(required(body, "tokens"), "tokens", vocabulary)


def decode_request(body: Body, vocabulary: int) -> tuple[list[list[int]], bool]:
    """TEI's: the ids of one text or of several, and whether special tokens are left out of those."""
    given = required(body, "ids")
    if isinstance(given, list) and given and isinstance(given[0], list):
        given = [token_ids(one, "ids", f"ids[{index}]") for index, one in enumerate(listed(given, "ids", MAX_TEXTS))]
    else:
        given = [token_ids(given, "ids", "ids")]
    ids = [_known_ids(one, "ids", vocabulary) for one in given]
    return ids, boolean(body, "skip_special_tokens", True)


def _known_ids(value: Any, param: str, vocabulary: int) -> list[int]:
    if not isinstance(value, list) or not all(is_token_id(token) and token < vocabulary for token in value):
        raise InvalidRequest(f"{param} must be a list of token ids from 0 to {vocabulary - 1}.", param=param)
    return value
