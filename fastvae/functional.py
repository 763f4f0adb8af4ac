"""The fused latent ops: reparameterised sampling, Gaussian KL, both at once, and the noise stream they draw from.

Shapes: ``mu`` and ``logvar`` are (B, *event), any rank from 1 up; row b is sample b. They may be strided views (the
halves of one packed tensor) and are broadcast against each other. ``logvar`` is log sigma^2. KL is in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library
from .arguments import (
    check_dtype,
    check_moments,
    check_posterior,
    check_reduction,
    check_row_offset,
    check_shape,
    requested_backend,
    seed_tensor,
)
from .autograd import GaussianKL, Reparameterize, SampleAndKL, SampleAndKLPacked, apply


def sample_and_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    reduction: str = "sample",
) -> tuple[Tensor, Tensor]:
    """Draw z from N(mu, diag exp(logvar)) and price it: z and its KL to N(0, I), in one pass forward and one backward.

        z = mu + exp(logvar/2) eps        KL = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar)

    (Kingma & Welling, arXiv 1312.6114, appendix B.) eps is the stream of `fastvae.noise`; backward regenerates it, so
    that nothing is kept but the inputs and the 8-byte seed. Second derivatives go through plain PyTorch.

    Args:
        mu: means, (B, *event); float32, bfloat16, float16 or float64.
        logvar: log variances, same dtype and device, of a shape that broadcasts with mu.
        seed: 64-bit seed, an int or a one-element int64 tensor on mu's device; drawn from torch's generator if None.
        generator: the torch.Generator to draw the seed from; the device's default one if None.
        row_offset: index of row 0 in the global batch; rank r of a data-parallel job passes its first row, and draws
            what one device would have drawn.
        reduction: of the KL: "none" (element-wise), "sample" (summed over the event), "sum" or "batchmean" (sum / B).

    Returns:
        z, (B, *event), in mu's dtype and memory layout, and the KL in nats, float32 (float64 for float64): of z's shape
        for "none", (B,) for "sample", 0-d for "sum" and "batchmean".

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.
        RuntimeError: the backend asked for by name cannot serve these tensors.

    >>> import torch, fastvae
    >>> mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
    >>> z, kl = fastvae.sample_and_kl(mu, logvar, seed=0)
    >>> z.shape, kl
    (torch.Size([4, 20]), tensor([0., 0., 0., 0.]))
    """
    mu, logvar = check_posterior(mu, logvar)
    check_reduction(reduction)
    check_row_offset(row_offset)
    seed = seed_tensor(seed, generator, mu.device)
    return apply(SampleAndKL, mu, logvar, seed, row_offset, reduction, requested_backend())


def sample_and_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    reduction: str = "sample",
) -> tuple[Tensor, Tensor]:
    """`sample_and_kl` of the two halves of one tensor: mu, and behind it logvar, along dimension ``dim``.

    What an encoder's last layer gives is read in place, and its gradient is written in one piece: nothing is split,
    concatenated or filled with zeros.

    Args:
        moments: (B, 2C, ...) for ``dim=1``, contiguous, channels_last or strided; mu is the first half along ``dim``.
        dim: the dimension that holds both; not the batch's. 1 for images, 1 or -1 for (B, 2D).
        seed, generator, row_offset, reduction: as for `sample_and_kl`; the same seed gives the same z.

    Returns:
        z, (B, C, ...), and the KL in nats, as from `sample_and_kl`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.
        RuntimeError: the backend asked for by name cannot serve this tensor.

    >>> import torch, fastvae
    >>> moments = torch.zeros(2, 8, 4, 4, requires_grad=True)
    >>> z, kl = fastvae.sample_and_kl_packed(moments, seed=0)
    >>> z.shape, kl.shape
    (torch.Size([2, 4, 4, 4]), torch.Size([2]))
    """
    dim = check_moments(moments, dim)
    check_reduction(reduction)
    check_row_offset(row_offset)
    seed = seed_tensor(seed, generator, moments.device)
    return apply(SampleAndKLPacked, moments, seed, dim, row_offset, reduction, requested_backend())


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
) -> Tensor:
    """Draw z = mu + exp(logvar/2) eps, eps ~ N(0, I), with gradients to mu and logvar (arXiv 1312.6114, section 2.4).

    Arguments, dtypes and errors as for `sample_and_kl`; the same seed gives the same z.

    Returns:
        z, (B, *event), in mu's dtype and memory layout.

    >>> import torch, fastvae
    >>> mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
    >>> z = fastvae.reparameterize(mu, logvar, seed=0)
    >>> torch.equal(z, fastvae.sample_and_kl(mu, logvar, seed=0)[0])
    True
    """
    mu, logvar = check_posterior(mu, logvar)
    check_row_offset(row_offset)
    seed = seed_tensor(seed, generator, mu.device)
    return apply(Reparameterize, mu, logvar, seed, row_offset, requested_backend())


def gaussian_kl(mu: Tensor, logvar: Tensor, *, reduction: str = "sample") -> Tensor:
    """KL(N(mu, diag exp(logvar)) || N(0, I)) = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar), in nats.

    Computed as mu^2 + (expm1(logvar) - logvar), which is exact near logvar = 0 and never negative
    (arXiv 1312.6114, appendix B). Arguments, dtypes and errors as for `sample_and_kl`.

    Returns:
        The KL in float32 (float64 for float64): (B, *event) for reduction "none", (B,) for "sample" (the default), 0-d
        for "sum" and "batchmean".

    >>> import torch, fastvae
    >>> fastvae.gaussian_kl(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
    tensor([2.5000])
    """
    mu, logvar = check_posterior(mu, logvar)
    check_reduction(reduction)
    return apply(GaussianKL, mu, logvar, reduction, requested_backend())


def noise(
    seed: int | Tensor,
    shape: Sequence[int],
    *,
    row_offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The standard normals that `sample_and_kl` and `reparameterize` use for this seed: same on every device.

    Philox4x32-10 (Salmon et al., SC'11) with the seed as key and (coordinate // 4, row) as counter, then Box-Muller.
    Row b of the result is row ``row_offset + b`` of the stream, whatever the batch is split into.

    Args:
        seed: 64-bit seed, an int or a one-element int64 tensor.
        shape: (B, *event), rank 1 or more.
        row_offset: index of the first row in the stream.
        device: where to draw; the seed tensor's device, or torch's default device, if None.
        dtype: float32, bfloat16, float16 or float64.

    >>> import torch, fastvae
    >>> whole = fastvae.noise(7, (4, 3))
    >>> torch.equal(whole[2:], fastvae.noise(7, (2, 3), row_offset=2))
    True
    """
    sizes = check_shape(shape)
    check_row_offset(row_offset)
    check_dtype("dtype", dtype)
    if seed is None:
        raise TypeError("seed is None, expected an int or a one-element int64 tensor")
    return library.noise(seed_tensor(seed, None, device), sizes, row_offset, dtype, requested_backend())
