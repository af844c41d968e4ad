"""Small tokenizers, trained on our own texts. The byte-level ones can encode any text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from demo import corpus, facts, templates

CHAT_VOCAB_SIZE = 1280
BASE_VOCAB_SIZE = 512
OTHER_LETTERS = "ßæøðþœł"
"""Latin letters that are no accented ASCII ones; of those, BERT's normalizer takes the accents off."""


def qwen3() -> PreTrainedTokenizerFast:
    """Qwen3's manner: ChatML tokens; those of tools and thinking are ordinary added tokens, as in the original."""
    tokenizer = _byte_level(
        corpus.chat_texts(facts.QWEN3),
        vocab_size=CHAT_VOCAB_SIZE,
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        added=["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"],
    )
    return _wrap(tokenizer, templates.CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama() -> PreTrainedTokenizerFast:
    """Llama 3's manner: headers, end of turn, and the token that its tool parser looks for."""
    tokenizer = _byte_level(
        corpus.chat_texts(facts.LLAMA),
        vocab_size=CHAT_VOCAB_SIZE,
        special=[
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
            "<|eom_id|>", "<|python_tag|>",
        ],
    )  # fmt: skip
    _begin_with(tokenizer, "<|begin_of_text|>")
    return _wrap(
        tokenizer, templates.LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|end_of_text|>"
    )


def base() -> PreTrainedTokenizerFast:
    """The base model's: no chat template. It splits text as Qwen2's own, which transformers puts in its place."""
    texts = [*corpus.all_known_texts(), *corpus.SENTENCES]
    tokenizer = _byte_level(texts, vocab_size=BASE_VOCAB_SIZE, special=["<|endoftext|>"], like=Qwen2Tokenizer())
    return _wrap(tokenizer, None, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def reranker() -> BertTokenizer:
    """A lower-casing WordPiece tokenizer, as BERT's: our words, and pieces of one and two letters for any others.

    Its vocabulary is listed, not trained, for the library's trainer breaks ties in another order each time.
    """
    letters = string.ascii_lowercase
    characters = [*sorted(set(string.printable) - set(string.whitespace) - set(string.ascii_uppercase)), *OTHER_LETTERS]
    pairs = [first + second for first in letters for second in letters]
    words = sorted(
        {word.strip(string.punctuation).lower() for text in corpus.reranker_texts() for word in text.split()}
    )
    pieces = [*characters, *(f"##{piece}" for piece in (*letters, *OTHER_LETTERS, *string.digits, *pairs)), *words]
    listed = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])
    vocabulary = {piece: index for index, piece in enumerate(listed)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512)


def check_loads_alike(tokenizer: PreTrainedTokenizerFast | BertTokenizer, folder: Path) -> None:
    """Raises ValueError when the tokenizer saved in `folder` splits texts otherwise, once loaded, than `tokenizer`.

    transformers puts another class in for some architectures, with its own rules.
    """
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in (*corpus.chat_texts(facts.QWEN3), *corpus.chat_texts(facts.LLAMA), *facts.BASE_CONTINUATIONS):
        if loaded(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise ValueError(f"{folder.name}: its tokenizer, loaded as {type(loaded).__name__}, splits {text!r} anew")


def _byte_level(
    texts: Sequence[str],
    *,
    vocab_size: int,
    special: Sequence[str],
    added: Sequence[str] = (),
    like: PreTrainedTokenizerFast | None = None,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if like is not None:
        tokenizer.normalizer = like.backend_tokenizer.normalizer
        tokenizer.pre_tokenizer = like.backend_tokenizer.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer


def _begin_with(tokenizer: Tokenizer, token: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B",
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )


def _wrap(tokenizer: Tokenizer, chat_template: str | None, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=chat_template,
        model_max_length=facts.CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )
