"""/proc, read against processes that the tests start themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from utils import procfs

WAIT_S = 10.0
MIB = 1024**2
SHELL_TREE = "sleep 600 & (sleep 600 & wait) & echo started; wait"


@contextmanager
def shell(script: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A shell in a session of its own that has printed one line; afterwards its whole session is gone."""
    argv = ["/bin/sh", "-c", script]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **env}
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()


def test_a_process_is_read_with_its_parent_and_session() -> None:
    info = procfs.read_process(os.getpid())
    assert info is not None
    assert (info.pid, info.ppid, info.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert not info.ended


def test_a_command_name_with_blanks_and_parentheses_does_not_confuse(tmp_path: Path) -> None:
    odd = tmp_path / "a) b (c"
    odd.symlink_to(sys.executable)
    process = subprocess.Popen([odd, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        info = procfs.read_process(process.pid)
        process.kill()
    assert info is not None
    assert info.ppid == os.getpid()


def test_descendants_are_found_at_every_depth_and_the_session_holds_them() -> None:
    with shell(SHELL_TREE) as process:
        deadline_s = monotonic() + WAIT_S
        while len(below := procfs.descendants(process.pid)) < 3:  # the inner shell may not have begun yet
            assert monotonic() < deadline_s
        assert set(procfs.session_members(process.pid)) == {process.pid, *below}
        assert process.pid in procfs.descendants(os.getpid())


def test_a_zombie_does_not_count_as_running() -> None:
    process = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
    assert not procfs.is_running(process.pid)
    assert process.pid not in procfs.descendants(os.getpid())
    process.wait()
    assert procfs.read_process(process.pid) is None


def test_processes_are_found_by_a_mark_in_their_environment() -> None:
    with shell(SHELL_TREE, PROCFS_TEST_MARK="one") as process:
        deadline_s = monotonic() + WAIT_S
        while len(marked := procfs.with_environment("PROCFS_TEST_MARK", "one")) < 4:  # in an exec it shows none
            assert monotonic() < deadline_s
        assert set(marked) == {process.pid, *procfs.descendants(process.pid)}
        assert procfs.with_environment("PROCFS_TEST_MARK", "on") == []


def test_proportional_memory_of_a_tree_is_the_sum_of_its_processes() -> None:
    own = procfs.pss_bytes(os.getpid())
    assert 1024**2 < own < 10 * 1024**3
    assert procfs.tree_pss_bytes(os.getpid()) >= own // 2
    assert procfs.pss_bytes(2**22 + 1) == 0


# A launcher with 96 MiB, and two trees forked from it: each a process with 24 MiB and two of its forks with 8 MiB each.
FOREST = """
import gc, os, sys, time
held = []
def hold(mib):
    held.append(bytearray(os.urandom(1 << 20)) * mib)
def fork(work):
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        work()
        os.write(tell, b"1")
        time.sleep(600)
    os.read(done, 1)
    return pid
def leaf():
    hold(8)
def tree():
    hold(24)
    fork(leaf)
    fork(leaf)
hold(96)
gc.freeze()
print(fork(tree), flush=True)
for line in sys.stdin:
    print(fork(tree), flush=True)
"""


def test_what_trees_share_with_their_launcher_is_not_counted_as_theirs_however_many_there_are() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FOREST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        try:
            first = int(launcher.stdout.readline())
            alone = procfs.tree_pss_bytes(first)
            launcher.stdin.write("another\n")
            launcher.stdin.flush()
            second = int(launcher.stdout.readline())
            both = [procfs.tree_pss_bytes(first), procfs.tree_pss_bytes(second)]
            plain = sum(procfs.pss_bytes(pid) for pid in (first, *procfs.descendants(first)))
            everything = sum(procfs.pss_bytes(pid) for pid in (launcher.pid, *procfs.descendants(launcher.pid)))
        finally:
            os.killpg(launcher.pid, 9)
    own = 24 + 8 + 8
    slack = 16  # what the interpreter itself writes in three processes
    for measured in (alone, *both):
        assert own * MIB <= measured <= (own + slack) * MIB
    assert plain > (own + slack) * MIB  # by PSS alone it would have a part of the launcher's 96 MiB as well
    assert (96 + 2 * own) * MIB <= everything <= (96 + 2 * own + 4 * slack) * MIB


def test_without_smaps_rollup_the_resident_size_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "statm").write_text("900 25 3 0 0 0 0\n")
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    assert procfs.pss_bytes(7) == 25 * os.sysconf("SC_PAGE_SIZE")


def test_threads_are_counted() -> None:
    assert procfs.thread_count(os.getpid()) >= 1
