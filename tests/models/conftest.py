"""The S3 server, one for all tests: its list of who may use it is the process's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models.s3_server import S3, running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with running() as s3:
        yield s3
