"""What the retrieval routes refuse (cases 22 and 23): in the client's shape, naming the field, and go on serving."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from engines.runtime import retrieval_service
from tests.engines.retrieval_apps import LONG, QUERY, TEXTS, ServedModel, serving_each_kind, told

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, ServedModel]]:
    async with serving_each_kind(tmp_path_factory.mktemp("models")) as models:
        yield models


# For each route: the model, a good body, and the field that holds its texts.
ROUTES: dict[str, tuple[str, dict[str, Any], str]] = {
    "/v1/embeddings": ("dense", {"input": TEXTS}, "input"),
    "/v2/embed": ("dense", {"texts": TEXTS}, "texts"),
    "/embed": ("dense", {"inputs": TEXTS}, "inputs"),
    "/v1/multi-vector": ("colbert", {"input": TEXTS}, "input"),
    "/embed_all": ("colbert", {"inputs": TEXTS}, "inputs"),
    "/embed_sparse": ("splade", {"inputs": TEXTS}, "inputs"),
    "/v1/rerank": ("reranker", {"query": QUERY, "documents": TEXTS}, "documents"),
    "/v2/rerank": ("reranker", {"query": QUERY, "documents": TEXTS}, "documents"),
    "/rerank": ("reranker", {"query": QUERY, "texts": TEXTS}, "texts"),
    "/v1/score": ("reranker", {"text_1": QUERY, "text_2": TEXTS}, "text_2"),
    "/v1/classify": ("classifier", {"input": TEXTS}, "input"),
    "/predict": ("classifier", {"inputs": [[text] for text in TEXTS]}, "inputs"),
}
NOT_JSON = (
    b"",
    b"{",
    b"[]",
    b'"text"',
    b'{"input": NaN, "texts": NaN, "inputs": NaN}',
    b'{"input": "\xff"}',
    b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
)
BAD_TEXTS = (None, 7, True, {}, [], "", [""], ["dog", None], ["dog", 3], [[]], [["dog", 3]], [{"image": "x"}], [[-1]])
BAD_FIELDS: dict[str, tuple[Any, ...]] = {
    "model": (5, ["x"]),
    "truncate": ("SOMETIMES", 1, []),
    "truncation": ("yes",),
    "truncate_prompt_tokens": (0, -2, 10**9, 2**63, "7", 1.5),
    "truncation_direction": ("up", 3),
}
OWN_FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "/v1/embeddings": {
        "dimensions": (0, -1, 33, 2**63, "8", True),
        "encoding_format": ("hex", 3),
        "embedding_type": ("int8", [], ["float", "base64"], {}),
        "input_type": ("nonsense", 3),
        "task": ("nonsense",),
        "prompt_name": ("nonsense", 3),
        "normalized": ("yes",),
        "normalize": ("yes",),
        "instruction": ("find it",),
        "modality": ("image", ["text", "image"]),
        "late_chunking": (True, 3),
        "user": (3,),
        "return_multivector": (True,),
        "add_special_tokens": (False,),
        "use_activation": (False,),
        "output_dimension": (8,),
    },
    "/v2/embed": {
        "output_dimension": (0, 33, "8"),
        "embedding_types": ("float", [], ["int8"], ["uint8"], [3]),
        "input_type": ("nonsense", "image", 3),
        "images": (["data:image/png;base64,AAAA"],),
        "max_tokens": (0, -1, "9"),
    },
    "/embed": {"prompt_name": ("nonsense", 3), "normalize": ("yes",), "dimensions": (0, 33)},
    "/v1/multi-vector": {"dimensions": (0, 9), "embedding_type": ("int8",), "input_type": ("nonsense",)},
    "/v1/rerank": {
        "query": (None, "", 7, ["q"], {}),
        "top_n": (0, -1, "1", 1.5),
        "return_documents": ("yes",),
        "max_tokens_per_doc": (0, -5, "9"),
        "rank_fields": ("title", [], [3], ["title", "title"]),
        "instruction": (3, "find what answers the question"),
        "raw_scores": (True,),
        "use_activation": (False,),
        "top_k": (3,),
        "return_embeddings": (True,),
    },
    "/rerank": {"query": (None, "", 7), "return_text": ("yes",), "raw_scores": (1,), "top_n": (0,)},
    "/embed_sparse": {"dimensions": (3,), "normalize": (True,)},
    "/v1/score": {"text_1": (None, "", 7, ["a", "b"]), "instruction": ("find it",), "raw_scores": (True,)},
    "/v1/classify": {"labels": (["a", "b"],), "softmax": (False,), "raw_scores": (True,)},
    "/predict": {"raw_scores": (True,)},
}


async def still_answers(one: ServedModel, path: str) -> None:
    await one.post(path, **ROUTES[path][1])


@pytest.mark.parametrize("path", ROUTES)
async def test_what_is_no_request_is_refused_and_the_next_one_answered(
    served: dict[str, ServedModel], path: str
) -> None:
    one = served[ROUTES[path][0]]
    for data in NOT_JSON:
        status, answer = await one.send(path, data)
        assert status == 400
        assert told(answer)
    await still_answers(one, path)


@pytest.mark.parametrize("path", ROUTES)
async def test_bad_texts_are_refused_naming_their_field(served: dict[str, ServedModel], path: str) -> None:
    model, body, field = ROUTES[path]
    for value in BAD_TEXTS:
        message = await served[model].refusal(path, **body | {field: value})
        assert field in message or (field == "text_2" and "text_1" in message), (value, message)
    too_many = [["dog"]] * 10_001 if path == "/predict" else ["dog"] * 10_001
    assert "10001 entries" in await served[model].refusal(path, **body | {field: too_many})
    await still_answers(served[model], path)


@pytest.mark.parametrize("path", ROUTES)
async def test_bad_values_are_refused_naming_their_field(served: dict[str, ServedModel], path: str) -> None:
    model, body, _ = ROUTES[path]
    common = {name: values for name, values in BAD_FIELDS.items() if (path, name) not in NOT_THERE}
    for name, values in (common | OWN_FIELDS.get(path, {})).items():
        for value in values:
            message = await served[model].refusal(path, **body | {name: value})
            assert name in message, (value, message)
    await still_answers(served[model], path)


# Cohere's route has a field of its own for the length, and TEI's answers have no model in them.
NOT_THERE = {("/v2/embed", "truncate_prompt_tokens"), ("/predict", "model")}


@pytest.mark.parametrize("path", ROUTES)
async def test_a_text_that_is_too_long_is_refused_with_its_count_or_cut_where_asked(
    served: dict[str, ServedModel], path: str
) -> None:
    model, body, field = ROUTES[path]
    for text in ("dog " * 250_000, LONG):
        given = body | {field: [["dog"], [text]] if path == "/predict" else ["dog", text]}
        count = re.search(rf"{re.escape(field)}\[1\] has (\d+) tokens", await served[model].refusal(path, **given))
        assert count is not None
        assert 0 <= int(count[1]) - len(text) // 4 < 16  # special tokens, a prompt, a query
    await served[model].post(path, **given, truncate=True)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_limit_below_the_special_tokens_never_lets_a_text_through_whole(
    served: dict[str, ServedModel], path: str
) -> None:
    model, body, field = ROUTES[path]
    limit = "max_tokens" if path == "/v2/embed" else "truncate_prompt_tokens"
    given = body | {field: [[LONG]] if path == "/predict" else [LONG], "truncate": True, limit: 1}
    assert limit in await served[model].refusal(path, **given)


async def test_texts_of_very_many_characters_are_refused_before_they_are_tokenized(
    served: dict[str, ServedModel],
) -> None:
    for path, (model, body, field) in ROUTES.items():
        endless = "dog " * 500_001
        given = body | {field: [[endless]] if path == "/predict" else [endless], "truncate": True}
        message = await served[model].refusal(path, **given)
        assert field in message
        assert "has 2000004 characters, but at most 2000000" in message
    endless = "dog " * 20_000  # with every document
    for path, field in (("/v1/rerank", "query"), ("/rerank", "query"), ("/v1/score", "text_1")):
        assert f"{field} has 80000 characters" in await served["reranker"].refusal(
            path, **ROUTES[path][1] | {field: endless}
        )
    assert "prompt" in await served["dense"].refusal("/tokenize", prompt="dog " * 500_001)
    in_all = ["dog " * 25_001] * 10
    assert "inputs has 1000040 characters in all" in await served["dense"].refusal("/tokenize", inputs=in_all)


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        *(("/tokenize", "inputs", {"inputs": value}) for value in (None, [], "", ["dog", 7], 7, ["dog"] * 10_001)),
        ("/tokenize", "add_special_tokens", {"inputs": "dog", "add_special_tokens": "yes"}),
        ("/tokenize", "prompt_name", {"inputs": "dog", "prompt_name": "nope"}),
        ("/tokenize", "prompt_name", {"inputs": "dog", "prompt_name": 7}),
        *(
            ("/decode", "ids", {"ids": value})
            for value in (None, "dog", [], [[]], [[3], 3], [-1], [10**9], [True], [[3]] * 10_001)
        ),
        ("/decode", "skip_special_tokens", {"ids": [3], "skip_special_tokens": 1}),
    ],
)
async def test_what_tei_s_clients_ask_of_the_tokenizer_is_refused_in_their_shape_naming_the_field(
    served: dict[str, ServedModel], path: str, field: str, body: dict[str, Any]
) -> None:
    status, answer = await served["dense"].send(path, json.dumps(body).encode())
    assert (status, answer.keys()) == (400, {"error", "error_type"})
    assert field in answer["error"]


async def test_a_document_that_cannot_be_written_again_is_refused_or_left_out(served: dict[str, ServedModel]) -> None:
    one, nested = served["reranker"], []
    for _ in range(400):
        nested = [nested]
    documents = [{"text": "dog", "more": nested}]
    assert "return_documents" in await one.refusal("/v1/rerank", query=QUERY, documents=documents)
    await one.post("/v1/rerank", query=QUERY, documents=documents, return_documents=False)


async def test_what_a_model_cannot_read_is_refused_naming_the_field_of_the_route(
    served: dict[str, ServedModel],
) -> None:
    assert "inputs: Token id 9999 is not in" in await served["dense"].refusal("/embed", inputs=[[9999]])
    assert "inputs: This model takes texts" in await served["colbert"].refusal("/embed_all", inputs=[[3]])


async def test_similarities_are_refused_naming_what_is_wrong_in_their_inputs(served: dict[str, ServedModel]) -> None:
    one = served["dense"]
    good: dict[str, Any] = {"source_sentence": "dog", "sentences": TEXTS}
    for name, values in {"source_sentence": (None, "", 7, ["a"]), "sentences": (None, [], "dog", [""], [3])}.items():
        for value in values:
            assert f"inputs.{name}" in await one.refusal("/similarity", inputs=good | {name: value}), value
    for given in (None, "dog", ["dog"], 7):
        assert "inputs" in await one.refusal("/similarity", inputs=given)
    assert "parameters" in await one.refusal("/similarity", inputs=good, parameters=[])
    assert "prompt_name" in await one.refusal("/similarity", inputs=good, parameters={"prompt_name": "nonsense"})
    assert "inputs.sentences[0] has 3002 tokens" in await one.refusal(
        "/similarity", inputs=good | {"sentences": [LONG]}
    )
    assert len(await one.post("/similarity", inputs=good, parameters=None)) == len(TEXTS)


async def test_an_embedder_names_the_text_that_is_too_long_to_be_scored(served: dict[str, ServedModel]) -> None:
    one = served["dense"]
    assert "text_1[0] has 3002 tokens" in await one.refusal("/v1/score", text_1=LONG, text_2=TEXTS)
    assert "text_2[1] has 3002 tokens" in await one.refusal("/v1/score", text_1=QUERY, text_2=["dog", LONG])


@pytest.mark.parametrize("path", ROUTES)
async def test_a_model_of_another_kind_says_what_it_is_and_where_it_is_served(
    served: dict[str, ServedModel], path: str
) -> None:
    model, body, _ = ROUTES[path]
    for name, one in served.items():
        if name != model and (name, path) != ("dense", "/v1/score"):
            message = await one.refusal(path, **body)
            assert "it is served at /" in message, (name, message)


async def test_a_model_that_gives_no_numbers_is_no_success(
    served: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = served["dense"]
    monkeypatch.setattr(type(one.model), "_forward", lambda self, batch: np.full((len(batch), 32), np.nan, np.float32))
    status, answer = await one.send("/v1/embeddings", b'{"input": "dog"}')
    assert (status, answer["error"]["code"]) == (500, "model_fault")
    monkeypatch.undo()
    await still_answers(one, "/v1/embeddings")


async def test_an_answer_with_a_vector_for_each_token_is_bounded(
    served: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = served["colbert"]
    monkeypatch.setattr(retrieval_service, "MAX_NUMBERS", 40 * one.model.width)
    assert (await one.post("/v1/multi-vector", input=TEXTS[:1]))["data"]
    assert "more than 40 tokens" in await one.refusal("/v1/multi-vector", input=TEXTS * 100)
