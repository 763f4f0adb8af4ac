from __future__ import annotations

import pytest

from bench import contenders


@pytest.fixture
def without_compiler(monkeypatch):
    """Compiling takes seconds, and is PyTorch's to test."""
    monkeypatch.setattr(contenders, "missing", lambda name: "left out of this test")
