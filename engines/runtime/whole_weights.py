"""A model whose files lack some of its weights is not loaded.

transformers makes up weights that it does not find, at random, and only logs that: a checkpoint of another
architecture, or of a model without its head, would give numbers that mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sentence_transformers.base.modules import Transformer

SHOWN = 3


class MissingWeights(ValueError):
    """The folder's weights are not all that the model needs."""


@contextmanager
def only_whole_models() -> Iterator[None]:
    """Within, sentence-transformers raises MissingWeights instead of loading such a model."""
    load = Transformer._load_model

    # An adjustment of sentence-transformers: the place where its module loads torch's model.
    def load_whole(module: Any, path: str, task: str, *given: Any, **options: Any) -> Any:
        model, info = load(module, path, task, *given, **options, output_loading_info=True)
        require_whole(info, pooler=task != "feature-extraction")
        return model

    with patch.object(Transformer, "_load_model", load_whole):
        yield


def require_whole(info: Mapping[str, Any], *, pooler: bool) -> None:
    """Raises MissingWeights by what transformers tells of a load (`output_loading_info`).

    Without `pooler`, that part of an encoder may be missing, as it often is: token vectors do without it.
    """
    missing = sorted(name for name in info["missing_keys"] if pooler or "pooler" not in name.split("."))
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise MissingWeights(
            f"the files hold no weights for {', '.join(missing[:SHOWN])}{more}: they belong to another model than "
            "config.json and modules.json say. Copy the folder again, or set the task that its weights are for."
        )
