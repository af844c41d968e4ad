"""Fetched adapters in the catalog: those of the configuration, and those that a client names by a path."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from app.config import ConfigError, load_settings
from models.catalog import Catalog
from models.errors import AdapterPathRefused, ModelUnusable, RoundhouseError, Unavailable, WrongTask
from models.fetching import fetcher as fetchers
from models.fetching.address import Address, Configured
from models.fetching.fetcher import Fetcher
from models.fetching.paths import AdapterPaths
from models.sources import FOLDER, Sources
from models.types import Availability, ModelOverrides, ModelSpec, Task
from tests.app.serving import serving
from tests.models.s3_server import BUCKET, S3
from tests.models.specs import spec
from tests.models.test_fetching import CONFIG, weights

PATIENCE_S = 10.0


class Setting:
    """A catalog with a fetcher; `address` is of a whole adapter, and of this test's own."""

    def __init__(self, s3: S3, folder: Path, name: str) -> None:
        self.s3 = s3
        self.address = Address(BUCKET, name)
        self.models_dir, self.state_dir = folder / "models", folder / "state"
        self.models_dir.mkdir()
        self.put()
        self.listed: list[tuple[Availability, str]] = []  # what was ever told of adapters, in order
        self.catalog = Catalog()
        self.sources = Sources(self.catalog)
        self.sources.put(FOLDER, [spec("org/chatty")])
        self.fetcher = Fetcher(self.state_dir, self._told, 32 << 20, check_every_s=0.05, retry_s=0.05)
        self.paths = AdapterPaths(self.catalog, self.models_dir, self.fetcher, check=lambda _: None)

    def put(self, fill: bytes = b"\1") -> None:
        self.s3.put(f"{self.address.prefix}/adapter_config.json", CONFIG)
        self.s3.put(f"{self.address.prefix}/adapter_model.safetensors", weights(fill=fill))

    def configure(self, **overrides: str) -> None:
        aliases = tuple(overrides.values())
        self.fetcher.configure({"pirate": Configured(self.address, ModelOverrides(aliases=aliases))})

    def hold_downloads(self) -> tuple[threading.Event, threading.Event]:
        """Events: a download has begun, and it may go on."""
        begun, may_go_on = threading.Event(), threading.Event()

        def hold(_: str) -> None:
            begun.set()
            may_go_on.wait(PATIENCE_S)

        self.s3.before_get = hold
        return begun, may_go_on

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 - what is fetched in threads has no event to wait for
                await asyncio.sleep(0.01)

    def is_served(self, name: str = "pirate") -> bool:
        found = self.catalog.get(name)
        return found is not None and found.availability is Availability.AVAILABLE

    async def refusal(self, adapter_path: str) -> RoundhouseError:
        with pytest.raises(RoundhouseError) as caught:
            await self.paths.resolve(adapter_path)
        assert caught.value.param == "adapter_path"
        return caught.value

    def _told(self, specs: list[ModelSpec]) -> None:  # type: ignore[override]
        self.listed += [(each.availability, each.reasons[-1]) for each in specs]
        self.sources.put("S3 storage", specs)


@pytest_asyncio.fixture
async def setting(
    s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Setting]:
    s3_server.use(monkeypatch)
    monkeypatch.setattr("models.fetching.storage.ATTEMPTS", 1)
    made = Setting(s3_server, tmp_path, request.node.name.partition("[")[0])
    yield made
    await made.fetcher.close()


# Of the configuration


async def test_a_configured_adapter_is_listed_as_under_way_and_then_served(setting: Setting) -> None:
    _, may_go_on = setting.hold_downloads()
    setting.configure()
    try:
        await setting.until(lambda: bool(setting.listed))
        incomplete = setting.catalog.resolve("pirate")
        assert incomplete.availability is Availability.INCOMPLETE
        assert incomplete.reasons[0].startswith(f"being fetched from {setting.address}: ")
    finally:
        may_go_on.set()
    await setting.until(setting.is_served)
    found = setting.catalog.resolve("pirate")
    assert (found.task, found.parent, found.engine) == (Task.ADAPTER, "org/chatty", "vllm")
    assert found in setting.catalog.adapters_of(setting.catalog.resolve("org/chatty"))
    assert f"fetched from {setting.address}" in found.reasons


