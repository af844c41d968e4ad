"""Are the weights all there, and in a form that is safe to load? Reads indexes and headers, never the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field

from models.discovery.folder import Entry, Folder
from models.discovery.safety import INDEX_LIMIT_BYTES, Refused, Unfinished, os_reason, printable, read_json_object

HEADER_LIMIT_BYTES = 100 << 20  # the safetensors format's own limit
_LFS_POINTER_BYTES = 1024  # a pointer file of Git LFS is about 130 bytes long
_NAMES_SHOWN = 3

_END_OFFSET = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]')
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLES_OF_TRAINING = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "trainer_state")
_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".mlmodel", ".npz")

SizeCache = MutableMapping[tuple[str, Entry], int]  # by name in the folder: what the header says


@dataclass(slots=True)
class Weights:
    """What was found: size of the files that an engine would load, and what speaks against loading them."""

    total_bytes: int = 0
    reasons: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def inspect(
    folder: Folder, *, allow_pickle: bool, sizes: SizeCache, subfolder: str = "", stem: str | None = None
) -> Weights:
    """Judges the weights directly in `subfolder` of a model's folder.

    `stem` is the one name that the loader looks for ("adapter_model"); without it, it takes the pickle beside, whatever
    other safetensors files are there. None: it takes any safetensors file.
    """
    weights = Weights()
    prefix = f"{subfolder}/" if subfolder else ""
    names = folder.names(subfolder)
    tensors = sorted(n for n in names if n.endswith(".safetensors"))
    try:
        if (tensors or "model.safetensors.index.json" in names) and not _takes_pickle(names, stem):
            chosen = _choose(folder, prefix, tensors, weights)
            _check_headers(folder, prefix, chosen, sizes, weights)
        else:
            _without_safetensors(folder, prefix, names, allow_pickle, weights)
    except Refused as error:
        weights.refusals.append(str(error))
    except Unfinished as error:
        weights.gaps.append(str(error))
    return weights


def inspect_modules(folder: Folder, subfolders: Iterable[str], *, allow_pickle: bool, sizes: SizeCache) -> Weights:
    """The same for sentence-transformers modules beside the transformer (`2_Dense/`), most of which have no weights."""
    total = Weights()
    for subfolder in subfolders:
        if any(name.endswith(".safetensors") or _is_pickle(name) for name in folder.names(subfolder)):
            found = inspect(folder, allow_pickle=allow_pickle, sizes=sizes, subfolder=subfolder, stem="model")
            total.total_bytes += found.total_bytes
            total.gaps += found.gaps
            total.refusals += [f"{subfolder}: {refusal}" for refusal in found.refusals]
    return total


def _choose(folder: Folder, prefix: str, tensors: list[str], weights: Weights) -> list[str]:
    """Of the safetensors files those that an engine loads: what the index names, else `model*`, else all.

    A folder often holds the same weights twice, as Mistral's `consolidated.safetensors` beside `model-*`.
    """
    index = f"{prefix}model.safetensors.index.json"
    if index in folder.files:
        wanted = _indexed(folder, index)
        _note_missing(sorted(wanted - set(tensors)), len(wanted), weights)
        return sorted(wanted & set(tensors))
    chosen = [n for n in tensors if n.startswith("model")] or tensors
    counts = {match["stem"]: int(match["count"]) for n in chosen if (match := _SHARD.match(n))}
    for stem, count in counts.items():
        wanted = {f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, min(count, 99_999) + 1)}
        _note_missing(sorted(wanted - set(tensors)), len(wanted), weights)
    return chosen


def _indexed(folder: Folder, index: str) -> set[str]:
    entries = read_json_object(f"{folder.path}/{index}", index, INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise Refused(f"{index} has no weight_map; copy the file again")
    wanted: set[str] = set()
    for name in entries.values():
        if name in wanted:
            continue
        if not isinstance(name, str) or "/" in name or not name.isprintable() or name in {"", ".", ".."}:
            raise Refused(f"{index} names a file outside of the folder: {printable(str(name))}")
        wanted.add(name)
    return wanted


def _note_missing(missing: list[str], count: int, weights: Weights) -> None:
    if missing:
        shown = ", ".join(printable(name) for name in missing[:_NAMES_SHOWN])
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        weights.gaps.append(f"{len(missing)} of {count} shards are missing: {shown}{more}")


def _check_headers(folder: Folder, prefix: str, chosen: list[str], sizes: SizeCache, weights: Weights) -> None:
    for name in chosen:
        entry = folder.files[prefix + name]
        weights.total_bytes += entry.size_bytes
        shown = printable(prefix + name)
        path = f"{folder.path}/{prefix}{name}"
        try:
            expected = sizes.get((prefix + name, entry))
            if expected is None:
                expected = sizes[prefix + name, entry] = expected_bytes(path, shown, entry.size_bytes)
        except Unfinished as error:
            weights.gaps.append(str(error))
        except Refused as error:
            weights.refusals.append(str(error))
        else:
            _compare(shown, entry.size_bytes, expected, weights)
    if chosen and not weights.gaps and not weights.refusals:
        noun = "file" if len(chosen) == 1 else "files"
        weights.reasons.append(f"{len(chosen)} safetensors {noun}, {weights.total_bytes:,} bytes, complete")


def _compare(shown: str, actual: int, expected: int, weights: Weights) -> None:
    if actual < expected:
        weights.gaps.append(f"{shown} is half-copied: {actual:,} of {expected:,} bytes are there")
    elif actual > expected:
        weights.refusals.append(f"{shown} has {actual:,} bytes, but its header says {expected:,}; copy it again")


def expected_bytes(path: str, shown: str, actual: int) -> int:
    """How long a safetensors file is according to its own header. Raises Unfinished, Refused."""
    if actual < 8:
        raise Unfinished(f"{shown} is empty" if actual == 0 else f"{shown} is half-copied: {actual} bytes are there")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Unfinished(f"{shown} has just gone") from error
    except OSError as error:
        raise Refused(f"{shown} cannot be read: {os_reason(error)}") from error
    try:
        return _expected_bytes(fd, shown, actual)
    except OSError as error:
        raise Refused(f"{shown} cannot be read: {os_reason(error)}") from error
    finally:
        os.close(fd)


def _expected_bytes(fd: int, shown: str, actual: int) -> int:
    start = os.pread(fd, 4096, 0)  # small headers in one call
    length = int.from_bytes(start[:8], "little")
    if length == 0:
        raise Unfinished(f"{shown} begins with zeros: its space is reserved, but it is not written yet")
    if actual < _LFS_POINTER_BYTES and start.startswith(b"version https://git-lfs"):
        raise Unfinished(f"{shown} is a Git LFS pointer, not the weights; run `git lfs pull` in the folder")
    if length > HEADER_LIMIT_BYTES:
        raise Refused(f"{shown} is not a safetensors file (its header would have {length:,} bytes)")
    if actual < 8 + length:
        raise Unfinished(f"{shown} is half-copied: {actual:,} bytes are there, less than its header")
    header = start[8 : 8 + length]
    while len(header) < length:
        part = os.pread(fd, length - len(header), 8 + len(header))
        if not part:
            raise Unfinished(f"{shown} ends within its header")
        header += part
    if header[:1] != b"{" or header.rstrip()[-1:] != b"}":
        raise Refused(f"{shown} is not a safetensors file (its header is not JSON)")
    return 8 + length + max(map(int, _END_OFFSET.findall(header)), default=0)


def _is_pickle(name: str) -> bool:
    return name.endswith(PICKLE_SUFFIXES) and not name.startswith(_PICKLES_OF_TRAINING)


def _takes_pickle(names: list[str], stem: str | None) -> bool:
    if stem is None or f"{stem}.safetensors" in names or f"{stem}.safetensors.index.json" in names:
        return False
    return any(_is_pickle(name) for name in names)


def _without_safetensors(folder: Folder, prefix: str, names: list[str], allow_pickle: bool, weights: Weights) -> None:
    pickles = sorted(name for name in names if _is_pickle(name))
    if pickles:
        _judge_pickles(folder, prefix, pickles, allow_pickle, weights)
    elif any(name.endswith(".gguf") for name in names):
        weights.refusals.append("only GGUF weights, which are not served; get the safetensors version of the model")
    elif other := [name for name in names if name.endswith(_OTHER_FRAMEWORKS)]:
        weights.refusals.append(
            f"no safetensors weights, only those of another framework ({printable(other[0])}); "
            "get or convert to the safetensors version"
        )
    else:
        weights.gaps.append("no weights yet (no .safetensors file)")


def _judge_pickles(folder: Folder, prefix: str, pickles: list[str], allow_pickle: bool, weights: Weights) -> None:
    weights.total_bytes = sum(folder.files[prefix + name].size_bytes for name in pickles)
    shown = ", ".join(printable(name) for name in pickles[:_NAMES_SHOWN])
    if not allow_pickle:
        weights.refusals.append(
            f"only pickle weights ({shown}), which can run code when loaded; get the safetensors version, or set "
            "allow_pickle: true for this model in roundhouse.yaml if you trust its source"
        )
        return
    weights.reasons.append(f"pickle weights ({shown}), allowed by the configuration (allow_pickle)")
    weights.gaps.extend(f"{name} is empty" for name in pickles if folder.files[prefix + name].size_bytes == 0)
    index = f"{prefix}pytorch_model.bin.index.json"
    if index in folder.files:
        wanted = _indexed(folder, index)
        _note_missing(sorted(wanted - set(pickles)), len(wanted), weights)
