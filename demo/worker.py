"""Makes one demo model in a process of its own: `python -m demo.worker MODEL FOLDER [BASE_FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from demo import facts


def main(arguments: list[str]) -> int:
    """Makes the model named first into the folder named second; an adapter's base is the third."""
    name, folder, *base = arguments
    _prepare()
    try:
        _make(name, Path(folder), [Path(item) for item in base])
    except (
        RuntimeError,
        ValueError,
        OSError,
    ) as error:  # NotLearnt, or a library's own: a sentence for the person who waits
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # the models are made beside each other; and one thread adds up in one order
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _make(name: str, folder: Path, base: list[Path]) -> None:
    if name == facts.ADAPTER:
        from demo import adapter

        adapter.make(folder, base[0])
    elif name == facts.RERANKER:
        from demo import reranker

        reranker.make(folder)
    else:
        from demo import causal

        makers = {
            facts.QWEN3_CHAT: causal.make_qwen3_chat,
            facts.LLAMA_CHAT: causal.make_llama_chat,
            facts.BASE: causal.make_base,
        }
        makers[name](folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
