"""Reads `roundhouse.yaml` with the line of each key, and turns validation errors into sentences for people."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

CONFIG_NAME = "roundhouse.yaml"
ENV_PREFIX = "ROUNDHOUSE_"
MAX_FILE_BYTES = 1 << 20  # a configuration larger than this is a mistake (a weights file, say), not a configuration
NEAR = 0.85  # an unknown environment variable this close to a setting's name is taken for a typing error
DEEPEST = 4  # keys in each other that errors name, as in models.ID.engine_args.NAME; aliases may form cycles
FORMS = {  # what a value must be, by the type of pydantic's error, which speaks of Python
    "tuple_type": "must be a list, like [a, b]",
    "dict_type": "must be a mapping, like `name: value`",
    "model_type": "must be a mapping, like `name: value`",
    "byte_size": "must be a size, like 8GiB",
    "byte_size_unit": "must be a size, like 8GiB",
    "string_type": "must be text; put it in quotes",
}

Location = tuple[str | int, ...]


class ConfigError(Exception):
    """The configuration cannot be used; the message names the file, the line and the key, and says what to do."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a configuration file, and the line (from 1) on which each key stands."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Location, int] = field(default_factory=dict)

    def where(self, loc: Location) -> str:
        """`roundhouse.yaml, line 12` for the deepest part of `loc` that the file has; "" if it has none of it."""
        for end in range(len(loc), 0, -1):
            if line := self.lines.get(loc[:end]):
                return f"{self.path}, line {line}"
        return ""


def read_config_file(path: Path) -> ConfigFile:
    """Raises ConfigError where the file is unreadable, not YAML, or not a mapping."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; this is no configuration file.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"The configuration file {path} is not valid YAML: {_fault(error)}") from error
    if values is None:
        return ConfigFile(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"The configuration file {path} must be a mapping of settings, like `port: 8000`.")
    lines: dict[Location, int] = {}
    twice: list[str] = []
    _collect_lines(node, (), lines, twice)
    if twice:  # YAML's readers take the last one, and what stood under the others would be lost without a word
        raise ConfigError("\n".join(f"{path}, {each}" for each in twice))
    return ConfigFile(path, values, lines)


def _fault(error: Exception) -> str:
    """Without the line itself, which YAML's errors show: it may hold a key."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + ", ".join(part for part in (error.context, error.problem) if part)


def _collect_lines(node: yaml.Node | None, loc: Location, lines: dict[Location, int], twice: list[str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner, line = (*loc, str(key.value)), key.start_mark.line + 1
            if first := lines.get(inner):
                name = ".".join(map(str, inner))
                twice.append(f"line {line}: {name!r} is on line {first} already; put all that belongs to it there")
            lines[inner] = line
            if len(inner) < DEEPEST:
                _collect_lines(value, inner, lines, twice)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines.setdefault((*loc, index), value.start_mark.line + 1)


def without_empty(value: object) -> object:
    """A mapping without the keys of which nothing is said, as where all that stood below one is commented out."""
    return {name: entry for name, entry in value.items() if entry is not None} if isinstance(value, dict) else value


def split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def explain(
    error: ValidationError,
    file: ConfigFile | None,
    known_at: Mapping[str, Sequence[str]],
    given: Collection[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> str:
    """All faults of one validation, a line each. `known_at` gives the known keys at "", "models.*" and "engines.*".

    `given` are the settings that the command line gave.
    """
    upper = {name.upper() for name in environ}

    def where(loc: Location) -> str:
        """The source that won: the command line, else the environment, else the file."""
        name = str(loc[0]) if loc else ""
        variable = ENV_PREFIX + name.upper()
        if name in given:
            return f"option --{name.replace('_', '-')}"
        if variable in upper or file is None:
            return f"environment variable {variable}"
        return file.where(loc) or str(file.path)

    return "\n".join(_explain_one(dict(item), where, known_at) for item in error.errors(include_url=False))


def _explain_one(
    item: Mapping[str, Any], where_of: Callable[[Location], str], known_at: Mapping[str, Sequence[str]]
) -> str:
    loc: Location = tuple(item["loc"])
    name = ".".join(str(part) for part in loc)
    where = where_of(loc)
    if item["type"] != "extra_forbidden":
        message = FORMS.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ")
        return f"{where}: {name or 'settings'}: {message}{_shown(loc, item.get('input'))}"
    level = "" if len(loc) == 1 else f"{loc[0]}.*"
    known = known_at.get(level, ())
    near = nearest(str(loc[-1]), known)
    hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(sorted(known))}."
    return f"{where}: unknown key {name!r}; {hint}"


def explain_json(error: Exception, known: Iterable[str]) -> str:
    """Of the error that pydantic-settings raises where a variable that has to hold JSON does not."""
    name = next((name for name in known if f'"{name}"' in str(error)), "")
    variable = ENV_PREFIX + name.upper()
    return f"environment variable {variable}: {name}: must be JSON ({error.__cause__}), or stand in {CONFIG_NAME}"


def _shown(loc: Location, value: object) -> str:
    secret = any("key" in str(part) and "bytes" not in str(part) and "kv" not in str(part) for part in loc)
    return "" if secret or not isinstance(value, str | int | float | bool) else f" (it is {value!r})"


def check_environment(known: Iterable[str], environ: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError for a variable that looks like a mistyped setting; others may be somebody else's."""
    names = {field_name.lower() for field_name in known}
    for variable in environ:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or name in names:
            continue
        if near := nearest(name, names, NEAR):
            raise ConfigError(
                f"Environment variable {variable} is no setting; did you mean {ENV_PREFIX}{near.upper()}?"
            )
