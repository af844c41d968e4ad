"""What a benchmark that is ended leaves behind: nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from utils import procfs

PROGRAM = """
import asyncio, subprocess, sys, uvloop
from bench._servers import scratch_folder

with scratch_folder() as scratch, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    server = subprocess.Popen(["sleep", "600"])
    try:
        print(server.pid, scratch, flush=True)
        runner.run(asyncio.sleep(600))
    finally:
        server.kill()
        server.wait()
"""


def test_a_program_that_is_ended_by_term_ends_its_servers_and_removes_its_folder() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pid, folder = program.stdout.readline().split()
        assert procfs.is_running(int(pid))
        assert Path(folder).is_dir()
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 128 + signal.SIGTERM
    assert not procfs.is_running(int(pid))
    assert not Path(folder).exists()
