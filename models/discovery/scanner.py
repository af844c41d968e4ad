"""From a folder of models to a list of ModelSpec: reads a few small files of each, never weights, never code.

A verdict has two halves: the task, by evidence (evidence.py), and whether the folder may be served at all: refused
(unsafe, broken, nothing serves it), half-copied, or available. Each half leaves its reasons.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from models.discovery import facts, remote_code, weights
from models.discovery.documents import Document, Documents, clues, missing_modules, module_folders, read_documents
from models.discovery.evidence import ENGINES, NONE_REGISTERED, Verdict, decide, engine_for
from models.discovery.folder import Folder
from models.discovery.layouts import Found, walk
from models.discovery.safety import Boundary, Refused, Unfinished, name_problem, os_reason, printable
from models.types import Availability, ModelOverrides, ModelSpec, Registered, Task

_DEFAULTS = ModelOverrides()
_CLOCK_SKEW_NS = 1_000_000_000  # a file server's clock may be ahead; further ahead, its times say nothing
_TAIL_BYTES = 64  # enough to see whether a JSON text ends in its closing brace


def scan(models_dir: Path, overrides: Mapping[str, ModelOverrides] | None = None) -> list[ModelSpec]:
    """Every model below `models_dir`, sorted by id. Raises nothing for what it finds there; [] if it does not exist.

    `overrides` are by model id. To scan again and read only what changed, keep a `Scanner`.
    """
    return Scanner(models_dir, overrides).scan()


@dataclass(slots=True)
class _Judged:
    signature: tuple[object, ...]
    overrides: ModelOverrides
    spec: ModelSpec
    sizes: weights.SizeCache


class Scanner:
    """Scans again and again, and reads only the folders that changed. One scan at a time; safe to call from threads."""

    def __init__(
        self,
        models_dir: Path,
        overrides: Mapping[str, ModelOverrides] | None = None,
        registered: Mapping[str, Registered] = NONE_REGISTERED,
    ) -> None:
        """`registered`: by architecture, what packages serve (entry-point group `roundhouse.architectures`)."""
        self.models_dir = Path(os.path.abspath(models_dir))
        self._overrides: Mapping[str, ModelOverrides] = overrides or {}
        self._registered = registered
        self._judged: dict[str, _Judged] = {}
        self._lock = threading.Lock()
        self._available: dict[str, str] = {}  # paths listed as available by the last scan, with their fingerprints
        self.unsettled: frozenset[str] = frozenset()  # ids that the last scan found still being written
        self.duration_s = 0.0  # of the last scan

    def set_overrides(self, overrides: Mapping[str, ModelOverrides]) -> None:
        """Takes effect with the next scan, which judges again only the models that it changes."""
        self._overrides = overrides

    def scan(self, settle_s: float = 0.0) -> list[ModelSpec]:
        """Every model, sorted by id.

        With `settle_s`, a folder that is available now, was not so at the last scan, and of which a file changed within
        the last `settle_s` seconds is listed as incomplete, and named in `unsettled`: the file that decides its task
        may be the next to arrive.
        """
        with self._lock:
            started = time.monotonic()
            specs = self._scan(settle_s)
            self.duration_s = time.monotonic() - started
            return specs

    def _scan(self, settle_s: float) -> list[ModelSpec]:
        overrides = self._overrides
        root = str(self.models_dir)
        judged: dict[str, _Judged] = {}
        unsettled: set[str] = set()
        now_ns = time.time_ns()
        candidates: list[ModelSpec] = []
        expected = {model_id for model_id, given in overrides.items() if _reads_anything(given, self._registered)}
        for found in walk(root, Boundary(root), expected):
            one = self._judge(found, overrides.get(found.id, _DEFAULTS))
            judged[found.folder.path] = one
            spec = one.spec
            if settle_s and self._is_being_written(found.folder, spec, now_ns, settle_s):
                unsettled.add(spec.id)
                reason = "files still growing: the folder changed a moment ago"
                spec = replace(spec, availability=Availability.INCOMPLETE, reasons=(*spec.reasons, reason))
            candidates.append(spec)
        self._judged, self.unsettled = judged, frozenset(unsettled)
        self._available = {str(s.path): s.fingerprint for s in candidates if s.availability is Availability.AVAILABLE}
        return _without_duplicates(candidates)

    def _judge(self, found: Found, overrides: ModelOverrides) -> _Judged:
        folder = found.folder
        signature = (found.id, found.note, folder.signature)
        known = self._judged.get(folder.path)
        if known is not None and known.signature == signature and known.overrides == overrides:
            return known
        sizes: weights.SizeCache = {}
        if known is not None:  # a header that was read before stays valid while its file does
            sizes = {key: size for key, size in known.sizes.items() if folder.files.get(key[0]) == key[1]}
        return _Judged(signature, overrides, judge(found, overrides, sizes, self._registered), sizes)

    def _is_being_written(self, folder: Folder, spec: ModelSpec, now_ns: int, settle_s: float) -> bool:
        if spec.availability is not Availability.AVAILABLE or self._available.get(folder.path) == spec.fingerprint:
            return False
        age_ns = now_ns - folder.newest_ctime_ns
        return -_CLOCK_SKEW_NS < age_ns < settle_s * 1e9


def _without_duplicates(candidates: Iterable[ModelSpec]) -> list[ModelSpec]:
    """Of several folders with one id the first that can be served, else the first; the others in its reasons."""
    by_id: dict[str, list[ModelSpec]] = {}
    for spec in candidates:
        by_id.setdefault(spec.id, []).append(spec)
    chosen: list[ModelSpec] = []
    for same in by_id.values():
        best = next((spec for spec in same if spec.availability is Availability.AVAILABLE), same[0])
        others = tuple(f"the same id again at {printable(str(o.path))}, not used" for o in same if o is not best)
        chosen.append(replace(best, reasons=best.reasons + others) if others else best)
    chosen.sort(key=lambda spec: spec.id)
    return chosen


# One folder


class _Findings:
    """Accumulates reasons; what refuses weighs more than what is missing."""

    def __init__(self, found: Found) -> None:
        self.reasons: list[str] = [found.note] if found.note else []
        self.refusals: list[str] = list(found.folder.refusals)
        self.gaps: list[str] = list(found.folder.gaps)

    def availability(self) -> Availability:
        if self.refusals:
            return Availability.UNUSABLE
        return Availability.INCOMPLETE if self.gaps else Availability.AVAILABLE

    def all(self) -> tuple[str, ...]:
        return (*self.reasons, *self.refusals, *self.gaps)


def judge(
    found: Found,
    overrides: ModelOverrides,
    sizes: weights.SizeCache,
    registered: Mapping[str, Registered] = NONE_REGISTERED,
) -> ModelSpec:
    """The verdict on one folder. `sizes` remembers what safetensors headers said."""
    findings = _Findings(found)
    if _reads_anything(overrides, registered):
        return _judge_files(found, overrides, findings, sizes)
    documents = Documents(found.folder)
    verdict: Verdict | None = None
    if found.folder.files or not found.folder.refusals:
        try:
            documents = read_documents(found.folder)
            if documents.config or documents.adapter is not None or documents.modules is not None:
                verdict = decide(clues(documents, found.id), overrides, registered)
            else:
                verdict = _without_config(found.folder, findings, overrides)
        except Refused as error:
            findings.refusals.append(str(error))
        except Unfinished as error:
            findings.gaps.append(str(error))
    if verdict is None:
        return _spec(found, overrides, Verdict(overrides.task or Task.UNSUPPORTED), documents, findings, 0)
    findings.reasons[:0] = verdict.reasons
    total_bytes = _check_all(verdict, documents, overrides, findings, sizes)
    return _spec(found, overrides, verdict, documents, findings, total_bytes)


def _reads_anything(overrides: ModelOverrides, registered: Mapping[str, Registered]) -> bool:
    """Whether the configuration gives the model to an engine of which nothing says that it reads published folders."""
    known = {*ENGINES.values(), *(entry.engine for entry in registered.values())}
    return overrides.engine is not None and overrides.task is not None and overrides.engine not in known


def _judge_files(found: Found, overrides: ModelOverrides, findings: _Findings, sizes: weights.SizeCache) -> ModelSpec:
    """What lies in the folder is its engine's affair, but for what is unsafe or half-copied."""
    assert overrides.task is not None
    assert overrides.engine is not None
    folder = found.folder
    findings.reasons += [f"configuration: task {overrides.task.value}", f"configuration: engine {overrides.engine}"]
    if any(name.endswith((".safetensors", *weights.PICKLE_SUFFIXES)) for name in folder.names()):
        inspected = weights.inspect(folder, allow_pickle=overrides.allow_pickle, sizes=sizes)
        findings.refusals.extend(inspected.refusals)
        findings.gaps.extend(inspected.gaps)
    total_bytes = sum(entry.size_bytes for entry in folder.files.values())
    return _spec(found, overrides, Verdict(overrides.task), Documents(folder), findings, total_bytes)


