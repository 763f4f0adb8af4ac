"""`fastvae.patch`: how patches begin, nest and end, whatever the library."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
import types
import warnings

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl as torch_kl

import fastvae
from fastvae.integrations import patching
from fastvae.integrations.monkeypatch import MonkeyPatch

PAIRS = tuple(torch_kl._KL_REGISTRY)  # others may register more while the tests run


def state_of_torch():
    return (vars(Normal)["__init__"], vars(Normal)["rsample"], *(torch_kl._KL_REGISTRY[pair] for pair in PAIRS))


UNPATCHED = state_of_torch()


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    fastvae.unpatch()
    assert state_of_torch() == UNPATCHED


def is_patched():
    return vars(Normal)["rsample"] is not UNPATCHED[1]


def noise():
    setting = patching.setting_of("torch")
    return setting and setting.noise


def test_a_block_ends_its_patch():
    with fastvae.patch("torch") as patch:
        assert is_patched()
        assert repr(patch) == "Patch('torch', noise='fastvae')"
    assert not is_patched()
    assert noise() is None


def test_a_block_ends_its_patch_after_an_error():
    with pytest.raises(KeyError), fastvae.patch("torch"):
        raise KeyError
    assert not is_patched()


def test_a_call_lasts_until_unpatch():
    fastvae.patch("torch")
    assert is_patched()
    fastvae.unpatch("diffusers")
    assert is_patched()
    fastvae.unpatch("torch")
    assert not is_patched()
    fastvae.unpatch()


def test_patches_nest_and_the_settings_of_the_last_one_apply():
    with fastvae.patch("torch", noise="torch"):
        with fastvae.patch("torch"):
            assert noise() == "fastvae"
            fastvae.patch("torch", noise="torch")
            assert noise() == "torch"
        assert is_patched()
        assert noise() == "torch"
    assert is_patched()  # the call in between has not ended
    fastvae.unpatch()
    assert not is_patched()


def test_patches_may_end_in_any_order():
    first, second = fastvae.patch("torch", noise="torch"), fastvae.patch("torch")
    first.undo()
    assert noise() == "fastvae"
    second.undo()
    assert not is_patched()
    second.undo()


def test_unpatch_within_a_block_is_final_and_the_end_of_the_block_harmless():
    with fastvae.patch("torch"):
        fastvae.unpatch()
        assert not is_patched()
        fastvae.patch("torch")
    assert is_patched()


def test_a_patch_may_be_entered_again():
    patch = fastvae.patch("torch")
    for _ in range(2):
        with patch:
            assert is_patched()
        assert not is_patched()


def test_a_patch_entered_twice_lasts_until_the_outer_block_ends():
    with fastvae.patch("torch") as patch:
        with patch:
            assert is_patched()
        assert is_patched()
    assert not is_patched()


def test_entering_a_patch_brings_back_what_was_unpatched_of_it(monkeypatch):
    monkeypatch.setattr(patching, "_load", lambda name: types.SimpleNamespace(install=lambda patches: None))
    patch = fastvae.patch("scvi", "torch")
    fastvae.unpatch("torch")
    assert patching.setting_of("torch") is None
    with patch:
        assert patching.setting_of("torch") is patching.setting_of("scvi") is patch.setting
    assert patching.setting_of("torch") is patching.setting_of("scvi") is None


def test_it_holds_for_other_threads():
    seen = []
    with fastvae.patch("torch"):
        thread = threading.Thread(target=lambda: seen.append(noise()))
        thread.start()
        thread.join()
    assert seen == ["fastvae"]


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((), {}, TypeError, "no library, expected one or more of 'diffusers', 'pyro'"),
        (("tensorflow",), {}, ValueError, "library is 'tensorflow', expected one of 'diffusers'"),
        (("torch",), {"noise": "numpy"}, ValueError, "noise is 'numpy', expected one of 'fastvae', 'torch'"),
        (("torch",), {"whole_event": 1}, TypeError, "whole_event is a int, expected a bool"),
    ],
)
def test_unknown_arguments_are_named(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        fastvae.patch(*arguments, **keywords)


def test_unpatch_of_an_unknown_library():
    with pytest.raises(ValueError, match="library is 'tensorflow'"):
        fastvae.unpatch("tensorflow")


@pytest.mark.parametrize("library", patching.LIBRARIES)
def test_a_missing_library_is_an_error_with_the_supported_versions_and_nothing_is_patched(monkeypatch, library):
    distribution = patching.LIBRARIES[library].distribution
    version_of = importlib.metadata.version

    def version(name):
        if name == distribution:
            raise importlib.metadata.PackageNotFoundError(name)
        return version_of(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=f"{distribution} is not installed; .* supports {distribution} [0-9]"):
        fastvae.patch("torch", library)
    assert not is_patched()


@pytest.mark.parametrize("version", ["0.1", "99.0.1", "unknown"])
def test_an_unsupported_version_is_an_error_with_the_supported_ones(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf"torch {version} is installed; .* torch 2\.11 to 2\.14"):
        fastvae.patch("torch")
    assert not is_patched()


def test_a_patch_that_fails_half_way_is_undone(monkeypatch):
    from fastvae.integrations import torch_distributions

    monkeypatch.setattr(torch_distributions, "replace_kl", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fastvae.patch("torch")
    assert not is_patched()


def test_what_other_code_has_replaced_since_is_not_restored():
    class Owner:
        kept = 1

    class Heir(Owner):
        pass

    patches, entries = MonkeyPatch(), {"a": 1}
    patches.setattr(Owner, "kept", 2)
    patches.setattr(Heir, "kept", 3)
    patches.setitem(entries, "a", 2, "entry a")
    patches.setitem(entries, "b", 2, "entry b")
    Owner.kept = 4
    entries["a"] = 4
    with pytest.warns(UserWarning, match="was replaced by other code since fastvae.patch") as caught:
        patches.undo()
    assert len(caught) == 2
    assert (Owner.kept, entries) == (4, {"a": 4})
    assert "kept" not in vars(Heir)


def test_a_name_is_replaced_in_every_module_that_has_it_and_put_back_in_later_ones():
    home, user, later = (types.ModuleType(f"fastvae_test_{name}") for name in ("home", "user", "later"))
    home.Thing = user.Thing = original = object()
    user.Other = other = object()
    patches, new = MonkeyPatch(), object()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            sys.modules |= {module.__name__: module for module in (home, user)}
            patches.rebind(home, "Thing", new)
            assert home.Thing is user.Thing is new
            later.Thing = home.Thing
            sys.modules[later.__name__] = later
            patches.undo()
        finally:
            for module in (home, user, later):
                sys.modules.pop(module.__name__, None)
    assert home.Thing is user.Thing is later.Thing is original
    assert user.Other is other


def test_importing_fastvae_imports_no_library(run_python):
    script = "import fastvae, sys; print({'diffusers', 'scvi', 'pyro', 'pythae'} & set(sys.modules))"
    assert run_python(script).stdout.strip() == "set()"


def test_the_default_dtype_and_the_random_state_are_the_users():
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    with fastvae.patch("torch"):
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype


def test_where_one_library_fails_none_is_patched(monkeypatch):
    def fail(patches):
        raise ImportError("broken")

    load = patching._load
    broken = types.SimpleNamespace(install=fail)
    monkeypatch.setattr(patching, "_load", lambda name: broken if name == "pyro" else load(name))
    with pytest.raises(ImportError, match="broken"):
        fastvae.patch("torch", "pyro")
    assert patching.setting_of("torch") is None
    assert patching.setting_of("pyro") is None
    assert not is_patched()
