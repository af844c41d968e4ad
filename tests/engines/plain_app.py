"""An app to be killed: a launcher and engines that misbehave. Prints its engines' pids as JSON, and waits.

python -m tests.engines.plain_app RUN_FOLDER COUNT
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from engines.base import EngineContext
from engines.launcher import Launcher
from tests.engines.process_support import PLAIN_RUNTIME, START_TIMEOUT_S, plain_engine, tree_of


async def run(folder: Path, count: int) -> None:
    context = EngineContext(folder, folder, folder, "cpu")
    launcher = Launcher("plain", PLAIN_RUNTIME, context)
    await launcher.start()
    pids = []
    for number in range(count):
        args = {"children": 1, "escapes": 1, "ignore_sigterm": True}
        engine = plain_engine(launcher, context, f"model-{number}", **args)
        await engine.start(START_TIMEOUT_S)
        pids += tree_of(engine)
    print(json.dumps({"launcher": launcher.pid, "pids": pids}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
