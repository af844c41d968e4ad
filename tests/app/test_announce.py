"""What a newcomer reads in the log about the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.announce import Announcer
from models.types import Availability, ModelSpec
from tests.app.serving import MODELS, spec
from utils.logging import logger


def refusal(one: ModelSpec) -> str | None:
    return None if one.availability is Availability.AVAILABLE else one.reasons[-1]


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).strip()), level=0, format="{message}")
    yield lines
    logger.remove(sink)


def test_it_names_what_is_served_what_is_not_and_why_and_how_to_begin(log: list[str], tmp_path: Path) -> None:
    Announcer(tmp_path, refusal).tell(MODELS)
    assert log == [
        f"7 models in {tmp_path}: 6 served",
        "Served: org/chatty (chat), other (chat), base (completion), minilm (embed), cross (rerank), pirate (adapter)",
        "Not served: half: model-00002-of-00002.safetensors is missing",
        'Try it: roundhouse chat org/chatty "Hello"; or name it as `model` in any OpenAI client',
    ]


def test_afterwards_it_tells_changes_only(log: list[str], tmp_path: Path) -> None:
    announcer = Announcer(tmp_path, refusal)
    announcer.tell(MODELS)
    log.clear()
    announcer.tell(MODELS)
    assert log == []
    announcer.tell([*MODELS[1:], spec("new")])
    assert log[1:] == ["Served: new (chat)", "No longer there: org/chatty"]


def test_it_says_what_to_do_where_there_is_nothing_to_serve(log: list[str], tmp_path: Path) -> None:
    Announcer(tmp_path, refusal).tell([])
    assert log[-1] == f"Nothing to serve yet: put a model's folder into {tmp_path}"
    Announcer(tmp_path / "no", refusal).tell([])
    assert log[-1] == f"There is no folder {tmp_path / 'no'}: make it, or set ROUNDHOUSE_MODELS_DIR"


def test_thousands_of_names_do_not_flood_the_log(log: list[str], tmp_path: Path) -> None:
    Announcer(tmp_path, refusal).tell([spec(f"m{number}") for number in range(3000)])
    assert log[1].endswith("m19 (chat) and 2980 more")
