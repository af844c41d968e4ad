"""Reranking and scoring over HTTP from a real engine, against CrossEncoder.predict in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from engines.base import Engine
from engines.transformers_engine import TransformersFactory
from models.types import Task
from tests.engines.transformers_support import Client, client_of, running_engine, spec_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUERY = "Where do locomotives turn?"
DOCUMENTS = [
    "A stone lies in the field.",
    "Locomotives turn on the turntable of a roundhouse.",
    "Bread is baked in the morning. " * 3,
    "The roundhouse has twelve stalls.",
    "turn",
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(factory: TransformersFactory, demo_models: Path) -> AsyncIterator[Engine]:
    spec = spec_of(demo_models / "demo" / "reranker", Task.RERANK)
    async with running_engine(factory, spec) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def client(engine: Engine) -> AsyncIterator[Client]:
    async with client_of(engine) as client:
        yield client


@pytest.fixture(scope="module")
def reference(demo_models: Path) -> CrossEncoder:
    path = str(demo_models / "demo" / "reranker")
    model: CrossEncoder = CrossEncoder(path, device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    return model


def predict(reference: CrossEncoder, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    return reference.predict(pairs)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_rerank_gives_the_cross_encoder_s_scores_best_first(
    client: Client, reference: CrossEncoder, path: str
) -> None:
    answer = await client.ok(path, model="reranker", query=QUERY, documents=DOCUMENTS, return_documents=True)
    expected = predict(reference, [(QUERY, document) for document in DOCUMENTS])
    results = answer["results"]
    assert [item["index"] for item in results] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose(
        [item["relevance_score"] for item in results], [expected[item["index"]] for item in results], atol=1e-5
    )
    assert all(item["document"] == {"text": DOCUMENTS[item["index"]]} for item in results)
    assert answer["id"]
    assert answer["model"] == "reranker"


async def test_usage_counts_both_texts_of_every_pair(client: Client, reference: CrossEncoder) -> None:
    answer = await client.ok("/rerank", query=QUERY, documents=DOCUMENTS)
    encoded = reference.tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS)
    assert answer["usage"]["total_tokens"] == sum(len(ids) for ids in encoded["input_ids"])


async def test_top_n_keeps_the_best_and_documents_can_be_left_out(client: Client) -> None:
    full = await client.ok("/v1/rerank", query=QUERY, documents=DOCUMENTS)
    answer = await client.ok("/v1/rerank", query=QUERY, documents=DOCUMENTS, top_n=2, return_documents=False)
    assert [item["index"] for item in answer["results"]] == [item["index"] for item in full["results"][:2]]
    assert all("document" not in item for item in answer["results"])
    assert len((await client.ok("/v1/rerank", query=QUERY, documents=DOCUMENTS, top_n=99))["results"]) == 5


async def test_documents_may_be_objects_with_a_text(client: Client) -> None:
    plain = await client.ok("/v1/rerank", query=QUERY, documents=DOCUMENTS)
    objects = [{"text": DOCUMENTS[0], "source": "not read"}, *DOCUMENTS[1:]]
    answer = await client.ok("/v1/rerank", query=QUERY, documents=objects)
    assert [(item["index"], item["relevance_score"]) for item in answer["results"]] == [
        (item["index"], item["relevance_score"]) for item in plain["results"]
    ]
    assert all(item["document"] == objects[0] for item in answer["results"] if item["index"] == 0)


async def test_a_document_over_the_model_s_length_is_refused_or_cut_where_asked(
    client: Client, reference: CrossEncoder
) -> None:
    long = "locomotive " * 3000
    error = await client.refused("/v1/rerank", query=QUERY, documents=["short", long])
    assert (error["param"], error["code"]) == ("documents", "context_length_exceeded")
    assert "documents[1]" in error["message"]
    answer = await client.ok("/v1/rerank", query=QUERY, documents=["short", long], truncate_prompt_tokens=-1)
    expected = predict(reference, [(QUERY, "short"), (QUERY, long)])
    for item in answer["results"]:
        assert item["relevance_score"] == pytest.approx(float(expected[item["index"]]), abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize(("left", "right"), [("text_1", "text_2"), ("queries", "documents")])
async def test_scores_come_in_the_order_of_the_pairs(
    client: Client, reference: CrossEncoder, path: str, left: str, right: str
) -> None:
    answer = await client.ok(path, **{left: QUERY, right: DOCUMENTS})
    expected = predict(reference, [(QUERY, document) for document in DOCUMENTS])
    np.testing.assert_allclose([item["score"] for item in answer["data"]], expected, atol=1e-5)
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(i, "score") for i in range(5)]
    pairs = await client.ok(path, **{left: ["a", "b"], right: ["c", "d"]})
    np.testing.assert_allclose(
        [item["score"] for item in pairs["data"]], predict(reference, [("a", "c"), ("b", "d")]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/rerank", "query", {"documents": ["d"]}),
        ("/v1/rerank", "query", {"query": "", "documents": ["d"]}),
        ("/v1/rerank", "query", {"query": ["q"], "documents": ["d"]}),
        ("/v1/rerank", "documents", {"query": "q"}),
        ("/v1/rerank", "documents", {"query": "q", "documents": []}),
        ("/v1/rerank", "documents", {"query": "q", "documents": ["d", ""]}),
        ("/v1/rerank", "documents", {"query": "q", "documents": ["d", {"title": "t"}]}),
        ("/v1/rerank", "documents", {"query": "q", "documents": [{"text": 5}]}),
        ("/v1/rerank", "documents", {"query": "q", "documents": ["d"] * 10_001}),
        ("/v1/rerank", "top_n", {"query": "q", "documents": ["d"], "top_n": 0}),
        ("/v1/rerank", "top_n", {"query": "q", "documents": ["d"], "top_n": "1"}),
        ("/v1/rerank", "return_documents", {"query": "q", "documents": ["d"], "return_documents": "yes"}),
        ("/v1/score", "text_1", {"text_2": ["d"]}),
        ("/v1/score", "text_2", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}),
        ("/v1/score", "documents", {"queries": "q"}),
    ],
)
async def test_a_wrong_value_is_refused_naming_its_field(
    client: Client, path: str, field: str, body: dict[str, object]
) -> None:
    assert (await client.refused(path, **body))["param"] == field


async def test_a_reranker_asked_for_embeddings_says_what_it_is(client: Client) -> None:
    error = await client.refused("/v1/embeddings", input="x")
    assert error["code"] == "wrong_model_task"
    assert "reranker" in error["message"]
