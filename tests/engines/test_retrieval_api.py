"""The retrieval routes as the clients of Jina, Cohere, vLLM and TEI use them: the answers.

Numbers are compared with what the same model gives when it is asked directly; that those are right is tested elsewhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cohere
import numpy as np
import pytest
import pytest_asyncio
from cohere.core import ApiError
from numpy.typing import NDArray

from engines.runtime.requests.input_types import kind_of
from engines.runtime.retrieval import WHOLE, EncodeOptions
from tests.engines import retrieval_models as made
from tests.engines.retrieval_apps import LONG, QUERY, TEXTS, ServedModel, serving_each_kind, serving_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, ServedModel]]:
    async with serving_each_kind(tmp_path_factory.mktemp("models")) as models:
        yield models


def direct(one: ServedModel, texts: list[Any], options: EncodeOptions = WHOLE) -> NDArray[np.float32]:
    return np.asarray(one.model.forward(one.model.encoder.encode(texts, options)))


def same(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(given), np.asarray(expected), atol=1e-5)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(answer: dict[str, Any]) -> list[Any]:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return [item["embedding"] for item in answer["data"]]


# Embeddings


@pytest.mark.parametrize(
    ("names", "side"),
    [
        (("query", "search_query", "retrieval.query", "Query"), "query"),
        (("document", "passage", "search_document", "retrieval.passage"), "document"),
        (("classification", "clustering", "text-matching", None), None),
    ],
)
async def test_an_input_type_chooses_the_prompt_that_the_model_has_for_it(
    served: dict[str, ServedModel], names: tuple[str | None, ...], side: Any
) -> None:
    one = served["dense"]
    expected = direct(one, TEXTS, EncodeOptions(side=side))
    for field in ("input_type", "task"):
        for name in names:
            same(rows_of(await one.post("/v1/embeddings", input=TEXTS, **{field: name})), expected)
    same(rows_of(await one.post("/v1/embeddings", input=TEXTS, prompt_name=side)), expected)
    same((await one.post("/v2/embed", texts=TEXTS, input_type=names[0]))["embeddings"]["float"], expected)


async def test_an_empty_prompt_of_the_model_s_own_stands_in_for_its_default_one() -> None:
    assert kind_of({"task": "summary"}, "task", {"summary": "", "web": "search: "}) == (None, "")


async def test_the_three_sides_differ_so_that_the_test_before_shows_something(served: dict[str, ServedModel]) -> None:
    plain, query, document = (
        direct(served["dense"], TEXTS, EncodeOptions(side=side)) for side in (None, "query", "document")
    )
    assert min(np.abs(plain - query).max(), np.abs(plain - document).max(), np.abs(query - document).max()) > 1e-3


async def test_jinas_fields_change_the_answer_as_they_say(served: dict[str, ServedModel]) -> None:
    one = served["dense"]
    expected = direct(one, TEXTS)
    objects = [{"text": text} for text in TEXTS]
    for name in ("normalized", "normalize"):
        same(rows_of(await one.post("/v1/embeddings", input=objects, **{name: True})), unit(expected))
    packed = np.packbits(expected > 0, axis=1)
    assert rows_of(await one.post("/v1/embeddings", input=TEXTS, embedding_type=["ubinary"])) == packed.tolist()
    signed = (packed.astype(int) - 128).tolist()
    assert rows_of(await one.post("/v1/embeddings", input=TEXTS, embedding_type="binary")) == signed
    shorter = rows_of(await one.post("/v1/embeddings", input=TEXTS, dimensions=5, late_chunking=False))
    same(shorter, unit(expected[:, :5]))


async def test_infinitys_client_gets_embeddings_and_rankings_by_the_fields_that_it_always_sends(
    served: dict[str, ServedModel],
) -> None:
    dense, reranker = served["dense"], served["reranker"]
    answer = await dense.post("/embeddings", input=TEXTS, dimensions=0, modality="text")
    same(rows_of(answer), direct(dense, TEXTS))
    asked = {"query": QUERY, "documents": TEXTS, "raw_scores": False, "return_documents": False}
    ranking = await reranker.post("/rerank", **asked)
    assert len(ranking["results"]) == len(TEXTS)
    assert ranking["object"] == "rerank"  # it raises at any other
    assert (await reranker.post("/v1/rerank", query=QUERY, documents=TEXTS))["object"] == "list"  # as Jina's


async def test_coheres_client_reads_every_embedding_type_and_the_count_of_tokens(
    served: dict[str, ServedModel],
) -> None:
    one = served["dense"]
    async with cohere.AsyncClientV2(api_key="none", base_url=one.url) as client:
        answer = await client.embed(
            model="dense",
            texts=TEXTS,
            input_type="search_document",
            embedding_types=["float", "base64", "binary", "ubinary"],
            output_dimension=16,
        )
    expected = unit(direct(one, TEXTS, EncodeOptions(side="document"))[:, :16])
    same(answer.embeddings.float_, expected)
    assert answer.embeddings.base64 is not None
    same([np.frombuffer(base64.b64decode(row), "<f4") for row in answer.embeddings.base64], expected)
    assert answer.embeddings.ubinary == np.packbits(expected > 0, axis=1).tolist()
    assert answer.embeddings.binary == (np.packbits(expected > 0, axis=1).astype(int) - 128).tolist()
    assert answer.texts == TEXTS
    tokens = sum(item.tokens for item in one.model.encoder.encode(TEXTS, EncodeOptions(side="document")))
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.input_tokens == tokens
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    same(
        (await one.post("/v2/embed", inputs=parts, output_dimension=16))["embeddings"]["float"],
        unit(direct(one, TEXTS)[:, :16]),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by that client
async def test_coheres_older_client_reads_floats_and_types_too(served: dict[str, ServedModel]) -> None:
    one = served["dense"]
    expected = direct(one, TEXTS, EncodeOptions(side="document"))
    async with cohere.AsyncClient(api_key="none", base_url=one.url) as older:
        plain = await older.embed(model="dense", texts=TEXTS, input_type="search_document")
        typed = await older.embed(model="dense", texts=TEXTS, input_type="search_document", embedding_types=["float"])
    assert plain.response_type == "embeddings_floats"
    same(plain.embeddings, expected)
    assert plain.texts == TEXTS
    assert typed.response_type == "embeddings_by_type"
    same(typed.embeddings.float_, expected)
    for answer in (plain, typed):
        tokens = sum(item.tokens for item in one.model.encoder.encode(TEXTS, EncodeOptions(side="document")))
        assert answer.meta is not None
        assert answer.meta.billed_units is not None
        assert answer.meta.billed_units.input_tokens == tokens


async def test_coheres_client_learns_of_a_refusal_by_its_message(served: dict[str, ServedModel]) -> None:
    async with cohere.AsyncClientV2(api_key="none", base_url=served["dense"].url) as client:
        with pytest.raises(ApiError) as refused:
            await client.embed(model="dense", texts=[LONG], input_type="search_query")
    assert refused.value.status_code == 400
    assert "texts[0] has" in refused.value.body["message"]


async def test_cohere_cuts_the_side_that_is_asked_for_and_to_the_length_that_is_asked_for(
    served: dict[str, ServedModel],
) -> None:
    one = served["dense"]
    text = "the dog moves bread to the city " * 200
    for truncate, left in (("END", False), ("START", True)):
        answer = await one.post("/v2/embed", texts=[text], truncate=truncate, max_tokens=9)
        same(answer["embeddings"]["float"], direct(one, [text], EncodeOptions(limit=9, left=left)))
        assert answer["meta"]["tokens"]["input_tokens"] == 9
    assert "texts[0] has" in await one.refusal("/v2/embed", texts=[text], truncate="NONE", max_tokens=9)


async def test_tei_gets_bare_lists_of_length_one_and_its_own_prompts(served: dict[str, ServedModel]) -> None:
    one = served["dense"]
    plain = direct(one, TEXTS)
    same(await one.post("/embed", inputs=TEXTS), unit(plain))
    same(await one.post("/embed", inputs=TEXTS[0]), unit(plain[:1]))
    same(await one.post("/embed", inputs=TEXTS, normalize=False), plain)
    query = unit(direct(one, TEXTS, EncodeOptions(side="query")))
    same(await one.post("/embed", inputs=TEXTS, prompt_name="query"), query)
    ids = [item.ids.tolist() for item in one.model.encoder.encode(TEXTS) if item.ids is not None]
    same(await one.post("/embed", inputs=ids), unit(plain))


async def test_tei_gets_the_similarities_of_one_text_with_others(served: dict[str, ServedModel]) -> None:
    one = served["dense"]
    inputs = {"source_sentence": QUERY, "sentences": TEXTS}
    same(await one.post("/similarity", inputs=inputs), unit(direct(one, TEXTS)) @ unit(direct(one, [QUERY]))[0])
    query, cut = EncodeOptions(side="query"), EncodeOptions(one.model.encoder.max_tokens, side="query")
    parameters = {"prompt_name": "query", "truncate": True}
    answer = await one.post("/similarity", inputs=inputs | {"sentences": [*TEXTS, LONG]}, parameters=parameters)
    rows = unit(np.vstack([direct(one, TEXTS, query), direct(one, [LONG], cut)]))
    same(answer, rows @ unit(direct(one, [QUERY], query))[0])


async def test_tei_is_told_of_a_text_that_is_too_long_by_its_own_status_and_may_have_it_cut(
    served: dict[str, ServedModel],
) -> None:
    one = served["dense"]
    status, answer = await one.send("/embed", json.dumps({"inputs": ["dog", LONG]}).encode())
    assert (status, answer["error_type"]) == (413, "Validation")
    assert "inputs[1] has 3002 tokens" in answer["error"]
    most = one.model.encoder.max_tokens
    for direction, left in (("Right", False), ("left", True)):
        cut = await one.post("/embed", inputs=[LONG], truncate=True, truncation_direction=direction)
        same(cut, unit(direct(one, [LONG], EncodeOptions(limit=most, left=left))))


async def test_a_vector_for_each_token_as_jina_and_as_tei_have_it(served: dict[str, ServedModel]) -> None:
    one = served["colbert"]
    for kind, side in (("query", "query"), ("document", "document"), (None, "document")):
        encoded = one.model.encoder.encode(TEXTS, EncodeOptions(side=side))  # type: ignore[arg-type]
        expected = one.model.forward(encoded)
        answer = await one.post("/v1/multi-vector", input=TEXTS, input_type=kind)
        assert answer["usage"]["total_tokens"] == sum(item.tokens for item in encoded)
        coded = await one.post("/v1/multi-vector", input=TEXTS, input_type=kind, embedding_type="base64")
        for item, other, vectors in zip(answer["data"], coded["data"], expected, strict=True):
            same(item["embeddings"], vectors)
            same([np.frombuffer(base64.b64decode(row), "<f4") for row in other["embeddings"]], vectors)
    for given, vectors in zip(
        await one.post("/embed_all", inputs=TEXTS), one.model.forward(one.model.encoder.encode(TEXTS)), strict=True
    ):
        same(given, vectors)
    shorter = (await one.post("/v1/multi-vector", input=TEXTS[:1], dimensions=4))["data"][0]["embeddings"]
    same(np.linalg.norm(shorter, axis=1), np.ones(len(shorter)))


async def test_sparse_embeddings_as_tei_has_them(served: dict[str, ServedModel]) -> None:
    one = served["splade"]
    answer = await one.post("/embed_sparse", inputs=TEXTS)
    for given, entries in zip(answer, one.model.forward(one.model.encoder.encode(TEXTS)), strict=True):
        assert [entry["index"] for entry in given] == entries[:, 0].astype(int).tolist()
        same([entry["value"] for entry in given], entries[:, 1])


# Rerankers and classifiers


async def test_coheres_client_reads_a_ranking(served: dict[str, ServedModel]) -> None:
    one = served["reranker"]
    async with cohere.AsyncClientV2(api_key="none", base_url=one.url) as client:
        answer = await client.rerank(model="reranker", query=QUERY, documents=TEXTS, top_n=2)
    scores = direct(one, [(QUERY, text) for text in TEXTS])[:, 0]
    assert [result.index for result in answer.results] == np.argsort(-scores)[:2].tolist()
    same([result.relevance_score for result in answer.results], np.sort(scores)[::-1][:2])
    assert "document" not in (await one.post("/v2/rerank", query=QUERY, documents=TEXTS))["results"][0]
    async with cohere.AsyncClient(api_key="none", base_url=one.url) as older:
        shown = await older.rerank(model="reranker", query=QUERY, documents=TEXTS, return_documents=True)
    assert [result.document.text for result in shown.results if result.document] == [
        TEXTS[r.index] for r in shown.results
    ]


async def test_documents_are_read_by_rank_fields_and_cut_to_their_own_length(served: dict[str, ServedModel]) -> None:
    one = served["reranker"]
    documents: list[Any] = [{"title": text, "body": "stone", "id": 7} for text in TEXTS]

    async def scores(**body: Any) -> list[float]:
        results = (await one.post("/v1/rerank", query=QUERY, **body))["results"]
        return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]

    same(await scores(documents=documents, rank_fields=["title"]), await scores(documents=TEXTS))
    lines = [f"title: {text}\nid: 7" for text in TEXTS]
    same(await scores(documents=documents, rank_fields=["title", "id"]), await scores(documents=lines))
    [cut, *_] = await scores(documents=[LONG, *TEXTS], max_tokens_per_doc=4)
    same([cut], await scores(documents=["dog dog dog dog"]))
    assert len(await scores(documents=[LONG], max_tokens_per_doc=100_000)) == 1  # who cuts documents wants no refusal


async def test_tei_gets_probabilities_or_what_they_were_made_of(served: dict[str, ServedModel]) -> None:
    one = served["reranker"]
    given = direct(one, [(QUERY, text) for text in TEXTS])[:, 0]
    probabilities = given if one.model.probabilities else 1 / (1 + np.exp(-given))
    answer = await one.post("/rerank", query=QUERY, texts=TEXTS, return_text=True)
    assert [item["index"] for item in answer] == np.argsort(-given).tolist()
    same([item["score"] for item in answer], np.sort(probabilities)[::-1])
    assert [item["text"] for item in answer] == [TEXTS[item["index"]] for item in answer]
    raw = await one.post("/rerank", query=QUERY, texts=TEXTS, raw_scores=True)
    same([item["score"] for item in raw], np.sort(np.log(probabilities / (1 - probabilities)))[::-1])
    assert set(raw[0]) == {"index", "score"}
    assert await one.post("/rerank", query=QUERY, texts=TEXTS, return_text=True, top_n=2) == answer[:2]


async def test_scores_are_given_for_every_way_to_name_the_pairs(served: dict[str, ServedModel]) -> None:
    one = served["reranker"]
    expected = direct(one, [(QUERY, text) for text in TEXTS])[:, 0]
    for left, right in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        answer = await one.post("/v1/score", **{left: QUERY, right: TEXTS})
        same([item["score"] for item in answer["data"]], expected)


async def test_an_embedder_scores_by_cosine_and_takes_nothing_that_is_for_rerankers(
    served: dict[str, ServedModel],
) -> None:
    one = served["dense"]
    answer = await one.post("/v1/score", text_1=QUERY, text_2=TEXTS)
    same([item["score"] for item in answer["data"]], unit(direct(one, TEXTS)) @ unit(direct(one, [QUERY]))[0])
    tokens = sum(item.tokens for item in one.model.encoder.encode([QUERY, *TEXTS]))
    assert answer["usage"]["prompt_tokens"] == tokens  # the one text is read once
    answer = await one.post("/v1/score", text_1=TEXTS, text_2=TEXTS[::-1])
    rows = unit(direct(one, TEXTS))
    same([item["score"] for item in answer["data"]], (rows * rows[::-1]).sum(axis=1))
    for field, value in (("max_tokens_per_doc", 5), ("instruction", "find it")):
        assert field in await one.refusal("/v1/score", text_1=QUERY, text_2=TEXTS, **{field: value})


async def test_a_classifier_gives_all_labels_as_vllm_does_and_as_tei_does(served: dict[str, ServedModel]) -> None:
    one = served["classifier"]
    rows, labels = direct(one, TEXTS), list(one.model.labels)
    for path in ("/v1/classify", "/classify"):
        answer = await one.post(path, model="classifier", input=TEXTS)
        same([item["probs"] for item in answer["data"]], rows)
        assert [item["label"] for item in answer["data"]] == [labels[place] for place in rows.argmax(axis=1)]
        assert {item["num_classes"] for item in answer["data"]} == {3}
        assert answer["model"] == "classifier"
    single = await one.post("/predict", inputs=TEXTS[0])
    assert [item["label"] for item in single] == [labels[place] for place in np.argsort(-rows[0])]
    several = await one.post("/predict", inputs=[[text] for text in TEXTS])
    same([item[0]["score"] for item in several], rows.max(axis=1))
    pair = await one.post("/predict", inputs=["dog", "stone"])
    same([item["score"] for item in pair], np.sort(direct(one, [("dog", "stone")])[0])[::-1])
    assert "inputs" in await one.refusal("/predict", inputs=[["dog"], ["dog", "stone"]])


# Tokens


async def test_tei_s_clients_get_the_tokens_of_each_text_with_their_places_in_its_bytes(
    served: dict[str, ServedModel],
) -> None:
    one = served["dense"]
    texts = [*TEXTS, "Dog 😀 dög  dog", "ö dog " * 5_000]
    answer = await one.post("/tokenize", inputs=texts)
    for text, tokens in zip(texts, answer, strict=True):
        expected = one.model.tokenizer(text, return_special_tokens_mask=True)
        assert [token["id"] for token in tokens] == expected["input_ids"]
        assert [token["special"] for token in tokens] == [bool(is_so) for is_so in expected["special_tokens_mask"]]
        for token in tokens:
            assert token.keys() == {"id", "text", "special", "start", "stop"}
            if token["special"]:
                assert (token["start"], token["stop"]) == (None, None)
                assert token["text"] == one.model.tokenizer.convert_ids_to_tokens(token["id"])
            else:
                assert text.encode()[token["start"] : token["stop"]].decode() == token["text"] != ""
    assert await one.post("/tokenize", inputs=TEXTS * 100) == answer[:3] * 100  # tokenized in several turns
    assert await one.post("/tokenize", inputs=TEXTS[0]) == answer[:1]
    bare = await one.post("/tokenize", inputs=TEXTS[0], add_special_tokens=False)
    assert bare == [[token for token in answer[0] if not token["special"]]]
    [prompted] = await one.post("/tokenize", inputs=TEXTS[0], prompt_name="query")
    assert [token["id"] for token in prompted] == one.model.tokenizer.encode(one.model.prompts["query"] + TEXTS[0])


async def test_tokens_are_decoded_as_tei_s_clients_ask(served: dict[str, ServedModel]) -> None:
    for name in ("dense", "reranker", "classifier"):
        one = served[name]
        ids = [one.model.tokenizer.encode(text) for text in TEXTS]
        assert await one.post("/decode", ids=ids) == TEXTS
        assert await one.post("/decode", ids=ids[0], skip_special_tokens=True) == TEXTS[:1]
        whole = await one.post("/decode", ids=ids[:1], skip_special_tokens=False)
        assert whole == [one.model.tokenizer.decode(ids[0])] != TEXTS[:1]


async def test_a_static_embedder_s_tokens_are_told_in_every_shape(tmp_path: Path) -> None:
    async with serving_model(made.make_static_embedder(tmp_path / "static-embed")) as one:
        [tokens] = await one.post("/tokenize", inputs="dog and dog")
        ids = [token["id"] for token in tokens]
        assert [token["text"] for token in tokens if not token["special"]] == ["dog", " and", " dog"]
        plain = await one.post("/tokenize", prompt="dog and dog", return_token_strs=True)
        assert (plain["tokens"], plain["count"], len(plain["token_strs"])) == (ids, len(ids), len(ids))
        assert "dog and dog" in (await one.post("/detokenize", tokens=ids))["prompt"]
        assert await one.post("/decode", ids=ids) == ["dog and dog"]
