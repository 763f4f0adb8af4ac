"""`patch` and `unpatch`: which libraries are patched, how, and in what order patches end."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..arguments import check_flag
from .replacements import Replacements


class Library(NamedTuple):
    """A library, and the oldest and newest version that its integration was tried with, or read beside a tried one."""

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
    "scvi": Library("scvi-tools", (1, 3), (1, 4)),
    "torch": Library("torch", (2, 11), (2, 14)),
}

NOISES = ("fastvae", "torch")


class Setting(NamedTuple):
    """How a library is patched."""

    noise: str
    whole_event: bool


class Patch:
    """A patch that is in effect until `undo`, or until the end of its outermost ``with`` block."""

    def __init__(self, libraries: tuple[str, ...], setting: Setting) -> None:
        self.libraries, self.setting = libraries, setting
        self._blocks = 0  # that are open
        self._apply()

    def _apply(self) -> None:
        """For those of the libraries for which it is not in effect."""
        with _lock:
            missing = [library for library in self.libraries if self not in _layers.get(library, ())]
            modules = [_load(library) for library in missing]  # what cannot be had is known before any change
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
        """End this patch; others of the same libraries stay in effect. More than once does no harm."""
        self._remove_from(self.libraries)

    def _remove_from(self, libraries: Sequence[str]) -> None:
        with _lock:
            for library in libraries:
                _remove(library, [layer for layer in _layers.get(library, ()) if layer is not self])

    def __enter__(self) -> Patch:
        with _lock:
            self._apply()  # a second block with the same patch, or one after `unpatch`
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
_layers: dict[str, list[Patch]] = {}  # of each library, the patches in effect; the last one rules
_installed: dict[str, Replacements] = {}


def patch(*libraries: str, noise: str = "fastvae", whole_event: bool = False) -> Patch:
    """Let libraries that are in use run on fastvae's kernels, from now on or within a ``with`` block.

    Same results to the accuracy of their dtype, same shapes, dtypes and devices; where a fused op does not fit the
    tensors, the library's own code runs. It holds for the whole process, threads included. `fastvae.integrations` says
    what is replaced in each library.

    Args:
        libraries: "diffusers", "pyro", "pythae", "scvi" (scvi-tools), "torch" (torch.distributions); one or more.
        noise: "fastvae": the stream of `fastvae.noise`, its seed drawn from torch's generator, regenerated in backward.
            "torch": the very numbers that the library draws without a patch, in its order, from torch's generator: for
            comparing a patched run with an unpatched one. Sampling is then the library's own code, with its time and
            memory; all else is fused.
        whole_event: diffusers' KL of latents with more than 4 dimensions (video) is summed over all of the event, not
            over dimensions 1 to 3 as diffusers does it.

    Returns:
        a `Patch`: a context manager, with ``undo()``. Patches nest and repeat; of several patches of one library the
        last one made rules until it ends.

    Raises:
        TypeError, ValueError: no library is given, or an argument is none of those above.
        ImportError: a library is absent, or of a version that this was not tested with; the message says which were.
            Nothing is patched then.

    >>> import torch, fastvae
    >>> from torch.distributions import Normal, kl_divergence
    >>> with fastvae.patch("torch"):
    ...     kl = kl_divergence(Normal(torch.ones(2, 3), torch.ones(2, 3)), Normal(0.0, 1.0))
    >>> kl.sum(1)
    tensor([1.5000, 1.5000])
    """
    if not libraries:
        raise TypeError(f"patch was given no library, expected one or more of {_names()}")
    for library in libraries:
        _check_name(library)
    if noise not in NOISES:
        raise ValueError(f"noise is {noise!r}, expected one of {', '.join(map(repr, NOISES))}")
    return Patch(tuple(dict.fromkeys(libraries)), Setting(noise, check_flag("whole_event", whole_event)))


def unpatch(*libraries: str) -> None:
    """End all patches of these libraries, of all libraries if none is given: nothing of them stays.

    Raises:
        ValueError: a name is none that `patch` knows.

    >>> import fastvae
    >>> patch = fastvae.patch("torch")
    >>> fastvae.unpatch()
    """
    for library in libraries:
        _check_name(library)
    with _lock:
        for library in libraries or tuple(_layers):
            _remove(library, [])


def setting_of(library: str) -> Setting | None:
    """How a library is patched now; None if it is not."""
    layers = _layers.get(library)
    return layers[-1].setting if layers else None


def _install(library: str, module: Any) -> None:
    replacements = Replacements()
    try:
        module.install(replacements)
    except BaseException:
        replacements.undo()
        raise
    _installed[library] = replacements


def _remove(library: str, remaining: list[Patch]) -> None:
    if _layers.get(library):
        _layers[library] = remaining
        if not remaining:
            _installed.pop(library).undo()


def _names() -> str:
    return ", ".join(map(repr, LIBRARIES))


def _check_name(library: str) -> None:
    if library not in LIBRARIES:
        raise ValueError(f"library is {library!r}, expected one of {_names()}")


def _load(name: str) -> Any:
    """The integration of a library, after a look at the library's version."""
    library = LIBRARIES[name]
    try:
        version = importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"{library.distribution} is not installed; fastvae.patch({name!r}) is known to work with"
            f" {library.distribution} {library.versions()}"
        ) from None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers or not library.oldest <= (int(numbers[1]), int(numbers[2])) <= library.newest:
        raise ImportError(
            f"{library.distribution} {version} is installed; fastvae.patch({name!r}) is known to work with"
            f" {library.distribution} {library.versions()}"
        )
    return importlib.import_module(f"fastvae.integrations.{_MODULES.get(name, name)}")


# Where the module cannot have the library's name.
_MODULES = {"torch": "torch_distributions"}
