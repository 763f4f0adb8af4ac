"""Who computes an op: fastvae on each backend that the device has, plain PyTorch, and the peers that are installed.

eager                plain PyTorch (`bench.eager`), which the others are compared with
fastvae              the backend that is chosen by itself; fastvae reference: plain PyTorch with fastvae's noise
torch.distributions  Normal.rsample and kl_divergence
torch.compile        the eager code, compiled for the shape
diffusers            DiagonalGaussianDistribution, for packed image latents
"""

from __future__ import annotations

import contextlib
import functools

import torch
import torch._functorch.config
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import fastvae
from fastvae.arguments import seed_tensor

from . import eager
from .cases import Case, Function


def _packed(function: Function) -> Function:
    return lambda moments: function(*moments.chunk(2, dim=1))


def _drawn(like: Tensor) -> Tensor:
    """Noise of a new seed, as torch.randn has it."""
    return fastvae.noise(seed_tensor(None, None, like.device), like.shape, dtype=like.dtype)


_FASTVAE: dict[str, Function] = {
    "sample_and_kl": fastvae.sample_and_kl,
    "sample_and_kl_packed": fastvae.sample_and_kl_packed,
    "reparameterize": fastvae.reparameterize,
    "gaussian_kl": fastvae.gaussian_kl,
    "noise": _drawn,
}

_EAGER: dict[str, Function] = {
    "sample_and_kl": eager.sample_and_kl,
    "sample_and_kl_packed": _packed(eager.sample_and_kl),
    "reparameterize": eager.reparameterize,
    "gaussian_kl": eager.gaussian_kl,
    "noise": lambda like: torch.randn(like.shape, dtype=like.dtype, device=like.device),
}


def _normal_sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    return posterior.rsample(), _kl_to_standard_normal(posterior)


def _normal_sample(mu: Tensor, logvar: Tensor) -> Tensor:
    return Normal(mu, torch.exp(0.5 * logvar)).rsample()


def _normal_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return _kl_to_standard_normal(Normal(mu, torch.exp(0.5 * logvar)))


def _kl_to_standard_normal(posterior: Normal) -> Tensor:
    prior = Normal(torch.zeros_like(posterior.loc), torch.ones_like(posterior.scale))
    return kl_divergence(posterior, prior).flatten(1).sum(1)


_DISTRIBUTIONS: dict[str, Function] = {
    "sample_and_kl": _normal_sample_and_kl,
    "sample_and_kl_packed": _packed(_normal_sample_and_kl),
    "reparameterize": _normal_sample,
    "gaussian_kl": _normal_kl,
}


def _on_backend(name: str, function: Function) -> Function:
    def on_backend(*arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        with fastvae.use_backend(name):
            return function(*arguments)

    return on_backend


def _diffusers_sample_and_kl(moments: Tensor) -> tuple[Tensor, Tensor]:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # seconds to import, and optional

    posterior = DiagonalGaussianDistribution(moments)
    return posterior.sample(), posterior.kl()


@functools.cache
def missing(name: str) -> str:
    """Why this machine lacks a peer; empty if it has it."""
    try:
        if name == "diffusers":
            import diffusers.models.autoencoders.vae  # noqa: F401
        if name == "torch.compile":
            torch.compile(torch.neg)(torch.zeros(2))
    except Exception as error:  # no package, no compiler, a package that does not load
        return type(error).__name__  # not the message, which may hold paths of this machine
    return ""


def chosen_backend(device: torch.device) -> str:
    """The backend that serves float32 tensors of the device when none is asked for."""
    return next(name for name, entry in fastvae.backends().items() if f"{device.type} float32" in entry["chosen_for"])


def fastvae_backends(device: torch.device) -> dict[str, str]:
    """Names of the fastvae contenders -> backend: first the one that is chosen by itself for float32."""
    report = fastvae.backends()
    own = ["triton"] if device.type == "cuda" else ["cpu"]
    present = [name for name in (*own, "reference") if report[name]["available"]]
    chosen = chosen_backend(device)
    return {"fastvae": chosen} | {f"fastvae {name}": name for name in present if name != chosen}


def contender_names(case: Case, device: torch.device) -> list[str]:
    """Who can compute the case on this machine, the baseline first."""
    names = ["eager", *fastvae_backends(device)]
    if case.op in _DISTRIBUTIONS:
        names.append("torch.distributions")
        if not missing("torch.compile"):
            names.append("torch.compile")
    if case.op == "sample_and_kl_packed" and len(case.shape) == 4 and not missing("diffusers"):
        names.append("diffusers")
    return names


def make(case: Case, name: str, device: torch.device) -> Function:
    """The function of contender ``name``; a compiled one is compiled anew for each case, for its shape alone."""
    if name == "eager":
        return _EAGER[case.op]
    if name == "torch.distributions":
        return _DISTRIBUTIONS[case.op]
    if name == "torch.compile":
        torch.compiler.reset()
        return torch.compile(_EAGER[case.op], fullgraph=True, dynamic=False)
    if name == "diffusers":
        return _diffusers_sample_and_kl
    backend = fastvae_backends(device)[name]
    return _FASTVAE[case.op] if name == "fastvae" else _on_backend(backend, _FASTVAE[case.op])


def graphs_retained() -> contextlib.AbstractContextManager[object]:
    """Where a graph is gone through more than once: what is made for that is made and called in this context.

    Otherwise compiled code writes into what it saved for backward, and refuses to be called again.
    """
    return torch._functorch.config.patch(donated_buffer=False)
