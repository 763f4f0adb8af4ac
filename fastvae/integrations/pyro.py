"""Pyro: `DiagonalGaussian` for models and guides, and Pyro's own Normal under `fastvae.patch`.

The patch replaces ``rsample`` of pyro.distributions.Normal, which is how Pyro draws from it, and the closed-form KL
between Pyro's Normals and between its Independent Normals, which `TraceMeanField_ELBO` uses. torch.distributions is not
changed. Pyro's own code runs for tensors that no fused op supports, and for draws of fewer than 8192 numbers, whatever
``noise`` says: it is faster there.
"""

from __future__ import annotations

__all__ = ["MIN_FUSED_DRAW", "DiagonalGaussian", "install"]

try:
    import pyro.distributions as pyro_distributions
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ImportError as error:
    raise ImportError('fastvae.integrations.pyro needs Pyro: pip install "pyro-ppl"') from error

from .. import distributions
from .monkeypatch import MonkeyPatch
from .torch_distributions import replace_normal

MIN_FUSED_DRAW = 8192  # numbers in one draw; below it, Pyro's own rsample is faster


class DiagonalGaussian(distributions.DiagonalGaussian, TorchDistributionMixin):
    """`fastvae.DiagonalGaussian` for ``pyro.sample``, in models and in guides. Needs no patch.

    One site draws a whole latent, (*batch, *event), by one fused op. Plates, ``expand``, ``expand_by``, ``to_event``,
    ``mask``, ``shape`` and Pyro's effect handlers work. Under `TraceMeanField_ELBO` its KL has the closed form against
    another DiagonalGaussian and against ``Normal(...).to_event(n)``, on either side; other ELBOs use its log_prob.

    Args:
        mu, logvar, scale, floor, clamp, soft_clamp, event_dims, deterministic, validate_args: as for
            `fastvae.DiagonalGaussian`. All dimensions of mu but the first are event dimensions, so it corresponds to
            ``Normal(mu, std).to_event(mu.dim() - 1)``. `from_moments` takes mu and logvar packed in one tensor.

    Raises:
        NotImplementedError: log_prob of a deterministic one, which is a point mass without a density.

    >>> import pyro, torch
    >>> from pyro.distributions import Normal
    >>> from pyro.infer import TraceMeanField_ELBO
    >>> from fastvae.integrations.pyro import DiagonalGaussian
    >>> encoder, decoder = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", Normal(torch.zeros(2), torch.ones(2)).to_event(1))
    ...         pyro.sample("x", Normal(decoder(z), 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", DiagonalGaussian.from_moments(encoder(x)))  # mu and logvar side by side, (B, 4)
    >>> TraceMeanField_ELBO().differentiable_loss(model, guide, torch.zeros(3, 5)).backward()
    >>> encoder.weight.grad.shape
    torch.Size([4, 5])
    """


def install(monkeypatch: MonkeyPatch) -> None:
    normal, independent = pyro_distributions.Normal, pyro_distributions.Independent
    replace_normal(monkeypatch, "pyro", normal, independent, MIN_FUSED_DRAW)
