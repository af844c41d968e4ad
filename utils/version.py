"""Which Roundhouse this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    try:
        return version("roundhouse")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"
