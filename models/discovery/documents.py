"""The small files of a model's folder, read once each, and what they say as clues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.discovery.evidence import Clues
from models.discovery.folder import Folder
from models.discovery.safety import (
    CONFIG_LIMIT_BYTES,
    Refused,
    Unfinished,
    name_problem,
    parse_json,
    printable,
    read_bounded,
    read_json_object,
)

Document = dict[str, Any]

_TOKENIZER_FILES = frozenset({
    "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model.v3",
})  # fmt: skip
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass(slots=True)
class Documents:
    """Of one folder. `base` is the subfolder of the transformer module: "" but for old ones (`0_Transformer`).

    `modules` has a router's own modules in its place, those for documents first; `routes` are the names of its routes.
    """

    folder: Folder
    base: str = ""
    config: Document = field(default_factory=dict)
    tokenizer_config: Document = field(default_factory=dict)
    processor_config: Document = field(default_factory=dict)
    adapter: Document | None = None
    modules: list[Document] | None = None
    routes: frozenset[str] | None = None
    sentence_kind: str | None = None
    sentence_config: Document = field(default_factory=dict)

    def read(self, name: str) -> Document:
        """The JSON object in `name`, {} where there is none. Raises Refused, Unfinished."""
        if name not in self.folder.files:
            return {}
        try:
            return read_json_object(f"{self.folder.path}/{name}", name)
        except FileNotFoundError as error:
            raise Unfinished(f"{name} has just gone") from error

    def in_base(self, name: str) -> str:
        return f"{self.base}/{name}" if self.base else name

    def has_tokenizer(self) -> bool:
        names = self.folder.names(self.base) + (self.folder.names() if self.base else [])
        return any(name in _TOKENIZER_FILES or name.endswith(".tiktoken") for name in names)


def read_documents(folder: Folder) -> Documents:
    """Reads all that a verdict needs. Raises Refused or Unfinished at the first file that is not as it should be."""
    documents = Documents(folder)
    files = folder.files
    if "modules.json" in files:
        documents.modules = _read_modules(folder)
        _follow_router(documents, documents.modules)
        documents.base = _base(documents)
        documents.sentence_config = documents.read(documents.in_base("sentence_bert_config.json"))
    if "config_sentence_transformers.json" in files:
        kind = documents.read("config_sentence_transformers.json").get("model_type")
        documents.sentence_kind = kind if isinstance(kind, str) else None
    if "adapter_config.json" in files and _is_adapter(folder):
        documents.adapter = documents.read("adapter_config.json")
        return documents
    documents.config = documents.read(documents.in_base("config.json")) or documents.read("params.json")
    documents.tokenizer_config = documents.read(documents.in_base("tokenizer_config.json"))
    if "auto_map" not in documents.config:
        return documents
    documents.processor_config = documents.read("preprocessor_config.json")
    return documents


def _is_adapter(folder: Folder) -> bool:
    """Some full models keep an adapter_config.json from their training; then their own weights lie beside it."""
    names = folder.names()
    own_weights = any(n.startswith(("model", "consolidated")) and n.endswith(".safetensors") for n in names)
    return "config.json" not in names or not own_weights or any(n.startswith("adapter_model.") for n in names)


def _read_modules(folder: Folder) -> list[Document]:
    try:
        data = read_bounded(f"{folder.path}/modules.json", "modules.json", CONFIG_LIMIT_BYTES)
    except FileNotFoundError as error:
        raise Unfinished("modules.json has just gone") from error
    modules = parse_json(data, "modules.json")
    if not isinstance(modules, list) or not modules or not all(isinstance(m, dict) for m in modules):
        raise Refused("modules.json should hold a list of modules; copy it again")
    for module in modules:
        path = module.get("path", "")
        if path == ".":  # as Model2Vec names the folder itself
            path = module["path"] = ""
        _check_path(path, "modules.json")
    return modules


def _check_path(path: object, source: str) -> None:
    if not isinstance(path, str) or (path and any(name_problem(part) for part in path.split("/"))):
        raise Refused(f"{source} names a path outside of the folder: {printable(str(path))}")


def _follow_router(documents: Documents, modules: list[Document]) -> None:
    """Puts the modules of a router, which router_config.json names, in its place."""
    if not str(modules[0].get("type")).endswith((".Router", ".Asym")):
        return
    router = documents.read("router_config.json")
    types, routes, parameters = (router.get(name) for name in ("types", "structure", "parameters"))
    if not isinstance(types, dict) or not isinstance(routes, dict) or not types:
        return
    for path in types:
        _check_path(path, "router_config.json")
    by_names = isinstance(parameters, dict) and not parameters.get("route_mappings")
    documents.routes = frozenset(routes) if by_names else frozenset()
    route = routes.get("document")
    first = [path for path in route if isinstance(path, str) and path in types] if isinstance(route, list) else []
    modules[:1] = [{"type": types[path], "path": path} for path in dict.fromkeys([*first, *types])]


def _base(documents: Documents) -> str:
    """The subfolder of the first module: where old sentence-transformers keep the transformer itself."""
    assert documents.modules is not None
    return str(documents.modules[0].get("path") or "")


def module_folders(documents: Documents) -> list[str]:
    """Subfolders that modules.json names."""
    return [str(module["path"]) for module in documents.modules or () if module.get("path")]


def missing_modules(documents: Documents) -> list[str]:
    """Modules that cannot do without their config.json, and have none yet."""
    if documents.modules is None and "1_Pooling" in documents.folder.dirs:
        known = "1_Pooling/config.json" in documents.folder.files
        return [] if known else ["1_Pooling/config.json is missing"]
    return [
        f"{printable(str(module['path']))}/config.json is missing, which modules.json needs"
        for module in documents.modules or ()
        if module.get("path")
        and str(module.get("type")).endswith((".Pooling", ".Dense"))
        and f"{module['path']}/config.json" not in documents.folder.files
    ]


def clues(documents: Documents, model_id: str) -> Clues:
    """What the documents say about the task. Raises Refused for wrong types."""
    config = documents.config
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, list | tuple) or not all(isinstance(name, str) for name in architectures):
        raise Refused("config.json: architectures should be a list of names")
    if not isinstance(config.get("model_type", ""), str | None):
        raise Refused("config.json: model_type should be a name")
    modules = documents.modules
    return Clues(
        name=model_id.rpartition("/")[2],
        config=config,
        architectures=tuple(name for name in architectures if name),
        modules=None if modules is None else tuple(str(module.get("type")) for module in modules),
        routes=documents.routes,
        sentence_kind=documents.sentence_kind,
        has_pooling="1_Pooling" in documents.folder.dirs,
        is_adapter=documents.adapter is not None,
        is_pipeline="model_index.json" in documents.folder.files,
        template=_template(documents),
        tekken="tekken.json" in documents.folder.files,
    )


def _template(documents: Documents) -> str | None:
    """The file that holds a chat template, or None."""
    if documents.tokenizer_config.get("chat_template"):
        return "tokenizer_config.json"
    files: Mapping[str, object] = documents.folder.files
    return next((name for name in _TEMPLATE_FILES if name in files), None)
