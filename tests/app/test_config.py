"""Settings from environment and file, their errors, and changes while serving."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.cli_client import default_url
from app.config import ConfigError, Settings, load_settings
from app.main import _context_for
from app.memory import Device
from app.reload import ConfigReloader
from models.types import ModelOverrides, Task
from tests.app.serving import MODELS, serving, spec
from utils.logging import logger


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("ROUNDHOUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    folder = tmp_path / "models-data"
    folder.mkdir()
    return folder / "roundhouse.yaml"


def error_of(text: str, file: Path) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    return str(caught.value)


def test_the_environment_goes_over_the_file_and_arguments_over_both(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text("port: 1\nhost: localhost\nresidency: one\nmax_wait_s: 5\n")
    monkeypatch.setenv("ROUNDHOUSE_PORT", "2")
    monkeypatch.setenv("ROUNDHOUSE_HOST", "127.0.0.2")
    monkeypatch.setenv("ROUNDHOUSE_MAX_QUEUED", "")
    settings = load_settings({"port": 3, "config": None})
    assert (settings.port, settings.host, settings.residency) == (3, "127.0.0.2", "one")
    assert (settings.policy().max_wait_s, settings.policy().max_queued) == (5, 2048)


def test_everything_has_a_default(tmp_path: Path) -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.models_dir) == ("127.0.0.1", 8000, Path("models-data"))
    assert settings.state_dir == Path("~/.cache/roundhouse").expanduser()


def test_models_are_configured_by_id(config_file: Path) -> None:
    config_file.write_text(
        "models:\n  org/m:\n    aliases: [gpt-4o]\n    task: embed\n    kv_cache_bytes: 2GiB\n    pinned: true\n"
        "    engine_args: {max_num_seqs: 4}\nengines:\n  vllm:\n    args: {enforce_eager: true}\n"
    )
    settings = load_settings()
    overrides = settings.overrides()["org/m"]
    assert (overrides.aliases, overrides.task, overrides.pinned) == (("gpt-4o",), Task.EMBED, True)
    assert (overrides.kv_cache_bytes, overrides.engine_args) == (2 << 30, {"max_num_seqs": 4})
    assert settings.engines["vllm"].args == {"enforce_eager": True}


def test_what_is_empty_is_the_default_and_one_alias_needs_no_list(config_file: Path) -> None:
    config_file.write_text(
        "port:\nmodels:\n  a:\n  b:\n    pinned:\n    aliases: gpt-4o\n    engine_args: {x: null}\nengines:\n  vllm:\n"
        "  b:\n    args:\n    kind: openai\n    url:\n    urls: http://gpu0, http://gpu1\n    models:\n"
    )
    settings = load_settings()
    assert (settings.port, settings.engines["vllm"].args) == (8000, {})
    assert settings.declarations()["b"].urls == ("http://gpu0/v1", "http://gpu1/v1")
    assert settings.overrides()["a"] == ModelOverrides()
    assert settings.overrides()["b"] == ModelOverrides(aliases=("gpt-4o",), engine_args={"x": None})
    config_file.write_text("models:\n  # a: {pinned: true}\n")
    assert load_settings().models == {}


def test_unknown_keys_are_errors_that_name_the_nearest_key_and_the_line(config_file: Path) -> None:
    message = error_of(
        "port: 1\nresidancy: one\nmodels:\n  a:\n    pined: true\nengines:\n  v: {arg: {}}\n", config_file
    )
    assert "roundhouse.yaml, line 2: unknown key 'residancy'; did you mean 'residency'?" in message
    assert "line 5: unknown key 'models.a.pined'; did you mean 'pinned'?" in message
    assert "line 7: unknown key 'engines.v.arg'; did you mean 'args'?" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_wait_s: -1", "line 1: max_wait_s:"),
        ("swap_share: 1.5", "line 1: swap_share:"),
        ("port: [1]", "line 1: port:"),
        ("max_body_bytes: plenty", "line 1: max_body_bytes:"),
        ("host: localhost\nmodels: [a]", "line 2: models:"),
        ("cors_origins: [chat.example]", "write it like https://"),
        ("allowed_hosts: http://chat.example", "write it like chat.example.com"),
        ("memory_budget_bytes: 0", "memory_budget_bytes: Input should be greater"),
        ("- a\n- b", "must be a mapping"),
        ("a: [", "not valid YAML: line 1, column 5: "),
        ("port: 1\napi_key: 'secret-key", "not valid YAML: line 2, column 21: "),
        ("1: 2", "must be a mapping"),
        ("x: &x [*x]", "unknown key"),
        ("engines: {box: {kind: openai, url: 'http://me:secret@gpu0'}}", "without credentials"),
        ("engines: {box: {kind: openai, urls: 'http://me:secret@gpu0'}}", "without credentials"),
        ("models: {no: {pinned: true}}", "line 1: models.0.[key]: must be text; put it in quotes"),
        ("engines: {box: {kind: openai, url: 'http://gpu0:99999/v1'}}", "is no URL of such a server"),
        ("engines: {box: {kind: openai, url: 'http://gpü'}}", "is no URL of such a server"),
        ("engines: {box: {kind: openai, urls: ['http://gpu0', 'http://gpu0/v1/']}}", "names a server twice"),
        ("engines: {box: {kind: openai, url: 'http://gpu0/v1/chat/completions'}}", "leave out /chat/completions"),
        ("port: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("models: {a: {aliases: 5}}", "line 1: models.a.aliases: must be a list, like [a, b]"),
        ("models: {a: 5}", "line 1: models.a: must be a mapping"),
        ("kv_cache_bytes: 8 gigs", "must be a size, like 8GiB"),
        ("models:\n  a: {pinned: true}\nport: 1\nmodels:\n  b: {}", "line 4: 'models' is on line 1 already"),
        ("models: {a: &a {x: *a}}", "unknown key 'models.a.x'"),
    ],
)
def test_wrong_values_are_errors_that_name_key_and_line(config_file: Path, text: str, expected: str) -> None:
    told = error_of(text, config_file)
    assert expected in told
    assert "secret" not in told


def test_a_wrong_value_is_told_with_where_it_was_given(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.write_text("port: 1\n")
    with pytest.raises(ConfigError, match=r"^option --port: port: Input should be less"):
        load_settings({"port": 99999})
    monkeypatch.setenv("ROUNDHOUSE_PORT", "99999")
    with pytest.raises(ConfigError, match=r"^environment variable ROUNDHOUSE_PORT: port: Input should be less"):
        load_settings()
    monkeypatch.setenv("ROUNDHOUSE_PORT", "1")
    monkeypatch.setenv("ROUNDHOUSE_MODELS", "{a")
    with pytest.raises(ConfigError, match=r"^environment variable ROUNDHOUSE_MODELS: models: must be JSON"):
        load_settings()


def test_a_models_folder_that_cannot_be_looked_into_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_MODELS_DIR", "x" * 300)  # permissions do not hold root back, this does
    with pytest.raises(ConfigError, match=r"models folder x+ cannot be read: .* ROUNDHOUSE_MODELS_DIR"):
        load_settings()
    assert default_url() == "http://127.0.0.1:8000"


def test_a_mistyped_variable_is_an_error_and_an_unrelated_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("ROUNDHOUSE_DEMO_MODELS_DIR", "/somewhere")
    load_settings()
    monkeypatch.setenv("ROUNDHOUSE_API_KEYZ", "12345678")
    with pytest.raises(ConfigError, match="did you mean ROUNDHOUSE_API_KEY"):
        load_settings()


def test_keys_come_from_variables_and_a_file_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("# ours\n\nfile-key-1\n  file-key-2  \n")
    monkeypatch.setenv("ROUNDHOUSE_API_KEY", "single-key")
    monkeypatch.setenv("ROUNDHOUSE_API_KEYS", "comma-key-1, comma-key-2,")
    monkeypatch.setenv("ROUNDHOUSE_API_KEY_FILE", str(tmp_path / "keys"))
    settings = load_settings()
    assert settings.keys() == ("single-key", "comma-key-1", "comma-key-2", "file-key-1", "file-key-2")
    assert "single-key" not in repr(settings)
    monkeypatch.setenv("ROUNDHOUSE_API_KEYS", "shorty,has space in it")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "shorty" not in str(caught.value)


def test_a_key_file_without_keys_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_API_KEY_FILE", str(tmp_path / "keys"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings()
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        load_settings()


async def test_a_change_of_the_file_is_applied_and_an_error_in_it_changes_nothing(config_file: Path) -> None:
    config_file.write_text("max_wait_s: 5\n")  # noqa: ASYNC240
    applied: list[tuple[Settings, Settings]] = []
    errors: list[str | None] = []

    async def apply(old: Settings, new: Settings) -> None:
        applied.append((old, new))

    reloader = ConfigReloader(load_settings({"port": 9}), apply, errors.append)
    await reloader.check()
    assert applied == []
    config_file.write_text("max_wait_s: 50\nport: 7\n")  # noqa: ASYNC240
    await reloader.check()
    assert [(old.max_wait_s, new.max_wait_s, new.port) for old, new in applied] == [(5, 50, 9)]
    config_file.write_text("max_wait_s: never, ever\n")  # noqa: ASYNC240
    await reloader.check()
    assert "line 1: max_wait_s" in str(errors[-1])
    assert len(applied) == 1
    config_file.unlink()  # noqa: ASYNC240
    await reloader.check()
    assert errors[-1] is None
    assert applied[-1][1].max_wait_s == 60


async def test_a_change_that_cannot_be_applied_does_not_end_the_watching(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.reload.POLL_S", 0.01)
    applied = asyncio.Event()

    async def apply(old: Settings, new: Settings) -> None:
        if new.max_wait_s == 1:
            config_file.write_text("max_wait_s: 22\n")  # noqa: ASYNC240
            raise RuntimeError("a fault")
        applied.set()

    watching = asyncio.create_task(ConfigReloader(load_settings(), apply, lambda error: None).run())
    config_file.write_text("max_wait_s: 1\n")  # noqa: ASYNC240
    await asyncio.wait_for(applied.wait(), 5.0)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_policy_and_overrides_change_while_serving() -> None:
    async with serving() as served:
        old = served.roundhouse.state.settings
        changed: dict[str, Any] = {"models": {"other": {"pinned": True}}, "max_wait_s": 7, "models_dir": old.models_dir}
        new = Settings(**changed)
        await served.roundhouse.lifecycle._apply(old, new)
        assert served.roundhouse.state.manager.status("other").pinned
        assert served.roundhouse.state.manager.scheduler.policy.max_wait_s == 7


async def test_how_long_and_how_a_client_waits_changes_while_serving() -> None:
    async with serving() as served:
        served.engines.may_load.clear()
        old = served.roundhouse.state.settings
        await served.roundhouse.lifecycle._apply(old, old.model_copy(update={"wait_timeout_s": 0.05}))
        refused = await served.chat("other")
        assert refused.status_code == 503
        assert "within 0.05 s (wait_timeout_s)" in refused.json()["error"]["message"]


async def test_memory_for_sleeping_models_is_measured_unless_it_is_set_also_after_a_change() -> None:
    async with serving() as served:
        state, lifecycle = served.roundhouse.state, served.roundhouse.lifecycle
        state.device = replace(state.device, sleep_bytes=1000)
        for changed, told in (({"max_wait_s": 7.0}, 1000), ({"sleep_memory_bytes": 5}, 5), ({"max_wait_s": 8.0}, 1000)):
            await lifecycle._apply(state.settings, Settings(models_dir=state.settings.models_dir, **changed))
            assert state.manager.scheduler.policy.sleep_memory_bytes == told


def test_engines_are_told_the_memory_that_there_is_and_what_of_it_is_for_retrieval(tmp_path: Path) -> None:
    settings = Settings(retrieval_share=0.25, kv_cache_bytes="1KiB")
    context = _context_for(settings, tmp_path, Device("cuda", 1000, "", 0))("vllm")
    assert (context.device, context.budget_bytes, context.retrieval_bytes) == ("cuda", 1000, 250)
    assert context.kv_cache_bytes == 1024


async def test_configuration_without_a_model_or_an_engine_is_told_in_the_log() -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level=0, format="{message}")
    models = {"othr": {"pinned": True}, "other": {"aliases": ["GPT-4o", "second"]}}
    named = (*MODELS, spec("twin/other", aliases=("second",)))
    async with serving(named, models=models, engines={"vlm": {}}, preload=("nope", "minilm"), default_model=("base1",)):
        pass
    logger.remove(sink)
    log = "".join(lines)
    assert "alias GPT-4o of model other has no effect: it means org/chatty" in log
    assert "alias second of model other has no effect: it means twin/other" in log
    assert "nope in preload has no effect: The model 'nope' does not exist" in log
    assert "base1 in default_model has no effect" in log
    assert "minilm in preload" not in log
    assert "model othr has no effect: no model has this id; nearest: other" in log
    assert "engine vlm has no effect" in log
