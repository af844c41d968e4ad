"""Small tokenizers, trained on our own texts. The byte-level ones can encode any text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from demo import corpus, facts, templates

CHAT_VOCAB_SIZE = 1280
BASE_VOCAB_SIZE = 512
RERANKER_VOCAB_SIZE = 2048


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
    """The base model's: no chat template."""
    texts = [*corpus.all_known_texts(), *corpus.SENTENCES]
    tokenizer = _byte_level(texts, vocab_size=BASE_VOCAB_SIZE, special=["<|endoftext|>"])
    return _wrap(tokenizer, None, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def reranker() -> BertTokenizer:
    """A lower-casing WordPiece tokenizer, as BERT's."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=RERANKER_VOCAB_SIZE,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)],
        show_progress=False,
    )
    trained.train_from_iterator(corpus.reranker_texts(), trainer)
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True, model_max_length=512)


def _byte_level(
    texts: Sequence[str], *, vocab_size: int, special: Sequence[str], added: Sequence[str] = ()
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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
