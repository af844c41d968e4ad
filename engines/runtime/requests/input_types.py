"""Which of a model's prompts an `input_type` (Cohere, Voyage, NIM), `task` (Jina) or `prompt_name` (TEI) means."""

from __future__ import annotations

from collections.abc import Mapping

from engines.runtime.requests.fields import Body, optional_string, shown
from engines.runtime.retrieval import InvalidRequest, Side

Prompts = Mapping[str, str]

# Names that mean the same; the first ones in the order in which encode_query and encode_document look for a prompt.
QUERY = ("query", "search_query", "retrieval.query", "retrieval_query")
DOCUMENT = ("document", "passage", "corpus", "search_document", "retrieval.passage", "retrieval_document")
OTHERS = (
    ("classification",),
    ("clustering", "separation"),
    ("text-matching", "semantic_similarity"),
    ("code.query",),
    ("code.passage",),
)


def kind_of(body: Body, param: str, prompts: Prompts) -> tuple[Side | None, str | None]:
    """What the texts are, and the prompt to put before each; None leaves the model the one that it has for that.

    A name that the model defines a prompt under means that prompt. Of the others those that clients commonly send are
    taken, too: a query or a document gets the model's prompt for it, none where it has none, as encode_query and
    encode_document of sentence-transformers have it; the rest changes nothing where the model has no such prompt.
    """
    name = optional_string(body, param)
    if name is None:
        return None, None
    side = _side(name)
    if name in prompts:
        return side, prompts[name]
    for names in (QUERY, DOCUMENT, *OTHERS):
        if name.lower() in names:
            return side, next((prompts[other] for other in names if prompts.get(other)), None)
    own = [other for other in prompts if other not in (*QUERY, *DOCUMENT)]
    known = ", ".join([QUERY[0], DOCUMENT[0], *(names[0] for names in OTHERS), *own])
    raise InvalidRequest(f"{param} {shown(name)} is not known; use one of {known}.", param=param)


def _side(name: str) -> Side | None:
    if name.lower() in QUERY:
        return "query"
    return "document" if name.lower() in DOCUMENT else None


def what_they_are(body: Body, prompts: Prompts) -> tuple[Side | None, str | None]:
    """The same by the field that says it: TEI's `prompt_name`, `input_type`, or `task`."""
    prompt = named_prompt(body, prompts)
    if prompt is not None:
        return _side(body["prompt_name"]), prompt
    return kind_of(body, "input_type" if body.get("input_type") is not None else "task", prompts)


def named_prompt(body: Body, prompts: Prompts) -> str | None:
    """TEI's `prompt_name`: a prompt that the model defines, by its name."""
    name = optional_string(body, "prompt_name")
    if name is None:
        return None
    if name in prompts:
        return prompts[name]
    defined = f"It has: {', '.join(prompts)}." if prompts else "It has none."
    raise InvalidRequest(f"prompt_name {shown(name)} is not a prompt of this model. {defined}", param="prompt_name")
