"""How many tokens a forward pass of a given duration takes, learned from those that have run."""

from __future__ import annotations

DECAY = 0.95  # of a pass's weight with each later one: about the last 20 count
OUTLIER = 4.0  # a pass slower than so many times what was expected tells of the machine, not of the model


class PassCost:
    """A pass costs its tokens, padding included, and `fixed_tokens` more. Not thread-safe."""

    def __init__(self, fixed_tokens: int) -> None:
        self.fixed_tokens = fixed_tokens
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        tokens += self.fixed_tokens
        if self._tokens:
            seconds = min(seconds, OUTLIER * tokens * self._seconds / self._tokens)
        self._tokens = DECAY * self._tokens + tokens
        self._seconds = DECAY * self._seconds + seconds

    def tokens_within(self, seconds: float, most: int) -> int:
        """From 1 to `most`; `most` before the first pass."""
        if self._seconds <= 0.0:
            return most
        return int(min(max(seconds * self._tokens / self._seconds - self.fixed_tokens, 1.0), most))
