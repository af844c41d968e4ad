"""A DeepSeek-OCR with random weights: files and names as those that are published, sizes as small as vLLM lets them be.

Its language model repeats the last token of the prompt: the output matrix is that of the input, and its layers add
little. That shows which token came last, and what keeps it from repeating itself for ever.

vLLM builds the two image encoders in one size, whatever config.json says (SAM ViT-B and CLIP-L, 0.4 billion weights).
`SMALL_ENCODERS`, run in its process, makes it build small ones, of the sizes that are in the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, HEADS, LAYERS, EXPERTS, FF, MOE_FF = 64, 2, 2, 4, 64, 32
SAM, SAM_DEPTH, SAM_HEADS, SAM_MLP = 16, 2, 1, 64
CLIP, CLIP_FF, CLIP_POSITIONS = 1024, 64, 257  # 1024: what SAM gives
VOCABULARY = 129280
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"  # noqa: RUF001
# ids as published where the recipe or vLLM names them, else free ones
SPECIAL = {BOS: 0, EOS: 1, PAD: 2, "<image>": 128815, "<|grounding|>": 128820, "<td>": 128821, "</td>": 128822}

SMALL_ENCODERS = f"""
from vllm.model_executor.models import deepencoder, deepseek_ocr

config = deepseek_ocr.CLIPVisionConfig
small = {{"num_hidden_layers": 1, "intermediate_size": {CLIP_FF}}}
deepseek_ocr.CLIPVisionConfig = lambda **sizes: config(**sizes | small)
deepseek_ocr.build_sam_vit_b = lambda: deepencoder._build_sam({SAM}, {SAM_DEPTH}, {SAM_HEADS}, [1])
"""

Arrays = dict[str, npt.NDArray[np.float32]]


def make(folder: Path) -> None:
    """Writes the model into `folder`, which is made."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    weights = {name: array for part in (_language(random), _sam(random), _clip(random)) for name, array in part.items()}
    weights["model.projector.layers.weight"] = _normal(random, HIDDEN, 2 * CLIP)
    weights["model.projector.layers.bias"] = _normal(random, HIDDEN)
    weights["model.image_newline"] = _normal(random, HIDDEN)
    weights["model.view_seperator"] = _normal(random, HIDDEN)
    weights = {name: array.astype(np.float16) for name, array in weights.items()}
    save_file(weights, folder / "model-00001-of-000001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-000001.safetensors")}
    _write(folder / "model.safetensors.index.json", index)
    _write(folder / "config.json", _config())
    _write(folder / "processor_config.json", {"processor_class": "DeepseekVLV2Processor", "image_token": "<image>"})
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    _write(folder / "tokenizer_config.json", {**names, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True})
    _write(folder / "special_tokens_map.json", names)
    _tokenizer().save(str(folder / "tokenizer.json"))


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


def _config() -> dict[str, object]:
    code = "modeling_deepseekocr"
    language = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_size": HIDDEN,
        "intermediate_size": FF, "kv_lora_rank": None, "lm_head": True, "max_position_embeddings": 8192,
        "moe_intermediate_size": MOE_FF, "n_group": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 2,
        "num_attention_heads": HEADS, "num_experts_per_tok": 2, "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS, "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0,
        "rm_head": False, "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "use_mla": False,
        "v_head_dim": 0, "vocab_size": VOCABULARY,
    }  # fmt: skip
    projector = {"input_dim": 2 * CLIP, "model_type": "mlp_projector", "n_embed": HIDDEN, "projector_type": "linear"}
    return {
        "architectures": ["DeepseekOCRForCausalLM"],
        "auto_map": {"AutoConfig": f"{code}.DeepseekOCRConfig", "AutoModel": f"{code}.DeepseekOCRForCausalLM"},
        "candidate_resolutions": [[1024, 1024]],
        "global_view_pos": "head",
        "language_config": language,
        "model_type": "deepseek_vl_v2",
        "projector_config": projector,
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "vision_config": {"image_size": 1024, "mlp_ratio": 3.7362, "model_name": "deeplip_b_l", "model_type": "vision"},
        **{key: value for key, value in language.items() if key != "architectures"},
    }


