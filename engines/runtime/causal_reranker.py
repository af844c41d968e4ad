"""Rerankers made of a text generator: would its next word, after a question about the pair, be yes?

Two published ways of asking, each with its own template. Which one a model was trained with shows neither in its
weights nor in its configuration; discovery goes by architecture and name (`models.types.Method`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.runtime.retrieval import (
    WHOLE,
    Encoded,
    EncodeOptions,
    InputEncoder,
    InvalidRequest,
    OutputKind,
    Rows,
    Source,
    Weights,
)
from engines.runtime.tokenizing import CUTS_ENDS, Padding, Pair, TextCutter, longest_input, require_vocabulary
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_sleep import ModuleWeights
from engines.runtime.whole_weights import require_whole
from models.types import Method, Task

MIN_PAIR_TOKENS = 16


class Template(Protocol):
    """How a pair becomes the ids of one prompt, and the answer a score."""

    def ids(self, pairs: Sequence[Pair], instruction: str | None, limit: int | None) -> list[list[int]]:
        """One prompt for each pair, of at most `limit` tokens: the document's end goes first. Raises InvalidRequest."""
        ...

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Between 0 and 1, from [batch, vocabulary] after the prompts: [batch]."""
        ...


class CausalReranker:
    """Rows are one score for each pair: the probability of yes."""

    task = Task.RERANK
    width = 1
    kind: OutputKind = "score"
    labels: Sequence[str] = ()
    probabilities = True
    prompts: Mapping[str, str] = MappingProxyType({})

    def __init__(self, model_path: str, args: TransformersArgs) -> None:
        trust = {"local_files_only": True, "trust_remote_code": args.trust_remote_code}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path, **trust)
        require_vocabulary(self.tokenizer)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=args.resolved_dtype,
            use_safetensors=None if args.allow_pickle else True,
            output_loading_info=True,
            **trust,
        )
        self._model, info = loaded
        require_whole(info, pooler=True)
        self._model.eval().to(args.device)
        self.weights: Weights = ModuleWeights(self._model, args.device)
        self._template: Template = TEMPLATES[args.method](self.tokenizer)
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.encoder: InputEncoder = PromptEncoder(
            self.tokenizer, self._template, longest_input(positions, args.max_model_len)
        )

    def forward(self, batch: Sequence[Encoded]) -> Rows:
        with torch.inference_mode():
            features = {name: value.to(self._model.device) for name, value in self.encoder.collate(batch).items()}
            logits = self._model(**features, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            rows: Rows = self._template.score(logits).reshape(len(batch), 1).cpu().numpy()
        return rows


class PromptEncoder(TextCutter):
    """Pairs as prompts, filled up on the left, so that each ends where the answer begins."""

    def __init__(self, tokenizer: Any, template: Template, max_tokens: int) -> None:
        super().__init__(tokenizer, max_tokens)
        self._template = template
        self._padding = Padding(tokenizer, left=True)

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        if options.left:
            raise InvalidRequest(CUTS_ENDS, param="truncation_side")
        pairs = [source for source in sources if isinstance(source, tuple)]
        if len(pairs) != len(sources):
            raise InvalidRequest("This model takes pairs of texts only.")
        cut = self.cut_documents(pairs, options.document_limit)
        prompts = self._template.ids([p for p in cut if isinstance(p, tuple)], options.prompt, options.limit)
        return [
            Encoded(pair, len(ids), np.asarray(ids, dtype=np.int32)) for pair, ids in zip(pairs, prompts, strict=True)
        ]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        return self._padding.collate(batch)


class Qwen3Template:
    """Of Qwen3-Reranker: a system message that asks for yes or no, then instruction, query and document."""

    BEFORE = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before = _ids(tokenizer, self.BEFORE)
        self._after = _ids(tokenizer, self.AFTER)
        self._yes, self._no = (_single_token(tokenizer, word) for word in ("yes", "no"))

    def ids(self, pairs: Sequence[Pair], instruction: str | None, limit: int | None) -> list[list[int]]:
        asked = self.INSTRUCTION if instruction is None else instruction
        texts = [f"<Instruct>: {asked}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
        room = _room(limit, len(self._before) + len(self._after))
        encoded = self._tokenizer(
            texts, truncation=room is not None, max_length=room, return_attention_mask=False, verbose=False
        )
        return [[*self._before, *ids, *self._after] for ids in encoded["input_ids"]]

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits[:, self._yes] - logits[:, self._no])


class BgeTemplate:
    """Of bge-reranker-v2-gemma: query A and passage B, then the question whether B answers A."""

    QUESTION = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
        "prediction of either 'Yes' or 'No'."
    )

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._line = _ids(tokenizer, "\n")
        self._begin = [] if tokenizer.bos_token_id in (None, tokenizer.pad_token_id) else [tokenizer.bos_token_id]
        self._yes = _ids(tokenizer, "Yes")[0]

    def ids(self, pairs: Sequence[Pair], instruction: str | None, limit: int | None) -> list[list[int]]:
        question = [*self._line, *_ids(self._tokenizer, self.QUESTION if instruction is None else instruction)]
        room = _room(limit, len(question))
        queries = self._parts([f"A: {query}" for query, _ in pairs], None if room is None else room * 3 // 4)
        documents = self._parts([f"B: {document}" for _, document in pairs], room)
        return [
            [*[*self._begin, *query, *self._line, *document][:room], *question]
            for query, document in zip(queries, documents, strict=True)
        ]

    def _parts(self, texts: list[str], most: int | None) -> list[list[int]]:
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            truncation=most is not None,
            max_length=most,
            return_attention_mask=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits[:, self._yes])


TEMPLATES: Mapping[Method | None, Any] = {Method.QWEN3_RERANKER: Qwen3Template, Method.BGE_RERANKER: BgeTemplate}


def _room(limit: int | None, taken: int) -> int | None:
    """Tokens left for query and document."""
    if limit is None:
        return None
    if limit - taken < MIN_PAIR_TOKENS:
        raise InvalidRequest(
            f"This model's own prompt takes {taken} tokens, so that a pair must be allowed at least "
            f"{taken + MIN_PAIR_TOKENS}, not {limit}.",
            param="truncate_prompt_tokens",
        )
    return limit - taken


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _single_token(tokenizer: Any, word: str) -> int:
    token = tokenizer.convert_tokens_to_ids(word)
    if token is None or token == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no token {word!r}, by which this kind of reranker answers")
    return int(token)
