"""The `roundhouse` command against a small real HTTP server on loopback, and as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from app.cli_client import ExitCode
from bench._servers import reserved_port

PROCESS_S = 30.0  # for one run of the command; it takes 0.2 s on an idle machine
MODELS = [
    {"id": "org/big-chat", "task": "chat", "state": "ready", "availability": "available", "aliases": ["big"]},
    {"id": "org/embedder", "task": "embed", "state": "cold", "availability": "available", "aliases": []},
    {"id": "half", "task": "chat", "state": None, "availability": "incomplete", "aliases": []},
]
STATUS = {"id": "org/big-chat", "state": "ready", "memory_bytes": 3 << 30, "load_s": 2.61, "error": None}


@dataclass
class Stub:
    """Answers as told: (method and path) → (status, headers, body); bodies that are lists are sent as SSE."""

    answers: dict[str, tuple[int, dict[str, str], Any]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    url: str = ""
    streaming: threading.Event = field(default_factory=threading.Event)
    stream_may_end: threading.Event = field(default_factory=threading.Event)

    def on(self, what: str, body: Any, status: int = 200, **headers: str) -> None:
        self.answers[what] = (status, headers, body)


def handler_for(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            what = f"{self.command} {self.path}"
            stub.requests.append((what, {name.lower(): value for name, value in self.headers.items()}, body))
            missing = {"error": {"message": f"No model or route {self.path}.", "code": "model_not_found"}}
            status, headers, answer = stub.answers.get(what, (404, {}, missing))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            for part in answer if isinstance(answer, list) else [answer]:
                if part is WAIT:
                    stub.streaming.set()
                    stub.stream_may_end.wait(PROCESS_S)
                    continue
                self.wfile.write(part if isinstance(part, bytes) else json.dumps(part).encode())
                self.wfile.flush()

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Tests look at `stub.requests`."""

    return Handler


WAIT = object()


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(stub)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield stub
        finally:
            stub.stream_may_end.set()
            server.shutdown()
            thread.join(PROCESS_S)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub()) as running:
        running.on("GET /v1/models?all=true", {"object": "list", "data": MODELS})
        running.on("GET /v1/models", {"object": "list", "data": MODELS[:2]})
        running.on("GET /health", {"status": "ready", "memory": {"budget_bytes": 8 << 30, "charged_bytes": 3 << 30}})
        for model in MODELS:
            running.on(f"GET /v1/models/{model['id']}", model | {"reasons": [f"because of {model['id']}"]})
        running.on("POST /v1/model/load", STATUS)
        running.on("POST /v1/model/unload", STATUS | {"state": "cold", "memory_bytes": None})
        yield running


