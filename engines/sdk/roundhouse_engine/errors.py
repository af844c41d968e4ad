"""What an engine tells its clients of their requests."""

from __future__ import annotations


class RequestError(Exception):
    """The request is at fault: `message` says what is wrong and what to do, `param` which field of it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
