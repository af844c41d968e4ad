"""What the router adds to a request, and how many it carries on one core.

The upstream is nginx with a static answer on a unix socket, so that only the router's own work is seen. The router has
one processor to itself; nginx and the clients share another.
- One client: median latency through the router, less that straight at the upstream's socket, in blocks in turn.
- 16 clients: requests per second by wrk.

    python -m bench.overhead [--runs 5] [--seconds 5]     (needs wrk and nginx: apt install wrk nginx-light)

Last line: `added_ms= requests_per_s=`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import _report
from bench._servers import LOOPBACK, START_TIMEOUT_S, Server, free_port, scratch_folder
from bench._static import MODEL

ROUTER_CPU, CLIENT_CPU = 0, 1
CLIENTS = 16
BLOCKS, REQUESTS_A_BLOCK = 10, 300
PATH = "/v1/chat/completions"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Which model are you?"}]})
ANSWER = json.dumps({"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "I am static."}}]})
STOP_TIMEOUT_S = 10  # for a process to end by itself

NGINX_CONF = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{ listen unix:{socket}; location / {{ default_type application/json; return 200 '{answer}'; }} }}
}}
"""

WRK_SCRIPT = """
wrk.method, wrk.body = "POST", [[{body}]]
wrk.headers["content-type"] = "application/json"
done = function(summary)
    local e = summary.errors
    io.write(string.format("bad=%d\\n", e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


@contextmanager
def upstream(scratch: Path) -> Iterator[Path]:
    """nginx on a unix socket."""
    path = scratch / "upstream.sock"
    config = scratch / "nginx.conf"
    config.write_text(NGINX_CONF.format(socket=path, answer=ANSWER))
    with running(["nginx", "-p", str(scratch), "-e", "stderr", "-c", str(config)]):
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield path


@contextmanager
def router(socket_path: Path, scratch: Path) -> Iterator[int]:
    """The router on a loopback port, serving the upstream as a model that is ready."""
    port = free_port()
    command = [sys.executable, "-m", "bench._static", str(socket_path), str(port), str(ROUTER_CPU)]
    log = scratch / "router.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    server = Server(process, f"http://{LOOPBACK}:{port}", log, time.monotonic())
    try:
        server.wait_until("/health/ready", START_TIMEOUT_S)
        server.post(PATH, json.loads(BODY))
        yield port
    finally:
        server.stop()


def block_s(connection: http.client.HTTPConnection) -> list[float]:
    """Latencies of one block of requests, one after the other on one connection, in seconds."""
    took: list[float] = []
    for _ in range(REQUESTS_A_BLOCK):
        began = time.perf_counter()
        connection.request("POST", PATH, BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}")
    return took


def latencies_ms(socket_path: Path, port: int) -> tuple[list[float], list[float]]:
    """Each block's median, in ms: straight at the upstream, and through the router."""
    direct, routed = UnixConnection(socket_path), http.client.HTTPConnection(LOOPBACK, port)
    pairs = [(block_s(direct), block_s(routed)) for _ in range(BLOCKS + 1)][1:]  # the first block warms up
    direct.close()
    routed.close()
    return tuple([statistics.median(pair[i]) * 1000 for pair in pairs] for i in range(2))  # type: ignore[return-value]


def requests_per_s(port: int, seconds: int, scratch: Path) -> float:
    """By wrk with 16 connections. Raises when any request failed."""
    script = scratch / "post.lua"
    script.write_text(WRK_SCRIPT.format(body=BODY))
    url = f"http://{LOOPBACK}:{port}{PATH}"
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "-s", str(script), url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + STOP_TIMEOUT_S)
    output = done.stdout
    rate, bad = re.search(r"Requests/sec:\s*([\d.]+)", output), re.search(r"bad=(\d+)", output)
    if rate is None or bad is None or int(bad[1]):
        raise RuntimeError(f"wrk had failures:\n{output}")
    return float(rate[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of each wrk run")
    parser.add_argument("--runs", type=int, default=5, help="of both measurements, in turn")
    arguments = parser.parse_args()
    if missing := [tool for tool in ("wrk", "nginx") if shutil.which(tool) is None]:
        sys.exit(f"bench.overhead needs {' and '.join(missing)}: apt install wrk nginx-light")
    os.sched_setaffinity(0, {min(CLIENT_CPU, (os.cpu_count() or 1) - 1)})  # nginx and wrk inherit it
    direct: list[float] = []
    routed: list[float] = []
    rates: list[float] = []
    with scratch_folder() as scratch, upstream(scratch) as socket_path, router(socket_path, scratch) as port:
        for _ in range(arguments.runs):  # in turn, so that a slow moment of the machine meets both
            pair = latencies_ms(socket_path, port)
            direct += pair[0]
            routed += pair[1]
            rates.append(requests_per_s(port, arguments.seconds, scratch))
    rows = [
        ("one client, upstream's socket, ms", *_report.summary(direct)),
        ("one client, through the router, ms", *_report.summary(routed)),
        (f"{CLIENTS} clients, requests/s", *_report.summary(rates)),
    ]
    _report.print_table("The router's own cost", ("", "min", "median", "max"), rows)
    added_ms = statistics.median(routed) - statistics.median(direct)
    _report.print_figures({"added_ms": added_ms, "requests_per_s": statistics.median(rates)})


if __name__ == "__main__":
    main()
