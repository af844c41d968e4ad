"""The cause of a failure, found in logs as vLLM writes them."""

from __future__ import annotations

from pathlib import Path

from engines import engine_log

# Shortened from a real one: the worker's cause, the engine core's echo, and the API server's.
VLLM_LOG = """\
(APIServer pid=1) INFO 11-21 08:47:17 [model.py:733] Resolved architecture: Qwen3ForCausalLM
(EngineCore pid=2) ERROR 11-21 08:47:18 [core.py:900] EngineCore failed to start.
(EngineCore pid=2) ERROR 11-21 08:47:18 [core.py:900] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 08:47:18 [core.py:900]   File "core.py", line 1, in run
(EngineCore pid=2) ERROR 11-21 08:47:18 [core.py:900]     load()
(EngineCore pid=2) ERROR 11-21 08:47:18 [core.py:900] safetensors.SafetensorError: incomplete metadata
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "entry.py", line 1, in run
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_cause_is_the_failing_process_own_exception_and_not_its_echo() -> None:
    assert engine_log.cause_of(VLLM_LOG) == "safetensors.SafetensorError: incomplete metadata"


def test_an_echo_is_better_than_nothing() -> None:
    echo = VLLM_LOG[VLLM_LOG.index("(APIServer pid=1) Trace") :]
    assert engine_log.cause_of(echo).startswith("RuntimeError: Engine core initialization failed")


def test_a_log_without_a_traceback_has_no_cause() -> None:
    assert engine_log.cause_of("INFO: started\n") == ""


def test_a_message_of_several_lines_is_kept_to_its_start() -> None:
    text = (
        "Traceback (most recent call last):\n  File x\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, The checkpoint is of an unknown architecture [type=value_error]\n"
    )
    cause = engine_log.cause_of(text)
    assert "ValidationError" in cause
    assert "unknown architecture" in cause


def test_arguments_that_the_server_refuses_are_the_cause_when_nothing_was_raised() -> None:
    text = "usage: vllm [-h]\nvllm demo/chat: error: unrecognized arguments: --nonsense 1\n"
    assert engine_log.cause_of(text) == "error: unrecognized arguments: --nonsense 1"


def test_an_exception_without_a_message_is_named() -> None:
    assert engine_log.cause_of("Traceback (most recent call last):\n  File x\nAssertionError\n") == "AssertionError"


def test_the_tail_begins_with_the_cause_when_that_is_further_up() -> None:
    text = VLLM_LOG + "\n".join(f"line {number}" for number in range(100))
    tail = engine_log.tail(text).splitlines()
    assert tail[0] == "safetensors.SafetensorError: incomplete metadata"
    assert tail[-1] == "line 99"
    assert len(tail) == engine_log.TAIL_LINES


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a" * 10 + "b" * 10)
    assert engine_log.read_end(path, 10) == "b" * 10
    assert engine_log.read_end(tmp_path / "missing") == ""


def test_a_rotated_log_makes_room_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "log"
    engine_log.rotate(path)
    path.write_text("old")
    engine_log.rotate(path)
    assert not path.exists()
    assert (tmp_path / "log.1").read_text() == "old"


def test_of_a_validation_error_the_sentence_is_told_and_not_what_pydantic_puts_around_it() -> None:
    text = (
        "Traceback (most recent call last):\n  File x\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Model architectures ['Foo'] are not supported. [type=value_error, input_value=Args(()), x]\n"
        "    For further information visit https://errors.pydantic.dev\n"
    )
    assert engine_log.cause_of(text) == (
        "pydantic_core._pydantic_core.ValidationError: Model architectures ['Foo'] are not supported."
    )


def test_of_a_validation_error_without_a_sentence_the_field_is_told() -> None:
    text = (
        "Traceback (most recent call last):\n  File x\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
        "method\n  Input should be 'ngram' or 'mtp' [type=literal_error, input_value='eagle9', input_type=str]\n"
    )
    assert engine_log.cause_of(text).endswith("SpeculativeConfig method Input should be 'ngram' or 'mtp'")


def test_the_helper_that_misses_shared_memory_is_not_the_cause() -> None:
    text = (
        'Traceback (most recent call last):\n  File "core.py", line 1, in run\n'
        "OSError: [Errno 12] Cannot allocate memory\n"
        'Traceback (most recent call last):\n  File "/lib/multiprocessing/resource_tracker.py", line 239, in main\n'
        "KeyError: '/psm_a7688488'\n"
    )
    assert engine_log.cause_of(text) == "OSError: [Errno 12] Cannot allocate memory"
