"""What is a model for? Explicit configuration, then structure, then architecture, then name; each with its reason.

The order matters: Qwen3-Embedding and Qwen3-Reranker both say `Qwen3ForCausalLM`, as the chat model does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.discovery.kinds import AUDIO_TYPES, CAUSAL_ARCHITECTURES, ENCODER_DECODER_TYPES, VISION_TYPES
from models.discovery.safety import printable
from models.types import Method, ModelOverrides, Registered, Task

ENGINES = {
    Task.CHAT: "vllm",
    Task.COMPLETION: "vllm",
    Task.ADAPTER: "vllm",
    Task.EMBED: "transformers",
    Task.RERANK: "transformers",
    Task.CLASSIFY: "transformers",
}

_RERANK_NAME = re.compile(r"re-?rank|cross-?encoder|ms-?marco-(?:minilm|tinybert|electra)", re.IGNORECASE)
_EMBED_NAME = re.compile(r"embed|(?:^|[-_.])(?:e5|gte|bge|sbert|simcse)(?:[-_.]|$)|sentence-", re.IGNORECASE)
_CHAT_NAME = re.compile(r"instruct|chat|(?:^|[-_.])it(?:[-_.]|$)", re.IGNORECASE)
_SPARSE_NAME = re.compile(r"splade|sparse-encoder", re.IGNORECASE)
_LATE_NAME = re.compile(r"colbert|colpali|colqwen", re.IGNORECASE)


@dataclass(slots=True)
class Clues:
    """What the small files of a folder say. `template` names the file that holds a chat template."""

    name: str
    config: Mapping[str, Any]
    architectures: tuple[str, ...] = ()
    modules: tuple[str, ...] | None = None  # types in modules.json
    routes: frozenset[str] | None = None  # of a router among them
    sentence_kind: str | None = None  # model_type of config_sentence_transformers.json
    has_pooling: bool = False  # a folder 1_Pooling
    is_adapter: bool = False
    is_pipeline: bool = False  # model_index.json
    template: str | None = None
    tekken: bool = False

    @property
    def model_type(self) -> str:
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""


@dataclass(slots=True)
class Verdict:
    """The task, why, and why nothing serves it if that is so."""

    task: Task
    reasons: list[str] = field(default_factory=list)
    unserved: str | None = None
    method: Method | None = None
    engine: str | None = None  # that of a package which registered the architecture


NONE_REGISTERED: Mapping[str, Registered] = {}


def decide(clues: Clues, overrides: ModelOverrides, registered: Mapping[str, Registered] = NONE_REGISTERED) -> Verdict:
    """The task of a model, and how it does it. `registered`: by architecture, what packages serve."""
    verdict = _by_structure(clues) or _by_registration(clues, registered) or _by_architecture(clues) or _by_name(clues)
    if overrides.task is not None:
        return _configured(overrides.task, clues, verdict)
    if verdict is None:
        what = f"architecture {printable(clues.architectures[0])}" if clues.architectures else "no architecture named"
        return _unsupported(f"config.json: {what}", "no engine serves this kind of model yet")
    if "method" in overrides.engine_args:
        verdict.reasons.append(f"configuration: method {printable(str(overrides.engine_args['method']))}")
        verdict.unserved = None
    return verdict


def _configured(task: Task, clues: Clues, verdict: Verdict | None) -> Verdict:
    """The task that the configuration gives; evidence for the same one still says how the model does it."""
    chosen = Verdict(task, [f"configuration: task {task.value}"])
    if verdict is not None and verdict.task is task:
        chosen.method, chosen.engine = verdict.method, verdict.engine
    elif task is Task.RERANK and clues.architectures:
        chosen.method = _RERANK_METHODS.get(clues.architectures[0])
    if chosen.method is not None:
        chosen.reasons.append(f"method {chosen.method.value}")
    return chosen


def engine_for(verdict: Verdict, overrides: ModelOverrides) -> str:
    """Name of the engine factory, "" where none serves the task."""
    return overrides.engine or verdict.engine or ENGINES.get(verdict.task, "")


def task_by_name(name: str) -> Task:
    """What a model is for of which only the name is known, as a server elsewhere tells it."""
    if _RERANK_NAME.search(name):
        return Task.RERANK
    return Task.EMBED if _EMBED_NAME.search(name) else Task.CHAT


def is_generative(architecture: str) -> bool:
    """Whether an architecture's name is that of a text generator."""
    return (
        architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        or architecture in CAUSAL_ARCHITECTURES
    )


