"""Small retrieval models of every kind with random weights, saved as they are published; and specs as discovery judges.

Random weights are no worse than trained ones for comparing two computations: they only must not be all alike, so they
are spread wider than a fresh model's.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from models.discovery.scanner import scan
from models.types import Availability, ModelOverrides, ModelSpec

WORDS = [
    *("the", "a", "of", "to", "and", "in", "is", "that", "where", "which", "on", "with", "yes", "no", "Yes", "No"),
    *("locomotive", "turntable", "roundhouse", "track", "engine", "steam", "coal", "bread", "stone", "dog", "water"),
    *("city", "capital", "turns", "stands", "waits", "burns", "moves", "query", "document", "passage", "answer"),
]
TEXTS = [" ".join(WORDS[index:] + WORDS[:index]).capitalize() + "." for index in range(0, len(WORDS), 3)]
CHAT_TEMPLATE = """\
{% for message in messages %}{% if message.role in ("system", "user", "assistant") %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PAIR_TEMPLATE = """\
<|im_start|>user
{% for message in messages %}<{{ message.role }}>: {{ message.content }}
{% endfor %}<|im_end|>
<|im_start|>assistant
"""
QUERY_PROMPT = "Instruct: find the answer\nQuery: "


def judged(path: Path, **overrides: Any) -> ModelSpec:
    """The spec of the model in `path`, as a scan of the folder around it says; it must be one that is served."""
    [spec] = [
        spec
        for spec in scan(path.parent, {path.name: ModelOverrides(**overrides)} if overrides else None)
        if spec.path == path
    ]
    assert spec.availability is Availability.AVAILABLE, spec.reasons
    return spec


# Encoders


def bert_config(**fields: Any) -> BertConfig:
    return BertConfig(
        vocab_size=5 + len(_bert_words()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        **fields,
    )


def save_bert(path: Path, model: PreTrainedModel) -> Path:
    """`model` with random weights, and a tokenizer of words and letters."""
    _save(path, model)
    vocabulary = {
        word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_bert_words()])
    }
    BertTokenizer(vocab=vocabulary, model_max_length=128).save_pretrained(path)
    return path


def _bert_words() -> list[str]:
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    return [
        *letters,
        *(f"##{letter}" for letter in letters),
        *dict.fromkeys(word.lower() for word in WORDS if len(word) > 1),
    ]


def make_cross_encoder(path: Path) -> Path:
    return save_bert(path, BertForSequenceClassification(bert_config(num_labels=1)))


def make_classifier(path: Path, problem_type: str | None = None) -> Path:
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    config = bert_config(id2label=labels, label2id={name: index for index, name in labels.items()})
    config.problem_type = problem_type
    return save_bert(path, BertForSequenceClassification(config))


def make_roberta(path: Path, *, positions: int, task: str) -> Path:
    """Its tokenizer knows no limit, as with those that were published without a tokenizer_config.json."""
    tokenizer = _byte_tokenizer(["<s>", "<pad>", "</s>"])
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        num_labels=3,
    )
    _save(path, RobertaModel(config) if task == "embed" else RobertaForSequenceClassification(config))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(path)
    return path


def make_splade(path: Path, *, modules: bool = True) -> Path:
    """As sentence-transformers saves it, or bare."""
    bare = path if not modules else path.with_name(f"{path.name}-backbone")
    save_bert(bare, BertForMaskedLM(bert_config()))
    if modules:
        backbone = Transformer(str(bare), transformer_task="fill-mask")
        SparseEncoder(modules=[backbone, SpladePooling()]).save_pretrained(str(path), create_model_card=False)
    return path


def make_colbert(path: Path) -> Path:
    """With markers before queries and documents, query expansion to 16 tokens, and documents without punctuation."""
    bare = save_bert(path.with_name(f"{path.name}-backbone"), BertModel(bert_config()))
    backbone = Transformer(
        str(bare),
        document_length=64,
        query_expansion={"strategy": "fixed", "length": 16, "attend": False, "token": None},
    )
    dense = Dense(32, 8, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    mask = MultiVectorMask(skiplist_words=list(string.punctuation))
    model = MultiVectorEncoder(
        modules=[backbone, dense, mask, Normalize(module_input_name="token_embeddings")],
        prompts={"query": "query ", "document": "document "},
    )
    model.save_pretrained(str(path), create_model_card=False)
    return path


def make_stanford_colbert(path: Path) -> Path:
    """As ColBERTv2 is published: no modules.json, the projection among the encoder's weights."""
    save_bert(path, BertModel(bert_config()))
    weights = load_file(path / "model.safetensors")
    projection = torch.randn(8, 32, generator=torch.Generator().manual_seed(7))
    save_file(
        {**{f"bert.{name}": value for name, value in weights.items()}, "linear.weight": projection},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    (path / "artifact.metadata").write_text(
        json.dumps({"doc_maxlen": 64, "query_maxlen": 16, "mask_punctuation": True})
    )
    return path


def make_static_embedder(path: Path) -> Path:
    """A vector for each word of a vocabulary, and their mean: no transformer at all."""
    tokenizer = _byte_tokenizer(["<pad>"])
    vectors = np.random.default_rng(7).normal(size=(tokenizer.get_vocab_size(), 32)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)]).save_pretrained(
        str(path), create_model_card=False
    )
    return path