def _without_config(folder: Folder, findings: _Findings, overrides: ModelOverrides) -> Verdict:
    names = folder.names()
    if "model_index.json" in names:
        return decide(clues(Documents(folder), ""), overrides)
    if any(name.endswith(".gguf") for name in names) and not any(name.endswith(".safetensors") for name in names):
        findings.reasons.append("only GGUF files")
    elif not findings.gaps:
        findings.gaps.append("no config.json yet")
    return Verdict(overrides.task or Task.UNSUPPORTED)


def _check_all(
    verdict: Verdict,
    documents: Documents,
    overrides: ModelOverrides,
    findings: _Findings,
    sizes: weights.SizeCache,
) -> int:
    """Adds what speaks against serving the model; returns the size of its weights."""
    if verdict.unserved and overrides.engine is None:
        findings.refusals.append(verdict.unserved)
    elif verdict.task not in _SERVED and overrides.engine is None and overrides.task is not None:
        findings.refusals.append(f"no engine serves the task {verdict.task.value} yet")
    if overrides.engine is not None:
        findings.reasons.append(f"configuration: engine {overrides.engine}")
    if documents.adapter is not None:
        _check_adapter(documents.adapter, findings)
    _check_code(verdict, documents, overrides, findings)
    total_bytes = _check_weights(documents, _stem(verdict, overrides), overrides, findings, sizes)
    if verdict.task in _SERVED and documents.adapter is None:
        _check_tokenizer(documents, findings)
    return total_bytes


