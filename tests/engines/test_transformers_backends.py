"""Which backend computes a model, and that each computes what torch does in float32."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertForSequenceClassification, BertModel

from engines import transformers_engine
from engines.base import EngineContext
from engines.runtime.backends import candidates as candidates_module
from engines.runtime.backends import choosing, kept
from engines.runtime.backends.bodies import Unsuitable
from engines.runtime.backends.candidates import candidates
from engines.runtime.backends.choosing import CannotRun, best_of, choose
from engines.runtime.backends.cores import usable_cores
from engines.runtime.backends.kept import PLAIN, Candidate, Choice, Figures
from engines.runtime.backends.measuring import check
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_runtime import load_chosen, load_model
from engines.transformers_engine import OVERHEAD_BYTES, TransformersFactory
from models.types import ModelOverrides
from tests.engines.fake_nvml import FakeGpu, FakeNvml
from tests.engines.retrieval_models import bert_config, make_qwen3_embedding, save_bert
from tests.engines.transformers_support import client_of, running_engine, spec_of

TEXTS = ["turn", "The roundhouse has twelve stalls.", "Locomotives turn on the turntable. " * 4]
ONNX, OPENVINO = Candidate("onnx", "float32"), Candidate("openvino", "float32")
MIB = 2**20


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "embedder", BertModel(bert_config()))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = BertForSequenceClassification(bert_config(num_labels=1))
    return save_bert(tmp_path_factory.mktemp("models") / "reranker", model)


def args_of(**fields: object) -> TransformersArgs:
    return TransformersArgs.model_validate({"task": "embed", "fingerprint": "1"} | fields)


@pytest.mark.asyncio(loop_scope="session")
async def test_the_first_load_measures_and_keeps_what_later_loads_use(
    factory: TransformersFactory, embedder: Path
) -> None:
    unasked = ModelOverrides(engine_args={"backend": "auto", "dtype": "auto"})
    spec = spec_of(embedder, fingerprint="1", overrides=unasked)
    reference = SentenceTransformer(str(embedder), device="cpu").encode(TEXTS)
    written = []
    assert "unless its first load finds a faster way" in factory.reasons(spec)[0]
    for _ in range(2):
        async with running_engine(factory, spec) as engine, client_of(engine) as client:
            answer = await client.ok("/v1/embeddings", model="embedder", input=TEXTS)
        np.testing.assert_allclose([each["embedding"] for each in answer["data"]], reference, atol=1e-5)
        written.append((kept.folder_of(factory._backends, str(embedder)) / kept.CHOICE).stat().st_mtime_ns)
    [reason] = factory.reasons(spec)
    replaced = factory.reasons(replace(spec, fingerprint="2"))
    assert written[0] == written[1]  # the second load measured nothing
    assert reason.startswith("runs on ")
    for name in ("torch float32", "ONNX Runtime float32", "OpenVINO float32"):
        assert f"{name} " in reason
    assert " not: " not in reason  # each of them could run it
    assert "unless" in replaced[0]


@pytest.mark.parametrize(("backend", "file"), [*choosing.FILES.items()])
def test_an_exported_embedder_embeds_as_sentence_transformers_does(
    embedder: Path, tmp_path: Path, backend: str, file: str
) -> None:
    args = args_of(backend=backend, body_path=str(tmp_path / file))
    load_model(str(embedder), args)
    model = load_model(str(embedder), args)  # this time from the file
    rows = model.forward(model.encoder.encode(TEXTS))
    np.testing.assert_allclose(rows, SentenceTransformer(str(embedder), device="cpu").encode(TEXTS), atol=1e-5)
    ids: NDArray[np.float32] = np.asarray(model.forward(model.encoder.encode([[2, 9, 3]])))
    plain = load_model(str(embedder), args_of())
    np.testing.assert_allclose(ids, plain.forward(plain.encoder.encode([[2, 9, 3]])), atol=1e-5)


def test_an_exported_model_leaves_no_weights_with_torch(embedder: Path, tmp_path: Path) -> None:
    model = load_model(str(embedder), args_of(backend="onnx", body_path=str(tmp_path / "onnx.onnx")))
    assert list(model._model.parameters()) == []  # type: ignore[attr-defined]


def test_an_exported_reranker_scores_as_the_cross_encoder_does(reranker: Path, tmp_path: Path) -> None:
    args = args_of(task="rerank", backend="onnx", body_path=str(tmp_path / "onnx.onnx"))
    model = load_model(str(reranker), args)
    pairs = [("What turns?", text) for text in TEXTS]
    expected = CrossEncoder(str(reranker), device="cpu").predict(pairs)
    np.testing.assert_allclose(np.asarray(model.forward(model.encoder.encode(pairs)))[:, 0], expected, atol=1e-5)


def fake_measuring(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]) -> list[Candidate]:
    """Measures by `speeds`, and writes a file where an export would. What was measured so far."""
    seen: list[Candidate] = []

    def measured(candidate: Candidate, _: str, args: TransformersArgs, __: Path) -> Figures:
        seen.append(candidate)
        if args.body_path:
            Path(args.body_path).write_bytes(b"graph of " + candidate.backend.encode())
            Path(args.body_path).with_suffix(".bin").write_bytes(b"weights")
        speed = speeds.get(candidate.backend, 0.0)
        return Figures(candidate, 10 / speed, 100 * speed, 1.0) if speed else Figures(candidate, error="it broke")

    monkeypatch.setattr(choosing, "measured", measured)
    return seen


def test_the_winner_s_file_stays_and_all_others_go(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_measuring(monkeypatch, {"torch": 1, "onnx": 1.4, "openvino": 1.2})
    args = args_of(cache_dir=str(tmp_path))
    chosen = choose(str(embedder), args)
    assert (chosen.backend, chosen.dtype) == ("onnx", "float32")
    assert Path(chosen.body_path).read_bytes() == b"graph of onnx"
    folder = kept.folder_of(tmp_path, str(embedder))
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(
        [kept.CHOICE, kept.LOCK, "onnx.onnx", "onnx.bin"]
    )
    again = choose(str(embedder), args.model_copy(update={"fingerprint": "2"}))
    assert not Path(chosen.body_path).exists()  # of the folder as it was before
    assert Path(again.body_path).exists()


def test_on_a_slow_machine_what_was_not_tried_in_time_is_no_candidate(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake_measuring(monkeypatch, {"torch": 1, "onnx": 1.4, "openvino": 2})
    clock = iter((0.0, choosing.COMPARING_S - 1, choosing.COMPARING_S + 1))
    monkeypatch.setattr(choosing, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    chosen = choose(str(embedder), args_of(cache_dir=str(tmp_path)))

    assert (seen, chosen.backend) == ([PLAIN, ONNX], "onnx")
    choice = kept.read(kept.folder_of(tmp_path, str(embedder)))
    assert choice is not None
    assert "OpenVINO float32 not: not tried" in str(choice)


def test_a_file_that_is_not_whole_does_not_count(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake_measuring(monkeypatch, {"torch": 1, "onnx": 2})
    args = args_of(cache_dir=str(tmp_path))
    first = choose(str(embedder), args)
    count = len(seen)
    assert choose(str(embedder), args) == first
    assert len(seen) == count
    Path(first.body_path).write_bytes(b"gr")
    assert choose(str(embedder), args) == first
    assert len(seen) == 2 * count
    (kept.folder_of(tmp_path, str(embedder)) / kept.CHOICE).write_text('{"key": ')
    assert choose(str(embedder), args) == first
    assert len(seen) == 3 * count


def test_two_engines_at_once_measure_once(embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_measuring(monkeypatch, {"torch": 1, "onnx": 2})
    args = args_of(cache_dir=str(tmp_path))
    folder = kept.folder_of(tmp_path, str(embedder))
    chosen: list[TransformersArgs] = []
    with kept.locked(folder):
        threads = [threading.Thread(target=lambda: chosen.append(choose(str(embedder), args))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert not seen  # whoever wants to decide waits for the lock
    for thread in threads:
        thread.join(60)
    assert len(chosen) == 2
    assert chosen[0] == chosen[1]
    assert len(seen) == len(set(seen))


def test_without_a_place_for_exports_torch_serves_and_an_asked_for_backend_is_refused(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake_measuring(monkeypatch, {"torch": 1, "onnx": 2})
    (tmp_path / "file").touch()
    args = args_of(cache_dir=str(tmp_path / "file" / "below"))
    assert choose(str(embedder), args).backend == "torch"
    with pytest.raises(CannotRun, match=r"engine_args\.backend: onnx cannot run this model here: .*Not a directory"):
        choose(str(embedder), args.model_copy(update={"backend": "onnx"}))
    assert not seen


def test_a_backend_that_breaks_at_a_model_is_passed_over_or_refused_where_it_was_asked_for(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_measuring(monkeypatch, {"torch": 1})
    args = args_of(cache_dir=str(tmp_path))
    assert choose(str(embedder), args).backend == "torch"
    with pytest.raises(CannotRun, match="OpenVINO float32 not: it broke"):
        choose(str(embedder), args.model_copy(update={"backend": "openvino"}))


def test_an_export_that_does_not_load_any_more_gives_way_to_torch(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_measuring(monkeypatch, {"torch": 1, "onnx": 2})  # whose files are no models
    args = args_of(cache_dir=str(tmp_path))
    assert choose(str(embedder), args).backend == "onnx"
    model, loaded = load_chosen(str(embedder), args)
    assert loaded.backend == "torch"
    assert np.isfinite(np.asarray(model.forward(model.encoder.encode(TEXTS)))).all()
    assert kept.read(kept.folder_of(tmp_path, str(embedder))) is None  # the next load measures again


def test_what_was_kept_for_models_that_are_gone_is_removed(tmp_path: Path) -> None:
    here = tmp_path / "model"
    here.mkdir()
    for path in (here, tmp_path / "gone"):
        folder = kept.folder_of(tmp_path / "cache", str(path))
        with kept.locked(folder):
            kept.write(folder, Choice("key", "1", str(path), PLAIN))
    kept.forget_missing(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept.folder_of(tmp_path, str(here)).name]


def test_only_plain_encoders_of_bounded_size_are_exported(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backends(folder: Path) -> set[str]:
        return {each.backend for each in candidates(folder, args_of(dtype="float32"))}

    assert backends(embedder) == {"torch", "onnx", "openvino"}
    assert backends(make_qwen3_embedding(tmp_path / "causal", modules=True)) == {"torch"}
    monkeypatch.setattr(candidates_module, "MAX_EXPORTED_BYTES", 1000)
    assert backends(embedder) == {"torch"}


def test_reduced_precision_is_tried_where_the_cpu_has_instructions_for_it(
    embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, expected in (("avx2", {"float32"}), ("avx2 avx512_bf16", {"float32", "bfloat16"})):
        monkeypatch.setattr(candidates_module, "_cpu", lambda flags=flags: ("CPU", flags))
        assert {each.dtype for each in candidates(embedder, args_of())} == expected


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], uuid: str = "GPU-aaaa") -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(uuid, capability=capability)))


@pytest.mark.parametrize(
    ("capability", "weights", "fields", "expected"),
    [
        ((9, 0), torch.float32, {}, ["float32", "bfloat16"]),
        ((7, 5), torch.float32, {}, ["float32", "float16"]),  # emulates bfloat16
        ((6, 1), torch.float32, {}, ["float32"]),
        ((9, 0), torch.float16, {}, ["auto"]),  # its own
        ((9, 0), torch.float32, {"dtype": "float16"}, ["float16"]),
    ],
)
def test_on_a_gpu_weights_of_32_bits_are_tried_in_the_16_that_it_is_fast_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    weights: torch.dtype,
    fields: dict[str, str],
    expected: list[str],
) -> None:
    folder = save_bert(tmp_path / "model", BertModel(bert_config()).to(weights))
    config = json.loads((folder / "config.json").read_bytes())
    on_gpu(monkeypatch, capability)
    for named in (True, False):  # many published configurations name no dtype: then the weights tell
        kept_fields = {name: value for name, value in config.items() if named or "dtype" not in name}
        (folder / "config.json").write_text(json.dumps(kept_fields))
        found = candidates(folder, args_of(device="cuda", **fields))
        assert [(each.backend, each.dtype) for each in found] == [("torch", dtype) for dtype in expected]


def test_the_precision_that_a_gpu_is_faster_with_is_kept_and_half_the_memory_reserved(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Candidate] = []

    def measured(candidate: Candidate, *_: object) -> Figures:
        seen.append(candidate)
        return Figures(candidate, 1, 900 if candidate.dtype == "bfloat16" else 300, 0.9999)

    monkeypatch.setattr(choosing, "measured", measured)
    on_gpu(monkeypatch, (9, 0))
    context = EngineContext(run_dir=tmp_path, log_dir=tmp_path, cache_dir=tmp_path, device="cuda")
    factory = TransformersFactory(context)
    spec = spec_of(embedder, fingerprint="1", weights_bytes=100 * MIB, overrides=ModelOverrides())
    overhead_bytes = OVERHEAD_BYTES["cuda"]

    assert factory.estimate_bytes(spec) == 100 * MIB + overhead_bytes  # what the comparison takes
    assert "unless its first load finds a faster way" in factory.reasons(spec)[0]
    chosen = choose(str(embedder), factory._args(spec))
    assert choose(str(embedder), factory._args(spec)) == chosen
    assert (chosen.backend, chosen.dtype, chosen.device) == ("torch", "bfloat16", "cuda")
    assert seen == [PLAIN, Candidate("torch", "bfloat16")]  # the second load measured nothing
    assert factory.estimate_bytes(spec) == 50 * MIB + overhead_bytes
    assert factory.reasons(spec)[0].startswith("runs on torch bfloat16, by measurement: ")

    on_gpu(monkeypatch, (9, 0), "GPU-bbbb")  # of another name
    transformers_engine._key.cache_clear()
    assert factory.estimate_bytes(spec) == 100 * MIB + overhead_bytes
    assert choose(str(embedder), factory._args(spec)) == chosen
    assert len(seen) == 4


def test_a_model_that_does_not_run_in_its_own_precision_leaves_no_choice_behind(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's memory may have been short; the next load compares again."""
    monkeypatch.setattr(choosing, "measured", lambda candidate, *_: Figures(candidate, error="out of memory"))
    on_gpu(monkeypatch, (9, 0))
    args = args_of(device="cuda", cache_dir=str(tmp_path))
    assert choose(str(embedder), args).dtype == "float32"
    assert kept.read(kept.folder_of(tmp_path, str(embedder))) is None


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({"torch float32": 1, "onnx float32": 1.05}, "torch float32"),  # not worth it
        ({"torch float32": 1, "onnx float32": 1.3, "openvino float32": 1.35}, "onnx float32"),
        ({"torch float32": 1, "torch bfloat16": 0.3, "openvino float32": 1.2}, "openvino float32"),
        ({"torch float32": 1, "openvino float32": 1.2, "openvino bfloat16": 2}, "openvino bfloat16"),
    ],
)
def test_the_fastest_wins_by_a_margin_over_what_is_simpler(speeds: dict[str, float], expected: str) -> None:
    figures = [Figures(Candidate(*name.split()), 10 / speed, 100 * speed, 1.0) for name, speed in speeds.items()]
    assert best_of(figures, [each.candidate for each in figures]) == Candidate(*expected.split())