def _unsupported(reason: str, unserved: str) -> Verdict:
    return Verdict(Task.UNSUPPORTED, [reason], unserved)


# Structure


def _by_structure(clues: Clues) -> Verdict | None:
    if clues.is_adapter:
        return Verdict(Task.ADAPTER, ["adapter_config.json: an adapter for another model"])
    if clues.is_pipeline:
        return _unsupported("model_index.json: a diffusers pipeline", "no engine serves image generation yet")
    if clues.modules is not None:
        return _by_modules(clues, clues.modules)
    if clues.has_pooling:
        return Verdict(Task.EMBED, ["1_Pooling: a sentence-transformers embedding model", _POOLED])
    return None


def _by_modules(clues: Clues, modules: tuple[str, ...]) -> Verdict | None:
    kinds = {module.rpartition(".")[2] for module in modules}
    if "CLIPModel" in kinds:
        return _unsupported("modules.json: CLIP, text with images", "no engine serves image embeddings yet")
    if kinds & {"Router", "Asym"} or (clues.routes is not None and not _is_routed_embedder(clues, clues.routes)):
        return _unsupported(
            "modules.json: several models behind a router",
            "no engine serves routed models but embedding models with a route for queries and one for documents",
        )
    if kinds & _OLD_MODULES:
        return _unsupported(
            f"modules.json: {min(kinds & _OLD_MODULES)}, word vectors or layers of before transformers",
            "no engine serves such embedding models: their vectors depend on the other texts of a batch, or on "
            "tokenizers of their own",
        )
    if clues.sentence_kind in _LATE_KINDS or any(module.startswith("pylate.") for module in modules):
        return _late_interaction(clues, "modules.json")
    if clues.sentence_kind == "SparseEncoder" or kinds & _SPARSE_MODULES:
        reason = "modules.json: a sparse encoder (SPLADE) → embed, a weight for each word of the vocabulary"
        return Verdict(Task.EMBED, [reason], method=Method.SPARSE)
    if clues.sentence_kind == "CrossEncoder" or "LogitScore" in kinds:
        return _cross_encoder(clues, kinds)
    if kinds <= {"Transformer"} and any(name.endswith("ForSequenceClassification") for name in clues.architectures):
        return None  # sentence-transformers writes modules.json for cross-encoders too; the labels decide
    routed = "" if clues.routes is None else ", one for queries and another for documents (Router)"
    return Verdict(Task.EMBED, [f"modules.json: a sentence-transformers embedding model{routed}"])


def _is_routed_embedder(clues: Clues, routes: frozenset[str]) -> bool:
    return routes == {"query", "document"} and clues.sentence_kind not in ("CrossEncoder", *_LATE_KINDS)


_OLD_MODULES = {"CNN", "LSTM", "BoW", "WordEmbeddings"}
_LATE_KINDS = ("MultiVectorEncoder", "ColBERT")
_SPARSE_MODULES = {"SpladePooling", "MLMTransformer", "SparseAutoEncoder", "SparseStaticEmbedding"}


def _late_interaction(clues: Clues, source: str) -> Verdict:
    if any(name.endswith("ForRetrieval") for name in clues.architectures):
        return _unsupported(f"{source}: late interaction over images", "no engine serves image embeddings yet")
    reason = f"{source}: late interaction (ColBERT) → embed, one vector for each token"
    return Verdict(Task.EMBED, [reason], method=Method.MULTI_VECTOR)


