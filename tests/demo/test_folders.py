"""What the command does to a models folder; no model is made here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo import __main__ as command
from demo import facts, folders, is_empty, making

COMMAND_LIMIT_S = 30.0


def write_model(folder: Path, *, ours: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    if ours:
        folders.mark(folder)
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the training processes; the names of the models that were asked for."""
    names: list[str] = []

    def write(name: str, work: Path, *_: object) -> None:
        names.append(name)
        write_model(work / name.replace("/", "-"))

    monkeypatch.setattr(making, "_run", write)
    return names


def test_importing_the_facts_imports_no_framework() -> None:
    program = "import sys, demo.facts, demo.__main__; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=COMMAND_LIMIT_S)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_folder_that_is_missing_or_bare_is_empty(tmp_path: Path) -> None:
    assert is_empty(tmp_path / "missing")
    assert is_empty(tmp_path)


def test_a_folder_with_anything_at_all_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    assert not is_empty(tmp_path)


def test_if_empty_leaves_a_users_folder_as_it_is(tmp_path: Path, trained: list[str]) -> None:
    write_model(tmp_path / "my" / "model")
    before = listing(tmp_path)
    assert command.main([str(tmp_path), "--if-empty"]) == 0
    assert listing(tmp_path) == before
    assert trained == []


def test_if_empty_makes_the_models_in_an_empty_folder(tmp_path: Path, trained: list[str]) -> None:
    assert command.main([str(tmp_path / "models"), "--if-empty"]) == 0
    assert all(folders.is_complete(tmp_path / "models" / name) for name in facts.ALL_MODELS)


def test_nothing_but_the_models_is_left_in_the_folder(tmp_path: Path, trained: list[str]) -> None:
    making.make_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sentence-transformers"]


def test_a_model_of_the_users_under_a_demo_models_name_is_kept_even_by_force(
    tmp_path: Path, trained: list[str]
) -> None:
    own = write_model(tmp_path / facts.BASE)
    before = listing(own)
    making.make_all(tmp_path, force=True)
    assert listing(own) == before
    assert facts.BASE not in trained


def test_a_models_folder_of_the_users_without_weights_is_left_alone(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / facts.BASE).mkdir(parents=True)
    making.make_all(tmp_path)
    assert list((tmp_path / facts.BASE).iterdir()) == []
    assert "without its weights" in capsys.readouterr().err


def test_models_made_before_are_kept_and_made_again_by_force(tmp_path: Path, trained: list[str]) -> None:
    making.make_all(tmp_path)
    trained.clear()
    making.make_all(tmp_path)
    assert trained == []
    making.make_all(tmp_path, force=True)
    assert set(trained) == set(facts.ALL_MODELS) - {facts.EMBEDDER}


def test_a_model_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_run", lambda name, *_: f"{name}: no luck")
    with pytest.raises(making.MakingFailed, match=f"{facts.BASE}: no luck"):
        making.make_all(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sentence-transformers"]


def test_an_embedder_whose_package_is_missing_is_left_out_with_a_word(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(facts, "EMBEDDER_PACKAGE", "no_such_package")
    making.make_all(tmp_path)
    assert not (tmp_path / facts.EMBEDDER).exists()
    assert "pip install no-such-package" in capsys.readouterr().err


def test_what_an_ended_maker_left_is_removed_and_a_living_ones_is_not(tmp_path: Path, trained: list[str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=COMMAND_LIMIT_S)
    stale = tmp_path / f"{folders.WORK_PREFIX}{ended.pid}-x"
    living = tmp_path / f"{folders.WORK_PREFIX}{os.getppid()}-x"
    stale.mkdir()
    living.mkdir()
    assert is_empty(tmp_path)
    making.make_all(tmp_path)
    assert not stale.exists()
    assert living.exists()
