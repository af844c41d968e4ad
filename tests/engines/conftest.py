"""One launcher of the transformers engine for all test files: to import its frameworks takes it seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from engines.transformers_engine import TransformersFactory
from tests.engines.transformers_support import transformers_factory


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def factory() -> AsyncIterator[TransformersFactory]:
    async with transformers_factory() as factory:
        yield factory
