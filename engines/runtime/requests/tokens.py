"""Requests of /tokenize and /detokenize, as vLLM's clients send them."""

from __future__ import annotations

from dataclasses import dataclass

from engines.runtime.requests.fields import MAX_CHARACTERS, Body, boolean, optional_string, required
from engines.runtime.retrieval import InvalidRequest, is_token_id


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


def detokenize_request(body: Body, vocabulary: int) -> list[int]:
    tokens = required(body, "tokens")
    if not isinstance(tokens, list) or not all(is_token_id(token) and token < vocabulary for token in tokens):
        raise InvalidRequest(f"tokens must be a list of token ids from 0 to {vocabulary - 1}.", param="tokens")
    return tokens
