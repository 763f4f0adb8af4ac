"""`patch` and `unpatch`: which libraries are patched, with which settings, and how nested patches are undone."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from ..checks import check_flag
from .monkeypatch import MonkeyPatch

__all__ = ["LIBRARIES", "NOISES", "Library", "Name", "Noise", "Patch", "Setting", "patch", "setting_of", "unpatch"]


class Library(NamedTuple):
    """A library, and the oldest and newest version that its integration supports."""

    distribution: str
    oldest: tuple[int, int]
    newest: tuple[int, int]

    def versions(self) -> str:
        oldest, newest = (".".join(map(str, version)) for version in (self.oldest, self.newest))
        return oldest if oldest == newest else f"{oldest} to {newest}"


LIBRARIES = {
    "diffusers": Library("diffusers", (0, 33), (0, 42)),
    "pyro": Library("pyro-ppl", (1, 9), (1, 9)),
    "pythae": Library("pythae", (0, 1), (0, 1)),
    "scvi": Library("scvi-tools", (1, 3), (1, 5)),
    "torch": Library("torch", (2, 11), (2, 14)),
}

_NAMES = ", ".join(map(repr, LIBRARIES))

Name = Literal["diffusers", "pyro", "pythae", "scvi", "torch"]
Noise = Literal["fastvae", "torch"]
NOISES = get_args(Noise)


class Setting(NamedTuple):
    """The settings of a patch."""

    noise: str
    whole_event: bool
    optimizer: bool


class Patch:
    """A patch that is in effect until `undo`, or until the end of its outermost ``with`` block."""

    def __init__(self, libraries: tuple[str, ...], setting: Setting) -> None:
        self.libraries, self.setting = libraries, setting
        self._blocks = 0  # open ``with`` blocks
        self._apply()

    def _apply(self) -> None:
        """Patch those of the libraries in which this patch is not in effect yet."""
        with _lock:
            missing = [library for library in self.libraries if self not in _layers.get(library, ())]
            modules = [_load(library) for library in missing]  # all import errors come before the first change
            try:
                for library, module in zip(missing, modules, strict=True):
                    layers = _layers.setdefault(library, [])
                    if not layers:
                        _install(library, module)
                    layers.append(self)
            except BaseException:
                self._remove_from(missing)
                raise

    def undo(self) -> None:
        """End this patch; other patches of the same libraries stay in effect. Calling it twice is harmless."""
        self._remove_from(self.libraries)

    def _remove_from(self, libraries: Sequence[str]) -> None:
        with _lock:
            for library in libraries:
                _remove(library, [layer for layer in _layers.get(library, ()) if layer is not self])

    def __enter__(self) -> Patch:
        with _lock:
            self._apply()  # it may have ended: after an earlier block, or by `unpatch`
            self._blocks += 1
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            self._blocks -= 1
            if not self._blocks:
                self.undo()

    def __repr__(self) -> str:
        return f"Patch({', '.join(map(repr, self.libraries))}, noise={self.setting.noise!r})"


_lock = threading.RLock()
_layers: dict[str, list[Patch]] = {}  # the patches in effect, by library; the last one's settings apply
_installed: dict[str, MonkeyPatch] = {}


def patch(*libraries: Name, noise: Noise = "fastvae", whole_event: bool = False, optimizer: bool = True) -> Patch:
    """Make other libraries run on fastvae's kernels, from now on or within a ``with`` block.

    Results have the same shapes, dtypes and devices, and the same values to the accuracy of their dtype. Tensors that
    no fused op supports go through the library's own code. A patch applies to the whole process, including all
    threads. `fastvae.integrations` lists what is replaced in each library.

    Args:
        libraries: "diffusers", "pyro", "pythae", "scvi" (scvi-tools), "torch" (torch.distributions); one or more.
        noise: "fastvae": the stream of `fastvae.noise`, its seed drawn from torch's generator, regenerated in backward.
            "torch": the numbers that the library draws without a patch, for comparing a patched run with an unpatched
            one. Sampling is then the library's own code, at its speed and memory; everything else stays fused.
        whole_event: sum diffusers' KL of latents with more than 4 dimensions (video) over the whole event, where
            diffusers sums over dimensions 1 to 3.
        optimizer: let the Adam or AdamW that scvi-tools' training plans build by default be PyTorch's fused one, which
            is equal to rounding.

    Returns:
        a `Patch`: a context manager, with ``undo()``. Patches can be nested and repeated; while several patches of one
        library are in effect, the settings of the last one apply.

    Raises:
        TypeError, ValueError: no library is given, or an argument is none of those above.
        ImportError: a library is not installed, or its version is not supported; the message names the supported
            versions. Nothing is patched then.

    >>> import torch, fastvae
    >>> from torch.distributions import Normal, kl_divergence
    >>> with fastvae.patch("torch"):
    ...     kl = kl_divergence(Normal(torch.ones(2, 3), torch.ones(2, 3)), Normal(0.0, 1.0))
    >>> kl.sum(1)
    tensor([1.5000, 1.5000])
    """
    if not libraries:
        raise TypeError(f"patch was given no library, expected one or more of {_NAMES}")
    _check_names(libraries)
    if noise not in NOISES:
        raise ValueError(f"noise is {noise!r}, expected one of {', '.join(map(repr, NOISES))}")
    setting = Setting(noise, check_flag("whole_event", whole_event), check_flag("optimizer", optimizer))
    return Patch(tuple(dict.fromkeys(libraries)), setting)


def unpatch(*libraries: Name) -> None:
    """End all patches of these libraries; of all libraries if none is given.

    Raises:
        ValueError: a name is not one that `patch` takes.

    >>> import fastvae
    >>> patch = fastvae.patch("torch")
    >>> fastvae.unpatch()
    """
    _check_names(libraries)
    with _lock:
        names: Sequence[str] = libraries or tuple(_layers)
        for library in names:
            _remove(library, [])


def setting_of(library: str) -> Setting | None:
    """The settings that apply to a library now; None if it is not patched."""
    layers = _layers.get(library)
    return layers[-1].setting if layers else None


def _install(library: str, module: Any) -> None:
    monkeypatch = MonkeyPatch()
    try:
        module.install(monkeypatch)
    except BaseException:
        monkeypatch.undo()
        raise
    _installed[library] = monkeypatch


def _remove(library: str, remaining: list[Patch]) -> None:
    if _layers.get(library):
        _layers[library] = remaining
        if not remaining:
            _installed.pop(library).undo()


def _check_names(libraries: Sequence[str]) -> None:
    for library in libraries:
        if library not in LIBRARIES:
            raise ValueError(f"library is {library!r}, expected one of {_NAMES}")


def _load(name: str) -> Any:
    """Import the integration of a library, after checking the library's version."""
    library = LIBRARIES[name]
    supported = f"fastvae.patch({name!r}) supports {library.distribution} {library.versions()}"
    try:
        version = importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{library.distribution} is not installed; {supported}") from None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers or not library.oldest <= (int(numbers[1]), int(numbers[2])) <= library.newest:
        raise ImportError(f"{library.distribution} {version} is installed; {supported}")
    return importlib.import_module(f"fastvae.integrations.{_MODULES.get(name, name)}")


# Integrations whose module is not named after the library.
_MODULES = {"torch": "torch_distributions"}
