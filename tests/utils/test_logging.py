"""The log's two forms, and what the standard library's loggers say in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from utils.logging import logger, set_up_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers, root.level, root.propagate = before
    logger.remove()


def failing(password: str) -> None:
    raise ValueError("broken")


def test_json_lines_are_whole_objects_with_exceptions_inside() -> None:
    stream = io.StringIO()
    set_up_logging("json", "info", stream)
    try:
        failing("hunter" + "2")
    except ValueError:
        logger.bind(model="m").exception("it {}", "failed")
    logging.getLogger("models.runner").info("loading %s\nsecond line", "m")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["message"], first["level"], first["model"]) == ("it failed", "error", "m")
    assert "ValueError: broken" in first["exception"]
    assert "hunter2" not in stream.getvalue()
    assert (second["logger"], second["message"]) == ("models.runner", "loading m\nsecond line")


def test_text_has_time_level_name_and_message() -> None:
    stream = io.StringIO()
    set_up_logging("text", "info", stream)
    logger.info("braces {{}} and {}", "{x}")
    logging.getLogger("any").warning("100% {} <red>")
    lines = stream.getvalue().splitlines()
    assert "INFO" in lines[0]
    assert lines[0].endswith("braces {} and {x}")
    assert lines[1].endswith("any 100% {} <red>")


def test_the_level_gates_both_kinds_of_loggers() -> None:
    stream = io.StringIO()
    set_up_logging("text", "warning", stream)
    logger.info("no")
    logging.getLogger("any").info("no")
    logging.getLogger("uvicorn.error").info("no")
    logging.getLogger("any").warning("yes")
    assert len(stream.getvalue().splitlines()) == 1
