"""Who is next where several clients wait: each client's own in order of arrival, and clients in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Turns(Generic[T]):
    """Things that wait, each for a client. A true value while any does."""

    def __init__(self) -> None:
        self._clients: dict[str, dict[T, None]] = {}  # the one whose turn it is comes first

    def __bool__(self) -> bool:
        return bool(self._clients)

    def __iter__(self) -> Iterator[T]:
        """One of each client, then the second of each, and so on."""
        rest = deque(map(iter, self._clients.values()))
        while rest:
            things = rest.popleft()
            thing = next(things, None)
            if thing is not None:
                yield thing
                rest.append(things)

    def of_others(self, client: str) -> Iterator[Iterator[T]]:
        """What waits for each other client than this."""
        return (iter(things) for name, things in self._clients.items() if name != client)

    def add(self, client: str, thing: T) -> None:
        self._clients.setdefault(client, {})[thing] = None

    def remove(self, client: str, thing: T) -> None:
        """Of no effect for one that is not here."""
        things = self._clients.get(client, {})
        things.pop(thing, None)
        if not things:
            self._clients.pop(client, None)

    def end_turn(self, client: str) -> None:
        if client in self._clients:
            self._clients[client] = self._clients.pop(client)
