"""`roundhouse serve` where it cannot: it says why, and what to do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from app.cli_client import ExitCode
from tests.app.test_cli import process


def serve_environment(tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROUNDHOUSE_")}
    return kept | {"ROUNDHOUSE_MODELS_DIR": str(tmp_path), "ROUNDHOUSE_STATE_DIR": str(tmp_path / "state")} | more


def test_serve_at_a_name_that_nobody_knows_says_so(tmp_path: Path) -> None:
    result = process(
        "serve", "--host", "no such host", env=serve_environment(tmp_path, ROUNDHOUSE_API_KEY="long-enough")
    )
    assert result.returncode == ExitCode.SERVER_ERROR
    assert "no such name or address" in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_on_a_port_in_use_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = process("serve", "--port", str(port), env=serve_environment(tmp_path))
    assert result.returncode == ExitCode.SERVER_ERROR
    assert "another process listens there" in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_with_a_wrong_setting_names_it(tmp_path: Path) -> None:
    (tmp_path / "roundhouse.yaml").write_text("prot: 8000\n", encoding="utf-8")
    result = process("serve", env=serve_environment(tmp_path))
    assert result.returncode == ExitCode.USAGE
    assert "did you mean 'port'" in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_beyond_loopback_without_a_key_is_refused(tmp_path: Path) -> None:
    result = process("serve", "--host", "0.0.0.0", "--port", "0", env=serve_environment(tmp_path))
    assert result.returncode == ExitCode.USAGE
    assert "ROUNDHOUSE_ALLOW_ANONYMOUS" in result.stderr
