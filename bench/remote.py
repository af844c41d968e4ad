"""A server elsewhere: what going through the router costs, how fast requests fail once it is gone, how soon it is back.

The server is nginx with a static answer on a loopback port. It is killed, requests open its circuit, it is started
again; then a client asks until the trial has let it in.

    python -m bench.remote [--runs 5] [--requests 300]     (needs nginx: apt install nginx-light)

Last line: `added_ms= fail_ms= fail_max_ms= recovery_ms=` (recovery: from the moment that the trial is due).
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import _report
from bench._servers import LOOPBACK, Server, free_port, roundhouse, scratch_folder

MODEL = "static"
PATH = "/v1/chat/completions"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Which model are you?"}]})
ANSWER = json.dumps({"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "I am static."}}]})
LIST = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
FAILURES, OPEN_S = 5, 1.0
BLOCKS = 10
WAIT_S = 30.0
NGINX_CONF = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 256; }}
http {{
    access_log off; keepalive_requests 100000000; keepalive_timeout 300s; default_type application/json;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        location /v1/models {{ return 200 '{list}'; }}
        location / {{ return 200 '{answer}'; }}
    }}
}}
"""


class Far:
    """The server elsewhere, as often as it is started."""

    def __init__(self, scratch: Path, port: int) -> None:
        self._scratch, self._port = scratch, port
        self._process: subprocess.Popen[bytes] | None = None
        (scratch / "nginx.conf").write_text(NGINX_CONF.format(port=port, answer=ANSWER, list=LIST))

    def start(self) -> None:
        command = ["nginx", "-p", str(self._scratch), "-e", "stderr", "-c", str(self._scratch / "nginx.conf")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(lambda: status(self._port) == 200)

    def stop(self) -> None:
        """At once, and its worker with it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None


@contextmanager
def far_server(scratch: Path, port: int) -> Iterator[Far]:
    far = Far(scratch, port)
    far.start()
    try:
        yield far
    finally:
        far.stop()


def status(port: int) -> int:
    """Of one request on a connection of its own; 0 where there is none."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=WAIT_S)
    try:
        connection.request("POST", PATH, BODY, {"content-type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def until(holds: Callable[[], bool], pause_s: float = 0.005) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {WAIT_S:g} s")
        time.sleep(pause_s)


def block_ms(port: int, requests: int, expected: int = 200) -> list[float]:
    """Latencies of requests, one after the other on one connection."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=WAIT_S)
    took: list[float] = []
    for _ in range(requests):
        began = time.perf_counter()
        connection.request("POST", PATH, BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1000)
        if answer.status != expected:
            raise RuntimeError(f"status {answer.status} instead of {expected}")
    connection.close()
    return took


def circuit(server: Server) -> str:
    return str(server.get("/health")["engines"]["far"]["servers"][0]["state"])


def outage_ms(server: Server, far: Far, port: int, requests: int) -> tuple[list[float], float]:
    """How long refusals take while the circuit is open, and from the due trial to the first answer."""
    far.stop()
    until(lambda: status(port) == 503 and circuit(server) == "open", pause_s=0.0)
    opened = time.monotonic()
    fails = block_ms(port, requests, 503)
    if time.monotonic() - opened > OPEN_S:
        raise RuntimeError(f"{requests} refusals took longer than the circuit is open; ask for fewer")
    far.start()
    until(lambda: circuit(server) == "half_open")
    due = time.monotonic()
    until(lambda: status(port) == 200)
    return fails, (time.monotonic() - due) * 1000


def report(direct: list[float], routed: list[float], fails: list[float], recoveries: list[float]) -> None:
    """All in ms."""
    rows = [
        ("straight at the server, ms", *_report.summary(direct)),
        ("through the router, ms", *_report.summary(routed)),
        ("refused while the circuit is open, ms", *_report.summary(fails)),
        ("from the due trial to the first answer, ms", *_report.summary(recoveries)),
    ]
    _report.print_table("A server elsewhere", ("", "min", "median", "max"), rows)
    _report.print_figures(
        {
            "added_ms": statistics.median(routed) - statistics.median(direct),
            "fail_ms": statistics.median(fails),
            "fail_max_ms": max(fails),
            "recovery_ms": max(recoveries),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="outages")
    parser.add_argument("--requests", type=int, default=300, help="in a block")
    arguments = parser.parse_args()
    if shutil.which("nginx") is None:
        sys.exit("bench.remote needs nginx: apt install nginx-light")
    direct: list[float] = []
    routed: list[float] = []
    fails: list[float] = []
    recoveries: list[float] = []
    with scratch_folder() as scratch:
        far_port = free_port()
        url = f"http://{LOOPBACK}:{far_port}/v1"
        engine = {"kind": "openai", "url": url, "breaker_failures": FAILURES, "breaker_open_s": OPEN_S}
        (scratch / "models").mkdir()
        with (
            far_server(scratch, far_port) as far,
            roundhouse(scratch / "models", scratch, engines=json.dumps({"far": engine})) as server,
        ):
            server.wait_warm()
            port = int(server.url.rpartition(":")[2])
            until(lambda: status(port) == 200)
            for _ in range(BLOCKS):  # in turn, so that a slow moment of the machine meets both
                direct.append(statistics.median(block_ms(far_port, arguments.requests)))
                routed.append(statistics.median(block_ms(port, arguments.requests)))
            for _ in range(arguments.runs):
                failed, recovery = outage_ms(server, far, port, min(arguments.requests, 100))
                fails += failed
                recoveries.append(recovery)
    report(direct, routed, fails, recoveries)


if __name__ == "__main__":
    main()
