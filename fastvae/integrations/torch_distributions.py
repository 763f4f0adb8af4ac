"""torch.distributions under `fastvae.patch`: sampling from Normals, and the KL between them.

``Normal.rsample`` is replaced, for its subclasses too, and with it the constructor, half of whose time goes into
looking at its arguments: it looks for the same in one pass. Of the KLs that torch has registered, those between Normals
and between Independents are replaced. What the fused ops do not fit goes through torch's own code: float64, numbers
without a batch, devices without kernels, `torch.compile` and torch.func.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.distributions import kl as torch_kl

from . import normals
from .patching import setting_of
from .replacements import Replacements

_NO_EVENT = torch.Size()


def install(replacements: Replacements) -> None:
    of_normals = torch_kl._KL_REGISTRY[Normal, Normal]
    of_independents = torch_kl._KL_REGISTRY[Independent, Independent]
    rsample_of_torch = Normal.rsample
    init_of_torch = Normal.__init__

    def init(self: Normal, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        validate = Distribution._validate_args if validate_args is None else validate_args
        plain = type(self).arg_constraints is Normal.arg_constraints
        if not (setting_of("torch") and plain and normals.begin(self, loc, scale, validate)):
            init_of_torch(self, loc, scale, validate_args)
            return
        if type(self) is Normal:  # all that is left of torch's constructor
            self._batch_shape, self._event_shape = loc.size(), _NO_EVENT
            if validate_args is not None:
                self._validate_args = validate_args
            return
        super(Normal, self).__init__(loc.size(), validate_args=False)
        if validate_args is None:
            del self._validate_args  # what holds is the class's own
        else:
            self._validate_args = validate_args

    def rsample(self: Normal, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 as torch has it
        setting = setting_of("torch")
        z = None
        if setting is not None and setting.noise == "fastvae":
            z = normals.draw(self, sample_shape)
        return rsample_of_torch(self, sample_shape) if z is None else z

    def kl(p: Normal, q: Normal) -> Tensor:
        found = normals.kl(p, q) if setting_of("torch") else None
        return of_normals(p, q) if found is None else found

    def kl_of_independents(p: Independent, q: Independent) -> Tensor:
        found = normals.kl_of_independents(p, q) if setting_of("torch") else None
        return of_independents(p, q) if found is None else found

    replacements.attribute(Normal, "__init__", init)
    replacements.attribute(Normal, "rsample", rsample)
    replace_kl(replacements, Normal, Normal, kl)
    replace_kl(replacements, Independent, Independent, kl_of_independents)


def replace_kl(replacements: Replacements, p: type, q: type, kl: object) -> None:
    """Register a KL between two classes, and let torch forget what it has looked up before."""
    name = f"the KL between {p.__name__} and {q.__name__}"
    replacements.after(torch_kl._KL_MEMOIZE.clear)
    replacements.entry(torch_kl._KL_REGISTRY, (p, q), kl, name)
    torch_kl._KL_MEMOIZE.clear()
