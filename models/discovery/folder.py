"""One model folder as a listing: names, sizes and times of its files, gathered with as few system calls as possible."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from models.discovery.safety import Boundary, os_reason, printable

MAX_ENTRIES = 20_000  # of one folder; more is not a model, and listing it would hold up the others
MAX_DEPTH = 2  # sentence-transformers' modules lie in subfolders, routers' one deeper

# Written by downloaders and copy programs while a file is under way.
UNFINISHED_SUFFIXES = (
    ".incomplete", ".part", ".partial", ".tmp", ".crdownload", ".aria2", ".download", ".filepart", ".!qb",
)  # fmt: skip
_RSYNC_TEMP = re.compile(r"^\..+\.(?:safetensors|json|jinja|bin|model|txt)\.[A-Za-z0-9]{6}$")
_IGNORED_IN_FINGERPRINT = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".log")
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_MARKERS = frozenset({"config.json", "modules.json", "adapter_config.json", "params.json", "model_index.json"})
_HINTS = frozenset({
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json", "generation_config.json",
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "special_tokens_map.json",
})  # fmt: skip


class Entry(NamedTuple):
    """A plain file: size, and times in nanoseconds. `ctime_ns` also changes with mode and owner."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(slots=True)
class Folder:
    """A listing. `files` are relative to `path` (`1_Pooling/config.json`); hidden ones are left out.

    `refusals` are reasons not to serve it that show in the listing alone, `gaps` signs that it is half-copied.
    """

    path: str
    files: dict[str, Entry] = field(default_factory=dict)
    dirs: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    refused_links: list[str] = field(default_factory=list)  # names of links whose reason is among the refusals
    has_marker: bool = False
    has_hint: bool = False

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for two listings exactly if nothing that a verdict depends on has changed."""
        return (self.path, self.files, self.dirs, self.refusals, self.gaps)

    @property
    def newest_mtime_ns(self) -> int:
        return max((entry.mtime_ns for entry in self.files.values()), default=0)

    @property
    def newest_ctime_ns(self) -> int:
        return max((entry.ctime_ns for entry in self.files.values()), default=0)

    def fingerprint(self) -> str:
        """Names, sizes and modification times of all files but documentation and pictures, as 32 hex digits."""
        parts = [
            f"{name}\0{entry.size_bytes}\0{entry.mtime_ns}"
            for name, entry in self.files.items()
            if not name.lower().endswith(_IGNORED_IN_FINGERPRINT)
        ]
        parts.sort()
        return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def names(self, subfolder: str = "") -> list[str]:
        """Names of the plain files directly in `subfolder`."""
        if not subfolder:
            return [name for name in self.files if "/" not in name]
        start = subfolder + "/"
        return [name[len(start) :] for name in self.files if name.startswith(start) and "/" not in name[len(start) :]]


def list_folder(path: str, boundary: Boundary) -> Folder:
    """Lists `path`, and its subfolders too if it is a sentence-transformers one (only those keep files there)."""
    folder = Folder(path)
    _list_into(folder, "", boundary)
    modules = folder.dirs if "modules.json" in folder.files else [name for name in folder.dirs if name == "1_Pooling"]
    for name in modules:
        _list_below(folder, name, boundary, depth=1)
    return folder


def _list_below(folder: Folder, prefix: str, boundary: Boundary, depth: int) -> None:
    below = _list_into(folder, prefix + "/", boundary)
    if depth < MAX_DEPTH:
        for name in below:
            _list_below(folder, f"{prefix}/{name}", boundary, depth + 1)


def _list_into(folder: Folder, prefix: str, boundary: Boundary) -> list[str]:
    """Adds the entries of one directory; returns the names of its subdirectories."""
    path = f"{folder.path}/{prefix[:-1]}" if prefix else folder.path
    dirs: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if len(folder.files) >= MAX_ENTRIES:
                    folder.refusals.append(f"more than {MAX_ENTRIES:,} files; this is not a model's folder")
                    break
                _add_entry(folder, prefix, entry, boundary, dirs)
    except FileNotFoundError:
        return []  # deleted meanwhile: the next scan will not find it either
    except OSError as error:
        where = f"the folder {prefix[:-1]}" if prefix else "the folder"
        folder.refusals.append(f"{where} cannot be read: {os_reason(error)}")
    dirs.sort()  # scandir's order is the disk's; equal folders must compare equal
    if not prefix:
        folder.dirs = dirs
    return dirs


def _add_entry(folder: Folder, prefix: str, entry: os.DirEntry[str], boundary: Boundary, dirs: list[str]) -> None:
    name = entry.name
    if name[0] == ".":
        _add_hidden(folder, name, entry.path)
        return
    if entry.is_symlink() and not _link_is_safe(folder, prefix + name, entry.path, boundary):
        folder.refused_links.append(prefix + name)
        _note_name(folder, prefix, name)  # a folder of such links is still meant to be a model
        return
    try:
        info = entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():
            folder.gaps.append(f"{printable(prefix + name)} is a symbolic link to a file that is not there")
        return
    except OSError as error:
        folder.refusals.append(f"{printable(prefix + name)} cannot be read: {os_reason(error)}")
        return
    if stat.S_ISREG(info.st_mode):
        folder.files[prefix + name] = Entry(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        _note_name(folder, prefix, name)
    elif stat.S_ISDIR(info.st_mode):
        dirs.append(name)


def _note_name(folder: Folder, prefix: str, name: str) -> None:
    if name.lower().endswith(UNFINISHED_SUFFIXES):
        folder.gaps.append(f"{printable(prefix + name)} is a download or copy under way; finish or delete it")
        folder.has_hint = True
    elif not prefix and (name in _MARKERS or name.endswith(_WEIGHT_SUFFIXES)):
        folder.has_marker = True
    elif name in _HINTS:
        folder.has_hint = True


def _add_hidden(folder: Folder, name: str, path: str) -> None:
    """Hidden files do not count, except those by which rsync and `hf download` show that they are at work."""
    if _RSYNC_TEMP.match(name):
        folder.gaps.append(f"{printable(name)} shows that rsync is still copying; finish it or delete the file")
        folder.has_hint = True
    elif name == ".cache":
        try:
            under_way = [n for n in os.listdir(f"{path}/huggingface/download") if n.endswith(".incomplete")]
        except OSError:
            return
        if under_way:
            folder.gaps.append("hf download is still fetching files (.cache/huggingface/download has .incomplete ones)")
            folder.has_hint = True


def _link_is_safe(folder: Folder, name: str, path: str, boundary: Boundary) -> bool:
    try:
        real = boundary.resolve(path)
    except OSError as error:
        folder.refusals.append(f"{printable(name)} cannot be followed: {os_reason(error)}")
        return False
    if not boundary.holds(real):
        folder.refusals.append(
            f"{printable(name)} is a symbolic link out of the models folder; copy what it points to into the folder"
        )
        return False
    return True