def _cross_encoder(clues: Clues, kinds: set[str]) -> Verdict | None:
    if "LogitScore" in kinds:
        return Verdict(Task.RERANK, ["modules.json: a cross-encoder that scores by a text generator's next token"])
    if any(name.endswith("ForSequenceClassification") for name in clues.architectures):
        return None
    if "Dense" in kinds:
        return Verdict(Task.RERANK, ["modules.json: a cross-encoder whose last module scores (Dense)"])
    return _causal_reranker(clues, "modules.json: a cross-encoder")


# Architecture


def _by_registration(clues: Clues, registered: Mapping[str, Registered]) -> Verdict | None:
    """Before what we know of architectures ourselves, so that a package can serve one better."""
    for name in clues.architectures[:1]:
        if name in registered:
            engine, task = registered[name]
            reason = f"config.json: architecture {printable(name)}, registered by a package → {task.value}"
            return Verdict(task, [f"{reason}, engine {engine}"], engine=engine)
    return None


def _by_architecture(clues: Clues) -> Verdict | None:
    if not clues.architectures:
        return _by_model_type(clues)
    name = clues.architectures[0]
    reason = f"config.json: architecture {printable(name)}"
    special = _special_architecture(clues, name, reason)
    if special is not None:
        return special
    if is_generative(name):
        return _generative(clues, reason)
    if _LATE_NAME.search(clues.name):
        return _unsupported(
            f"{reason}; name: late interaction", "there is no modules.json that says how its vectors are made"
        )
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        return _masked(clues, reason)
    if name.endswith("Model") and not _RERANK_NAME.search(clues.name):
        return Verdict(Task.EMBED, [f"{reason}: an encoder without a head → embed", _MEAN])
    return None


_MEAN = "no modules.json: the mean of the token vectors, sentence-transformers' default"
_POOLED = "no modules.json: 1_Pooling says how token vectors become one, and nothing whether that is scaled to length 1"
_LAST = "no modules.json: the last token's vector, scaled to length 1, as text generators that embed are published"


def _special_architecture(clues: Clues, name: str, reason: str) -> Verdict | None:
    if name.endswith("ForSequenceClassification"):
        return _by_labels(clues, reason)
    if name.endswith("ForTokenClassification"):
        return Verdict(Task.CLASSIFY, [f"{reason}: labels for single tokens"], "no engine serves token classifiers yet")
    if clues.model_type in AUDIO_TYPES:
        return _unsupported(f"{reason}: speech or sound", "no engine serves audio models yet")
    if clues.model_type in VISION_TYPES:
        return _unsupported(f"{reason}: images without text generation", "no engine serves image models yet")
    if clues.config.get("is_encoder_decoder") is True or clues.model_type in ENCODER_DECODER_TYPES:
        return _unsupported(f"{reason}: an encoder-decoder", "no engine serves encoder-decoder models yet")
    if name == "HF_ColBERT" or name.endswith("ForRetrieval"):
        return _late_interaction(clues, reason)
    return None


def _by_labels(clues: Clues, reason: str) -> Verdict:
    count = label_count(clues.config)
    if count == 1:
        return Verdict(Task.RERANK, [f"{reason} with one label → rerank"])
    return Verdict(Task.CLASSIFY, [f"{reason} with {count} labels → classify"])


def label_count(config: Mapping[str, Any]) -> int:
    """As transformers counts: `num_labels`, else the entries of `id2label`, else 2."""
    number = config.get("num_labels", config.get("_num_labels"))
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else 2


