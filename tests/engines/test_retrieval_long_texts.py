"""Texts far longer than what is read of them: their beginning is tokenized, with the result of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from engines.runtime import long_texts
from engines.runtime.retrieval import EncodeOptions, Source, encode_within
from engines.runtime.tokenizing import cutting
from tests.engines import retrieval_models as made
from tests.engines.retrieval_running import QUERY, load

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["the", "dog", "to", "naïve", "日本語", "🚂", "don't", "4711.", "\n", "a"]
LONG = " ".join(word for turn in range(400) for word in WORDS[turn % 7 :])
LONGEST_WORDS = ("x" * 150 + " ") * 300  # a token each for BERT: far fewer than their characters promise


def counting(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The characters of each text that the model's tokenizer gets from now on."""
    seen: list[int] = []
    call = type(model.tokenizer).__call__

    def counted(tokenizer: Any, texts: Any, *rest: Any, **options: Any) -> Any:
        given = [texts] if isinstance(texts, str) else [*texts, *(rest[0] if rest and rest[0] else [])]
        seen.extend(len(text) for text in given)
        return call(tokenizer, texts, *rest, **options)

    monkeypatch.setattr(type(model.tokenizer), "__call__", counted)
    return seen


@pytest.mark.parametrize(
    ("make", "pairs"),
    [
        (made.make_prompted_embedder, False),
        (made.make_colbert, False),
        (made.make_cross_encoder, True),
        (made.make_qwen3_reranker, True),
        (made.make_bge_gemma, True),
    ],
)
@pytest.mark.parametrize("asked", ["to the model's length", "to less", "documents"])
def test_a_beginning_is_cut_just_as_the_whole_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], pairs: bool, asked: str
) -> None:
    path = folder / f"Qwen3-bge-Reranker-{make.__name__}"
    model = load(made.judged(path if path.exists() else make(path), max_model_len=256))
    options = EncodeOptions(
        limit=model.encoder.max_tokens - 20 if asked == "to less" else None,
        document_limit=20 if asked == "documents" and pairs else None,
    )
    texts: list[Source] = [LONG, "short", LONGEST_WORDS]
    if pairs:
        texts = [(QUERY, str(text)) for text in texts] + [("dog " * 60, LONG)]
    expected = encode_within(model.encoder, texts, options, "input", truncate=True)
    monkeypatch.setattr(long_texts, "LONG_CHARACTERS", 1000)
    given = encode_within(model.encoder, texts, options, "input", truncate=True)
    assert [item.tokens for item in given] == [item.tokens for item in expected]
    for one, other in zip(model.forward(given), model.forward(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("left", [False, True])
def test_pairs_are_cut_as_tokenizers_cuts_the_longest_first(folder: Path, *, left: bool) -> None:
    path = folder / "reranker-cut"
    model = load(made.judged(path if path.exists() else made.make_cross_encoder(path)))
    lengths = [(1, 1), (3, 40), (40, 3), (9, 9), (9, 10), (10, 9), (40, 41), (6, 7)]
    pairs = [("dog " * first, "water " * second) for first, second in lengths]
    for limit in (3, 4, 16, 17):
        given = model.encoder.encode(pairs, EncodeOptions(limit=limit, left=left))
        with cutting(model.tokenizer, "left" if left else "right"):
            expected = model.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=limit)
        assert [item.ids.tolist() for item in given if item.ids is not None] == expected["input_ids"]
        assert [item.type_ids.tolist() for item in given if item.type_ids is not None] == expected["token_type_ids"]


def test_what_is_cut_off_both_texts_of_a_pair_is_not_multiplied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "reranker-multiplied"
    model = load(made.judged(made.make_cross_encoder(path)))
    call, left_over = type(model.tokenizer).__call__, []

    def counted(tokenizer: Any, *texts: Any, **options: Any) -> Any:
        output = call(tokenizer, *texts, **options)
        left_over.extend(len(each.overflowing) for each in output.encodings)
        return output

    monkeypatch.setattr(type(model.tokenizer), "__call__", counted)
    [item] = encode_within(model.encoder, [("dog " * 400, "water " * 400)], EncodeOptions(limit=16), "", truncate=True)
    assert (item.tokens, max(left_over)) == (16, 0)


def test_no_more_than_the_beginning_of_a_long_text_reaches_the_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(made.judged(made.make_cross_encoder(folder / "reranker-counted")))
    seen = counting(model, monkeypatch)
    for options in (EncodeOptions(), EncodeOptions(document_limit=20)):
        encode_within(model.encoder, [(QUERY, LONG * 20)], options, "documents", truncate=True)
    assert 0 < max(seen) < long_texts.LONG_CHARACTERS < len(LONG * 20)


def test_a_beginning_ends_before_a_space_between_two_words_or_is_the_whole() -> None:
    words = "dog " * 10_000
    assert long_texts.beginning(words + "x" * 1_000_000, 10_000) == words[:-1]
    assert long_texts.beginning("dog  " * 100_000, 100) == "dog  " * 100_000
    assert long_texts.beginning((words, "x" * 1_000_000), 100) == (words, "x" * 1_000_000)


def test_a_tokenizer_whose_tokens_hold_several_words_gets_whole_texts() -> None:
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=100, show_progress=False)
    tokenizer.train_from_iterator(["by the way by the way"], trainer)
    assert any(" " in token.strip() for token in tokenizer.get_vocab())
    assert not long_texts.splits_at_spaces(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