def test_outputs_that_differ_from_torch_s_are_no_choice() -> None:
    rows = [np.asarray(row, dtype=np.float32) for row in ([1, 0], [0.6, 0.8])]

    def off(by: float) -> list[NDArray[np.float32]]:
        return [row + np.float32(by) for row in rows]

    assert check(ONNX, off(1e-6), rows, by_row=True) > 0.999
    with pytest.raises(Unsuitable, match="from torch's"):
        check(ONNX, off(1e-3), rows, by_row=True)
    reduced = Candidate("torch", "bfloat16")
    assert check(reduced, off(1e-3), rows, by_row=True) > 0.999
    for by in (0.1, float("nan")):
        with pytest.raises(Unsuitable, match="cosine"):
            check(reduced, off(by), rows, by_row=True)
    with pytest.raises(Unsuitable, match="shape"):
        check(ONNX, rows[:1], rows, by_row=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "onnx", "dtype": "bfloat16"}, "onnx computes in float32, not in bfloat16"),
        ({"backend": "openvino", "device": "cuda"}, "openvino is for the CPU"),
        ({"backend": "tensorrt"}, "'auto', 'torch', 'onnx' or 'openvino'"),
    ],
)
def test_a_backend_that_cannot_be_is_refused_with_the_reason(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        args_of(**fields)


def test_threads_are_bounded_by_what_the_control_groups_grant(tmp_path: Path) -> None:
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")
    unbounded = usable_cores(tmp_path, membership)
    (group / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path, membership) == unbounded
    (tmp_path / "a" / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path, membership) == 1


def test_weights_stored_in_16_bits_are_estimated_as_they_are_loaded_whatever_the_configuration_names(
    tmp_path: Path,
) -> None:
    folder = save_bert(tmp_path / "model", BertModel(bert_config()).to(torch.bfloat16))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    for device, named, loaded_mib in (("cpu", "float32", 200), ("cuda", "float32", 200), ("cuda", None, 100)):
        spec = spec_of(folder, dtype=named, fingerprint="1", weights_bytes=100 * MIB, overrides=ModelOverrides())
        context = EngineContext(run_dir=tmp_path, log_dir=tmp_path, cache_dir=tmp_path, device=device)
        loaded_bytes = TransformersFactory(context).estimate_bytes(spec) - OVERHEAD_BYTES[device]
        assert loaded_bytes == loaded_mib * MIB
