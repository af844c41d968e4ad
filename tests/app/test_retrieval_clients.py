"""The router for clients of Cohere and TEI: errors as each reads them, and models that TEI's do not name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient

from models.types import Method, ModelOverrides, Task
from tests.app.serving import MODELS, Served, serving, spec
from utils.version import own_version

TEI = {
    "/embed": ("minilm", {"inputs": "x"}),
    "/embed_all": ("colbert", {"inputs": "x"}),
    "/embed_sparse": ("splade", {"inputs": "x"}),
    "/rerank": ("cross", {"query": "q", "texts": ["t"]}),
    "/predict": ("moods", {"inputs": "x"}),
}
EVERY_KIND = (
    *MODELS,
    spec("colbert", Task.EMBED, method=Method.MULTI_VECTOR),
    spec("splade", Task.EMBED, overrides=ModelOverrides(engine_args={"method": "sparse"})),
    spec("moods", Task.CLASSIFY),
)


async def test_a_request_of_tei_goes_to_the_only_model_of_its_kind_as_it_came() -> None:
    async with serving(EVERY_KIND) as served:
        for path, (model, body) in TEI.items():
            answer = await served.post(path, body)
            assert (answer.status_code, answer.json()) == (200, body)  # a fake engine answers with what it got
            assert served.engines.loads[-1] == model


async def test_an_embedding_model_of_another_kind_is_refused_with_its_own_routes() -> None:
    async with serving(EVERY_KIND) as served:
        answer = await served.post("/v1/embeddings", {"model": "colbert", "input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_model_task")
        assert "served at /v1/multi-vector, /embed_all" in answer.json()["error"]["message"]
        assert (await served.client.get("/v1/models/splade")).json()["routes"][0] == "/embed_sparse"
    assert served.engines.loads == []


async def test_what_comes_to_the_root_as_huggingface_hub_sends_it_goes_where_its_fields_say() -> None:
    async with serving(EVERY_KIND) as served:
        url = f"http://127.0.0.1:{served.port}"
        async with AsyncInferenceClient(url) as client:
            with contextlib.suppress(ValueError, TypeError):  # a fake engine answers with what it got
                await client.feature_extraction("x", normalize=True)
            assert (served.engines.seen[-1].path, served.engines.loads) == ("/embed", ["minilm"])
            with contextlib.suppress(ValueError, TypeError):
                await client.sentence_similarity("x", ["y"])
            assert served.engines.seen[-1].path == "/similarity"
        await served.post("/", {"query": "q", "texts": ["t"]})
        assert (served.engines.seen[-1].path, served.engines.loads[-1]) == ("/rerank", "cross")
        refused = await served.post("/", {"inputs": "x", "model": "cross"})
        assert (refused.status_code, set(refused.json())) == (400, {"error", "error_type"})


async def test_tei_s_clients_learn_what_the_only_retrieval_model_is_and_it_is_not_loaded_for_that() -> None:
    async with serving((spec("org/chatty"), spec("e5", Task.EMBED))) as served:
        answer = await served.client.get("/info")
        assert (answer.status_code, answer.json()) == (
            200,
            {
                "model_id": "e5",
                "served_model_name": "e5",
                "model_dtype": "float32",
                "version": own_version(),
                "model_sha": None,
                "sha": None,
                "docker_label": None,
                "auto_truncate": False,
                "model_type": {"embedding": {"pooling": "mean"}},
                "max_input_length": 256,
                "max_batch_tokens": 512,
                "max_batch_requests": 64,
                "max_client_batch_size": 32,
                "tokenization_workers": 1,
                "max_concurrent_requests": served.roundhouse.state.settings.concurrency,
            },
        )
        assert served.engines.loads == []


async def test_info_is_of_the_model_that_is_asked_for_or_the_default_one_or_names_those_there_are() -> None:
    labels = {"id2label": {"0": "sad", "1": "glad"}, "label2id": {"sad": 0, "glad": 1}}
    async with serving(EVERY_KIND) as served:
        for model, kind in {"cross": {"reranker": labels}, "moods": {"classifier": labels}}.items():
            assert (await served.client.get("/info", params={"model": model})).json()["model_type"] == kind
        for query, status, words in (
            ("", 400, ("minilm", "cross", "splade", "default_model")),
            ("?model=nobody", 404, ("nobody",)),
            ("?model=other", 400, ("/info needs a model for", "other")),
            ("?model=", 400, ("model",)),
        ):
            refused = await served.client.get(f"/info{query}")
            assert (refused.status_code, refused.json().keys()) == (status, {"error", "error_type"})
            assert all(word in refused.json()["error"] for word in words)
    async with serving(EVERY_KIND, default_model=("other", "cross"), api_keys=("secret-key",)) as served:
        assert (await served.client.get("/info")).status_code == 401
        given = await served.client.get("/info", headers={"Authorization": "Bearer secret-key"})
        assert given.json()["model_id"] == "cross"


async def test_what_tei_s_clients_ask_to_tokenize_goes_to_the_model_that_info_tells_of() -> None:
    async with serving((*MODELS, spec("e5", Task.EMBED)), default_model=("other", "cross")) as served:
        for path, body in (("/tokenize", {"inputs": ["x"]}), ("/decode", {"ids": [[1]]})):
            answer = await served.post(path, body)
            assert (answer.status_code, answer.json(), served.engines.loads) == (200, body, ["cross"])
        assert (await served.post("/tokenize", {"prompt": "x"})).json()["model"] == "other"
        assert (await served.post("/tokenize", {"inputs": "x", "model": "E5"})).json()["model"] == "e5"
        for model in ("base", "nobody"):
            refused = await served.post("/tokenize", {"inputs": "x", "model": model})
            assert refused.json().keys() == {"error", "error_type"}
            assert model in refused.json()["error"]
    async with serving() as served:
        refused = await served.post("/tokenize", {"inputs": "x"})
        assert (refused.status_code, refused.json().keys()) == (400, {"error", "error_type"})
        for word in ("minilm", "cross"):
            assert word in refused.json()["error"]
        assert "chatty" not in refused.json()["error"]


async def test_of_several_models_the_default_one_answers_and_without_one_all_are_named() -> None:
    specs = (*MODELS, spec("org/e5", Task.EMBED))
    async with serving(specs) as served:
        refused = await served.post("/embed", {"inputs": "x"})
        assert refused.status_code == 400
        assert refused.json()["error_type"] == "Validation"
        for name in ("`model`", "minilm", "org/e5", "default_model"):
            assert name in refused.json()["error"]
        assert (await served.post("/embed", {"inputs": "x", "model": "e5"})).json()["model"] == "org/e5"
        assert (await served.post("/rerank", TEI["/rerank"][1])).status_code == 200  # of those there is one
    async with serving(specs, default_model=("cross", "gone", "E5")) as served:
        assert (await served.post("/embed", {"inputs": "x"})).status_code == 200
        assert served.engines.loads == ["org/e5"]


async def test_where_no_model_serves_it_the_error_says_so(served: Served) -> None:
    refused = await served.post("/predict", {"inputs": "x"})
    assert (refused.status_code, refused.json()["error_type"]) == (404, "Validation")
    assert refused.json()["error"] == "No model in the models folder can be served at /predict."


async def test_the_other_protocols_need_a_model(served: Served) -> None:
    for path in (
        "/v1/embeddings",
        "/embeddings",
        "/v1/embed",
        "/v2/embed",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/classify",
        "/v1/multi-vector",
    ):
        answer = await served.post(path, {"input": "x"})
        assert (answer.status_code, "`model` is missing" in answer.text) == (400, True), path
    answer = await served.post("/rerank", {"query": "q", "documents": ["d"]})
    assert answer.json()["error"]["param"] == "model"


async def test_where_there_is_a_default_model_it_answers_whatever_names_none() -> None:
    async with serving((*MODELS, spec("org/e5", Task.EMBED)), default_model=("cross", "E5")) as served:
        for body in (
            "{}",
            '{"input": "x"}',
            ' {"input": "x", "model": null } ',
            '{"input": {"model": "other"}}\n',
        ):
            answer = await served.client.post("/v1/embeddings", content=body)
            assert answer.status_code == 200
            assert json.loads(served.engines.seen[-1].raw) == {**json.loads(body), "model": "org/e5"}
        assert (await served.post("/v1/rerank", {"query": "q", "documents": ["d"]})).json()["model"] == "cross"
        refused = await served.post("/v1/embeddings", {"input": "x", "model": ""})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "x", "model": "nobody"}),
        ("/rerank", {"texts": ["x"], "model": "nobody"}),
        ("/rerank", {"texts": ["x"], "model": 7}),
        ("/embed", {"inputs": "x", "model": "other"}),
        ("/embed", []),
    ],
)
async def test_errors_on_the_paths_of_tei_are_tei_s(served: Served, path: str, body: Any) -> None:
    answer = await served.post(path, body)
    assert answer.status_code in (400, 404)
    assert set(answer.json()) == {"error", "error_type"}


async def test_errors_on_the_paths_of_cohere_are_cohere_s(served: Served) -> None:
    for path in ("/v1/embed", "/v2/embed", "/v2/rerank"):
        for body in ({"model": "nobody"}, {"model": "other"}, {}, 3):
            answer = await served.post(path, body)
            assert answer.status_code in (400, 404)
            assert answer.json() == {"id": answer.headers["x-request-id"], "message": answer.json()["message"]}
        assert "message" in (await served.client.get(path)).json()
    for path in ("/v2/embed/", "/v2/v2/rerank"):  # by a base URL that is not quite right
        assert "Cohere's are /v2/embed and /v2/rerank" in (await served.post(path, {})).json()["error"]


async def test_errors_on_the_other_paths_stay_openai_s(served: Served) -> None:
    for path in ("/v1/embeddings", "/v1/rerank", "/rerank", "/v1/score", "/v1/classify", "/v1/multi-vector"):
        answer = await served.post(path, {"model": "nobody"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
