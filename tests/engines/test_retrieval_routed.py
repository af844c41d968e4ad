"""Models with one way for queries and another for documents (Router), against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from engines.runtime.requests.tei import tei_embed_request
from engines.runtime.retrieval import EncodeOptions, InvalidRequest, RetrievalModel, TooLong, encode_within
from engines.runtime.routed import SIDES
from models.types import Availability, Task
from tests.engines import retrieval_models as made
from tests.engines.retrieval_running import TEXTS, load, run, same

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = {"query": "query : ", "document": "passage : "}
LONG = "dog " * 300


def make_inference_free(path: Path, **router: Any) -> Path:
    """SPLADE for documents, and of queries a weight for each of their words."""
    documents = Transformer(str(made.make_splade(path, modules=False)), transformer_task="fill-mask")
    weights = torch.rand(len(documents.tokenizer), generator=torch.Generator().manual_seed(7))
    queries = SparseStaticEmbedding(documents.tokenizer, weight=weights)
    modules = Router.for_query_document([queries], [documents, SpladePooling()], **router)
    SparseEncoder(modules=[modules]).save_pretrained(str(path), create_model_card=False)
    return path


def at_the_root(path: Path) -> Path:
    """As OpenSearch publishes them: the transformer in the folder itself, under the old name of its module."""
    for file in (path / "document_0_Transformer").iterdir():
        if file.name != "sentence_bert_config.json":
            file.rename(path / file.name)
    router = (path / "router_config.json").read_text()
    router = router.replace('"document_0_Transformer"', '""').replace(
        "base.modules.transformer.Transformer", "sparse_encoder.models.MLMTransformer.MLMTransformer"
    )
    (path / "router_config.json").write_text(router)
    return path


def make_asymmetric(path: Path) -> Path:
    """A static model for queries and a transformer for documents, each with its own tokenizer, and prompts."""
    static = SentenceTransformer(str(made.make_static_embedder(path.with_name(f"{path.name}-static"))))
    bare = made.save_bert(path.with_name(f"{path.name}-bare"), made.BertModel(made.bert_config()))
    router = Router.for_query_document([static[0]], [Transformer(str(bare)), Pooling(32)])
    model = SentenceTransformer(modules=[router, Normalize()], prompts=PROMPTS)
    model.save_pretrained(str(path), create_model_card=False)
    return path


def weights(outputs: list[Any], width: int) -> np.ndarray:
    """Entries as whole rows: [inputs, width]."""
    rows = np.zeros((len(outputs), width), dtype=np.float32)
    for row, entries in zip(rows, outputs, strict=True):
        row[entries[:, 0].astype(int)] = entries[:, 1]
    return rows


@pytest.fixture(scope="module")
def asymmetric(folder: Path) -> Path:
    return make_asymmetric(folder / "asymmetric")


@pytest.fixture(scope="module")
def sparse(folder: Path) -> RetrievalModel:
    return load(made.judged(make_inference_free(folder / "inference-free")))


@pytest.mark.parametrize("root", [False, True])
def test_an_inference_free_sparse_model_weighs_queries_and_documents_as_it_should(folder: Path, *, root: bool) -> None:
    path = make_inference_free(folder / f"free-{root}")
    spec = made.judged(at_the_root(path) if root else path)
    assert (spec.max_model_len, spec.architecture) == (128, "BertForMaskedLM")
    model, reference = load(spec), SparseEncoder(str(path), device="cpu")
    queries, documents = reference.encode_query(TEXTS).to_dense(), reference.encode_document(TEXTS).to_dense()
    assert not np.allclose(queries, documents)
    options = [EncodeOptions(side="query"), EncodeOptions(side="document"), EncodeOptions()]
    batch = [item for each in options for item in model.encoder.encode(TEXTS, each)]
    same(weights(list(model.forward(batch)), queries.shape[1]), np.vstack([queries, documents, documents]))


def test_routes_that_share_their_transformer_still_weigh_by_their_own_poolings(folder: Path) -> None:
    path = folder / "shared-splade"
    shared = Transformer(str(made.make_splade(path, modules=False)), transformer_task="fill-mask")
    router = Router.for_query_document([shared, SpladePooling("sum")], [shared, SpladePooling("max")])
    SparseEncoder(modules=[router]).save_pretrained(str(path), create_model_card=False)
    model, reference = load(made.judged(path)), SparseEncoder(str(path), device="cpu")
    for side in SIDES:
        expected = getattr(reference, f"encode_{side}")(TEXTS).to_dense()
        same(weights(run(model, TEXTS, EncodeOptions(side=side)), expected.shape[1]), expected)


def test_an_asymmetric_model_embeds_each_side_by_its_own_model_with_its_prompt(asymmetric: Path) -> None:
    model, reference = load(made.judged(asymmetric)), SentenceTransformer(str(asymmetric), device="cpu")
    same(run(model, TEXTS), reference.encode(TEXTS))
    same(run(model, TEXTS, EncodeOptions(side="query")), reference.encode_query(TEXTS))
    same(run(model, TEXTS, EncodeOptions(side="document")), reference.encode_document(TEXTS))
    cut = encode_within(model.encoder, [LONG], EncodeOptions(side="document"), "input", truncate=True)
    same(model.forward(cut), reference.encode_document([LONG]))
    same(run(model, [LONG], EncodeOptions(side="query")), reference.encode_query([LONG]))  # without a limit


def test_what_is_too_long_for_its_side_is_refused_or_cut(sparse: RetrievalModel) -> None:
    for side in SIDES:
        options = EncodeOptions(side=side)
        with pytest.raises(TooLong, match=r"has 30\d tokens, but this model takes at most 128"):
            encode_within(sparse.encoder, [LONG], options, "input", truncate=False)
        [item] = encode_within(sparse.encoder, [LONG + "city"], options, "input", truncate=True)
        assert item.tokens == 128
        city = sparse.tokenizer.convert_tokens_to_ids("city")
        assert city not in sparse.forward([item])[0][:, 0] or side == "document"


def test_clients_of_tei_say_by_prompt_name_or_input_type_which_side_they_mean(
    asymmetric: Path, sparse: RetrievalModel
) -> None:
    dense = load(made.judged(asymmetric))
    said = [tei_embed_request({"inputs": "a", name: "query"}, dense).options for name in ("prompt_name", "input_type")]
    assert [(options.side, options.prompt) for options in said] == [("query", PROMPTS["query"])] * 2
    assert tei_embed_request({"inputs": "a", "input_type": "query"}, sparse).options.side == "query"


def test_a_router_without_a_default_asks_for_the_side(folder: Path) -> None:
    path = make_inference_free(folder / "no-default", default_route=None, allow_empty_key=False)
    model = load(made.judged(path))
    with pytest.raises(InvalidRequest, match="say which these are") as refused:
        encode_within(model.encoder, TEXTS, EncodeOptions(), "inputs", truncate=False)
    assert refused.value.param == "input_type"


def test_routers_of_other_routes_are_refused_for_that_alone(folder: Path) -> None:
    path = make_inference_free(folder / "other-routes")
    router = json.loads((path / "router_config.json").read_text())
    router["structure"]["doc"] = router["structure"].pop("document")
    (path / "router_config.json").write_text(json.dumps(router))
    [spec] = [spec for spec in made.scan(folder) if spec.path == path]
    assert (spec.task, spec.availability) == (Task.UNSUPPORTED, Availability.UNUSABLE)
    assert [reason for reason in spec.reasons if "routed" in reason]
    assert not [reason for reason in spec.reasons if "no weights" in reason or "no tokenizer" in reason]
