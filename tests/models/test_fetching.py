"""Adapters from S3 storage: what is fetched, what is refused, and what stays on disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from models.fetching import store as stores
from models.fetching.address import Address
from models.fetching.storage import FetchFailed, Storage
from models.fetching.store import Progress, Store
from tests.models.s3_server import BUCKET, S3

CONFIG = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/chatty", "r": 8}).encode()
MAX_BYTES = 32 << 20


def weights(size_bytes: int = 4000, fill: bytes = b"\1") -> bytes:
    """A whole safetensors file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + fill * size_bytes


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    s3_server.use(monkeypatch)
    return s3_server


class Adapter(NamedTuple):
    s3: S3
    address: Address

    def put(self, name: str, content: bytes, part_sizes: tuple[int, ...] = ()) -> None:
        self.s3.put(f"{self.address.prefix}/{name}", content, part_sizes)

    def downloads(self) -> list[str]:
        return self.s3.downloads(self.address.prefix)


@pytest.fixture
def adapter(s3: S3, request: pytest.FixtureRequest) -> Adapter:
    """A whole one, in the storage, for this test."""
    made = Adapter(s3, Address(BUCKET, f"team/{request.node.name}".replace("[", "/").replace("]", "").lower()))
    made.put("adapter_config.json", CONFIG)
    made.put("adapter_model.safetensors", weights())
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, Storage(), MAX_BYTES)


def fetch(store: Store, adapter: Adapter) -> Path:
    return store.update(adapter.address, Progress(), [])


def failure(store: Store, adapter: Adapter) -> str:
    with pytest.raises(FetchFailed) as caught:
        fetch(store, adapter)
    return caught.value.message


def half_made(store: Store) -> list[str]:
    return [path.name for path in store.folder.rglob("*.partial")]


# What is fetched


def test_only_the_files_that_an_engine_reads_of_an_adapter_are_fetched(store: Store, adapter: Adapter) -> None:
    for name in ("README.md", "optimizer.pt", "adapter_model.bin", "checkpoint-1/adapter_config.json"):
        adapter.put(name, b"x")
    folder = fetch(store, adapter)
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (folder / "adapter_model.safetensors").read_bytes() == weights()
    assert adapter.downloads() == ["adapter_config.json", "adapter_model.safetensors"]


def test_after_a_restart_nothing_is_fetched_again(store: Store, adapter: Adapter) -> None:
    folder = fetch(store, adapter)
    adapter.s3.requests.clear()
    again = Store(store.folder, Storage(), MAX_BYTES)
    assert again.present(adapter.address) == folder == fetch(again, adapter)
    assert adapter.downloads() == []


def test_of_a_changed_adapter_only_the_file_that_changed_is_fetched(store: Store, adapter: Adapter) -> None:
    before = fetch(store, adapter)
    changed = CONFIG.replace(b"8", b"4")
    adapter.put("adapter_config.json", changed)
    adapter.s3.requests.clear()
    after = fetch(store, adapter)
    assert adapter.downloads() == ["adapter_config.json"]
    assert (after / "adapter_config.json").read_bytes() == changed
    assert (after / "adapter_model.safetensors").read_bytes() == weights()
    assert (before / "adapter_config.json").read_bytes() == CONFIG, "an engine may still be reading it"


def test_the_version_before_goes_with_the_next_change(store: Store, adapter: Adapter) -> None:
    folders = []
    for rank in b"456":
        adapter.put("adapter_config.json", CONFIG.replace(b"8", bytes([rank])))
        folders.append(fetch(store, adapter))
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_what_was_half_made_is_done_again(store: Store, adapter: Adapter) -> None:
    folder = fetch(store, adapter)
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    leftover = folder.parent / ".0123456789abcdef.partial"
    leftover.mkdir()
    assert Store(store.folder, Storage(), MAX_BYTES).present(adapter.address) is None
    assert (fetch(store, adapter) / "adapter_model.safetensors").read_bytes() == weights()
    assert not leftover.exists()


