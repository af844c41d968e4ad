"""Texts far longer than what a model reads of them: no more than their beginning is tokenized.

A tokenizer takes a second for a megabyte, and lets nobody else in meanwhile. Most split texts at spaces before anything
else, so that the tokens up to a space between two words are the same whatever follows: what is read of a text that is
cut at its end can be told from a beginning that is long enough. Texts without spaces are tokenized whole, and so are
all where a token may hold several words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.runtime.retrieval import Source

LONG_CHARACTERS = 32_768  # up to here a text is tokenized whole, in some 30 ms
CHARACTERS_PER_TOKEN = 6  # more than most texts have; where it is not enough, the whole text is tokenized after all
MARGIN_TOKENS = 64  # special tokens, and those before and behind a text that may depend on its neighbour
_SPACES = " ▁Ġ"  # themselves, SentencePiece's, and those of byte-level BPE
_SEVERAL_WORDS = re.compile(rf"[^\s{_SPACES}][{_SPACES}]")


def splits_at_spaces(tokenizer: Any) -> bool:
    """Whether the tokens before a space between two words do not depend on what follows it, and ends are cut off.

    Looks at the whole vocabulary, for 50 ms of a large one.
    """
    if not getattr(tokenizer, "is_fast", False) or tokenizer.truncation_side != "right":
        return False
    doubtful = [token for token in tokenizer.get_vocab() if _SEVERAL_WORDS.search(token)]  # "ĊĠ" is but white space
    return not any(_SEVERAL_WORDS.search(tokenizer.convert_tokens_to_string([token])) for token in doubtful)


def is_long(source: Source) -> bool:
    return not isinstance(source, list) and len(_text(source)) > LONG_CHARACTERS


def needed_tokens(source: Source, limit: int) -> int:
    """So many tokens a beginning of `source` must have to be cut to `limit` just as the whole would be.

    Of a pair the longer text is cut first: that must still be the document. A text has no more tokens than bytes.
    """
    return limit + MARGIN_TOKENS + (2 * len(source[0].encode()) if isinstance(source, tuple) else 0)


def beginning(source: Source, tokens: int) -> Source:
    """A long `source`, or the beginning of its text (of a pair's document) that probably has `tokens` tokens."""
    text = _text(source)
    end = max(CHARACTERS_PER_TOKEN * tokens, LONG_CHARACTERS // 2)
    end = _last_gap(text, end) if len(text) > 2 * end else 0
    if end == 0:
        return source
    return (source[0], text[:end]) if isinstance(source, tuple) else text[:end]


def _text(source: Source) -> str:
    """The text, or the document of a pair."""
    assert not isinstance(source, list)
    return source[1] if isinstance(source, tuple) else source


def _last_gap(text: str, end: int) -> int:
    """The last place in text[:end] of a single space between two words; 0 where there is none."""
    while (end := text.rfind(" ", 1, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end
    return 0
