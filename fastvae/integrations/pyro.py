"""Pyro: `DiagonalGaussian` for models and guides, and Pyro's own Normal under `fastvae.patch`.

The patch replaces ``rsample`` of pyro.distributions.Normal, which is how Pyro draws from it, and the closed-form KL
between Pyro's Normals and between its Independents of Normals, which `TraceMeanField_ELBO` asks for. It leaves
torch.distributions alone. What the fused ops do not fit goes through Pyro's own code, and so do draws of fewer than
8192 numbers, ``noise="torch"`` or not, for which it is the faster one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl as torch_kl

try:
    import pyro.distributions as of_pyro
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ImportError as error:
    raise ImportError('fastvae.integrations.pyro needs Pyro, expected it installed: pip install "pyro-ppl"') from error

from .. import distributions
from . import normals
from .patching import setting_of
from .replacements import Replacements
from .torch_distributions import replace_kl

FEWEST_DRAWN = 8192


class DiagonalGaussian(distributions.DiagonalGaussian, TorchDistributionMixin):
    """`fastvae.DiagonalGaussian` for ``pyro.sample``, in models and in guides. It needs no patch.

    One site draws a whole latent, (*batch, *event), by one fused op. It takes plates, ``expand``, ``expand_by``,
    ``to_event``, ``mask``, ``shape`` and Pyro's effect handlers. Under `TraceMeanField_ELBO` its KL is the closed form,
    against another of these and against ``Normal(...).to_event(n)``, on either side; other ELBOs use its log_prob.

    Args:
        mu, logvar, scale, floor, clamp, soft_clamp, event_dims, deterministic, validate_args: as for
            `fastvae.DiagonalGaussian`. All dimensions of mu but the first are the event, where Pyro's Normal has none:
            it stands for ``Normal(mu, std).to_event(mu.dim() - 1)``. `from_moments` takes both in one tensor.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.
        NotImplementedError: the log_prob of a deterministic one was asked for, which is a point mass.

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


def install(replacements: Replacements) -> None:
    normal, independent = of_pyro.Normal, of_pyro.Independent
    rsample_of_pyro = normal.rsample
    of_normals = torch_kl._dispatch_kl(normal, normal)
    of_independents = torch_kl._dispatch_kl(independent, independent)

    def rsample(self: of_pyro.Normal, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 as torch has it
        setting = setting_of("pyro")
        z = None
        shape = self._extended_shape(sample_shape)
        if setting is not None and setting.noise == "fastvae" and shape.numel() >= FEWEST_DRAWN:
            z = normals.draw(self, torch.Size(sample_shape))
        return rsample_of_pyro(self, sample_shape) if z is None else z

    def kl(p: of_pyro.Normal, q: of_pyro.Normal) -> Tensor:
        found = normals.kl(p, q) if setting_of("pyro") else None
        return of_normals(p, q) if found is None else found

    def kl_of_independents(p: of_pyro.Independent, q: of_pyro.Independent) -> Tensor:
        found = normals.kl_of_independents(p, q) if setting_of("pyro") else None
        return of_independents(p, q) if found is None else found

    replacements.attribute(normal, "rsample", rsample)
    replace_kl(replacements, normal, normal, kl)
    replace_kl(replacements, independent, independent, kl_of_independents)