def make_model2vec(path: Path) -> Path:
    """As Model2Vec publishes them: the first module is the folder itself, and rows are shared between tokens."""
    tokenizer = _byte_tokenizer(["[PAD]", "[UNK]"])
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    generator, count = torch.Generator().manual_seed(7), tokenizer.get_vocab_size()
    weights = {
        "embeddings": torch.randn(50, 16, generator=generator),
        "mapping": torch.arange(count) % 50,
        "weights": torch.rand(count, generator=generator),
    }
    save_file(weights, path / "model.safetensors")
    kinds = [(".", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": where, "type": f"sentence_transformers.models.{kind}"}
        for index, (where, kind) in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "seq_length": 1000000, "normalize": True}
    (path / "config.json").write_text(json.dumps(config))
    return path


def edit(path: Path, name: str, **fields: Any) -> Path:
    """`path` with other fields in one of its JSON files."""
    known = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(known | fields))
    return path


def drop_weights(path: Path, part: str) -> Path:
    """`path` without the weights whose names hold `part`."""
    weights = load_file(path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    return path


def make_prompted_embedder(path: Path, **pooling: Any) -> Path:
    """Mean pooling unless said otherwise, with prompts for queries and documents."""
    bare = save_bert(path.with_name(f"{path.name}-backbone"), BertModel(bert_config()))
    prompts = {"query": "query : ", "document": "passage : "}
    model = SentenceTransformer(modules=[Transformer(str(bare)), Pooling(32, **pooling)], prompts=prompts)
    model.save_pretrained(str(path), create_model_card=False)
    return path


# Text generators


def make_qwen3_reranker(path: Path) -> Path:
    """As Qwen published it: a text generator, no modules.json. Name the folder after it."""
    return _save_qwen3(path, end_of_text=False)


def make_qwen3_embedding(path: Path, *, modules: bool) -> Path:
    """Last-token pooling behind an end token, with an instruction before queries; bare: no more than the generator."""
    bare = path if not modules else path.with_name(f"{path.name}-backbone")
    _save_qwen3(bare, end_of_text=True)
    if modules:
        backbone = Transformer(str(bare))
        backbone.modality_config = {"text": backbone.modality_config["text"]}
        parts = [backbone, Pooling(32, "lasttoken"), Normalize()]
        model = SentenceTransformer(modules=parts, prompts={"query": QUERY_PROMPT, "document": ""})
        model.save_pretrained(str(path), create_model_card=False)
    return path


def make_logit_score_reranker(path: Path) -> Path:
    """A text generator whose modules.json says how it scores, as sentence-transformers saves them since 5.4."""
    bare = _save_qwen3(path.with_name(f"{path.name}-backbone"), end_of_text=False)
    generator = Transformer(
        str(bare), transformer_task="text-generation", processor_kwargs={"chat_template": PAIR_TEMPLATE}
    )
    yes, no = generator.tokenizer.convert_tokens_to_ids(["yes", "no"])
    CrossEncoder(modules=[generator, LogitScore(yes, no)]).save_pretrained(str(path), create_model_card=False)
    return path


def make_dense_cross_encoder(path: Path) -> Path:
    """An encoder, pooled, under a layer that scores."""
    bare = save_bert(path.with_name(f"{path.name}-backbone"), BertModel(bert_config()))
    score = Dense(32, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    parts = [Transformer(str(bare)), Pooling(32, "cls"), score]
    CrossEncoder(modules=parts).save_pretrained(str(path), create_model_card=False)
    return path


def make_qwen3_sequence_classifier(path: Path) -> Path:
    """A text generator with a head of one label in place of its own, as converted rerankers are published."""
    bare = _save_qwen3(path.with_name(f"{path.name}-backbone"), end_of_text=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bare)
    config = Qwen3Config.from_pretrained(bare, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    _save(path, Qwen3ForSequenceClassification(config))
    tokenizer.save_pretrained(path)
    return path


def make_bge_gemma(path: Path) -> Path:
    tokenizer = _byte_tokenizer(["<pad>", "<eos>", "<bos>"])
    begin = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", begin)]
    )
    config = GemmaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        head_dim=8,
        num_key_value_heads=1,
        bos_token_id=begin,
        **_generator_sizes(),
    )
    _save(path, GemmaForCausalLM(config))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    fast.save_pretrained(path)
    return path


def _save_qwen3(path: Path, *, end_of_text: bool) -> Path:
    tokenizer = _byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    if end_of_text:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", pair="$A <|endoftext|> $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )
    config = Qwen3Config(vocab_size=tokenizer.get_vocab_size(), head_dim=8, num_key_value_heads=2, **_generator_sizes())
    _save(path, Qwen3ForCausalLM(config))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,  # which the published embedders and rerankers have from their base
    )
    fast.save_pretrained(path)
    return path


def _generator_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }


def _byte_tokenizer(special: Iterable[str]) -> Tokenizer:
    """Byte-level BPE, so that every text has its tokens, with whole tokens for the commonest words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS * 5, *WORDS * 5], trainer)
    return tokenizer


def _save(path: Path, model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2, generator=generator)
    model.tie_weights()
    model.save_pretrained(path)
