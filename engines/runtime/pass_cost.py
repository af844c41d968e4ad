"""What a forward pass takes, learned from those that have run: a fixed part, and a part for each token."""

from __future__ import annotations

DECAY = 0.98  # of a pass's weight with each later one: about the last 50 count
MIN_WEIGHT = 4.0  # passes before anything is concluded
MIN_SPREAD = 0.1  # of sizes, relative to their mean: passes all of one size do not tell the two parts apart
OUTLIER = 4.0  # a pass slower than so many times what was expected tells of the machine, not of the model


class PassCost:
    """A weighted regression of seconds on tokens, padding included. Not thread-safe."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._tokens = self._seconds = 0.0  # means
        self._variance = self._covariance = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        if self._weight >= MIN_WEIGHT:
            seconds = min(seconds, OUTLIER * self._expected_s(tokens))
        self._weight = DECAY * self._weight + 1.0
        share = 1.0 / self._weight
        by_tokens, by_seconds = tokens - self._tokens, seconds - self._seconds
        self._tokens += share * by_tokens
        self._seconds += share * by_seconds
        self._variance = (1 - share) * (self._variance + share * by_tokens**2)
        self._covariance = (1 - share) * (self._covariance + share * by_tokens * by_seconds)

    def tokens_within(self, seconds: float, most: int) -> int:
        """How many tokens a pass of so many seconds takes, from 1 to `most`; `most` where too little is known."""
        fixed_s, token_s = self._parts
        if self._weight < MIN_WEIGHT or token_s <= 0.0:
            return most
        return int(min(max((seconds - fixed_s) / token_s, 1.0), most))

    def fixed_tokens(self, most: int) -> int:
        """The tokens that take as long as the fixed part, up to `most`; `most` where it is not known."""
        fixed_s, token_s = self._parts
        if self._weight < MIN_WEIGHT or not self._tells_apart or token_s <= 0.0:
            return most
        return int(min(fixed_s / token_s, most))

    @property
    def _parts(self) -> tuple[float, float]:
        """Seconds of an empty pass, and of each token; neither below 0."""
        mean_s = self._seconds / max(self._tokens, 1.0)
        if not self._tells_apart:
            return 0.0, mean_s
        token_s = min(max(self._covariance / self._variance, 0.0), mean_s)
        return self._seconds - token_s * self._tokens, token_s

    @property
    def _tells_apart(self) -> bool:
        return self._variance > (MIN_SPREAD * self._tokens) ** 2

    def _expected_s(self, tokens: int) -> float:
        fixed_s, token_s = self._parts
        return fixed_s + token_s * tokens
