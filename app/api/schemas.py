"""What requests and answers look like, for /openapi.json. Requests of the data plane are documented, not validated:

the engine validates them, and fields that are not listed here reach it as they are.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class WithModel(Open):
    model: str = Field(description="A model's id, an alias, or an unambiguous last part of an id, in any case.")


class Sampling(WithModel):
    stream: bool = Field(False, description="Answer as server-sent events.")
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class ChatMessage(Open):
    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatCompletionRequest(Sampling):
    messages: list[ChatMessage]
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    stream_options: dict[str, Any] | None = None


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    n: int | None = None
    max_tokens: int | None = None
    echo: bool | None = None
    logprobs: int | None = None


class ResponsesRequest(Sampling):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None


class AnthropicMessagesRequest(WithModel):
    messages: list[ChatMessage]
    max_tokens: int
    system: str | list[dict[str, Any]] | None = None
    stream: bool = False
    temperature: float | None = None
    tools: list[dict[str, Any]] | None = None


class AnthropicCountRequest(WithModel):
    messages: list[ChatMessage]
    system: str | list[dict[str, Any]] | None = None


class Truncating(Open):
    truncate: bool | str | None = Field(
        None, description="Cut inputs that are too long: true, or END (their end goes), START, or NONE: refuse them."
    )
    truncate_prompt_tokens: int | None = Field(None, description="To so many tokens; -1 for the model's limit.")


class EmbeddingRequest(WithModel, Truncating):
    input: str | list[str | dict[str, str]] | list[int] | list[list[int]] = Field(description="At most 2,048.")
    encoding_format: Literal["float", "base64", "binary", "ubinary"] = "float"
    dimensions: int | None = Field(None, description="The first so many numbers, scaled to length 1.")
    user: str | None = None
    input_type: str | None = Field(None, description="query, document, …: which of the model's prompts goes before.")
    task: str | None = Field(None, description="Jina's name for `input_type`.")
    embedding_type: Literal["float", "base64", "binary", "ubinary"] | None = Field(None, description="Jina's.")
    normalized: bool | None = Field(None, description="Scale to length 1 what the model does not.")


class CohereEmbedRequest(WithModel):
    texts: list[str] | None = None
    inputs: list[dict[str, Any]] | None = None
    input_type: str | None = None
    embedding_types: list[Literal["float", "base64", "binary", "ubinary"]] | None = None
    output_dimension: int | None = None
    max_tokens: int | None = None
    truncate: Literal["NONE", "START", "END"] = "NONE"


class MaybeWithModel(Open):
    model: str | None = Field(None, description="May be left out: see `default_model`.")
    truncate: bool | None = None
    truncation_direction: Literal["left", "right"] | None = None


class TeiEmbedRequest(MaybeWithModel):
    inputs: str | list[str] | list[int] | list[list[int]]
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: int | None = None


class TeiSimilarity(BaseModel):
    source_sentence: str
    sentences: list[str]


class TeiSimilarityParameters(Open):
    truncate: bool | None = None
    truncation_direction: Literal["left", "right"] | None = None
    prompt_name: str | None = None


class TeiSimilarityRequest(Open):
    model: str | None = Field(None, description="May be left out: see `default_model`.")
    inputs: TeiSimilarity
    parameters: TeiSimilarityParameters | None = None


class TeiPredictRequest(MaybeWithModel):
    inputs: str | list[str] | list[list[str]] = Field(description="A text, a pair, or lists of one text or two.")


class RerankRequest(WithModel, Truncating):
    query: str
    documents: list[str | dict[str, Any]] = Field(description="At most 10,000; objects have a `text`.")
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = Field(None, description="What to read of documents that are objects.")
    max_tokens_per_doc: int | None = Field(None, description="Documents are cut to so many tokens.")
    instruction: str | None = Field(None, description="For rerankers made of a text generator.")


class SharedRerankRequest(MaybeWithModel):
    """Jina's, with `documents`, or TEI's, with `texts`."""

    query: str
    documents: list[str | dict[str, Any]] | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    texts: list[str] | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None


class ScoreRequest(WithModel, Truncating):
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None


class ClassifyRequest(WithModel, Truncating):
    input: str | list[str] | list[int] | list[list[int]]


class TokenizeRequest(Open):
    """vLLM's, with `prompt` or `messages`, or TEI's, with `inputs`, which is for retrieval models."""

    model: str | None = Field(None, description="May be left out beside `inputs`, or where there is a default_model.")
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    inputs: str | list[str] | None = None
    prompt_name: str | None = None


class DetokenizeRequest(WithModel):
    tokens: list[int]


class TeiDecodeRequest(Open):
    ids: list[int] | list[list[int]]
    skip_special_tokens: bool = True
    model: str | None = None


class ControlRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=1024, description="A model's id, alias or last part of an id.")
    wait: bool = Field(True, description="Answer only when it is done; else at once.")


class ModelState(BaseModel):
    """Answer to load and unload."""

    id: str
    object: Literal["model.state"] = "model.state"
    state: str
    task: str
    engine: str
    pinned: bool
    running: int
    queued: int
    memory_bytes: int | None
    estimated_bytes: int
    load_s: float | None
    loads: int
    idle_s: float | None
    keep_alive_s: float | None
    error: str | None
    retry_after_s: float | None
    priority: int
    answered_s_ago: float | None = Field(description="Since it last answered a request to its end.")
    wake_s: float | None = Field(description="Of the last wake.")
    host_bytes: int = Field(description="Host memory that it takes while asleep.")
    expected_s: float | None = Field(description="Until it is ready, while somebody waits for it.")
    adapters: list[str] = Field(description="LoRA adapters that are in its engine now.")


class ModelEviction(BaseModel):
    """A model that would leave the device, and why this one."""

    model: str
    state: str
    size_bytes: int
    running: int
    idle_s: float | None = Field(description="null while it answers.")
    bring_back_s: float
    to: Literal["sleep", "unload"]
    reason: str


class ModelForecast(BaseModel):
    """Answer to explain. `wait_s` is `turn_s`, until the model's turn, and `bring_s`, its own load or wake."""

    object: Literal["model.forecast"] = "model.forecast"
    model: str
    state: str
    outcome: Literal["granted", "queued", "loaded", "woken", "refused"]
    reason: str = Field(description="In a sentence or two, with the numbers.")
    wait_s: float
    turn_s: float
    bring_s: float
    bring_source: str = Field(description="Where bring_s is from.")
    size_bytes: int
    size_source: str = Field(description="Where size_bytes is from.")
    free_bytes: int = Field(description="For it: without what others take or is kept for them.")
    budget_bytes: int
    evictions: list[ModelEviction] = Field(description="What would leave the device for it.")
    ahead: list[str] = Field(description="The models that have their turn before.")
    error: str | None = Field(description="What the client would be told, where the request would be refused.")


