"""What the command takes from its environment, and how it writes for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli_client import default_key, default_url
from app.cli_output import printable, seconds, size


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"ROUNDHOUSE_URL": "http://box:1", "ROUNDHOUSE_PORT": "2"}, "http://box:1"),
        ({"ROUNDHOUSE_HOST": "0.0.0.0", "ROUNDHOUSE_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"ROUNDHOUSE_HOST": "::", "ROUNDHOUSE_PORT": "9000"}, "http://[::1]:9000"),
        ({"ROUNDHOUSE_MODELS_DIR": "/nowhere"}, "http://127.0.0.1:8000"),
    ],
)
def test_the_address_follows_the_servers_settings(environ: dict[str, str], url: str) -> None:
    assert default_url(environ) == url


def test_the_address_follows_the_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roundhouse.yaml").write_text("port: 8123\n", encoding="utf-8")
    monkeypatch.setenv("ROUNDHOUSE_MODELS_DIR", str(tmp_path))
    assert default_url() == "http://127.0.0.1:8123"


def test_the_first_of_several_keys_is_used() -> None:
    assert default_key({"ROUNDHOUSE_API_KEYS": "first-key, second-key"}) == "first-key"
    assert default_key({}) is None


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\x07b\n\tc\x9b") == "a[2Jb\n\tc"


def test_sizes_and_durations_are_written_for_people() -> None:
    assert [size(n) for n in (None, 512, 1536, 300 << 20, 3 << 40)] == ["", "512 B", "1.5 KiB", "300 MiB", "3.0 TiB"]
    assert [seconds(s) for s in (None, 2.61, 45, 600, 9000)] == ["", "2.6 s", "45 s", "10 min", "2 h"]
