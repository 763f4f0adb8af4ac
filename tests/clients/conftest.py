"""These tests need libraries that `make test` does not install: `make test-clients` runs them."""

import importlib.util

import pytest

LIBRARIES = ("diffusers", "scvi", "pyro", "pythae")

if not all(importlib.util.find_spec(library) for library in LIBRARIES):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "clients":
            item.add_marker(pytest.mark.clients)
