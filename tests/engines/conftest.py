"""What the test files of engines share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from engines.transformers_engine import TransformersFactory
from tests.engines.transformers_support import transformers_factory


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def factory() -> AsyncIterator[TransformersFactory]:
    """One launcher of the transformers engine for all files: to import its frameworks takes it seconds."""
    async with transformers_factory() as factory:
        yield factory


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost models as small as these more than they gain, and on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For models that a test file makes."""
    return tmp_path_factory.mktemp("models")
