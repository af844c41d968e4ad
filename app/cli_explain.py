"""`roundhouse explain`: the forecast of one model as a sentence and two small tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from app.cli_output import STATE_STYLES, brief, print_table, printable, seconds, size


def print_forecast(forecast: Mapping[str, Any]) -> None:
    """What GET /v1/model/explain says."""
    why = brief(str(forecast["reason"]))
    sys.stdout.write(printable(f"{forecast['model']} is {forecast['state']}. {_then(forecast)} {why}\n"))
    if forecast["ahead"]:
        sys.stdout.write(printable(f"Before it: {', '.join(forecast['ahead'])}\n"))
    if forecast["evictions"]:
        sys.stdout.write("\n")
        heads = ("LEAVES", "STATE", "RUNNING", "IDLE", "MEMORY", "BACK IN", "TO", "WHY")
        print_table(heads, map(_eviction_row, forecast["evictions"]))
    sys.stdout.write("\n")
    print_table(("", "VALUE", "SOURCE"), _figures(forecast))


def _then(forecast: Mapping[str, Any]) -> str:
    wait = seconds(forecast["wait_s"])
    return {
        "granted": "A request would be answered at once.",
        "queued": f"A request would wait for about {wait}.",
        "loaded": f"A request would have it loaded, and wait for about {wait}.",
        "woken": f"A request would wake it, and wait for about {wait}.",
    }.get(forecast["outcome"], "A request would be refused.")


def _eviction_row(eviction: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    state = str(eviction["state"])
    return (
        (str(eviction["model"]), ""),
        (state, STATE_STYLES.get(state, "dim")),
        (str(eviction["running"] or ""), ""),
        (seconds(eviction["idle_s"]), ""),
        (size(eviction["size_bytes"]), ""),
        (seconds(eviction["bring_back_s"]), ""),
        (str(eviction["to"]), ""),
        (str(eviction["reason"]), ""),
    )


def _figures(forecast: Mapping[str, Any]) -> list[tuple[tuple[str, str], ...]]:
    rows = []
    if forecast["wait_s"]:
        rows.append(("until its turn", seconds(forecast["turn_s"]), "the turns, drains and swaps ahead"))
    if forecast["bring_s"]:
        rows.append(("its load or wake", seconds(forecast["bring_s"]), forecast["bring_source"]))
    rows += [
        ("memory it takes", size(forecast["size_bytes"]), forecast["size_source"]),
        ("memory free for it", size(forecast["free_bytes"]) or "none", f"of {size(forecast['budget_bytes'])}"),
    ]
    return [((what, "bold"), (value, ""), (str(source), "dim")) for what, value, source in rows]
