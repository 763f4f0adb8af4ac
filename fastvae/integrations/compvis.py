"""Drop-in classes for the latents of CompVis' latent-diffusion and Stability's generative-models, over the fused ops.

Neither library is imported here and nothing is patched: you name the class in a config or an import.

In generative-models, one line of the autoencoder's YAML:

    regularizer_config:
      target: fastvae.integrations.compvis.DiagonalGaussianRegularizer
      # in place of sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer

In latent-diffusion and its forks, the import in ldm/models/autoencoder.py and ldm/models/diffusion/ddpm.py:

    from fastvae.integrations.compvis import DiagonalGaussianDistribution
    # in place of from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

The noise is the stream of `fastvae.noise`, its seed drawn from torch's generator. Log variances are clamped to
(-30, 20), as in both. The KL is summed over the whole event, also for video, where latent-diffusion sums over
dimensions 1 to 3. Invalid arguments raise TypeError or ValueError; the message names the argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..checks import check_flag
from ..distributions import DiagonalGaussian
from ..functional import sample_and_kl_packed
from .support import formula_dtype

__all__ = ["CLAMP", "DiagonalGaussianDistribution", "DiagonalGaussianRegularizer"]

CLAMP = (-30.0, 20.0)


class DiagonalGaussianRegularizer(nn.Module):
    """generative-models' regulariser: a draw from the posterior, and the KL for the loss. No parameters.

    Use it in a config as ``target: fastvae.integrations.compvis.DiagonalGaussianRegularizer``. Draw and KL are one pass
    over the encoder's output, whose gradient is one tensor.

    Args:
        sample: return a draw; the mode if False.

    >>> import torch
    >>> from fastvae.integrations.compvis import DiagonalGaussianRegularizer
    >>> regularizer = DiagonalGaussianRegularizer()
    >>> z, log = regularizer(torch.zeros(2, 8, 4, 4))
    >>> z.shape, log
    (torch.Size([2, 4, 4, 4]), {'kl_loss': tensor(0.)})
    """

    def __init__(self, sample: bool = True) -> None:
        super().__init__()
        self.sample = check_flag("sample", sample)

    def get_trainable_parameters(self) -> Iterator[nn.Parameter]:
        yield from ()

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            z: moments, (B, 2C, *spatial): C channels of means, then C of log variances.

        Returns:
            z, (B, C, *spatial), in the moments' dtype; ``{"kl_loss": kl}`` with the KL to N(0, I) in nats, summed and
            divided by B: 0-d, float32 (float64 for float64).
        """
        if self.sample:
            drawn, kl = sample_and_kl_packed(z, clamp=CLAMP, reduction="batchmean")
            return drawn, {"kl_loss": kl}
        posterior = DiagonalGaussian.from_moments(z, clamp=CLAMP)
        return posterior.mean, {"kl_loss": posterior.kl().mean()}

    def extra_repr(self) -> str:
        return f"sample={self.sample}"


class DiagonalGaussianDistribution:
    """Replaces latent-diffusion's class of the same name. For new code prefer `fastvae.DiagonalGaussian`.

    Args:
        parameters: (B, 2C, *spatial): C channels of means, then C of log variances; float32, bfloat16, float16 or
            float64.
        deterministic: a point mass at the mean: samples are the mean, std and var are 0, kl and nll are [0.].

    >>> import torch
    >>> from fastvae.integrations.compvis import DiagonalGaussianDistribution
    >>> posterior = DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
    >>> posterior.sample().shape, posterior.kl(), posterior.mode().sum()
    (torch.Size([2, 4, 4, 4]), tensor([0., 0.]), tensor(0.))
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self._gaussian = DiagonalGaussian.from_moments(parameters, clamp=CLAMP, deterministic=deterministic)
        self.parameters, self.deterministic = parameters, deterministic

    mean = property(lambda self: self._gaussian.mean)
    logvar = property(lambda self: self._gaussian.logvar)  # after the clamp
    std = property(lambda self: self._gaussian.std)
    var = property(lambda self: self._gaussian.var)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self) -> Tensor:
        """A draw, (B, C, *spatial), in the parameters' dtype, differentiable with respect to them."""
        return self._gaussian.rsample()

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL to ``other``, to N(0, I) if None, in nats: (B,).

        In the dtype of latent-diffusion's formula (the parameters', float32 under autocast), but float32 where that is
        float16, in which the sum over an image overflows.
        """
        if self.deterministic:
            return self._zero()
        if other is None:
            kl = self._gaussian.kl()
        elif isinstance(other, DiagonalGaussianDistribution):
            kl = self._gaussian.kl(other._gaussian)
        else:
            raise TypeError(f"other is a {type(other).__name__}, expected a DiagonalGaussianDistribution or None")
        return kl.to(_sum_dtype(self.parameters))

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log p(sample) in nats, summed over ``dims``; over all dimensions but the first if None, giving (B,).

        Its dtype is that of `kl`, of ``sample`` and the parameters together.
        """
        if self.deterministic:
            return self._zero()
        nll = self._gaussian.nll(sample, None if dims is None else tuple(dims))
        return nll.to(torch.promote_types(_sum_dtype(sample), _sum_dtype(self.parameters)))

    def _zero(self) -> Tensor:
        return torch.zeros(1, device=self.parameters.device)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """The formula's dtype; float32 for float16, which has no numbers beyond 65,504."""
    dtype = formula_dtype(tensor)
    return torch.float32 if dtype == torch.float16 else dtype
