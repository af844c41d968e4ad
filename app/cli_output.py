"""What the command line prints: tables for people on stdout, one JSON document for scripts, progress on stderr.

rich is imported where it is used: `roundhouse serve` and `--json` do without it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

STATE_STYLES = {"ready": "green", "loading": "yellow", "waking": "yellow", "draining": "yellow", "failed": "red"}
AVAILABILITY_STYLES = {"incomplete": "yellow", "unusable": "red"}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_json(document: Any) -> None:
    """The one document of `--json`."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def print_error(message: str) -> None:
    """One or more lines on stderr, marked as ours."""
    sys.stderr.write(f"roundhouse: {printable(message)}\n")


def printable(text: str) -> str:
    """`text` without control characters: a model's answer or a folder's name must not drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def size(count: int | None) -> str:
    """Bytes for people: 1.2 GiB; "" for unknown or none."""
    if not count:
        return ""
    amount = float(count)
    for unit in UNITS:
        if amount < 1024 or unit == UNITS[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"


def seconds(value: float | None) -> str:
    """A duration for people: 2.6 s, 3 min, 2 h; "" for unknown."""
    if value is None:
        return ""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.0f} h"


def print_models(models: Sequence[Mapping[str, Any]], *, explain: bool) -> None:
    """A row per model, or with `explain` a paragraph per model with its reasons."""
    if not models:
        sys.stdout.write("No models. Put a model's folder into the models folder, or see `roundhouse models --all`.\n")
    elif explain:
        for model in models:
            _print_reasons(model)
    else:
        print_table(("MODEL", "TASK", "STATE", "CONTEXT", "ALIASES"), map(_model_row, models))


def _model_row(model: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return (
        (str(model["id"]), ""),
        (str(model.get("task") or ""), ""),
        _state_cell(model),
        (str(model.get("max_model_len") or ""), ""),
        (", ".join(model.get("aliases") or ()), ""),
    )


def _state_cell(model: Mapping[str, Any]) -> tuple[str, str]:
    availability = str(model.get("availability") or "available")
    if availability != "available":
        return availability, AVAILABILITY_STYLES.get(availability, "")
    state = str(model.get("state") or "")
    return state, STATE_STYLES.get(state, "dim")


def _print_reasons(model: Mapping[str, Any]) -> None:
    text, style = _state_cell(model)
    head = [str(model["id"]), str(model.get("task") or "unknown task"), text]
    console().print(_text(" · ".join(part for part in head if part), style or "bold"))
    for reason in model.get("reasons") or ():
        console().print(_text(f"    {reason}"), soft_wrap=True)


def print_statuses(statuses: Sequence[Mapping[str, Any]], memory: Mapping[str, Any]) -> None:
    """A row per resident, loading or failed model, and the memory that they are charged."""
    if statuses:
        heads = ("MODEL", "STATE", "RUNNING", "QUEUED", "MEMORY", "IDLE", "LOADED IN", "LOADS")
        print_table(heads, map(_status_row, statuses))
    else:
        sys.stdout.write("No model is loaded.\n")
    if memory.get("budget_bytes"):
        sys.stdout.write(f"{size(memory.get('charged_bytes')) or '0 B'} of {size(memory['budget_bytes'])} in use\n")
    for status in statuses:
        if status.get("error"):
            print_error(f"{status['id']}: {brief(str(status['error']))}")


def brief(cause: str) -> str:
    """Why a load failed, without the lines of its engine's log that the server adds; the file is named before them."""
    return cause.partition(" The end of its log:")[0]


def _status_row(status: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    state = str(status.get("state") or "")
    return (
        (str(status["id"]) + (" (pinned)" if status.get("pinned") else ""), ""),
        (state, STATE_STYLES.get(state, "dim")),
        (str(status.get("running", "")), ""),
        (str(status.get("queued", "")), ""),
        (size(status.get("memory_bytes") or status.get("estimated_bytes")), ""),
        (seconds(status.get("idle_s")), ""),
        (seconds(status.get("load_s")), ""),
        (str(status.get("loads", "")), ""),
    )


def print_table(heads: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]]) -> None:
    """Columns aligned by spaces, empty ones left out; cells are (text, rich style). A pipe gets them unstyled."""
    from rich.table import Table

    all_rows = list(rows)
    shown = [index for index in range(len(heads)) if index == 0 or any(row[index][0] for row in all_rows)]
    table = Table(*(heads[index] for index in shown), box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.no_wrap = True
    for row in all_rows:
        table.add_row(*(_text(*row[index]) for index in shown))
    console().print(table, crop=False, overflow="ignore", soft_wrap=not sys.stdout.isatty())


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text), style=style)


def console() -> Any:
    """rich's console on stdout as it is now; in a pipe wide enough for any table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)


class Progress(Protocol):
    """Says what is being waited for."""

    def say(self, text: str) -> None:
        """Replaces what is shown."""


class _Silent:
    def say(self, text: str) -> None:
        """Nothing is shown."""


class _Spinner:
    """A rich status line that counts the seconds by itself."""

    def __init__(self, text: str) -> None:
        self._text = printable(text)
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        self._text = printable(text)

    def __rich__(self) -> Any:
        return _text(f"{self._text} {time.monotonic() - self._started:.0f} s", "dim")


@contextmanager
def progress(text: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Shows `text …` and the seconds so far on stderr until the block ends; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    shown = _Spinner(text)
    spinner = Spinner("dots", text=shown)
    with Live(spinner, console=Console(stderr=True), transient=True, refresh_per_second=8):
        yield shown
