"""The contenders for an op: plain PyTorch, fastvae on each backend of the device, and the peers that are installed.

eager                plain PyTorch (`bench.eager`, `bench.eager_likelihoods`), which the others are compared with
fastvae              the backend that is chosen by default; fastvae reference: plain PyTorch with fastvae's noise
torch.distributions  Normal.rsample, Normal.log_prob and kl_divergence (`bench.distributions`)
torch.compile        the eager code, compiled for the shape
diffusers            DiagonalGaussianDistribution, for packed image latents
"""

from __future__ import annotations

import contextlib
import functools

import torch
import torch._functorch.config
from torch import Tensor

import fastvae
import fastvae.likelihoods
from fastvae.checks import seed_tensor

from . import distributions, eager
from .cases import FLOOR, FREE_BITS, LATENTS, LIKELIHOODS, OPS, SAMPLES, Case, Function
from .eager_likelihoods import per_sample


def _packed(function: Function) -> Function:
    return lambda moments, *prior: function(*moments.chunk(2, dim=1), *prior)


def next_seed(device: torch.device) -> Tensor:
    """The seed that fastvae's next op draws from torch's generator."""
    return seed_tensor(None, None, device)


def _noise(like: Tensor) -> Tensor:
    """Noise of a new seed, as with torch.randn."""
    return fastvae.noise(next_seed(like.device), like.shape, dtype=like.dtype)


def _fastvae(name: str) -> Function:
    op = OPS[name]
    if name in LIKELIHOODS:
        log_prob = functools.partial(getattr(fastvae.likelihoods, op.function), **op.options)
        if op.masked:
            return lambda x, *given: log_prob(*given[:-1], x, mask=given[-1])
        return lambda x, *parameters: log_prob(*parameters, x)
    function = _noise if op.function == "noise" else getattr(fastvae, op.function)
    return functools.partial(function, **op.options) if op.options else function


_FASTVAE: dict[str, Function] = {name: _fastvae(name) for name in OPS}


_EAGER: dict[str, Function] = {
    "sample_and_kl": eager.sample_and_kl,
    "sample_and_kl_packed": _packed(eager.sample_and_kl),
    "sample_and_kl_packed_prior": _packed(eager.sample_and_kl_two),
    "sample_and_kl_softplus": lambda mu, raw: eager.sample_and_kl_softplus(mu, raw, FLOOR),
    "sample_and_kl_free_bits": lambda mu, logvar: eager.sample_and_kl_free_bits(mu, logvar, FREE_BITS),
    "iwae_50": lambda mu, logvar: eager.sample_and_log_prob(mu, logvar, SAMPLES),
    "reparameterize": eager.reparameterize,
    "gaussian_kl": eager.gaussian_kl,
    "gaussian_kl_two": eager.gaussian_kl_two,
    "gaussian_kl_shared_prior": eager.gaussian_kl_two,
    "noise": lambda like: torch.randn(like.shape, dtype=like.dtype, device=like.device),
    **{name: per_sample(op) for name, op in LIKELIHOODS.items()},
}

_DISTRIBUTIONS = {name: distributions.latent(op) for name, op in LATENTS.items() if name != "noise"}


def _diffusers_sample_and_kl(moments: Tensor) -> tuple[Tensor, Tensor]:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # seconds to import, and optional

    posterior = DiagonalGaussianDistribution(moments)
    return posterior.sample(), posterior.kl()


@functools.cache
def missing(name: str) -> str:
    """Why a peer cannot run on this machine; empty if it can."""
    try:
        if name == "diffusers":
            import diffusers.models.autoencoders.vae  # noqa: F401
        if name == "torch.compile":
            torch.compile(torch.neg)(torch.zeros(2))
    except Exception as error:  # no package, no compiler, a package that does not load
        return type(error).__name__  # not the message, which may hold paths of this machine
    return ""


def chosen_backend(device: torch.device) -> str:
    """The default backend for float32 tensors of the device."""
    return next(name for name, entry in fastvae.backends().items() if f"{device.type} float32" in entry["chosen_for"])


def fastvae_backends(device: torch.device) -> dict[str, str]:
    """Names of the fastvae contenders -> backend, the default one for float32 first."""
    report = fastvae.backends()
    own = ["triton"] if device.type == "cuda" else ["cpu"]
    present = [name for name in (*own, "reference") if report[name]["available"]]
    chosen = chosen_backend(device)
    return {"fastvae": chosen} | {f"fastvae {name}": name for name in present if name != chosen}


def contender_names(case: Case, device: torch.device) -> list[str]:
    """The contenders for the case on this machine, the baseline first."""
    names = ["eager", *fastvae_backends(device)]
    if case.op in _DISTRIBUTIONS:
        names.append("torch.distributions")
        if not missing("torch.compile"):
            names.append("torch.compile")
    if case.op == "sample_and_kl_packed" and len(case.shape) == 4 and not missing("diffusers"):
        names.append("diffusers")
    return names


def make(case: Case, name: str, device: torch.device) -> Function:
    """The function of contender ``name``. Each case compiles its own, for one static shape."""
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
    return _FASTVAE[case.op] if name == "fastvae" else fastvae.use_backend(backend)(_FASTVAE[case.op])


def graphs_retained() -> contextlib.AbstractContextManager[object]:
    """A context in which graphs can be made and run backward more than once.

    Outside of it, torch.compile lets backward overwrite saved tensors, and a second backward is refused.
    """
    return torch._functorch.config.patch(donated_buffer=False)
