"""Whether inputs that are too long are refused, which is the default everywhere, or cut, and on which side."""

from __future__ import annotations

from dataclasses import dataclass

from engines.runtime.requests.fields import Body, choice, integer, shown
from engines.runtime.retrieval import InvalidRequest

SIDES = ("left", "right")
COHERE = {"NONE": (False, False), "START": (True, True), "END": (True, False)}  # whether to cut, and on the left


@dataclass(frozen=True, slots=True)
class Truncation:
    """`limit`: tokens of an input, None for the model's own; `cut` those over it, else they are refused."""

    limit: int | None
    cut: bool
    left: bool


def truncation(body: Body, max_tokens: int, limit_param: str = "truncate_prompt_tokens") -> Truncation:
    """As the fields say by which the various clients ask for it; `max_tokens` is the model's own limit.

    `truncate_prompt_tokens`: vLLM's, a number of tokens or -1 for the model's limit. `truncate`: true or false as TEI
    and Jina have it, NONE, START or END as Cohere has it; Voyage calls it `truncation`. `truncation_side`, or TEI's
    `truncation_direction`.
    """
    cut, left = _truncate(body)
    side = choice(body, "truncation_side", SIDES) or choice(body, "truncation_direction", SIDES)
    left = left or side == "left"
    if limit_param != "truncate_prompt_tokens":
        limit = integer(body, limit_param, 1, None, "it is a number of tokens")
        return Truncation(limit and min(limit, max_tokens), cut, left)
    if body.get(limit_param) == -1:
        return Truncation(None, True, left)
    why = f"this model takes {max_tokens} tokens, and -1 means just that"
    limit = integer(body, limit_param, 1, max_tokens, why)
    return Truncation(limit, cut or limit is not None, left)


def _truncate(body: Body) -> tuple[bool, bool]:
    param = "truncate" if body.get("truncate") is not None else "truncation"
    value = body.get(param)
    if value is None:
        return False, False
    if isinstance(value, bool):
        return value, False
    if isinstance(value, str) and value.upper() in COHERE:
        return COHERE[value.upper()]
    raise InvalidRequest(f"{param} must be true or false, or NONE, START or END, not {shown(value)}.", param=param)