_SERVED = frozenset({Task.CHAT, Task.COMPLETION, Task.EMBED, Task.RERANK, Task.CLASSIFY, Task.ADAPTER})


def _stem(verdict: Verdict, overrides: ModelOverrides) -> str | None:
    """The file name, less its ending, that the engine's loader looks for; None where it takes any safetensors file."""
    if verdict.task is Task.ADAPTER:
        return "adapter_model"
    return "model" if engine_for(verdict, overrides) == "transformers" else None


def _check_weights(
    documents: Documents,
    stem: str | None,
    overrides: ModelOverrides,
    findings: _Findings,
    sizes: weights.SizeCache,
) -> int:
    folder = documents.folder
    if "model_index.json" in folder.files:
        return 0
    found = weights.inspect(
        folder, allow_pickle=overrides.allow_pickle, sizes=sizes, subfolder=documents.base, stem=stem
    )
    findings.reasons.extend(found.reasons)
    findings.gaps.extend(found.gaps)
    findings.refusals.extend(found.refusals)
    beside = [path for path in module_folders(documents) if path != documents.base]
    modules = weights.inspect_modules(folder, beside, allow_pickle=overrides.allow_pickle, sizes=sizes)
    findings.gaps.extend(modules.gaps + missing_modules(documents))
    findings.refusals.extend(modules.refusals)
    return found.total_bytes + modules.total_bytes


def _check_code(verdict: Verdict, documents: Documents, overrides: ModelOverrides, findings: _Findings) -> None:
    engine = engine_for(verdict, overrides)
    if engine == "transformers":
        unknown = remote_code.unknown_type(documents.config, documents.modules)
        findings.refusals.extend([unknown] if unknown else [])
    needs = (
        (remote_code.custom_module(documents.modules) if documents.modules else None)
        or remote_code.custom_config(documents.config, engine)
        or remote_code.custom_processing(documents.tokenizer_config, documents.in_base("tokenizer_config.json"))
        or remote_code.custom_processing(documents.processor_config, "preprocessor_config.json")
    )
    if needs is None:
        if documents.config.get("auto_map"):
            findings.reasons.append("config.json: auto_map is not needed, the libraries have this model built in")
    elif engine not in ENGINES.values():
        findings.reasons.append(f"{needs}; whether its code may run (trust_remote_code), the engine {engine} is told")
    elif overrides.trust_remote_code:
        findings.reasons.append(f"{needs}; its code may run, by the configuration (trust_remote_code)")
    else:
        findings.refusals.append(
            f"{needs}: it needs Python code that comes with the model; set trust_remote_code: true for this model in "
            "roundhouse.yaml if you trust its source"
        )


