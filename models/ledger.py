"""The account of device memory: who is charged how much of the budget. Pure bookkeeping, in bytes.

A model is charged when its load is commanded and credited only when its process tree is confirmed gone, so that two
engines never share the same bytes on paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """`budget_bytes` is what all models together may take."""

    budget_bytes: int
    charges: dict[str, int] = field(default_factory=dict)

    @property
    def charged_bytes(self) -> int:
        return sum(self.charges.values())

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.charged_bytes

    def charge(self, model_id: str, size_bytes: int) -> None:
        """Raises ValueError when `model_id` is charged already: its former memory was never confirmed free."""
        if model_id in self.charges:
            raise ValueError(f"{model_id} is charged already")
        self.charges[model_id] = size_bytes

    def correct(self, model_id: str, size_bytes: int) -> None:
        """Replaces an estimate by what was measured."""
        if model_id not in self.charges:
            raise ValueError(f"{model_id} is not charged")
        self.charges[model_id] = size_bytes

    def credit(self, model_id: str) -> None:
        """The memory of `model_id` is confirmed free."""
        del self.charges[model_id]
