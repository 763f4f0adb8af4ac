"""The latents of CompVis' latent-diffusion and Stability's generative-models, over the fused ops.

Neither library is imported here and nothing is patched: a config or an import names the class that it wants.

In generative-models, a line of the autoencoder's YAML:

    regularizer_config:
      target: fastvae.integrations.compvis.DiagonalGaussianRegularizer
      # in place of sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer

In latent-diffusion and what was made of it, the import in ldm/models/autoencoder.py and ldm/models/diffusion/ddpm.py:

    from fastvae.integrations.compvis import DiagonalGaussianDistribution
    # in place of from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

The noise is that of `fastvae.noise`, its seed drawn from torch's generator. Log variances are clamped to (-30, 20), as
both do it. The KL is summed over the whole event, for video too, where latent-diffusion's is over dimensions 1 to 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..arguments import check_flag
from ..distributions import DiagonalGaussian
from ..functional import sample_and_kl_packed

CLAMP = (-30.0, 20.0)


class DiagonalGaussianRegularizer(nn.Module):
    """generative-models' regulariser: a draw from the posterior, and the KL that the loss will weigh. No parameters.

    To be named in a config, ``target: fastvae.integrations.compvis.DiagonalGaussianRegularizer``. Draw and KL are one
    pass over what the encoder gives, and its gradient is written in one piece.

    Args:
        sample: give a draw; the mode if False.

    Raises:
        TypeError: sample is not a bool.

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
            z: moments, (B, 2C, *spatial): means, and behind them log variances.

        Returns:
            z, (B, C, *spatial), in the moments' dtype; ``{"kl_loss": kl}`` with the KL to N(0, I) in nats, summed over
            all of the batch and divided by B: 0-d, float32 (float64 for float64).

        Raises:
            TypeError, ValueError: the moments are no such tensor; the message says what they are.
        """
        if self.sample:
            drawn, kl = sample_and_kl_packed(z, clamp=CLAMP, reduction="batchmean")
            return drawn, {"kl_loss": kl}
        posterior = DiagonalGaussian.from_moments(z, clamp=CLAMP)
        return posterior.mean, {"kl_loss": posterior.kl().mean()}

    def extra_repr(self) -> str:
        return f"sample={self.sample}"


class DiagonalGaussianDistribution:
    """latent-diffusion's class of that name, to be imported in its place.

    It is a class of its own, as there, so that ``isinstance`` tells it from a tensor; new code is better off with
    `fastvae.DiagonalGaussian`, which is a torch distribution too. Nothing is computed before it is asked for.

    Args:
        parameters: (B, 2C, *spatial): means, and behind them log variances; float32, bfloat16, float16 or float64.
        deterministic: a point mass at the mean: samples are the mean, std and var are 0, kl and nll are [0.].

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import torch
    >>> from fastvae.integrations.compvis import DiagonalGaussianDistribution
    >>> posterior = DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
    >>> posterior.sample().shape, posterior.kl(), posterior.mode().sum()
    (torch.Size([2, 4, 4, 4]), tensor([0., 0.]), tensor(0.))
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self._gaussian = DiagonalGaussian.from_moments(parameters, clamp=CLAMP, deterministic=deterministic)
        self.parameters, self.deterministic = parameters, deterministic

    @property
    def mean(self) -> Tensor:
        return self._gaussian.mean

    @property
    def logvar(self) -> Tensor:
        """After the clamp."""
        return self._gaussian.logvar

    @property
    def std(self) -> Tensor:
        return self._gaussian.stddev

    @property
    def var(self) -> Tensor:
        return self._gaussian.variance

    def mode(self) -> Tensor:
        return self.mean

    def sample(self) -> Tensor:
        """A draw, (B, C, *spatial), with gradients to the parameters, in their dtype."""
        return self._gaussian.rsample()

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL to ``other``, to N(0, I) if None, in nats: (B,), in the parameters' dtype."""
        if self.deterministic:
            return self._zero()
        if other is None:
            kl = self._gaussian.kl()
        elif isinstance(other, DiagonalGaussianDistribution):
            kl = self._gaussian.kl(other._gaussian)
        else:
            raise TypeError(f"other is a {type(other).__name__}, expected a DiagonalGaussianDistribution or None")
        return kl.to(self.parameters.dtype)

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log p(sample) in nats, summed over ``dims``, over all but the batch's if None: then (B,)."""
        if self.deterministic:
            return self._zero()
        nll = self._gaussian.nll(sample, None if dims is None else tuple(dims))
        return nll.to(torch.result_type(sample, self.parameters))

    def _zero(self) -> Tensor:
        return torch.zeros(1, device=self.parameters.device)
