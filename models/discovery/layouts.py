"""Where models lie in the models folder: `name/`, `org/name/`, and `models--org--name/snapshots/<rev>`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass

from models.discovery.folder import Folder, list_folder
from models.discovery.safety import Boundary, Refused, name_problem, os_reason, printable, read_bounded

CACHE_PREFIX = "models--"
_NOT_MODELS = ("datasets--", "spaces--", "lost+found")
_REVISION = re.compile(r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$")
_REF_LIMIT_BYTES = 256
_LINK_OUT = "a symbolic link out of the models folder; move or bind-mount what it points to into the folder"


@dataclass(slots=True)
class Found:
    """A folder that is meant to be a model. `note` says how it was found, where that is worth a reason."""

    id: str
    folder: Folder
    note: str | None = None


def walk(models_dir: str, boundary: Boundary, expected: Container[str] = ()) -> Iterator[Found]:
    """Every model folder, in the order of names, those of Hugging Face caches last. Never raises.

    A folder whose id is among `expected` is a model, whatever is in it.
    """
    caches: list[tuple[str, str]] = []
    for name, path in _subfolders(models_dir):
        if name.startswith(CACHE_PREFIX):
            caches.append((name, path))
        elif not name.startswith(_NOT_MODELS):
            yield from _flat_or_nested(name, path, boundary, caches, expected)
    for name, path in caches:
        yield _from_cache(name, path, boundary)


def _subfolders(path: str) -> list[tuple[str, str]]:
    """Names and paths of what may be folders: directories, and links, which are judged later."""
    try:
        with os.scandir(path) as entries:
            found = [(e.name, e.path) for e in entries if e.name[0] != "." and (e.is_symlink() or e.is_dir())]
    except OSError:
        return []  # not there (yet), or not readable: the same as empty, until it changes
    found.sort()
    return found


def _flat_or_nested(
    name: str, path: str, boundary: Boundary, caches: list[tuple[str, str]], expected: Container[str]
) -> Iterator[Found]:
    folder = _open(name, path, boundary)
    if folder is None:
        return
    if name in expected:
        yield Found(_checked_id(name, folder), folder)
        return
    if _is_model(folder) or not (folder.dirs or folder.refused_links):
        yield from _unless_unrelated(name, folder)
        return
    for link in folder.refused_links:
        yield Found(_checked_id(f"{name}/{link}", folder), _refused(f"{path}/{link}", _LINK_OUT))
    for child in folder.dirs:
        if child.startswith(CACHE_PREFIX):
            caches.append((child, f"{path}/{child}"))
        elif not child.startswith(_NOT_MODELS):
            below = _open(f"{name}/{child}", f"{path}/{child}", boundary)
            if below is not None and f"{name}/{child}" in expected:
                yield Found(_checked_id(f"{name}/{child}", below), below)
            elif below is not None:
                yield from _unless_unrelated(f"{name}/{child}", below)


def _is_model(folder: Folder) -> bool:
    unreadable = len(folder.refusals) > len(folder.refused_links)
    return folder.has_marker or folder.has_hint or unreadable


def _unless_unrelated(model_id: str, folder: Folder) -> Iterator[Found]:
    """A folder of other things (pictures, notes, deeper folders) is no model and not worth a line; an empty one is."""
    if not folder.files and not folder.dirs and not folder.gaps and not folder.refusals:
        folder.gaps.append("the folder is empty")
    elif not _is_model(folder) and not folder.gaps:
        return
    yield Found(_checked_id(model_id, folder), folder)


def _checked_id(model_id: str, folder: Folder) -> str:
    """The id; with characters escaped, and the folder refused, where it could not be an id."""
    for part in model_id.split("/"):
        problem = name_problem(part)
        if problem is not None:
            folder.refusals.append(problem)
            return printable(model_id)
    return model_id


def _open(name: str, path: str, boundary: Boundary) -> Folder | None:
    """The listing of a folder that may be reached by a symbolic link; None for a link to a file."""
    try:
        if os.path.islink(path):
            real = boundary.resolve(path)
            if not boundary.holds(real):
                return _refused(path, _LINK_OUT)
            if (os.path.realpath(os.path.dirname(path)) + "/").startswith(real + "/"):
                return _refused(path, "a symbolic link to a folder that contains it (a cycle)")
            if not stat.S_ISDIR(os.stat(path).st_mode):
                return None
    except FileNotFoundError:
        return _refused(path, "a symbolic link to nothing")
    except OSError as error:
        return _refused(path, f"cannot be followed: {os_reason(error)}")
    return list_folder(path, boundary)


def _refused(path: str, reason: str) -> Folder:
    return Folder(path, refusals=[reason], has_hint=True)


def _from_cache(name: str, path: str, boundary: Boundary) -> Found:
    """Of a Hugging Face cache repository the revision that `refs/main` names, else the newest one."""
    org, dashes, rest = name[len(CACHE_PREFIX) :].partition("--")
    model_id = f"{org}/{rest}" if dashes else org
    checked = _open(name, path, boundary)
    if checked is None or checked.refusals:
        folder = checked or _refused(path, "not a folder")
        return Found(_checked_id(model_id, folder), folder)
    revision, note = _revision(path)
    if revision is None:
        folder = Folder(path, gaps=["the Hugging Face cache has no snapshot yet"])
    else:
        folder = _open(name, f"{path}/snapshots/{revision}", boundary) or _refused(path, "the snapshot is not a folder")
    folder.gaps.extend(_unfinished_blobs(path))
    return Found(_checked_id(model_id, folder), folder, note)


def _revision(path: str) -> tuple[str | None, str | None]:
    snapshots = [name for name, _ in _subfolders(f"{path}/snapshots") if _REVISION.match(name)]
    if not snapshots:
        return None, None
    try:
        ref = read_bounded(f"{path}/refs/main", "refs/main", _REF_LIMIT_BYTES).decode("ascii", "replace").strip()
    except (FileNotFoundError, Refused):
        ref = ""
    if ref in snapshots:
        return ref, f"Hugging Face cache, revision {ref[:12]} (refs/main)"
    newest = max(snapshots, key=lambda name: _mtime_ns(f"{path}/snapshots/{name}"))
    return newest, f"Hugging Face cache, revision {newest[:12]} (the newest; refs/main names none that is here)"


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _unfinished_blobs(path: str) -> list[str]:
    try:
        names = [name for name in os.listdir(f"{path}/blobs") if name.endswith(".incomplete")]
    except OSError:
        return []
    if not names:
        return []
    return [f"blobs has {len(names)} .incomplete file(s): the download is under way, or broke off; finish or delete it"]
