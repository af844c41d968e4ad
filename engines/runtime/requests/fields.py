"""One field of a request: its value, checked, or InvalidRequest with the field's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from engines.runtime.retrieval import InvalidRequest, Source

SHOWN_CHARACTERS = 40  # of a value that an error repeats
MAX_CHARACTERS = 2_000_000  # of a text: tokenizing takes up to 200 bytes for each, and lets nobody else in meanwhile
MAX_SHARED_CHARACTERS = 65_536  # of a text that is tokenized again with every one of many others

Body: TypeAlias = Mapping[str, Any]


def required(body: Body, param: str) -> Any:
    value = body.get(param)
    if value is None:
        raise InvalidRequest(f"{param} is missing.", param=param)
    return value


def optional_string(body: Body, param: str) -> str | None:
    value = body.get(param)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{param} must be a string.", param=param)
    return value


def boolean(body: Body, param: str, default: bool) -> bool:
    value = body.get(param)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"{param} must be true or false.", param=param)
    return value


def integer(body: Body, param: str, low: int, high: int | None, why: str) -> int | None:
    value = body.get(param)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        span = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise InvalidRequest(f"{param} must be an integer {span}: {why}.", param=param)
    return value


def followed(body: Body, unfollowed: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raises InvalidRequest for a field that would change the answer and cannot be followed.

    `unfollowed`: by the field's name, the values that ask for nothing else than what is done, and a hint.
    """
    for param, (harmless, hint) in unfollowed.items():
        if body.get(param) is not None and body[param] not in harmless:
            raise InvalidRequest(f"{param} {shown(body[param])} cannot be followed here: {hint}.", param=param)


def choice(body: Body, param: str, choices: Sequence[str]) -> str | None:
    """One of `choices`, in any case; as it stands among them."""
    value = body.get(param)
    if value is None:
        return None
    for one in choices:
        if isinstance(value, str) and value.lower() == one.lower():
            return one
    raise InvalidRequest(f"{param} must be one of {', '.join(choices)}.", param=param)


def shown(value: Any) -> str:
    return repr(value)[:SHOWN_CHARACTERS]


def text(value: Any, param: str, index: int | None = None, most: int = MAX_CHARACTERS) -> str:
    """A string of 1 to `most` characters; it may also stand in an object, under `text`."""
    if isinstance(value, dict):
        value = _text_of(value, param, index)
    if not isinstance(value, str):
        raise InvalidRequest(f"{_place(param, index)} must be a string.", param=param)
    if not value:
        raise InvalidRequest(f"{_place(param, index)} is an empty string.", param=param)
    if len(value) > most:
        raise InvalidRequest(
            f"{_place(param, index)} has {len(value)} characters, but at most {most} are taken there; send less of it.",
            param=param,
        )
    return value


def _text_of(value: dict[str, Any], param: str, index: int | None) -> Any:
    if "text" not in value:
        raise InvalidRequest(f"{_place(param, index)} has no `text`, and only text is taken here.", param=param)
    return value["text"]


def _place(param: str, index: int | None) -> str:
    return param if index is None else f"{param}[{index}]"


def listed(value: Any, param: str, most: int) -> list[Any]:
    """A list of 1 to `most` entries."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{param} must be a list.", param=param)
    if not value:
        raise InvalidRequest(f"{param} is an empty list; send at least one text.", param=param)
    if len(value) > most:
        raise InvalidRequest(
            f"{param} has {len(value)} entries, but at most {most} are taken in one request.", param=param
        )
    return value


def texts(value: Any, param: str, most: int) -> list[str]:
    """One text, or 1 to `most` of them."""
    if isinstance(value, str | dict):
        value = [value]
    return [text(item, param, index) for index, item in enumerate(listed(value, param, most))]


def inputs(value: Any, param: str, most: int) -> list[Source]:
    """One text, 1 to `most` of them, the ids of one input, or of several.

    Single ids are not looked at: there may be millions of them, and the tokenizer's thread does (`encode_within`).
    """
    if isinstance(value, str):
        return [text(value, param)]
    if not isinstance(value, list):
        raise InvalidRequest(f"{param} must be a string, a list of strings, or token ids.", param=param)
    if value and isinstance(value[0], int):
        return [token_ids(value, param, param)]
    if value and isinstance(value[0], list):
        items = listed(value, param, most)
        return [token_ids(item, param, f"{param}[{index}]") for index, item in enumerate(items)]
    return [*texts(value, param, most)]


def token_ids(value: Any, param: str, place: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{place} must be a list of token ids that is not empty.", param=param)
    return value