class ModelEntry(Open):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    task: str
    state: str | None = None
    availability: str
    aliases: list[str]
    parent: str | None = None
    max_model_len: int | None = None
    served_elsewhere: bool = False


class ModelDetail(ModelEntry):
    """With everything that was found out about the model, and why it was judged so."""

    reasons: list[str]
    engine: str
    architecture: str
    routes: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class CohereError(BaseModel):
    id: str
    message: str


class TeiError(BaseModel):
    error: str
    error_type: Literal["Validation", "Overloaded", "Backend"]


class TeiInfo(BaseModel):
    """null: not known of a model that no engine of this server's own serves."""

    model_id: str
    model_sha: None
    model_dtype: str | None
    served_model_name: str
    model_type: dict[Literal["embedding", "reranker", "classifier"], dict[str, Any]] = Field(
        description='`{"embedding": {"pooling"}}`, or `id2label` and `label2id` of a reranker or a classifier.'
    )
    max_concurrent_requests: int
    max_input_length: int | None = Field(description="In tokens.")
    max_batch_tokens: int | None
    max_batch_requests: int | None
    max_client_batch_size: int = Field(description="As TEI's default; up to 10,000 are taken.")
    auto_truncate: bool
    tokenization_workers: int | None
    version: str = Field(description="Of this server.")
    sha: None
    docker_label: None


class Health(Open):
    status: Literal["starting", "ready", "stopping"]
    trouble: str | None = Field(None, description="Why requests cannot be served now, though they should.")