def _tokenizer() -> Tokenizer:
    """A token for each byte, and the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: 3 + number for number, letter in enumerate(letters)} | SPECIAL
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return tokenizer


def _normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """Such that a vector of length √n becomes one of length √m."""
    fan_in = shape[-1] if len(shape) > 1 else 1
    return random.standard_normal(shape, np.float32) * np.float32(scale / fan_in**0.5)


def _linear(random: np.random.Generator, name: str, outputs: int, inputs: int) -> Arrays:
    return {
        f"{name}.weight": _normal(random, outputs, inputs),
        f"{name}.bias": np.zeros(outputs, np.float32),
    }


def _norm(name: str, size: int) -> Arrays:
    return {f"{name}.weight": np.ones(size, np.float32), f"{name}.bias": np.zeros(size, np.float32)}


def _language(random: np.random.Generator) -> Arrays:
    embeddings = random.standard_normal((VOCABULARY, HIDDEN), np.float32)
    weights = {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings.copy()}
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}.self_attn.{projection}.weight"] = _normal(random, HIDDEN, HIDDEN, scale=0.3)
        if number < 1:  # first_k_dense_replace
            weights |= _mlp(random, f"{layer}.mlp", FF)
            continue
        weights[f"{layer}.mlp.gate.weight"] = _normal(random, EXPERTS, HIDDEN)
        weights |= _mlp(random, f"{layer}.mlp.shared_experts", 2 * MOE_FF)
        for expert in range(EXPERTS):
            weights |= _mlp(random, f"{layer}.mlp.experts.{expert}", MOE_FF)
    return weights


def _mlp(random: np.random.Generator, name: str, inner: int) -> Arrays:
    return {
        f"{name}.gate_proj.weight": _normal(random, inner, HIDDEN),
        f"{name}.up_proj.weight": _normal(random, inner, HIDDEN),
        f"{name}.down_proj.weight": _normal(random, HIDDEN, inner, scale=0.3),
    }


def _sam(random: np.random.Generator) -> Arrays:
    sam = "model.sam_model"
    weights = {
        f"{sam}.pos_embed": _normal(random, 1, 64, 64, SAM),
        f"{sam}.patch_embed.proj.weight": _convolution(random, SAM, 3, 16),
        f"{sam}.patch_embed.proj.bias": np.zeros(SAM, np.float32),
        f"{sam}.neck.0.weight": _convolution(random, 256, SAM, 1),
        f"{sam}.neck.2.weight": _convolution(random, 256, 256, 3),
        f"{sam}.net_2.weight": _convolution(random, 512, 256, 3),
        f"{sam}.net_3.weight": _convolution(random, CLIP, 512, 3),
        **_norm(f"{sam}.neck.1", 256),
        **_norm(f"{sam}.neck.3", 256),
    }
    for number, positions in enumerate((14, 64)):  # in windows, then over the whole image
        block = f"{sam}.blocks.{number}"
        weights |= _norm(f"{block}.norm1", SAM) | _norm(f"{block}.norm2", SAM)
        weights |= _linear(random, f"{block}.attn.qkv", 3 * SAM, SAM) | _linear(random, f"{block}.attn.proj", SAM, SAM)
        weights |= _linear(random, f"{block}.mlp.lin1", SAM_MLP, SAM) | _linear(
            random, f"{block}.mlp.lin2", SAM, SAM_MLP
        )
        for axis in ("rel_pos_h", "rel_pos_w"):
            weights[f"{block}.attn.{axis}"] = _normal(random, 2 * positions - 1, SAM // SAM_HEADS)
    return weights


def _convolution(random: np.random.Generator, outputs: int, inputs: int, size: int) -> npt.NDArray[np.float32]:
    return _normal(random, outputs, inputs * size * size).reshape(outputs, inputs, size, size)


def _clip(random: np.random.Generator) -> Arrays:
    clip = "model.vision_model"
    layer = f"{clip}.transformer.layers.0"
    return {
        f"{clip}.embeddings.class_embedding": _normal(random, CLIP),
        f"{clip}.embeddings.patch_embedding.weight": _convolution(random, CLIP, 3, 14),
        f"{clip}.embeddings.position_embedding.weight": _normal(random, CLIP_POSITIONS, CLIP),
        **_norm(f"{clip}.pre_layrnorm", CLIP),
        **_norm(f"{layer}.layer_norm1", CLIP),
        **_norm(f"{layer}.layer_norm2", CLIP),
        **_linear(random, f"{layer}.self_attn.qkv_proj", 3 * CLIP, CLIP),
        **_linear(random, f"{layer}.self_attn.out_proj", CLIP, CLIP),
        **_linear(random, f"{layer}.mlp.fc1", CLIP_FF, CLIP),
        **_linear(random, f"{layer}.mlp.fc2", CLIP, CLIP_FF),
    }
