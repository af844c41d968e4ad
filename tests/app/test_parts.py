"""Small parts on their own: the body splice, the run folder, the memory budget."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import memory, request_body
from app.errors import InvalidRequest
from app.memory import available_ram_bytes, measure_device
from app.request_body import RequestBody, parse_body, parse_document, read_document
from app.run_dir import RunDir
from tests.engines.fake_nvml import FakeGpu, FakeNvml
from utils import json_pieces

BODIES = {
    b'{"model":"a","x":1}': b'{"model":"B","x":1}',
    b'{ "x" : 1.0e3 , "model" :\n"a" }': b'{ "x" : 1.0e3 , "model" :\n"B" }',
    b'{"big":123456789012345678901234567890,"model":"a"}': b'{"big":123456789012345678901234567890,"model":"B"}',
    b'{"messages":[{"content":"\\"model\\": \\"a\\""}],"model":"a"}': (
        b'{"messages":[{"content":"\\"model\\": \\"a\\""}],"model":"B"}'
    ),
}


def parsed(raw: bytes) -> RequestBody:
    return parse_body(raw, parse_document(raw))


LARGE = b'{"input": [{"model": "x"}, "\\"model\\": \\"a\\""], %b, "images": [1, 2]}'


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "UNCOUNTED_BYTES", 1)
    monkeypatch.setattr(json_pieces, "WHOLE_BYTES", 0)


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize(
    "member", [b'"model": "a"', b'"model":"a","m\\u006fdel":"a"', b'"m\\u006fdel":"a","inner":{"model":"a"}']
)
async def test_a_large_body_is_read_and_renamed_as_a_small_one(member: bytes) -> None:
    raw = LARGE % member
    document, outside = await read_document(raw)
    assert document == json.loads(raw)
    renamed = parse_body(raw, document, outside=outside).with_model("B")
    assert json.loads(renamed) == document | {"model": "B"}
    assert b"," in member or renamed == LARGE % b'"model": "B"'


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("raw", [b"{{", b"[]", b'{"input": ["a" "b"]}', b'{"input": [1,]}', b'{"x": "\xff"}'])
async def test_a_large_body_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await read_document(raw)


@pytest.mark.parametrize("raw", BODIES)
def test_only_the_name_changes_in_the_body(raw: bytes) -> None:
    body = parsed(raw)
    assert body.with_model("B") == BODIES[raw]
    assert body.with_model("a") is raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tools":[{"model":"a","n":123456789012345678901234567890}],"model":"a"}',
        b'{"model":"z","model":"a"}',
        b'{"m\\u006fdel":"a","inner":{"model":"a"}}',
        b'{"model":"a","m\\u006fdel":"a"}',
        b'{"m\\u006fdel":"a","x\\"model":"a"}',
        b'{"inner":[{"model":"a"}],"m\\u006fdel":"a"}',
        b'{"x":"model","model":"a"}',
        b'{"model":"\\u0061"}',
    ],
)
def test_a_body_with_more_than_one_model_keeps_every_other_value(raw: bytes) -> None:
    document = json.loads(raw)
    assert json.loads(parsed(raw).with_model("B")) == document | {"model": "B"}


def test_a_body_that_is_too_deep_to_change_is_refused() -> None:
    raw = b'{"inner":' + b"[" * 1000 + b'{"model":"z"}' + b"]" * 1000 + b',"model":"a"}'
    with pytest.raises(InvalidRequest):
        parsed(raw).with_model("B")


def test_the_run_folder_is_private_short_and_gone_at_the_end(tmp_path: Path) -> None:
    one, two = RunDir(tmp_path), RunDir(tmp_path)
    assert one.path.stat().st_mode & 0o777 == 0o700
    assert two.path.exists()
    assert one.path.exists()
    one.close()
    two.close()
    assert list(tmp_path.iterdir()) == []
    with_default_parent = RunDir()
    assert len(str(with_default_parent.path)) < 80
    with_default_parent.close()


def test_folders_of_dead_processes_are_removed_and_those_of_others_are_left(tmp_path: Path) -> None:
    dead = tmp_path / "roundhouse-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "engine.sock").touch()
    alive = tmp_path / "roundhouse-alive"
    alive.mkdir()
    bare, fresh = tmp_path / "roundhouse-bare", tmp_path / "roundhouse-fresh"
    bare.mkdir()
    fresh.mkdir()
    os.utime(bare, (time.time() - 1000,) * 2)
    (tmp_path / "roundhouse-link").symlink_to(tmp_path)
    (tmp_path / "unrelated").mkdir()
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        RunDir(tmp_path).close()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"roundhouse-alive", "roundhouse-fresh", "roundhouse-link", "unrelated"}


def test_the_budget_knows_the_limit_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_ram_bytes(tmp_path, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    assert available_ram_bytes(tmp_path, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert available_ram_bytes(tmp_path, tmp_path) == 1_500_000


def test_models_may_sleep_in_half_of_the_ram_beside_a_gpu_and_not_where_that_is_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_ram_bytes", lambda: 1000)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert (measure_device().kind, measure_device().sleep_bytes) == ("cpu", 0)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(total_bytes=7), FakeGpu(total_bytes=10_000)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    device = measure_device()
    assert (device.kind, device.budget_bytes, device.sleep_bytes) == ("cuda", 9200, 500)


def test_a_body_that_there_is_no_memory_for_is_no_fault_of_its_client() -> None:
    """In a process that may take no more memory than it has."""
    code = """
import resource
from app.request_body import parse_document
from models.errors import Busy
raw = b'{"input": [' + b"1," * 400_000 + b"1]}"
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), resource.RLIM_INFINITY))
try:
    parse_document(raw)
except Busy as error:
    print(error.status, error.retry_after_s)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.stdout == "503 1.0\n", result.stderr