def _generative(clues: Clues, reason: str) -> Verdict:
    if _RERANK_NAME.search(clues.name):
        return _causal_reranker(clues, f"{reason}; name: a reranker")
    if _EMBED_NAME.search(clues.name):
        return _causal_embedder(clues, f"{reason}; name: an embedding model")
    if clues.template is not None:
        return Verdict(Task.CHAT, [reason, f"{clues.template} has a chat template → chat"])
    if _CHAT_NAME.search(clues.name):
        how = "tekken.json brings its own chat format" if clues.tekken else "though there is no chat template"
        return Verdict(Task.CHAT, [reason, f"name: an instruction or chat model → chat, {how}"])
    return Verdict(Task.COMPLETION, [reason, "no chat template → completion"])


def _causal_embedder(clues: Clues, reason: str) -> Verdict:
    """As sentence-transformers pools what has no modules.json."""
    name = clues.architectures[0] if clues.architectures else ""
    if name.endswith("ForConditionalGeneration"):
        return _unsupported(
            reason,
            "an embedding model made of a generator over images too needs a modules.json that says how it embeds",
        )
    is_causal = name.endswith("ForCausalLM") and clues.config.get("is_causal", True)
    return Verdict(Task.EMBED, [reason, _LAST if is_causal else _MEAN])


# Whose published way of scoring goes by the architecture of the text generator.
_RERANK_METHODS = {"Qwen3ForCausalLM": Method.QWEN3_RERANKER, "GemmaForCausalLM": Method.BGE_RERANKER}
# Others were trained otherwise: Contextual AI's rerankers are Qwen3ForCausalLM too, and score by another token.
_RERANK_METHOD_NAMES = {
    Method.QWEN3_RERANKER: re.compile(r"qwen-?3", re.IGNORECASE),
    Method.BGE_RERANKER: re.compile(r"bge", re.IGNORECASE),
}
_METHOD_REASONS = {
    Method.QWEN3_RERANKER: "no modules.json: scored as Qwen3-Reranker is published, by its template and yes against no",
    Method.BGE_RERANKER: "no modules.json: scored as bge-reranker-v2-gemma is published, by its prompt and Yes",
}


def _causal_reranker(clues: Clues, reason: str) -> Verdict:
    method = _RERANK_METHODS.get(clues.architectures[0]) if clues.architectures else None
    if method is not None and _RERANK_METHOD_NAMES[method].search(clues.name):
        return Verdict(Task.RERANK, [reason, _METHOD_REASONS[method]], method=method)
    unserved = (
        "a reranker made of a text generator needs a modules.json that says how it scores; use its "
        "sequence-classification version, or a revision for sentence-transformers 5.4 or later, or say engine_args: "
        "{method: qwen3_reranker} or {method: bge_reranker} in roundhouse.yaml if it was trained as those were"
    )
    return Verdict(Task.RERANK, [reason], unserved)


def _masked(clues: Clues, reason: str) -> Verdict:
    if _SPARSE_NAME.search(clues.name):
        how = "no modules.json: SPLADE's largest weight over all tokens, sentence-transformers' default"
        return Verdict(Task.EMBED, [reason, "name: a sparse encoder → embed", how], method=Method.SPARSE)
    if _EMBED_NAME.search(clues.name):
        return Verdict(Task.EMBED, [reason, "name: an embedding model", _MEAN])
    return _unsupported(
        f"{reason}: a base model for fine-tuning, trained to fill in words",
        "no engine serves masked language models yet; set task: embed for this model in roundhouse.yaml "
        "to get the mean of its token vectors",
    )


def _by_model_type(clues: Clues) -> Verdict | None:
    """For configurations that leave out `architectures`."""
    if clues.tekken and not clues.config.get("model_type"):
        return _generative(clues, "params.json: a model in Mistral's own format")
    if clues.model_type in AUDIO_TYPES | VISION_TYPES:
        return _unsupported(f"config.json: model_type {clues.model_type}", "no engine serves images or audio yet")
    return None


# Name


def _by_name(clues: Clues) -> Verdict | None:
    if _RERANK_NAME.search(clues.name):
        return Verdict(Task.RERANK, ["name: a reranker"])
    if _EMBED_NAME.search(clues.name):
        return Verdict(Task.EMBED, ["name: an embedding model"])
    return None
