"""Small demonstration models, trained on the spot: `python -m demo DIR`. What they know is in `demo.facts`."""

from demo.folders import is_empty

__all__ = ["is_empty"]
