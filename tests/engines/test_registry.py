"""What installed packages register: engines, imported only when one of their models needs them, and architectures."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from engines import registry
from models.types import Registered, Task


def test_packages_register_architectures_and_a_faulty_entry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("DeepseekOCRForCausalLM", "deepseek_ocr:chat", registry.ARCHITECTURES),
        EntryPoint("AForNothing", "some_engine:paint", registry.ARCHITECTURES),
        EntryPoint("BForNothing", "some_engine", registry.ARCHITECTURES),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ARCHITECTURES else [])
    found, faults = registry.registered_architectures()
    assert found == {"DeepseekOCRForCausalLM": Registered("deepseek_ocr", Task.CHAT)}
    assert [("AForNothing" in fault, "'some_engine:paint'" in fault) for fault in faults] == [
        (True, True),
        (False,) * 2,
    ]
    assert all("write engine:task" in fault and "chat" in fault for fault in faults)
