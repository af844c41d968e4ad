"""Blocking work beside the event loop, in threads that hold up nobody's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """As asyncio.to_thread, whose threads a process waits for when it ends: one may sit in a read for 30 s."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # the thread goes on when its waiter is cancelled

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return await asyncio.wrap_future(future)
