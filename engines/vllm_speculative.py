"""Speculative decoding: what drafts tokens for a model, by its configuration or by what its folder holds.

A head for it costs little memory and makes answers faster while few run at once; the answers stay the same, as the
model checks every token. So one that comes with the model is used, on a GPU: on a CPU the draft would compute on the
very cores that it is to spare. The methods are those of vLLM 0.32 (config/speculative.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from engines.model_config import number, read_config, read_json
from engines.tensor_shapes import tensors
from models.discovery.folder import list_folder
from models.discovery.safety import Boundary
from models.discovery.weights import inspect
from models.types import ModelSpec

OPTION = "speculative-config"
NGRAM_TOKENS = 4
NGRAM_WINDOW = 4
DRAFT_TOKENS = 3  # of a draft model or an EAGLE head: what most of their authors recommend

# model_type → the key of its configuration that says how many layers of the model are a head for predicting further
# tokens. These are the models whose heads vLLM serves as method "mtp".
MTP_KEYS = {
    **dict.fromkeys(
        (
            "deepseek_v3",
            "deepseek_v32",
            "ernie4_5_moe",
            "exaone_moe",
            "glm4_moe",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "hy_v3",
            "longcat_flash",
            "mimo",
            "nemotron_h",
            "qwen3_next",
            "step3p5",
        ),
        "num_nextn_predict_layers",
    ),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "mtp_num_hidden_layers"),
}
# Parts of the names of architectures (config.json) of heads that vLLM loads as a draft of their own, and their methods.
_HEADS = (("eagle3", "eagle3"), ("eagle", "eagle"), ("dflash", "dflash"), ("medusa", "medusa"), ("mtp", "mtp"))


@dataclass(frozen=True, slots=True)
class Speculation:
    """`config` for --speculative-config, None for none; `draft` the folder of a draft that is not in the model's own.

    `refusal`: why what is configured cannot be had.
    """

    config: Mapping[str, Any] | None
    reason: str
    draft: Path | None = None
    refusal: str = ""


def choose(spec: ModelSpec, device: str, models_dir: Path | None) -> Speculation:
    """By `spec.overrides.speculative` (None: by what is found), `off`, `ngram`, or the id or path of a draft."""
    wanted = spec.overrides.speculative
    if wanted == "off":
        return Speculation(None, "speculative decoding: off, configured for this model")
    if wanted == "ngram":
        config = {"method": "ngram", "num_speculative_tokens": NGRAM_TOKENS, "prompt_lookup_max": NGRAM_WINDOW}
        return Speculation(config, "speculative decoding: ngram, configured for this model; drafts are repeated text")
    if wanted is not None:
        return _configured(wanted, models_dir)
    found = _found(spec)
    if found is None:
        return Speculation(None, "")
    if device == "cpu":
        reason = (
            f"speculative decoding: none, though {found.reason}: on a CPU drafts take the cores that they would spare"
        )
        return Speculation(None, reason)
    return Speculation(found.config, f"speculative decoding: {found.reason}", found.draft)


def has_draft(spec: ModelSpec) -> bool:
    """Whether weights of their own draft its tokens on a GPU."""
    wanted = spec.overrides.speculative
    return wanted not in ("off", "ngram") and (wanted is not None or _found(spec) is not None)


def _found(spec: ModelSpec) -> Speculation | None:
    """A model's fingerprint says nothing of its subfolders: those are looked at each time."""
    root = spec.path.parents[1] if spec.path.parent.name == "snapshots" else spec.path  # whose links lead to blobs/
    for path in _subfolders(spec.path):
        method = _head_method(read_json(path / "config.json"))
        if method and not _draft_refusal(path, root):
            config = {"method": method, "model": str(path), "num_speculative_tokens": DRAFT_TOKENS}
            return Speculation(config, f"the folder has an {method} head in {path.name}/", path)
    layers = _mtp_layers(spec)
    if layers and _has_mtp_tensors(spec.path, spec.fingerprint):
        config = {"method": "mtp", "num_speculative_tokens": layers}
        return Speculation(config, f"the model has a head that predicts {layers} more token(s) (MTP)")
    return None


