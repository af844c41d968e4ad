"""Trains a cross-encoder that scores a document by how many of a query's content words it holds.

It learns on random words, so that it also ranks texts that it never saw. Its sigmoid is that share, roughly.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from demo import corpus, facts, tokenizing
from demo.causal import NotLearnt

STEPS = 600
WARM_UP_STEPS = 30
EXAMINE_FROM = 200
EXAMINE_EVERY = 25
BATCH = 48
RATE = 2e-3
WORD_STD = 0.05
SEGMENT_SHARE = 0.285
"""Squared length of a segment's embedding, as a share of a word's."""
KEY_SCALE = 1.5
WANTED_MARGIN = 0.4
"""How far the best document's score (0 to 1) must be above every other's, in each of `facts.RERANK_SAMPLES`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A query, a document, and the share of the query's content words that the document holds (0 to 1)."""

    query: str
    document: str
    share: float


def make(folder: Path) -> None:
    """Trains and saves `facts.RERANKER`; raises NotLearnt when it does not rank the known samples."""
    tokenizer = tokenizing.reranker()
    torch.manual_seed(9)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = 1
    model = BertForSequenceClassification(config)
    _see_equal_words(model)
    _train(model, tokenizer, random.Random(9))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizing.check_loads_alike(tokenizer, folder)


def draw(chance: random.Random) -> Pair:
    """A random query of 1 to 5 content words among stop words, and a document that holds some of them."""
    wanted = [_word(chance) for _ in range(chance.randint(1, 5))]
    held = chance.sample(wanted, chance.choice((0, 0, len(wanted), len(wanted), chance.randint(0, len(wanted)))))
    others = [_word(chance) for _ in range(chance.randint(1, 10))]
    return Pair(_among_stop_words(chance, wanted), _among_stop_words(chance, held + others), len(held) / len(wanted))


def _word(chance: random.Random) -> str:
    if chance.random() < 0.8:
        return chance.choice(corpus.WORDS)
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 7)))


def _among_stop_words(chance: random.Random, words: list[str]) -> str:
    mixed = [*words, *chance.choices(corpus.STOP_WORDS, k=chance.randint(0, 2 + len(words) // 2))]
    chance.shuffle(mixed)
    return " ".join(mixed) + chance.choice(("", ".", "?"))


@torch.no_grad()
def _see_equal_words(model: BertForSequenceClassification) -> None:
    """Starts the first layer so that a word attends to its equal in the other text, and where there is none to itself.

    From a random start a model of this size needs many thousands of steps to find that out. Queries and keys are the
    embeddings themselves, but that queries have the sign of the segment's direction turned round. In attention logits,
    an equal word in the other text then has about 18, the word itself 10, and any other word 4 at most.
    """
    size = model.config.hidden_size
    embeddings: Any = model.bert.embeddings
    torch.nn.init.normal_(embeddings.word_embeddings.weight, std=WORD_STD)
    torch.nn.init.normal_(embeddings.position_embeddings.weight, std=WORD_STD / 10)
    direction = torch.nn.functional.normalize(torch.randn(size), dim=0)
    segment = direction * (SEGMENT_SHARE * size) ** 0.5 * WORD_STD
    embeddings.token_type_embeddings.weight.copy_(torch.stack((segment, -segment)))
    attention: Any = model.bert.encoder.layer[0].attention
    identity = torch.eye(size)
    attention.self.key.weight.copy_(KEY_SCALE * identity)
    attention.self.query.weight.copy_(KEY_SCALE * (identity - 2 * torch.outer(direction, direction)))
    attention.self.value.weight.copy_(identity)
    attention.output.dense.weight.copy_(identity)


def _train(model: BertForSequenceClassification, tokenizer: BertTokenizer, chance: random.Random) -> None:
    started = time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    margin = -1.0
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARM_UP_STEPS) * (1 - 0.9 * step / STEPS)
        loss = _loss(model, tokenizer, [draw(chance) for _ in range(BATCH)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= EXAMINE_FROM and step % EXAMINE_EVERY == 0:
            margin = least_margin(model, tokenizer)
            elapsed_s = time.monotonic() - started
            print(
                f"{facts.RERANKER}: step {step}, loss {loss.item():.3f}, least margin {margin:.2f}, {elapsed_s:.0f} s",
                flush=True,
            )
            if margin >= WANTED_MARGIN:
                return
    raise NotLearnt(
        f"{facts.RERANKER} did not rank its samples after {STEPS} steps (least margin {margin:.2f}, wanted"
        f" {WANTED_MARGIN}); change STEPS or RATE in demo/reranker.py"
    )


@torch.no_grad()
def least_margin(model: BertForSequenceClassification, tokenizer: BertTokenizer) -> float:
    """The least distance between the best document's score and the next one's, over the known samples."""
    least = 1.0
    for sample in facts.RERANK_SAMPLES:
        pairs = [Pair(sample.query, document, 0.0) for document in sample.documents]
        scores = _logits(model, tokenizer, pairs).sigmoid().tolist()
        best = scores.pop(sample.best)
        least = min(least, best - max(scores))
    return least


def _loss(model: BertForSequenceClassification, tokenizer: BertTokenizer, pairs: list[Pair]) -> torch.Tensor:
    shares = torch.tensor([pair.share for pair in pairs])
    return torch.nn.functional.binary_cross_entropy_with_logits(_logits(model, tokenizer, pairs), shares)


def _logits(model: BertForSequenceClassification, tokenizer: BertTokenizer, pairs: list[Pair]) -> torch.Tensor:
    encoded = tokenizer(
        [pair.query for pair in pairs], [pair.document for pair in pairs], padding=True, return_tensors="pt"
    )
    logits: torch.Tensor = model(**encoded).logits
    return logits.squeeze(-1)