def _check_adapter(adapter: Document, findings: _Findings) -> None:
    """What vLLM's LoRA loader refuses is refused here already, with the field."""
    kind = adapter.get("peft_type", "LORA")
    if kind != "LORA":
        shown = printable(str(kind))
        findings.refusals.append(f"adapter_config.json: peft_type {shown}; only LoRA adapters are served")
    task = adapter.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        findings.refusals.append(
            f"adapter_config.json: task_type {printable(str(task))}; only adapters of text generators are served"
        )
    if adapter.get("use_dora") is True:
        findings.refusals.append("adapter_config.json: use_dora; DoRA adapters are not served, only plain LoRA")
    parent = adapter.get("base_model_name_or_path")
    if not isinstance(parent, str) or not parent.strip():
        findings.refusals.append("adapter_config.json names no base model (base_model_name_or_path)")
    else:
        findings.reasons.append(f"adapter_config.json: base model {printable(parent)}")


def _check_tokenizer(documents: Documents, findings: _Findings) -> None:
    if not documents.has_tokenizer():
        findings.gaps.append("no tokenizer yet (tokenizer.json, tokenizer.model, vocab.txt or tekken.json)")
        return
    name = documents.in_base("tokenizer.json")
    entry = documents.folder.files.get(name)
    if entry is None:
        return
    try:
        if not _ends_as_json(f"{documents.folder.path}/{name}", entry.size_bytes):
            findings.gaps.append(f"{name} breaks off in the middle" if entry.size_bytes else f"{name} is empty")
    except OSError as error:
        findings.refusals.append(f"{name} cannot be read: {os_reason(error)}")


def _ends_as_json(path: str, size_bytes: int) -> bool:
    """A cheap sign that a large JSON file has been copied to its end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(fd, _TAIL_BYTES, max(0, size_bytes - _TAIL_BYTES)).rstrip()[-1:] == b"}"
    finally:
        os.close(fd)


def _spec(
    found: Found,
    overrides: ModelOverrides,
    verdict: Verdict,
    documents: Documents,
    findings: _Findings,
    weights_bytes: int,
) -> ModelSpec:
    config, folder = documents.config, found.folder
    positions = facts.max_positions(config)
    if documents.modules is not None:
        positions = facts.max_sentence_tokens(positions, documents.sentence_config, documents.tokenizer_config)
    return ModelSpec(
        id=found.id,
        path=Path(folder.path),
        task=verdict.task,
        engine=engine_for(verdict, overrides),
        availability=findings.availability(),
        aliases=overrides.aliases,
        method=verdict.method,
        architecture=_architecture(config),
        model_type=_text(config.get("model_type")),
        weights_bytes=weights_bytes,
        max_model_len=positions,
        **facts.dimensions(config),
        dtype=facts.dtype(config),
        quantization=facts.quantization(config) or ("modelopt" if "hf_quant_config.json" in folder.files else None),
        chat_template=_has_template(documents),
        parent=_parent(documents.adapter),
        created_s=folder.newest_mtime_ns // 1_000_000_000,
        fingerprint=folder.fingerprint(),
        reasons=findings.all(),
        overrides=overrides,
    )


def _has_template(documents: Documents) -> bool:
    from_files = {"chat_template.jinja", "chat_template.json", "tekken.json"} & documents.folder.files.keys()
    return bool(documents.tokenizer_config.get("chat_template")) or bool(from_files)


def _architecture(config: Document) -> str:
    names = config.get("architectures")
    return _text(names[0]) if isinstance(names, list) and names else ""


def _text(value: object) -> str:
    return printable(value) if isinstance(value, str) else ""


def _parent(adapter: Document | None) -> str | None:
    """The base as the adapter's config names it: an id, or a path on the machine where it was trained."""
    value = (adapter or {}).get("base_model_name_or_path")
    if not isinstance(value, str) or not value.strip():
        return None
    parts = value.strip().split("/")
    return None if any(part and part not in {".", ".."} and name_problem(part) for part in parts) else value.strip()