async def test_how_far_a_fetch_is_shows_in_the_catalog(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetchers, "PROGRESS_S", 0.01)
    setting.s3.put(f"{setting.address.prefix}/adapter_model.safetensors", weights(3 << 20))
    _, may_go_on = setting.hold_downloads()
    setting.configure()
    try:
        await setting.until(lambda: any("0 of 3 MiB" in reason for _, reason in setting.listed))
    finally:
        may_go_on.set()
    await setting.until(setting.is_served)


async def test_a_failed_fetch_is_told_and_succeeds_by_itself_later(setting: Setting) -> None:
    setting.address = Address("not-there-yet", "pirate")
    setting.configure()
    await setting.until(lambda: bool(setting.listed) and setting.listed[-1][0] is Availability.UNUSABLE)
    assert setting.listed[-1][1] == (
        "s3://not-there-yet/pirate cannot be fetched: the bucket 'not-there-yet' does not exist; it is tried again"
    )
    setting.s3.client.create_bucket(Bucket="not-there-yet")
    for name, content in (("adapter_config.json", CONFIG), ("adapter_model.safetensors", weights())):
        setting.s3.client.put_object(Bucket="not-there-yet", Key=f"pirate/{name}", Body=content)
    await setting.until(setting.is_served)


async def test_after_a_restart_it_is_served_though_the_storage_is_away(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.configure()
    await setting.until(setting.is_served)
    await setting.fetcher.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # discard: nobody listens
    setting.listed.clear()
    setting.fetcher = Fetcher(setting.state_dir, setting._told, 32 << 20)
    setting.configure()
    await setting.until(lambda: bool(setting.listed))
    assert setting.listed[0][0] is Availability.AVAILABLE


async def test_a_new_version_in_the_storage_takes_the_place_of_the_old_one(setting: Setting) -> None:
    setting.configure()
    await setting.until(setting.is_served)
    before = setting.catalog.resolve("pirate")
    setting.put(fill=b"\5")
    await setting.until(lambda: setting.catalog.resolve("pirate").fingerprint != before.fingerprint)
    after = setting.catalog.resolve("pirate")
    assert (after.path / "adapter_model.safetensors").read_bytes() == weights(fill=b"\5")


async def test_what_is_configured_no_more_goes(setting: Setting) -> None:
    setting.configure(alias="corsair")
    await setting.until(setting.is_served)
    assert setting.catalog.resolve("corsair").id == "pirate"
    setting.fetcher.configure({})
    assert setting.catalog.get("pirate") is None


async def test_an_adapter_that_discovery_refuses_is_listed_with_its_reason(setting: Setting) -> None:
    setting.s3.put(f"{setting.address.prefix}/adapter_config.json", b'{"peft_type": "PROMPT_TUNING"}')
    setting.configure()
    await setting.until(lambda: bool(setting.listed) and setting.listed[-1][0] is Availability.UNUSABLE)
    assert any("only LoRA adapters are served" in reason for reason in setting.catalog.resolve("pirate").reasons)


async def test_a_fetch_that_stalls_does_not_hold_up_the_end(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetchers, "STOP_WAIT_S", 0.1)
    stalled, may_go_on = setting.hold_downloads()
    setting.configure()
    try:
        await setting.until(stalled.is_set)
        started_s = time.monotonic()
        await setting.fetcher.close()
        assert time.monotonic() - started_s < 2.0
    finally:
        may_go_on.set()


async def test_a_server_serves_it_by_its_base_as_long_as_it_is_configured(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = setting.state_dir.parent / "roundhouse.yaml"
    monkeypatch.setenv("ROUNDHOUSE_CONFIG", str(config))
    config.write_text(f"models: {{corsair: {{source: '{setting.address}'}}}}")
    async with serving(models=load_settings().models, config=config, state_dir=setting.state_dir) as served:

        async def listed() -> dict[str, dict[str, str]]:
            return {each["id"]: each for each in (await served.client.get("/v1/models")).json()["data"]}

        async def until_listed(is_listed: bool) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while ("corsair" in await listed()) is not is_listed:  # noqa: ASYNC110 - another task's progress
                    await asyncio.sleep(0.01)

        await until_listed(True)
        assert (await listed())["corsair"]["parent"] == "org/chatty"
        answer = await served.chat("corsair", messages=[{"role": "user", "content": "Ahoy"}])
        assert answer.status_code == 200
        assert served.engines.loads == ["org/chatty"]
        config.write_text("models: {}")
        await until_listed(False)
        assert (await served.chat("corsair", messages=[])).status_code == 404


def test_a_source_that_is_no_place_in_a_bucket_is_refused_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "roundhouse.yaml"
    config.write_text("models:\n  pirate:\n    source: s3:/adapters/pirate\n")
    with pytest.raises(ConfigError, match=r"line 3.*'s3:/adapters/pirate' is no s3://bucket/prefix"):
        load_settings({"config": config})


# Of a client


async def test_clients_who_name_the_same_place_at_once_get_one_fetch(setting: Setting) -> None:
    found = await asyncio.gather(*(setting.paths.resolve(str(setting.address)) for _ in range(5)))
    assert {each.id for each in found} == {str(setting.address)}
    assert setting.s3.downloads(setting.address.prefix) == ["adapter_config.json", "adapter_model.safetensors"]
    assert setting.catalog.resolve(str(setting.address)) == found[0]
    assert found[0].path.is_relative_to(setting.state_dir)


async def test_the_next_client_gets_what_the_storage_has_then(setting: Setting) -> None:
    before = await setting.paths.resolve(str(setting.address))
    setting.put(fill=b"\6")
    after = await setting.paths.resolve(str(setting.address))
    assert after.id == before.id
    assert after.fingerprint != before.fingerprint


async def test_a_configured_adapter_is_the_same_by_its_place(setting: Setting) -> None:
    setting.configure()
    assert (await setting.paths.resolve(str(setting.address))).id == "pirate"
    assert setting.catalog.get(str(setting.address)) is None


async def test_a_fetch_goes_on_when_the_client_leaves_who_began_it(setting: Setting) -> None:
    begun, may_go_on = setting.hold_downloads()
    leaving = asyncio.create_task(setting.paths.resolve(str(setting.address)))
    await setting.until(begun.is_set)
    staying = asyncio.create_task(setting.paths.resolve(str(setting.address)))
    await asyncio.sleep(0)  # it joins
    leaving.cancel()
    await asyncio.wait([leaving])
    may_go_on.set()
    assert (await staying).task is Task.ADAPTER
    assert len(setting.s3.downloads(setting.address.prefix)) == 2


async def test_fetches_that_never_end_hold_up_no_other(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetchers, "OVERTIME_S", 0.0)
    monkeypatch.setattr("models.fetching.store.FETCH_TIMEOUT_S", 0.1)
    _, may_go_on = setting.hold_downloads()
    stalling = []
    for number in range(fetchers.FETCHES_AT_ONCE):
        setting.address = Address(BUCKET, f"stalling/{number}")
        setting.put()
        stalling.append(setting.refusal(str(setting.address)))
    try:
        for refusal in await asyncio.gather(*stalling):
            assert isinstance(refusal, Unavailable)
            assert "cannot be fetched" in refusal.message
        monkeypatch.undo()
        setting.s3.use(monkeypatch)
        setting.address = Address(BUCKET, "prompt")
        setting.put()
        assert (await setting.paths.resolve(str(setting.address))).task is Task.ADAPTER
    finally:
        may_go_on.set()


async def test_of_a_storage_that_is_away_a_client_gets_what_was_fetched_before(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await setting.paths.resolve(str(setting.address))
    await setting.fetcher.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    setting.fetcher = Fetcher(setting.state_dir, setting._told, 32 << 20)
    setting.paths = AdapterPaths(setting.catalog, setting.models_dir, setting.fetcher, check=lambda _: None)
    assert (await setting.paths.resolve(str(setting.address))).path == before.path
    missing = await setting.refusal(f"s3://{BUCKET}/another")
    assert isinstance(missing, Unavailable)
    assert "cannot be reached" in missing.message
    assert missing.retry_after_s is not None


async def test_what_cannot_be_fetched_or_used_is_told_and_not_listed(setting: Setting) -> None:
    nothing = await setting.refusal(f"s3://{BUCKET}/nothing/here")
    assert isinstance(nothing, ModelUnusable)
    assert f"s3://{BUCKET}/nothing/here cannot be fetched: there is no adapter_config.json" in nothing.message
    setting.s3.put(f"{setting.address.prefix}/adapter_model.safetensors", b"\x80\4pickled")  # under a safe name
    pickled = await setting.refusal(str(setting.address))
    assert isinstance(pickled, ModelUnusable)
    assert "adapter_model.safetensors" in pickled.message
    setting.s3.put(f"{setting.address.prefix}/adapter_model.safetensors", weights()[:-1])
    assert "half-copied" in (await setting.refusal(str(setting.address))).message
    assert setting.listed == []


async def test_clients_cannot_fetch_where_no_storage_is_set_up(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    refusal = await setting.refusal(str(setting.address))
    assert isinstance(refusal, AdapterPathRefused)
    assert "AWS_ENDPOINT_URL_S3" in refusal.message


async def test_what_one_client_fetched_makes_no_other_name_ambiguous(setting: Setting) -> None:
    setting.address = Address(BUCKET, "theirs/chatty")
    setting.put()
    await setting.paths.resolve(str(setting.address))
    assert setting.catalog.resolve("chatty").id == "org/chatty"


# Paths in the models folder


@pytest.fixture
def paths(tmp_path: Path) -> AdapterPaths:
    """`org/pirate` is an adapter and `org/chatty` its base; beside the models folder lies a secret."""
    models_dir = tmp_path / "models"
    for model_id in ("org/pirate", "org/chatty", "org/unknown"):
        (models_dir / model_id).mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (models_dir / "out").symlink_to(tmp_path / "secret")
    (models_dir / "in").symlink_to(models_dir / "org/pirate")
    pirate = spec(
        "org/pirate", task=Task.ADAPTER, path=models_dir / "org/pirate", parent="org/chatty", aliases=("arr",)
    )
    catalog = Catalog([pirate, spec("org/chatty", path=models_dir / "org/chatty")])
    fetcher = Fetcher(tmp_path / "state", lambda _: None, 1 << 20)
    return AdapterPaths(catalog, models_dir, fetcher, check=lambda _: None)


@pytest.mark.parametrize(
    "name", ["org/pirate", "arr", "PIRATE", "./org/pirate/", "org/../org/pirate", "in", "{}/org/pirate"]
)
async def test_an_adapter_of_the_models_folder_is_found_by_name_and_by_path(
    paths: AdapterPaths, name: str, tmp_path: Path
) -> None:
    assert (await paths.resolve(name.format(tmp_path / "models"))).id == "org/pirate"


@pytest.mark.parametrize(
    "path", ["../secret", "out", "out/nothing", "/", "/etc/passwd", "{}/secret", "{}/nothing", "org/../../secret"]
)
async def test_nothing_outside_of_the_models_folder_is_told_apart(
    paths: AdapterPaths, path: str, tmp_path: Path
) -> None:
    named = path.format(tmp_path)
    with pytest.raises(AdapterPathRefused) as caught:
        await paths.resolve(named)
    assert caught.value.message == (
        f"adapter_path '{named}' is outside of the allowed roots. Allowed are the id of an adapter, its folder in "
        f"{tmp_path / 'models'}, and s3://bucket/prefix."
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "is empty"),
        ("org/pirate\0", "control characters"),
        ("a" * 5000, "too long"),
        ("org/unknown", "names no adapter"),
        ("org/pirat", "Nearest: org/pirate"),
        ("s3://bucket", "is no s3://bucket/prefix"),
        ("https://example.com/a", "names no adapter"),
    ],
)
async def test_a_path_that_names_no_adapter_is_refused(paths: AdapterPaths, path: str, why: str) -> None:
    with pytest.raises(AdapterPathRefused, match=why):
        await paths.resolve(path)


async def test_a_model_that_is_no_adapter_is_refused(paths: AdapterPaths) -> None:
    with pytest.raises(WrongTask, match="'org/chatty' is a chat model, not a LoRA adapter"):
        await paths.resolve("org/chatty")
