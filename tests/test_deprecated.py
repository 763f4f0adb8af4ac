"""Public names that were renamed: the old ones work for one release, and warn."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import fastvae

RENAMED = [
    ("fastvae.nn", "ELBO", "ELBOTerms"),
    ("fastvae.nn", "Terms", "LossTerms"),
    ("fastvae.objectives", "Objective", "ObjectiveOutput"),
]


@pytest.mark.parametrize(("module", "old", "new"), RENAMED)
def test_an_old_name_is_the_new_class_with_a_warning_that_names_it(module, old, new):
    imported = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} is now {module}\.{new};") as caught:
        assert getattr(imported, old) is getattr(imported, new)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("module", ["fastvae.nn", "fastvae.objectives"])
def test_other_names_are_absent_as_in_any_module(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'NoSuchName'"):
        importlib.import_module(module).NoSuchName  # noqa: B018


def test_the_changelog_has_the_version_and_every_renamed_name():
    changelog = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
    assert f"\n## [{fastvae.__version__}]" in changelog
    for module, old, new in RENAMED:
        assert f"`{module}.{old}`" in changelog
        assert f"`{module}.{new}`" in changelog
