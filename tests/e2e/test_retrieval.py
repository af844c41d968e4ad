"""Vectors and scores through the router are those of sentence-transformers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from bench._servers import Server
from demo import facts

TEXTS = ["a roundhouse", "Engines stand around a turntable. " * 20, "Ü", "¿dónde está la estación?"]


@pytest.fixture(scope="module")
def embedder(demo_models: Path) -> SentenceTransformer:
    return SentenceTransformer(str(demo_models / facts.EMBEDDER), device="cpu", local_files_only=True)


def test_embeddings_equal_those_of_sentence_transformers(server: Server, embedder: SentenceTransformer) -> None:
    answer = server.post("/v1/embeddings", {"model": facts.EMBEDDER, "input": TEXTS})
    ours = np.array([item["embedding"] for item in answer["data"]])
    assert [item["index"] for item in answer["data"]] == list(range(len(TEXTS)))
    assert np.abs(ours - embedder.encode(TEXTS)).max() < 1e-5


def test_token_ids_give_the_same_vector_as_their_text(server: Server) -> None:
    tokens = server.post("/tokenize", {"model": facts.EMBEDDER, "prompt": "a roundhouse"})["tokens"]
    texts = server.post("/v1/embeddings", {"model": facts.EMBEDDER, "input": "a roundhouse"})
    ids = server.post("/v1/embeddings", {"model": facts.EMBEDDER, "input": tokens})
    assert np.abs(np.array(texts["data"][0]["embedding"]) - np.array(ids["data"][0]["embedding"])).max() < 1e-5


def test_fewer_dimensions_are_the_first_ones_normalized(server: Server, embedder: SentenceTransformer) -> None:
    answer = server.post("/v1/embeddings", {"model": facts.EMBEDDER, "input": TEXTS, "dimensions": 64})
    expected = embedder.encode(TEXTS)[:, :64]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(np.array([item["embedding"] for item in answer["data"]]) - expected).max() < 1e-5


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank_scores_equal_those_of_the_cross_encoder(server: Server, demo_models: Path, path: str) -> None:
    model = CrossEncoder(str(demo_models / facts.RERANKER), device="cpu", local_files_only=True)
    for sample in facts.RERANK_SAMPLES:
        body = {"model": facts.RERANKER, "query": sample.query, "documents": list(sample.documents)}
        results = server.post(path, body)["results"]
        expected = model.predict([(sample.query, document) for document in sample.documents])
        assert results[0]["index"] == sample.best
        assert [result["relevance_score"] for result in results] == sorted(
            (result["relevance_score"] for result in results), reverse=True
        )
        for result in results:
            assert result["relevance_score"] == pytest.approx(float(expected[result["index"]]), abs=1e-5)


def test_score_equals_rerank(server: Server) -> None:
    sample = facts.RERANK_SAMPLES[0]
    scores = server.post(
        "/v1/score", {"model": facts.RERANKER, "text_1": sample.query, "text_2": list(sample.documents)}
    )["data"]
    body = {"model": facts.RERANKER, "query": sample.query, "documents": list(sample.documents)}
    ranked = {result["index"]: result["relevance_score"] for result in server.post("/v1/rerank", body)["results"]}
    assert {item["index"]: item["score"] for item in scores} == pytest.approx(ranked, abs=1e-5)


def test_cohere_s_and_tei_s_clients_get_the_same_vectors_in_their_own_shapes(server: Server) -> None:
    expected = [
        item["embedding"] for item in server.post("/v1/embeddings", {"model": facts.EMBEDDER, "input": TEXTS})["data"]
    ]
    of_cohere = server.post("/v2/embed", {"model": facts.EMBEDDER, "texts": TEXTS, "input_type": "search_document"})
    assert np.abs(np.array(of_cohere["embeddings"]["float"]) - expected).max() < 1e-5
    assert np.abs(np.array(server.post("/embed", {"inputs": TEXTS})) - expected).max() < 1e-5  # the only embedder


def test_tei_s_clients_get_a_ranking_without_naming_a_model(server: Server) -> None:
    sample = facts.RERANK_SAMPLES[0]
    answer = server.post("/rerank", {"query": sample.query, "texts": list(sample.documents)})
    assert answer[0]["index"] == sample.best
    assert all(0 <= item["score"] <= 1 for item in answer)


def test_an_answer_of_many_pieces_arrives_whole(server: Server) -> None:
    answer = server.post("/v1/embeddings", {"model": facts.EMBEDDER, "input": [[101, 7592, 102]] * 2048})
    rows = np.array([item["embedding"] for item in answer["data"]])
    assert rows.shape == (2048, 384)
    assert np.abs(rows - rows[0]).max() < 1e-5
