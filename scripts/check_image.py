"""Carries out a Dockerfile's own steps in a plain Debian root, where there is no Docker engine; needs root.

    debootstrap --variant=minbase bookworm /tmp/debian
    python -m scripts.check_image Dockerfile.cpu /tmp/debian [--copy /path/the/build/needs …]

RUN, COPY, ENV, WORKDIR and USER are done in order in a chroot; then ENTRYPOINT with CMD is started as the image's user,
HEALTHCHECK's command must succeed, TERM must end it, and no process may be left. The root folder is changed by it.
`--copy` brings in files of this machine that pip's configuration there names (certificates, wheels).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HEALTHY_WITHIN_S = 60.0  # the image's start period is 30 s
STOPPED_WITHIN_S = 60.0
BASE_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
PASSED_ON = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(slots=True)
class Image:
    """What the steps so far have set."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: dict(BASE_ENV))
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def command(self, args: list[str]) -> list[str]:
        env = [f"{name}={value}" for name, value in self.env.items()]
        script = 'cd "$0" && exec "$@"'
        return [
            "chroot",
            f"--userspec={self.user}",
            str(self.root),
            "env",
            "-i",
            *env,
            "sh",
            "-c",
            script,
            self.workdir,
            *args,
        ]


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(INSTRUCTION, rest) of a Dockerfile; comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for logical in "\n".join(lines).replace("\\\n", " ").splitlines():
        if logical.strip():
            name, _, rest = logical.strip().partition(" ")
            yield name.upper(), rest.strip()


def carry_out(image: Image, name: str, rest: str, context: Path) -> None:
    print(f"-- {name} {rest[:140]}", flush=True)
    match name:
        case "RUN":
            passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
            built = Image(image.root, passed | image.env, image.workdir, image.user)
            subprocess.run(built.command(["sh", "-c", rest]), check=True)
        case "COPY":
            *sources, target = rest.split()
            copy(image, [context / source for source in sources], target)
        case "ENV":
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                image.env[key] = value.replace("$PATH", image.env["PATH"])
        case "WORKDIR":
            image.workdir = rest
            (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = rest
            image.env["HOME"] = image.workdir
        case "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        case "CMD":
            image.cmd = json.loads(rest)
        case "HEALTHCHECK":
            image.healthcheck = json.loads(rest.partition("CMD ")[2])
        case "FROM" | "VOLUME" | "EXPOSE" | "STOPSIGNAL":
            pass
        case _:
            raise SystemExit(f"check_image does not know {name}")


def copy(image: Image, sources: list[Path], target: str) -> None:
    into = image.root / (Path(image.workdir) / target).as_posix().lstrip("/")
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """/proc, /dev and /dev/shm as a container has them, for as long as the block runs."""
    points = [("proc", "proc", []), ("/dev", "dev", ["--rbind", "--make-rslave"]), ("sysfs", "sys", [])]
    done: list[Path] = []
    try:
        for source, point, options in points:
            kind = [] if options else ["-t", source]
            subprocess.run(["mount", *options, *kind, source, str(root / point)], check=True)
            done.append(root / point)
        yield
    finally:
        for path in reversed(done):
            subprocess.run(["umount", "-R", "-l", str(path)], check=True)


def left_behind(root: Path) -> list[str]:
    """Processes whose root is this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "root") == str(root):
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        except OSError:
            continue
    return found


def run_container(image: Image) -> None:
    """Starts the image's command, waits until its health check passes, stops it."""
    started = time.monotonic()
    with subprocess.Popen(image.command([*image.entrypoint, *image.cmd]), start_new_session=True) as container:
        try:
            wait_healthy(image, container, started)
            subprocess.run(image.command(["id"]), check=True)
        finally:
            container.send_signal(signal.SIGTERM)
            stopping = time.monotonic()
            code = container.wait(STOPPED_WITHIN_S)
    print(f"-- ended with {code} in {time.monotonic() - stopping:.1f} s after TERM")
    if remains := left_behind(image.root):
        raise SystemExit(f"left behind: {remains}")


def wait_healthy(image: Image, container: subprocess.Popen[bytes], started: float) -> None:
    while container.poll() is None and time.monotonic() - started < HEALTHY_WITHIN_S:
        check = subprocess.run(image.command(image.healthcheck), capture_output=True, text=True)
        if check.returncode == 0:
            print(f"-- healthy after {time.monotonic() - started:.1f} s: {check.stdout}")
            return
        time.sleep(0.2)
    raise SystemExit(f"not healthy within {HEALTHY_WITHIN_S} s (exit {container.poll()})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--copy", type=Path, nargs="*", default=[], help="files or folders of this machine to bring in")
    parser.add_argument("--start-only", action="store_true", help="skip RUN and COPY: they were done before")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("check_image needs root: it uses chroot and mount.")
    image = Image(arguments.root.resolve())
    for source in arguments.copy:
        target = image.root / source.as_posix().lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    with mounted(image.root):
        for name, rest in instructions(arguments.dockerfile.read_text(encoding="utf-8")):
            if not (arguments.start_only and name in ("RUN", "COPY")):
                carry_out(image, name, rest, arguments.dockerfile.resolve().parent)
        run_container(image)


if __name__ == "__main__":
    main()
