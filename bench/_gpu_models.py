"""Models made on the spot, of chosen sizes, with random weights: no download, no torch, no GPU.

What they answer means nothing, but loading, sleeping, waking and computing take as long as with trained weights of the
same shapes. Written at the speed of the disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VOCABULARY = 32_000
CONTEXT_TOKENS = 8_192
HEAD_DIM = 128
STANDARD_DEVIATION = 0.02  # of the weights, as models are initialised: activations neither vanish nor explode
POOL_VALUES = 1 << 24  # random numbers that all weights are cut from, each from another place
_BFLOAT16_BYTES = 2
_ONE = 0x3F80  # 1.0 in bfloat16
_SEED = 20_26


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer of a Llama; the number of layers makes the size."""

    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = HEAD_DIM

    @property
    def layer_values(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    def layers(self, size_bytes: int) -> int:
        """How many make a model of about `size_bytes`, the embeddings counted."""
        rest = size_bytes // _BFLOAT16_BYTES - 2 * VOCABULARY * self.hidden
        return max(2, round(rest / self.layer_values))


# From these sizes on (in bytes); below the first is for tests.
SHAPES = (
    (0, Shape(64, 2, 1, 128, 32)),
    (256 << 20, Shape(1024, 8, 4, 3072)),
    (2 << 30, Shape(2048, 16, 8, 6144)),
    (6 << 30, Shape(3072, 24, 8, 8192)),
    (12 << 30, Shape(4096, 32, 8, 14336)),
)


@dataclass(frozen=True, slots=True)
class MadeModel:
    """A folder with a model in it, and what the engine layer must know of it."""

    path: Path
    weights_bytes: int
    layers: int
    kv_heads: int
    head_dim: int


def make_chat(folder: Path, size_bytes: int) -> MadeModel:
    """A Llama of about `size_bytes` of bfloat16 weights in a new folder. Raises OSError (no room)."""
    shape = next(shape for least, shape in reversed(SHAPES) if size_bytes >= least)
    layers = shape.layers(size_bytes)
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    _write_json(folder / "config.json", config)
    _write_byte_tokenizer(folder)
    weights_bytes = _write_weights(folder / "model.safetensors", dict(_llama(shape, layers)))
    return MadeModel(folder, weights_bytes, layers, shape.kv_heads, shape.head_dim)


def make_embedder(folder: Path, hidden: int = 768, layers: int = 12, dtype: str = "bfloat16") -> MadeModel:
    """A BERT with mean pooling, of sentence-transformers' layout; the size of bge-base as it is. Raises OSError.

    `dtype` is what it is to be loaded as; the file's weights are bfloat16.
    """
    folder.mkdir(parents=True)
    vocabulary = _write_word_tokenizer(folder)
    heads = hidden // 64
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    _write_json(folder / "config.json", config)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    weights_bytes = _write_weights(folder / "model.safetensors", dict(_bert(hidden, layers, vocabulary)))
    return MadeModel(folder, weights_bytes, layers, heads, 64)


def _llama(shape: Shape, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for index in range(layers):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (shape.intermediate, hidden)
        yield f"{layer}.mlp.up_proj.weight", (shape.intermediate, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, shape.intermediate)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def _bert(hidden: int, layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    def dense(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (rows, columns)
        yield f"{name}.bias", (rows,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (hidden,)
        yield f"{name}.bias", (hidden,)

    for name, rows in (("word", vocabulary), ("position", 512), ("token_type", 2)):
        yield f"embeddings.{name}_embeddings.weight", (rows, hidden)
    yield from norm("embeddings.LayerNorm")
    for index in range(layers):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            yield from dense(f"{layer}.attention.self.{part}", hidden, hidden)
        yield from dense(f"{layer}.attention.output.dense", hidden, hidden)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from dense(f"{layer}.intermediate.dense", 4 * hidden, hidden)
        yield from dense(f"{layer}.output.dense", hidden, 4 * hidden)
        yield from norm(f"{layer}.output.LayerNorm")
    yield from dense("pooler.dense", hidden, hidden)


def _write_weights(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> int:
    """One safetensors file; its tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * _BFLOAT16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(_SEED)
    pool = _bfloat16(generator.standard_normal(POOL_VALUES, dtype=np.float32) * STANDARD_DEVIATION)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in tensors.items():
            for piece in _values(name, math.prod(shape), pool, generator):
                file.write(piece.data)
    return end


def _values(
    name: str, count: int, pool: NDArray[np.uint16], generator: np.random.Generator
) -> Iterator[NDArray[np.uint16]]:
    """Norms start at one and biases at zero, as in a fresh model; the rest is random."""
    if len(pool) > count and name.endswith(("norm.weight", "LayerNorm.weight")):
        yield np.full(count, _ONE, np.uint16)
        return
    if name.endswith(".bias"):
        yield np.zeros(count, np.uint16)
        return
    while count:
        start = int(generator.integers(len(pool) // 2))
        piece = pool[start : start + min(count, len(pool) - start)]
        count -= len(piece)
        yield piece


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of a float32 is a bfloat16, rounded towards zero."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_byte_tokenizer(folder: Path) -> None:
    """Bytes are tokens, and so are VOCABULARY made-up words: whatever a random model answers can be written down."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = ["<s>", "</s>", *alphabet, *(f"word{index}" for index in range(VOCABULARY))][:VOCABULARY]
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(texts)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_word_tokenizer(folder: Path) -> int:
    """Letters, as BERT splits a word that it does not know; the number of tokens."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {text: index for index, text in enumerate(texts)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(texts) + "\n")
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, **special}
    _write_json(folder / "tokenizer_config.json", settings)
    return len(texts)


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1))
