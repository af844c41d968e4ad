"""What is wrong with a folder makes that folder refused, with the reason, and never ends the scan."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from models.discovery.scanner import scan
from models.types import Availability, ModelSpec
from tests.models.discovery.folders import Content, chat_files, write_file, write_files, write_safetensors

GOOD = "good/model"
ST = "sentence_transformers.models."


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with one good model, beside a secret that nothing may reach."""
    write_files(tmp_path / "outside", chat_files())
    root = tmp_path / "models"
    write_files(root / GOOD, chat_files())
    return root


def bad_one(root: Path) -> ModelSpec:
    """The one model that is not the good one, which must still be there."""
    specs = {spec.id: spec for spec in scan(root)}
    assert specs.pop(GOOD).availability is Availability.AVAILABLE
    [spec] = specs.values()
    assert spec.availability is Availability.UNUSABLE, spec.reasons
    assert all(reason.isprintable() for reason in spec.reasons)
    assert spec.id.isprintable()
    return spec


def has_reason(spec: ModelSpec, fragment: str) -> bool:
    return any(fragment in reason for reason in spec.reasons)


@pytest.mark.parametrize("link", ["leak", "good/leak"])
def test_a_folder_that_links_out_of_the_models_folder_is_refused(models: Path, link: str) -> None:
    (models / link).symlink_to(models.parent / "outside")
    spec = bad_one(models)
    assert spec.id == link
    assert has_reason(spec, "symbolic link out of the models folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "extra.txt"])
def test_a_file_that_links_out_of_the_models_folder_is_refused(models: Path, name: str) -> None:
    write_files(models / "bad", chat_files())
    (models / "bad" / name).unlink(missing_ok=True)
    (models / "bad" / name).symlink_to("../../outside/config.json")
    assert has_reason(bad_one(models), f"{name} is a symbolic link out of the models folder")


def test_a_link_that_leaves_through_another_link_is_refused(models: Path) -> None:
    write_files(models / "bad", chat_files())
    (models / "bad" / "step").symlink_to("../../outside")
    (models / "bad" / "extra.json").symlink_to("step/config.json")
    assert has_reason(bad_one(models), "extra.json is a symbolic link out")


def test_a_folder_whose_name_only_begins_like_the_models_folder_is_outside(models: Path) -> None:
    write_files(models.parent / "models-of-others", chat_files())
    (models / "leak").symlink_to("../models-of-others")
    assert has_reason(bad_one(models), "out of the models folder")


def test_a_module_folder_that_links_out_is_refused(models: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    write_files(models / "bad", {**chat_files(), "modules.json": modules})
    (models / "bad" / "1_Pooling").symlink_to("../../outside")
    assert has_reason(bad_one(models), "1_Pooling is a symbolic link out")


@pytest.mark.parametrize("target", [".", "..", "../good"])
def test_links_to_a_folder_above_are_refused_instead_of_followed(models: Path, target: str) -> None:
    (models / "good" / "loop").symlink_to(target)
    spec = {s.id: s for s in scan(models)}.get("good/loop")
    assert spec is not None
    assert spec.availability is Availability.UNUSABLE


def test_a_cycle_of_links_is_refused(models: Path) -> None:
    (models / "a").symlink_to("b")
    (models / "b").symlink_to("a")
    specs = {spec.id: spec for spec in scan(models)}
    assert specs[GOOD].availability is Availability.AVAILABLE
    assert specs["a"].availability is specs["b"].availability is Availability.UNUSABLE


def test_a_config_that_links_to_itself_is_refused(models: Path) -> None:
    write_files(models / "bad", {"model.safetensors": 500})
    (models / "bad" / "config.json").symlink_to("config.json")
    assert has_reason(bad_one(models), "a cycle of symbolic links")


@pytest.mark.parametrize("name", ["evil\n", "evil\x1b[2J", "evil\x7f", "back\\slash", os.fsdecode(b"evil\xff")])
def test_names_with_control_characters_are_refused_and_shown_escaped(models: Path, name: str) -> None:
    write_files(models / name, chat_files())
    spec = bad_one(models)
    assert spec.id.encode()
    assert has_reason(spec, "rename the folder")


def test_a_cache_name_cannot_climb_out_of_its_id(models: Path) -> None:
    write_files(models / "models--..--.." / "snapshots" / "abc", chat_files())
    assert has_reason(bad_one(models), "cannot be a part of a model id")


def test_a_config_of_a_gigabyte_is_not_read(models: Path) -> None:
    write_files(models / "bad", {**chat_files(), "config.json": 1 << 30})
    assert has_reason(bad_one(models), "config.json has 1,073,741,824 bytes")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"\x00\xff" * 500, "not valid JSON"),
        (b'{"architectures": ["\xff\xfe"]}', "not valid JSON"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not valid JSON"),
        (b'{"NaN":' * 10_000 + b"NaN" + b"}" * 10_000, "not valid JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "not valid JSON"),
        (b'"text"', "should hold a JSON object"),
        (b'{"architectures": "LlamaForCausalLM"}', "architectures should be a list"),
        (b'{"architectures": [7]}', "architectures should be a list"),
        (b'{"architectures": {"a": 1}}', "architectures should be a list"),
        (b'{"architectures": ["X"], "model_type": ["llama"]}', "model_type should be a name"),
    ],
)
def test_a_config_of_garbage_is_refused_with_the_reason(models: Path, content: bytes, fragment: str) -> None:
    write_files(models / "bad", {**chat_files(), "config.json": content})
    assert has_reason(bad_one(models), fragment)


ODD: list[object] = [None, True, -1, 0, 1.5, 1e300, "x", "\x1b[2J" * 99, [], {}, [[]], {"a": {"b": []}}]
FIELDS = [
    "num_labels", "id2label", "text_config", "quantization_config", "auto_map", "max_position_embeddings",
    "torch_dtype", "hidden_size", "num_attention_heads", "is_encoder_decoder", "chat_template", "llm_config",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_odd_values_in_any_field_never_end_the_scan(models: Path, field: str) -> None:
    for number, value in enumerate(ODD):
        odd = {field: value}
        write_files(models / f"bad{number}", chat_files(**odd))
        sequence = {"architectures": ["XForSequenceClassification"], **odd}
        write_files(models / f"labels{number}", {**chat_files(), "config.json": sequence, "tokenizer_config.json": odd})
        write_files(models / f"params{number}", {"params.json": odd, "tekken.json": odd, "model.safetensors": 500})
    specs = scan(models)
    assert len(specs) == 1 + 3 * len(ODD)
    assert all(reason.isprintable() for spec in specs for reason in spec.reasons)


BROKEN_FILES: list[tuple[str, Content, str]] = [
    ("modules.json", {"a": 1}, "modules.json should hold a list"),
    ("modules.json", [1], "modules.json should hold a list"),
    (
        "modules.json",
        [{"path": "../../outside", "type": "sentence_transformers.models.Dense"}],
        "outside of the folder",
    ),
    ("modules.json", [{"path": "/etc", "type": "sentence_transformers.models.Dense"}], "outside of the folder"),
    ("modules.json", [{"path": "", "type": "os.system"}], "trust_remote_code: true"),
    ("model.safetensors.index.json", {"weight_map": {"a": "../../outside/model.safetensors"}}, "outside of the folder"),
    ("model.safetensors.index.json", {"weight_map": {"a": 7}}, "outside of the folder"),
    ("model.safetensors.index.json", {"weight_map": []}, "has no weight_map"),
    ("model.safetensors.index.json", b"{]", "not valid JSON"),
    ("tokenizer_config.json", [], "tokenizer_config.json should hold a JSON object"),
    ("tokenizer_config.json", 5 << 20, "tokenizer_config.json has 5,242,880 bytes"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "auto_map names Tokenizer"),
    ("adapter_config.json", {"base_model_name_or_path": ["x"]}, "names no base model"),
    ("model.safetensors", b"\xff" * 500, "is not a safetensors file"),
    ("model.safetensors", (100).to_bytes(8, "little") + b"x" * 500, "is not a safetensors file"),
]


@pytest.mark.parametrize(("name", "content", "fragment"), BROKEN_FILES)
def test_a_broken_file_is_refused_with_the_reason(models: Path, name: str, content: Content, fragment: str) -> None:
    files = {**chat_files(), name: content}
    if name == "adapter_config.json":
        del files["config.json"], files["model.safetensors"]
        files["adapter_model.safetensors"] = 500
    write_files(models / "bad", files)
    assert has_reason(bad_one(models), fragment), bad_one(models).reasons


def test_a_safetensors_file_longer_than_its_header_says_is_refused(models: Path) -> None:
    write_files(models / "bad", chat_files())
    os.truncate(models / "bad" / "model.safetensors", 9000)
    assert has_reason(bad_one(models), "has 9,000 bytes, but its header says 4,096")


def test_a_pipe_in_place_of_a_config_is_not_waited_for(models: Path) -> None:
    write_files(models / "bad", {"model.safetensors": 500})
    os.mkfifo(models / "bad" / "config.json")
    specs = {spec.id: spec.availability for spec in scan(models)}
    assert specs == {GOOD: Availability.AVAILABLE, "bad": Availability.INCOMPLETE}


@pytest.fixture
def as_nobody() -> object:
    """Root reads everything; file permissions are tested as an ordinary user's file system calls."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("target", ["bad", "bad/config.json", "bad/model.safetensors", "bad/tokenizer.json"])
def test_what_cannot_be_read_is_refused(models: Path, target: str, request: pytest.FixtureRequest) -> None:
    write_files(models / "bad", chat_files())
    for folder in (models, *models.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    for path in models.rglob("*"):  # whatever the umask
        path.chmod(0o755)
    (models / target).chmod(0)
    request.getfixturevalue("as_nobody")
    assert has_reason(bad_one(models), "permission denied")


def test_a_half_copied_file_is_listed_with_its_numbers(models: Path) -> None:
    write_files(models / "bad", chat_files())
    write_safetensors(models / "bad" / "model.safetensors", 10_000, written_bytes=0)
    for written, fragment in [(0, "is empty"), (7, "7 bytes are there"), (50, "less than its header")]:
        write_safetensors(models / "bad" / "model.safetensors", 10_000, written)
        assert fragment in half_copied(models)
    write_safetensors(models / "bad" / "model.safetensors", 10_000)
    os.truncate(models / "bad" / "model.safetensors", 9_999)
    assert half_copied(models) == "model.safetensors is half-copied: 9,999 of 10,000 bytes are there"


def half_copied(root: Path) -> str:
    spec = next(spec for spec in scan(root) if spec.id == "bad")
    assert spec.availability is Availability.INCOMPLETE
    return spec.reasons[-1]


DENSE = [{"path": "", "type": ST + "Transformer"}, {"path": "1_Dense", "type": ST + "Dense"}]
ENCODER: dict[str, Content] = {"config.json": {"architectures": ["BertModel"], "model_type": "bert"}, "vocab.txt": "a"}
ADAPTER: dict[str, Content] = {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": GOOD}}


@pytest.mark.parametrize(
    "files",
    [
        ADAPTER | {"adapter_model.bin": 1000, "decoy.safetensors": 4096},
        ENCODER | {"pytorch_model.bin": 1000, "decoy.safetensors": 4096},
        ENCODER
        | {"modules.json": DENSE, "model.safetensors": 4096, "1_Dense/config.json": {}}
        | {"1_Dense/pytorch_model.bin": 1000, "1_Dense/decoy.safetensors": 4096},
    ],
    ids=["adapter", "encoder", "module"],
)
def test_safetensors_that_nothing_loads_do_not_excuse_the_pickle_beside_them(
    models: Path, files: Mapping[str, Content]
) -> None:
    write_files(models / "bad", files)
    assert has_reason(bad_one(models), "only pickle weights")


def test_reading_a_folder_runs_none_of_its_code(models: Path) -> None:
    marker = models.parent / "ran"
    code = f"open({str(marker)!r}, 'w')\n"
    config = {
        "architectures": ["EvilModel"],
        "model_type": "evil",
        "auto_map": {"AutoModel": "modeling_evil.EvilModel"},
    }
    write_files(models / "bad", {**chat_files(), "config.json": config, "modeling_evil.py": code, "__init__.py": code})
    write_file(models / "bad" / "pytorch_model.bin", b"cos\nsystem\n(S'touch ran'\ntR.")
    assert has_reason(bad_one(models), "trust_remote_code")
    assert not marker.exists()
