from pathlib import Path

import pytest

from models.footprints import Footprint, FootprintStore

NO_MEASUREMENTS = [
    b'{"a": {"memory_bytes": %s, "load_s": %s, "fingerprint": "f"}}' % figures
    for figures in ((b'"many"', b"1"), (b"null", b"1"), (b"-5", b"1"), (b"1e400", b"1"), (b"1", b'"long"'))
]


def test_a_footprint_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "footprints.json"
    FootprintStore(path).put("a", Footprint(100, 2.5, "f1"))
    assert FootprintStore(path).get("a", "f1") == Footprint(100, 2.5, "f1")


def test_a_footprint_of_other_content_is_not_used(tmp_path: Path) -> None:
    store = FootprintStore(tmp_path / "footprints.json")
    store.put("a", Footprint(100, 2.5, "f1"))
    assert store.get("a", "f2") is None


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"a": {"memory_bytes": 1}}', b'{"a": 1}', b"\xff\x00", *NO_MEASUREMENTS]
)
def test_a_damaged_file_means_starting_without_figures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "footprints.json"
    path.write_bytes(content)
    assert FootprintStore(path).get("a", "f") is None


def test_a_state_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FootprintStore(tmp_path / "file" / "footprints.json")
    store.put("a", Footprint(100, 2.5, "f1"))
    assert store.get("a", "f1") is not None