def _mtp_layers(spec: ModelSpec) -> int:
    key = MTP_KEYS.get(spec.model_type)
    return number(read_config(spec), key) if key else 0


def _configured(wanted: str, models_dir: Path | None) -> Speculation:
    path = _locate(wanted, models_dir)
    if path is None:
        refusal = f"speculative: {wanted!r} is no model in the models folder, and no folder; off and ngram work without"
        return Speculation(None, "", refusal=refusal)
    root = Path("/") if models_dir is None or os.path.isabs(wanted) else models_dir  # a path is the owner's word
    if refusal := _draft_refusal(path, root):
        return Speculation(None, "", refusal=f"speculative: {wanted}: {refusal}")
    method = _head_method(read_json(path / "config.json")) or "draft_model"
    config = {"method": method, "model": str(path), "num_speculative_tokens": DRAFT_TOKENS}
    return Speculation(config, f"speculative decoding: {method} {wanted}, configured for this model", path)


def _locate(wanted: str, models_dir: Path | None) -> Path | None:
    """A folder, or an id of the models folder, flat, nested or in Hugging Face's cache layout."""
    if os.path.isabs(wanted):
        return Path(wanted) if Path(wanted, "config.json").is_file() else None
    if models_dir is None or ".." in Path(wanted).parts:
        return None
    cache = models_dir / f"models--{wanted.replace('/', '--')}"
    snapshots = sorted(cache.glob("snapshots/*"), key=lambda path: path.name != _main_revision(cache))
    for path in (models_dir / wanted, *snapshots):
        if (path / "config.json").is_file():
            return path
    return None


def _main_revision(cache: Path) -> str:
    """The one that was downloaded last, "" where that is not said."""
    try:
        return (cache / "refs/main").read_text()[:100].strip()
    except (OSError, ValueError):
        return ""


def _draft_refusal(path: Path, root: Path) -> str:
    """The same rules as for models: whole, no pickles, no code of its own, no links that lead out of `root`."""
    boundary = Boundary(str(root))
    if not boundary.holds(os.path.realpath(path)):
        return f"it is a symbolic link out of {root}"
    if not any(path.glob("*.safetensors")):
        return "it has no safetensors weights; pickles (.bin, .pt) can run code when loaded"
    folder = list_folder(str(path), boundary)
    weights = inspect(folder, allow_pickle=False, sizes={})
    if problems := [*folder.refusals, *weights.refusals, *folder.gaps, *weights.gaps]:
        return problems[0]
    if read_json(path / "config.json").get("auto_map"):
        return "its config.json names Python code of its own (auto_map), which is not run"
    return ""


def _head_method(config: Mapping[str, Any]) -> str | None:
    """The method of a folder that is a head for another model; None for one that is a model itself."""
    names = config.get("architectures")
    text = " ".join(map(str, names)) if isinstance(names, list) else ""
    kind = f"{text} {config.get('model_type', '')} {config.get('speculators_model_type', '')}".lower()
    return next((method for part, method in _HEADS if part in kind), None)


def _subfolders(folder: Path) -> tuple[Path, ...]:
    try:
        return _listed(folder, folder.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=256)
def _listed(folder: Path, mtime_ns: int) -> tuple[Path, ...]:
    """Most models have none, and then it costs no more than a look at the folder's time."""
    return tuple(sorted(path for path in folder.iterdir() if path.is_dir()))


@lru_cache(maxsize=256)
def _has_mtp_tensors(folder: Path, fingerprint: str) -> bool:
    """Many quantized copies leave the head out, whatever their config says; vLLM would end for want of it."""
    last = f"layers.{number(read_json(folder / 'config.json'), 'num_hidden_layers')}."
    return any(last in name or "mtp." in name for name in tensors(folder, fingerprint))


def draft_bytes(speculation: Speculation) -> int:
    """What a draft of its own adds to the model's weights."""
    if speculation.draft is None:
        return 0
    try:
        return sum(path.stat().st_size for path in speculation.draft.glob("*.safetensors"))
    except OSError:
        return 0
