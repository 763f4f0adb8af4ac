"""Who computes an op: fastvae on each backend that the device has, plain PyTorch, and the peers that are installed.

eager                plain PyTorch (`bench.eager`), which the others are compared with
fastvae              the backend that is chosen by itself; fastvae reference: plain PyTorch with fastvae's noise
torch.distributions  Normal.rsample, Normal.log_prob and kl_divergence (`bench.distributions`)
torch.compile        the eager code, compiled for the shape
diffusers            DiagonalGaussianDistribution, for packed image latents
"""

from __future__ import annotations

import contextlib
import functools
from types import ModuleType

import torch
import torch._functorch.config
from torch import Tensor

import fastvae
from fastvae.arguments import seed_tensor

from . import distributions, eager
from .cases import FLOOR, FREE_BITS, OPS, SAMPLES, Case, Function


def _packed(function: Function) -> Function:
    return lambda moments, *prior: function(*moments.chunk(2, dim=1), *prior)


def _drawn(like: Tensor) -> Tensor:
    """Noise of a new seed, as torch.randn has it."""
    return fastvae.noise(seed_tensor(None, None, like.device), like.shape, dtype=like.dtype)


def _fastvae(name: str) -> Function:
    op = OPS[name]
    function = _drawn if op.function == "noise" else getattr(fastvae, op.function)
    return functools.partial(function, **op.options) if op.options else function


_FASTVAE: dict[str, Function] = {name: _fastvae(name) for name in OPS}


def _plain(written: ModuleType) -> dict[str, Function]:
    """The ops of `bench.eager` or `bench.distributions`, which have the same names in both."""
    return {
        "sample_and_kl": written.sample_and_kl,
        "sample_and_kl_packed": _packed(written.sample_and_kl),
        "sample_and_kl_packed_prior": _packed(written.sample_and_kl_two),
        "sample_and_kl_softplus": lambda mu, raw: written.sample_and_kl_softplus(mu, raw, FLOOR),
        "sample_and_kl_free_bits": lambda mu, logvar: written.sample_and_kl_free_bits(mu, logvar, FREE_BITS),
        "iwae_50": lambda mu, logvar: written.sample_and_log_prob(mu, logvar, SAMPLES),
        "reparameterize": written.reparameterize,
        "gaussian_kl": written.gaussian_kl,
        "gaussian_kl_two": written.gaussian_kl_two,
        "gaussian_kl_shared_prior": written.gaussian_kl_two,
    }


_EAGER = _plain(eager) | {"noise": lambda like: torch.randn(like.shape, dtype=like.dtype, device=like.device)}

_DISTRIBUTIONS = _plain(distributions)


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