@pytest.fixture
def run(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in [name for name in os.environ if name.startswith("ROUNDHOUSE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROUNDHOUSE_URL", stub.url)
    return lambda *args, **options: CliRunner().invoke(app, list(args), **options)


def event(content: str | None = None, finish: str | None = None, **delta: str) -> bytes:
    choice = {"index": 0, "delta": delta | ({"content": content} if content else {}), "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_S, check=False, **options)


# -- models and ps ---------------------------------------------------------------------------------------------------


def test_models_lists_what_can_be_served_and_with_all_the_rest_too(run: Callable[..., Result]) -> None:
    listed = run("models")
    assert listed.exit_code == 0
    assert "org/big-chat" in listed.stdout
    assert "ready" in listed.stdout
    assert "half" not in listed.stdout
    assert "incomplete" in run("models", "--all").stdout


def test_models_explain_prints_each_verdicts_reasons(run: Callable[..., Result]) -> None:
    explained = run("models", "--explain", "--all").stdout
    assert explained.count("because of") == 3
    assert "because of half" in explained
    assert "because of" not in run("models").stdout
    assert run("models", "half", "--explain").stdout.splitlines()[1:] == ["    because of half"]
    assert run("models", "nope", "--explain").exit_code == ExitCode.UNKNOWN_MODEL


def test_models_json_is_one_document_with_the_servers_fields(run: Callable[..., Result]) -> None:
    document = json.loads(run("models", "--json", "--explain").stdout)
    assert [model["id"] for model in document["models"]] == ["org/big-chat", "org/embedder"]
    assert document["models"][0]["reasons"] == ["because of org/big-chat"]


def test_models_of_a_folder_needs_no_server(run: Callable[..., Result], stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    result = run("models", "--models-dir", str(tmp_path), "--all", "--json")
    assert result.exit_code == 0, result.stderr
    (broken,) = json.loads(result.stdout)["models"]
    assert broken["id"] == "broken"
    assert broken["availability"] == "incomplete"
    assert broken["reasons"]
    assert "broken" in run("models", "BROKEN", "--models-dir", str(tmp_path)).stdout
    assert run("models", "nope", "--models-dir", str(tmp_path)).exit_code == ExitCode.UNKNOWN_MODEL
    assert stub.requests == []


def test_models_of_a_folder_that_does_not_exist_is_a_usage_error(run: Callable[..., Result]) -> None:
    result = run("models", "--models-dir", "/no/such/folder")
    assert result.exit_code == ExitCode.USAGE
    assert "/no/such/folder" in result.stderr


def test_ps_shows_loaded_models_and_memory(run: Callable[..., Result]) -> None:
    shown = run("ps").stdout
    assert "org/big-chat" in shown
    assert "org/embedder" not in shown
    assert "3.0 GiB of 8.0 GiB" in shown
    assert "org/embedder" in run("ps", "--all").stdout


def test_ps_says_why_a_load_failed_without_the_engines_log(run: Callable[..., Result], stub: Stub) -> None:
    cause = "no such tensor (log: /state/logs/x.log). The end of its log: Traceback\n  File 1"
    stub.on("GET /v1/models/org/big-chat", STATUS | {"state": "failed", "error": cause})
    assert run("ps").stderr == "roundhouse: org/big-chat: no such tensor (log: /state/logs/x.log).\n"


def test_ps_json_has_models_and_memory(run: Callable[..., Result]) -> None:
    document = json.loads(run("ps", "--json").stdout)
    assert [model["id"] for model in document["models"]] == ["org/big-chat"]
    assert document["memory"]["budget_bytes"] == 8 << 30


def test_ps_says_so_where_nothing_is_loaded(run: Callable[..., Result], stub: Stub) -> None:
    stub.on("GET /v1/models", {"data": []})
    assert "No model is loaded." in run("ps").stdout


# -- load and unload -------------------------------------------------------------------------------------------------


def test_load_waits_and_says_how_long_it_took(run: Callable[..., Result], stub: Stub) -> None:
    result = run("load", "big")
    assert result.exit_code == 0
    assert result.stdout == "org/big-chat: ready, 3.0 GiB, loaded in 2.6 s\n"
    assert stub.requests[-1][2] == {"model": "big", "wait": True}


def test_load_without_waiting_only_asks_for_it(run: Callable[..., Result], stub: Stub) -> None:
    assert run("load", "big", "--no-wait").exit_code == 0
    assert stub.requests[-1][2] == {"model": "big", "wait": False}


def test_unload_prints_the_servers_document_as_json(run: Callable[..., Result]) -> None:
    assert json.loads(run("unload", "big", "--json").stdout)["state"] == "cold"


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (404, "model_not_found", ExitCode.UNKNOWN_MODEL),
        (404, "model_ambiguous", ExitCode.UNKNOWN_MODEL),
        (400, "model_unusable", ExitCode.SERVER_ERROR),
        (503, "model_load_failed", ExitCode.SERVER_ERROR),
        (503, "overloaded", ExitCode.OVERLOADED),
        (503, "shutting_down", ExitCode.OVERLOADED),
        (401, "invalid_api_key", ExitCode.REFUSED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    run: Callable[..., Result], stub: Stub, status: int, code: str, exit_code: ExitCode
) -> None:
    stub.on("POST /v1/model/load", {"error": {"message": "what went wrong", "code": code}}, status)
    plain, as_json = run("load", "big"), run("load", "big", "--json")
    assert plain.exit_code == as_json.exit_code == exit_code
    assert plain.stdout == ""
    assert "what went wrong" in plain.stderr
    error = json.loads(as_json.stdout)["error"]
    assert (error["code"], error["status"]) == (code, status)


def test_an_overloaded_server_says_when_to_try_again(run: Callable[..., Result], stub: Stub) -> None:
    stub.on("POST /v1/model/load", {"error": {"message": "Full.", "code": "overloaded"}}, 503, Retry_After="7")
    assert "Try again in 7 s." in run("load", "big").stderr


def test_no_server_is_an_error_that_says_how_to_start_one(run: Callable[..., Result]) -> None:
    with reserved_port() as port:  # nobody listens
        result = run("ps", "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == ExitCode.NO_CONNECTION
    assert "roundhouse serve" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "http://[::1"])
def test_an_address_that_is_no_url_is_a_usage_error(run: Callable[..., Result], url: str) -> None:
    result = run("ps", "--url", url)
    assert result.exit_code == ExitCode.USAGE
    assert url in result.stderr


def test_a_server_that_is_not_ours_is_named_as_such(run: Callable[..., Result], stub: Stub) -> None:
    stub.on("GET /health", b"<html>nginx</html>")
    assert "Roundhouse" in run("ps").stderr
    stub.on("GET /health", b"<html>bad gateway</html>", 502)
    assert run("ps").exit_code == ExitCode.SERVER_ERROR


def test_the_key_of_the_environment_is_sent_and_never_shown(
    run: Callable[..., Result], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUNDHOUSE_API_KEY", "secret-of-mine")
    stub.on("GET /health", {"error": {"message": "Refused.", "code": "invalid_api_key"}}, 401)
    result = run("ps")
    assert stub.requests[-1][1]["authorization"] == "Bearer secret-of-mine"
    assert "secret-of-mine" not in result.output


def test_a_url_with_the_openai_path_works_too(run: Callable[..., Result], stub: Stub) -> None:
    assert run("ps", "--url", f"{stub.url}/v1").exit_code == 0


# -- chat ------------------------------------------------------------------------------------------------------------

CHAT = "POST /v1/chat/completions"


def test_chat_streams_the_answer_of_one_prompt(run: Callable[..., Result], stub: Stub) -> None:
    stub.on(CHAT, [b": loading org/big-chat\n\n", event(role="assistant"), event("Hel"), event("lo", "stop"), DONE])
    result = run("chat", "big", "Hi", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "5")
    assert result.stdout == "Hello\n"
    body = stub.requests[-1][2]
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "Hi"]
    assert (body["model"], body["stream"], body["temperature"], body["max_tokens"]) == ("big", True, 0, 5)


def test_chat_reads_a_piped_prompt(run: Callable[..., Result], stub: Stub) -> None:
    stub.on(CHAT, [event("yes", "stop"), DONE])
    assert run("chat", "big", input="Is it?").stdout == "yes\n"
    assert stub.requests[-1][2]["messages"][0]["content"] == "Is it?"


def test_chat_json_is_one_document(run: Callable[..., Result], stub: Stub) -> None:
    usage = b'data: {"choices": [], "usage": {"total_tokens": 9}}\n\n'
    stub.on(CHAT, [event(reasoning="hm"), event("Hi"), event(finish="stop"), usage, DONE])
    document = json.loads(run("chat", "big", "Hi", "--json").stdout)
    assert document["content"] == "Hi"
    assert document["reasoning"] == "hm"
    assert document["finish_reason"] == "stop"
    assert document["usage"]["total_tokens"] == 9


def test_chat_keeps_reasoning_out_of_a_pipe(run: Callable[..., Result], stub: Stub) -> None:
    stub.on(CHAT, [event(reasoning_content="hm"), event("Hi", "stop"), DONE])
    assert run("chat", "big", "Hi").stdout == "Hi\n"


def test_an_error_event_in_the_stream_is_an_error(run: Callable[..., Result], stub: Stub) -> None:
    stub.on(CHAT, [event("Hel"), b'data: {"error": {"message": "engine died", "code": "engine_error"}}\n\n'])
    result = run("chat", "big", "Hi")
    assert result.exit_code == ExitCode.SERVER_ERROR
    assert "engine died" in result.stderr


def test_a_stream_that_breaks_off_is_an_error(run: Callable[..., Result], stub: Stub) -> None:
    stub.on(CHAT, [event("Hel")])
    assert run("chat", "big", "Hi").exit_code == ExitCode.SERVER_ERROR


def test_an_empty_prompt_is_a_usage_error(run: Callable[..., Result]) -> None:
    assert run("chat", "big", " ").exit_code == ExitCode.USAGE


def test_ctrl_c_ends_a_chat_with_130_and_no_traceback(stub: Stub) -> None:
    stub.on(CHAT, [event("Hel"), WAIT])
    command = [sys.executable, "-m", "app.cli", "chat", "big", "Hi", "--url", stub.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert stub.streaming.wait(PROCESS_S)
        assert running.stdout is not None
        assert running.stdout.read(3) == "Hel"
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=PROCESS_S)
    assert running.returncode == 130
    assert errors == ""


# -- the process itself ----------------------------------------------------------------------------------------------


def test_the_client_commands_import_neither_the_server_nor_pydantic() -> None:
    code = "import app.cli, app.cli_chat, sys; print([m for m in ('pydantic', 'fastapi', 'rich') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROCESS_S, check=True)
    assert shown.stdout.strip() == "[]"


def test_help_documents_the_exit_codes(run: Callable[..., Result]) -> None:
    assert "no such model" in run("--help").stdout
    assert "Exit codes" in run("load", "--help").stdout


def test_version_is_the_packages(run: Callable[..., Result]) -> None:
    assert run("--version").stdout.strip().count(".") == 2
