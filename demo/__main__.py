"""Makes the demonstration models: `python -m demo DIR [--force | --if-empty]`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from demo import folders, making


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 when every model is in place, 1 when one is not, 130 or 143 when interrupted."""
    options = _parser().parse_args(arguments)
    models_dir: Path = options.dir
    if options.if_empty and not folders.is_empty(models_dir):
        return 0
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        making.make_all(models_dir, force=options.force)
    except (making.MakingFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Make the small demonstration models in the models folder DIR."
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="the models folder; made if it is not there")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--force", action="store_true", help="make again what was made by this command before")
    mode.add_argument("--if-empty", action="store_true", help="do nothing when DIR holds anything at all")
    return parser


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