def test_a_file_that_was_uploaded_in_parts_of_any_size_is_verified(store: Store, adapter: Adapter) -> None:
    content = weights((11 << 20) + 77)
    adapter.put("adapter_model.safetensors", content, (5 << 20, 6 << 20, len(content) - (11 << 20)))
    assert (fetch(store, adapter) / "adapter_model.safetensors").read_bytes() == content
    adapter.put("adapter_model.safetensors", content, (6 << 20, 5 << 20, len(content) - (11 << 20)))
    adapter.s3.spoil = lambda sent: sent[:-1] + b"\2"
    assert "does not match its checksum (ETag" in failure(store, adapter)


def test_two_at_once_fetch_an_adapter_once(store: Store, adapter: Adapter) -> None:
    both_are_here = threading.Barrier(2)

    def update(one: Store) -> Path:
        both_are_here.wait(10)
        return fetch(one, adapter)

    with ThreadPoolExecutor(2) as threads:  # two stores, as of two processes
        first, second = threads.map(update, [store, Store(store.folder, Storage(), MAX_BYTES)])
    assert first == second
    assert adapter.downloads() == ["adapter_config.json", "adapter_model.safetensors"]


def test_whoever_waits_for_another_process_can_be_stopped(store: Store, adapter: Adapter) -> None:
    home = store.folder / adapter.address.folder_name
    home.mkdir()
    with (home / stores.LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        progress = Progress()
        progress.stop.set()
        with pytest.raises(FetchFailed, match="shutting down"):
            store.update(adapter.address, progress, [])
    assert adapter.downloads() == []


# What goes wrong on the way


def test_a_transfer_that_breaks_off_is_begun_anew(store: Store, adapter: Adapter) -> None:
    breaks = iter([False, True])  # not the first file, but the second

    adapter.put("adapter_model.safetensors", weights(3 << 20))
    adapter.s3.spoil = lambda sent: sent[: len(sent) // 2] if next(breaks, False) else sent
    assert (fetch(store, adapter) / "adapter_model.safetensors").read_bytes() == weights(3 << 20)
    assert adapter.downloads() == ["adapter_config.json", "adapter_model.safetensors"] * 2


def test_a_transfer_that_breaks_off_again_and_again_leaves_what_was_there(store: Store, adapter: Adapter) -> None:
    before = fetch(store, adapter)
    adapter.put("adapter_model.safetensors", weights(3 << 20))
    adapter.s3.spoil = lambda sent: sent[: len(sent) // 2]
    assert "the transfer broke off" in failure(store, adapter)
    assert store.present(adapter.address) == before
    adapter.s3.spoil = None
    assert (fetch(store, adapter) / "adapter_model.safetensors").read_bytes() == weights(3 << 20)
    assert half_made(store) == []


def test_bytes_that_changed_on_the_way_are_refused(store: Store, adapter: Adapter) -> None:
    adapter.s3.spoil = lambda sent: b"\3" + sent[1:]
    assert "checksum" in failure(store, adapter)
    assert store.present(adapter.address) is None


@pytest.mark.parametrize("replaced", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_is_replaced_while_it_is_fetched_is_of_one_time(
    store: Store, adapter: Adapter, replaced: str
) -> None:
    content = {"adapter_config.json": CONFIG + b"\n", "adapter_model.safetensors": weights(fill=b"\7")}[replaced]

    def change(path: str) -> None:
        if path.endswith("adapter_model.safetensors"):  # the configuration is here already
            adapter.s3.before_get = None
            adapter.put(replaced, content)

    adapter.s3.before_get = change
    assert (fetch(store, adapter) / replaced).read_bytes() == content


def test_more_bytes_than_were_listed_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    storage = Storage()
    begun_bytes: list[int] = []
    config, _ = storage.list_adapter(adapter.address, MAX_BYTES)
    listed = replace(config, size_bytes=config.size_bytes - 1)
    with pytest.raises(FetchFailed, match=f"was listed with {len(CONFIG) - 1}"):
        storage.download(adapter.address, listed, tmp_path / "config", begun_bytes.append)
    assert sum(begun_bytes) == len(CONFIG)


def test_an_adapter_that_goes_while_it_is_fetched_is_told(store: Store, adapter: Adapter) -> None:
    def delete(_: str) -> None:
        adapter.s3.before_get = None
        adapter.s3.client.delete_object(Bucket=BUCKET, Key=f"{adapter.address.prefix}/adapter_config.json")

    adapter.s3.before_get = delete
    assert failure(store, adapter) == "there is no adapter_config.json, but adapter_model.safetensors"


def test_an_adapter_that_never_rests_is_refused(store: Store, adapter: Adapter) -> None:
    count = iter(range(100))
    adapter.s3.before_get = lambda path: adapter.put("adapter_config.json", CONFIG + b" " * next(count))
    assert failure(store, adapter) == "it is written to while it is fetched"


def test_a_full_disk_is_named(store: Store, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert failure(store, adapter) == f"the disk of the state folder {store.folder} is full"
    monkeypatch.undo()
    adapter.s3.use(monkeypatch)
    monkeypatch.setattr(stores, "SPARE_BYTES", 1 << 60)
    assert "has only 0 free" in failure(store, adapter)


def test_adapters_that_were_asked_for_make_room_for_others_and_configured_ones_stay(s3: S3, tmp_path: Path) -> None:
    store = Store(tmp_path, Storage(), 64 << 10)
    made = [Adapter(s3, Address(BUCKET, f"room/{number}")) for number in range(stores.KEPT_ADAPTERS + 3)]
    configured = made[0].address
    for number, one in enumerate(made):
        one.put("adapter_config.json", CONFIG)
        one.put("adapter_model.safetensors", weights((64 << 10) - 1000))
        fetched = store.update(one.address, Progress(), [configured])
        os.utime(fetched.parent, ns=(number, number))  # used at this time
    here = [store.present(one.address) is not None for one in made]
    assert here == [True, False, False] + [True] * stores.KEPT_ADAPTERS


def test_no_room_is_made_where_somebody_fetches_at_this_moment(
    store: Store, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = store.folder / "busy-0" / ".0.partial"
    busy.mkdir(parents=True)
    monkeypatch.setattr(stores, "KEPT_ADAPTERS", 0)
    monkeypatch.setattr(stores, "SPARE_BYTES", 1 << 60)
    with (busy.parent / stores.LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "has only 0 free" in failure(store, adapter)
    assert busy.exists()
    assert "has only 0 free" in failure(store, adapter)
    assert not busy.exists()


# What is refused


def test_an_adapter_that_is_too_large_is_refused_before_it_is_fetched(tmp_path: Path, adapter: Adapter) -> None:
    assert "max_adapter_bytes is 2,000" in failure(Store(tmp_path, Storage(), 2000), adapter)
    adapter.put("adapter_config.json", b" " * (5 << 20))
    assert "too many for a configuration" in failure(Store(tmp_path, Storage(), MAX_BYTES), adapter)
    assert adapter.downloads() == []


def test_pickle_weights_are_not_even_fetched(store: Store, s3: S3) -> None:
    adapter = Adapter(s3, Address(BUCKET, "pickled"))
    adapter.put("adapter_config.json", CONFIG)
    adapter.put("adapter_model.bin", b"\x80\4.")
    assert failure(store, adapter).startswith("only pickle weights (adapter_model.bin), which can run code")
    assert adapter.downloads() == []


def test_a_folder_without_an_adapter_is_told_what_there_is_instead(store: Store, s3: S3) -> None:
    s3.put("runs/checkpoint-10/adapter_config.json", CONFIG)
    message = failure(store, Adapter(s3, Address(BUCKET, "runs")))
    assert message == "there is no adapter_config.json, but checkpoint-10/"
    assert failure(store, Adapter(s3, Address(BUCKET, "run"))).endswith("nor anything else")
    s3.put("early/adapter_config.json", CONFIG)
    assert failure(store, Adapter(s3, Address(BUCKET, "early"))) == "it has no adapter_model.safetensors yet"


def test_wrong_credentials_are_refused_by_name(adapter: Adapter, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "SignatureDoesNotMatch" in failure(store, adapter)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEBODY")
    message = failure(Store(store.folder, Storage(), MAX_BYTES), adapter)
    assert "InvalidAccessKeyId" in message
    assert "check AWS_ACCESS_KEY_ID" in message
    assert "another" not in message


def test_without_credentials_the_request_is_anonymous(
    adapter: Adapter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "the storage refuses access (AccessDenied: Access Denied)" in failure(store, adapter)


def test_a_bucket_that_does_not_exist_is_named(store: Store, s3: S3) -> None:
    assert failure(store, Adapter(s3, Address("no-such-bucket", "a"))) == "the bucket 'no-such-bucket' does not exist"


def test_a_storage_that_is_not_there_is_told_as_passing(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("models.fetching.storage.ATTEMPTS", 1)
    with pytest.raises(FetchFailed, match="cannot be reached") as caught:
        Storage().list_adapter(adapter.address, MAX_BYTES)
    assert caught.value.passing


def test_a_password_in_the_endpoint_s_url_is_told_nobody(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://me:hush@127.0.0.1:9")
    monkeypatch.setattr("models.fetching.storage.ATTEMPTS", 1)
    with pytest.raises(FetchFailed, match=r"http://127\.0\.0\.1:9/") as caught:
        Storage().list_adapter(adapter.address, MAX_BYTES)
    assert "hush" not in caught.value.message


@pytest.mark.parametrize("missing", ["ETag", "Size", "Key"])
def test_an_answer_that_lacks_what_s3_says_is_told(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    entry = {"Key": "a/adapter_config.json", "ETag": "0", "Size": 1}
    del entry[missing]
    client = SimpleNamespace(list_objects_v2=lambda **_: {"Contents": [entry]})
    monkeypatch.setattr("models.fetching.storage._make_client", lambda: client)
    with pytest.raises(FetchFailed, match=f"does not answer as S3 does: it says no '{missing}'"):
        Storage().list_adapter(Address(BUCKET, "a"), MAX_BYTES)


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x"])
def test_an_endpoint_that_is_no_url_is_told(adapter: Adapter, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url or "http://")
    with pytest.raises(FetchFailed, match="storage"):
        Storage().list_adapter(adapter.address, MAX_BYTES)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://bucket", "is no s3://bucket/prefix"),
        ("s3://bucket/", "is no s3://bucket/prefix"),
        ("http://bucket/a", "is no s3://bucket/prefix"),
        ("s3://B_cket/a", "cannot be a bucket's name"),
        ("s3://evil.example:80/a", "cannot be a bucket's name"),
        ("s3://bucket/a/../b", "cannot be a prefix"),
        ("s3://bucket//a", "cannot be a prefix"),
        ("s3://bucket/a\n", "cannot be a prefix"),
        ("s3://bucket/" + "ä" * 500, "more than 900 bytes"),
    ],
)
def test_what_is_no_place_in_a_bucket_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Address.parse(url)


def test_addresses_have_folders_of_their_own() -> None:
    urls = ["s3://bucket/a/pirate", "s3://bucket/b/pirate", "s3://other/a/pirate", "s3://bucket/Ünï"]
    names = [Address.parse(url).folder_name for url in urls]
    assert len(set(names)) == len(names)
    assert names[0].startswith("pirate-")
    assert Address.parse("s3://bucket/a/pirate/") == Address.parse(urls[0])
