"""The fused latent ops: reparameterised sampling, Gaussian KL, both at once, and the noise stream they draw from.

Shapes: ``mu`` and ``logvar`` are (B, *event), any rank from 1 up; row b is sample b. They may be strided views (the
halves of one packed tensor) and are broadcast against each other. KL and log probabilities are in nats.

What the ops share:

    prior_mu, prior_logvar   the prior, both or neither (N(0, I)): each of mu's shape, of the event's shape or one that
                             broadcasts to it (a prior that the batch shares: its gradient is summed over the batch), or
                             a number. Same dtype as mu; scale and clamp hold for prior_logvar as for logvar.
    scale                    what ``logvar`` and ``prior_logvar`` are: "logvar" (log sigma^2), "logstd" (log sigma;
                             NVAE, arXiv 2007.03898, VDVAE, arXiv 2011.10650), "std" (sigma), "var" (sigma^2;
                             scVI), "softplus" (sigma = softplus(.) + floor)
    floor                    the smallest sigma of "softplus": 1e-4 in stable-audio, 1e-5 in TensorFlow Probability
    clamp                    (low, high) for the scale as given, (-30, 20) in diffusers and CompVis; the gradient is 1
                             between them and on both, as torch.clamp's was before PyTorch 2.14, and 0 beyond
    soft_clamp               s tanh(x / s) of a log scale as given: 5 in NVAE
    residual                 mu and logvar are differences: the posterior is N(prior_mu + mu, ...), its log scale
                             prior_logvar + logvar (NVAE, section 3.2); then comes the clamp
    num_samples              K: z is (K, B, *event), K draws from each posterior, whose parameters are read once
    temperature              factor of the noise: z = mu + temperature sigma eps
    check                    look for NaN, infinities and negative std or var first; names the first one's index
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from . import ops
from .autograd import run_latent
from .checks import check_all_values, check_dtype, check_moments, check_posterior, check_prior, check_shape, seed_tensor
from .draw_options import GaussianKLOverload, LatentOverload
from .fast_path import are_alike
from .kernels import backend
from .kernels.layout import split_packed
from .kl_options import finish
from .latent_options import (
    DrawOptions,
    LatentOptions,
    LogProbOptions,
    ScaleAndKLOptions,
    described_latent,
    shows_options,
)
from .size_checks import check_count, check_row_offset

__all__ = [
    "PriorValue", "gaussian_kl", "noise", "reparameterize", "sample_and_kl", "sample_and_kl_packed",
    "sample_and_log_prob",
]  # fmt: skip

PriorValue = Tensor | float | None


@overload
def sample_and_kl(
    mu: Tensor, logvar: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *,
    per_coordinate: Literal[False] = False, **options: Unpack[LatentOverload],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def sample_and_kl(
    mu: Tensor, logvar: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *,
    per_coordinate: Literal[True], **options: Unpack[LatentOverload],
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip


@overload
def sample_and_kl(
    mu: Tensor, logvar: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *,
    per_coordinate: bool, **options: Unpack[LatentOverload],
) -> tuple[Tensor, ...]: ...  # fmt: skip


@shows_options(LatentOptions)
def sample_and_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    **options: Unpack[LatentOptions],
) -> tuple[Tensor, ...]:
    """Draw z from N(mu, diag exp(logvar)) and compute its KL to the prior, in one pass forward and one backward.

        z = mu + exp(logvar/2) eps        KL = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar)

    (Kingma & Welling, arXiv 1312.6114, appendix B; against N(mu_p, exp(logvar_p)) it is
    1/2 sum((mu - mu_p)^2 exp(-logvar_p) + exp(d) - 1 - d), d = logvar - logvar_p.) eps is the stream of
    `fastvae.noise`; backward regenerates it, so that nothing is kept but the inputs and the 8-byte seed. Second
    derivatives go through plain PyTorch.

    Args:
        mu: means, (B, *event); float32, bfloat16, float16 or float64.
        logvar: log variances (or what ``scale`` says), same dtype and device, of a shape that broadcasts with mu.
        prior_mu, prior_logvar, num_samples, temperature, scale, floor, clamp, soft_clamp, residual, check: see
            `fastvae.functional`.
        seed: 64-bit seed, an int or a one-element int64 tensor on mu's device; drawn from torch's generator if None.
        generator: the torch.Generator to draw the seed from; the device's default one if None.
        row_offset: index of row 0 in the global batch; rank r of a data-parallel job passes its first row, and draws
            what one device would have drawn.
        reduction: of the KL: "none" (element-wise), "sample" (summed over the event), "sum" or "batchmean" (sum / B).
        beta: weight of the KL (arXiv 1804.03599; beta-VAE).
        capacity: C in nats: |KL - C| takes the place of the reduced KL, weighted by beta (Burgess et al., arXiv
            1804.03599, with "batchmean").
        free_bits: nats below which the KL of a group of coordinates counts as this much and has no gradient
            (Kingma et al., arXiv 1606.04934, section C.8).
        free_bits_group: "coordinate", "channel" (all of mu[:, c]) or "latent" (the whole event).
        free_bits_over: "sample", each sample's KL, or "batch", its mean over the batch, for "batchmean" and "sum".
        per_coordinate: give the KL of each coordinate too, averaged over the batch and detached: for monitoring.

    Returns:
        z, (B, *event) or (K, B, *event), in mu's dtype and memory layout, and the KL in nats, float32 (float64 for
        float64): of mu's shape for "none", (B,) for "sample", 0-d for "sum" and "batchmean". With ``per_coordinate`` a
        third, of the event's shape: unshaped by free bits, beta and capacity.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.
        RuntimeError: the backend asked for by name cannot serve these tensors.

    >>> import torch, fastvae
    >>> mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
    >>> z, kl = fastvae.sample_and_kl(mu, logvar, seed=0)
    >>> z.shape, kl
    (torch.Size([4, 20]), tensor([0., 0., 0., 0.]))
    >>> fastvae.sample_and_kl(mu, logvar, 1.0, 0.0, num_samples=3, free_bits=2.0)[1]  # a prior of mean 1; 20 x 2 nats
    tensor([40., 40., 40., 40.])
    """
    draw = seed, generator, row_offset
    return latent_op("sample_and_kl", mu, logvar, (prior_mu, prior_logvar), draw, options)


@overload
def sample_and_kl_packed(
    moments: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *, dim: int = 1,
    per_coordinate: Literal[False] = False, **options: Unpack[LatentOverload],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def sample_and_kl_packed(
    moments: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *, dim: int = 1,
    per_coordinate: Literal[True], **options: Unpack[LatentOverload],
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip


@overload
def sample_and_kl_packed(
    moments: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *, dim: int = 1,
    per_coordinate: bool, **options: Unpack[LatentOverload],
) -> tuple[Tensor, ...]: ...  # fmt: skip


@shows_options(LatentOptions)
def sample_and_kl_packed(
    moments: Tensor,
    prior_mu: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    *,
    dim: int = 1,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    **options: Unpack[LatentOptions],
) -> tuple[Tensor, ...]:
    """`sample_and_kl` of the two halves of one tensor: mu, and behind it logvar, along dimension ``dim``.

    What an encoder's last layer gives is read in place, and its gradient is written in one piece: nothing is split,
    concatenated or filled with zeros. Errors as for `sample_and_kl`.

    Args:
        moments: (B, 2C, ...) for ``dim=1``, contiguous, channels_last or strided; mu is the first half along ``dim``.
        dim: the dimension that holds both; not the batch's. 1 for images, 1 or -1 for (B, 2D).
        all others: as for `sample_and_kl`, the prior's shapes as for mu = moments.chunk(2, dim)[0]; the same seed
            gives the same z.

    Returns:
        z, (B, C, ...), and the KL in nats, as from `sample_and_kl`.

    >>> import torch, fastvae
    >>> moments = torch.zeros(2, 8, 4, 4, requires_grad=True)
    >>> z, kl = fastvae.sample_and_kl_packed(moments, seed=0)
    >>> z.shape, kl.shape
    (torch.Size([2, 4, 4, 4]), torch.Size([2]))
    """
    dim, draw = check_moments(moments, dim), (seed, generator, row_offset)
    return latent_op("sample_and_kl", moments, None, (prior_mu, prior_logvar), draw, options, dim)


@shows_options(LogProbOptions)
def sample_and_log_prob(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    **options: Unpack[LogProbOptions],
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw z from N(mu, diag exp(logvar)), with log q(z|x) and log p(z) of each draw: what importance weights are of.

        log q = -1/2 sum(eps^2 + logvar + log 2 pi)
        log p = -1/2 sum((z - prior_mu)^2 exp(-prior_logvar) + prior_logvar + log 2 pi)

    One pass makes all ``num_samples`` draws, one backward sums their gradients; the noise of K draws is never kept
    (Burda et al., arXiv 1509.00519, equation 8, needs these). Gradients are those of the formulas as they stand, with
    z = mu + exp(logvar/2) eps put in.

    Args:
        all: as for `sample_and_kl`, errors too; the same seed gives the same z. A temperature changes the draws, not
            the density.

    Returns:
        z, (B, *event), or (K, B, *event) with num_samples=K, in mu's dtype; log q(z|x) and log p(z) in nats, summed
        over the event, float32 (float64 for float64): (B,) or (K, B).

    >>> import torch, fastvae
    >>> mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
    >>> z, log_q, log_p = fastvae.sample_and_log_prob(mu, logvar, num_samples=50)
    >>> z.shape, torch.equal(log_q, log_p)
    (torch.Size([50, 4, 20]), True)
    """
    draw = seed, generator, row_offset
    z, _, _, log_q, log_p = latent_op("sample_and_log_prob", mu, logvar, (prior_mu, prior_logvar), draw, options)
    return z, log_q, log_p


@shows_options(DrawOptions)
def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    **options: Unpack[DrawOptions],
) -> Tensor:
    """Draw z = mu + exp(logvar/2) eps, eps ~ N(0, I), with gradients to mu and logvar (arXiv 1312.6114, section 2.4).

    Arguments, dtypes and errors as for `sample_and_kl`; the same seed gives the same z.

    Returns:
        z, (B, *event), or (K, B, *event) with num_samples=K, in mu's dtype and memory layout.

    >>> import torch, fastvae
    >>> mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
    >>> z = fastvae.reparameterize(mu, logvar, seed=0)
    >>> torch.equal(z, fastvae.sample_and_kl(mu, logvar, seed=0)[0])
    True
    """
    return latent_op("reparameterize", mu, logvar, NO_PRIOR, (seed, generator, row_offset), options)[0]


@overload
def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *,
    per_coordinate: Literal[False] = False, **options: Unpack[GaussianKLOverload],
) -> Tensor: ...  # fmt: skip


@overload
def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *,
    per_coordinate: Literal[True], **options: Unpack[GaussianKLOverload],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: PriorValue = None, prior_logvar: PriorValue = None, *,
    per_coordinate: bool, **options: Unpack[GaussianKLOverload],
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


@shows_options(ScaleAndKLOptions)
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    **options: Unpack[ScaleAndKLOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """KL(N(mu, diag exp(logvar)) || prior) in nats, with gradients for all that is given.

        1/2 sum((mu - prior_mu)^2 exp(-prior_logvar) + expm1(d) - d),  d = logvar - prior_logvar

    which is exact where both are nearly equal, 0 where they are equal, and never negative (arXiv 1312.6114, appendix B,
    for N(0, I)). Arguments, dtypes and errors as for `sample_and_kl`.

    Returns:
        The KL in float32 (float64 for float64): (B, *event) for reduction "none", (B,) for "sample" (the default), 0-d
        for "sum" and "batchmean". With ``per_coordinate`` a second, of the event's shape, as from `sample_and_kl`.

    >>> import torch, fastvae
    >>> fastvae.gaussian_kl(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
    tensor([2.5000])
    >>> fastvae.gaussian_kl(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2), torch.tensor([1.0, 2.0]), torch.ones(2))
    tensor([0.])
    """
    outputs = latent_op("gaussian_kl", mu, logvar, (prior_mu, prior_logvar), NO_DRAW, options)
    return outputs[1] if len(outputs) == 2 else outputs[1:]


NO_PRIOR = (None, None)
NO_DRAW = (None, None, 0)


def latent_op(
    op: str,
    mu: Tensor,
    logvar: Any,
    prior: tuple[PriorValue, PriorValue],
    draw: tuple[int | Tensor | None, torch.Generator | None, int],
    options: Mapping[str, Any],
    packed_dim: int | None = None,
) -> tuple[Any, ...]:
    """What each of the functions above does: check the arguments, run the op, finish the KL.

    Args:
        op: the name of the function; `sample_and_kl` of the packed one, too.
        mu, logvar: two tensors; or the one that packs both along ``packed_dim``, checked, and None.
        prior: prior_mu and prior_logvar.
        draw: seed, generator and row_offset, which `gaussian_kl` does not use.

    Returns:
        z and the KL, None where the op has none, and with ``per_coordinate`` the third; of `sample_and_log_prob` the
        five `LatentOutputs`.
    """
    alike = are_alike(mu, logvar) if packed_dim is None else are_alike(mu)
    if packed_dim is None and not alike:
        mu, logvar = check_posterior(mu, logvar)
    described = described_latent(op, mu.dim(), options, packed_dim)
    spec = described.spec
    prior_mu, prior_logvar = prior
    of_prior: tuple[Tensor, ...] = ()
    if prior_mu is not None or prior_logvar is not None or described.check or spec.residual:
        own_mu, scale = (mu, logvar) if spec.packed_dim is None else split_packed(mu, spec.packed_dim)
        of_prior = check_prior(prior_mu, prior_logvar, own_mu, spec)
        if described.check:
            check_all_values(own_mu, scale, of_prior, spec)
    drawn_from, row_offset = None, 0
    if spec.sample:
        seed, generator, row_offset = draw
        row_offset = check_row_offset(row_offset)
        drawn_from = seed_tensor(seed, generator, mu.device, alike)
    outputs = run_latent(mu, logvar, of_prior, drawn_from, described, row_offset, alike)
    return outputs if described.kernel_does_all else finish(outputs, described, mu)


def noise(
    seed: int | Tensor,
    shape: Sequence[int],
    *,
    row_offset: int = 0,
    draw: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The standard normals that `sample_and_kl` and `reparameterize` use for this seed: same on every device.

    Philox4x32-10 (Salmon et al., SC'11) with the seed as key and (coordinate // 4, row, draw) as counter, then
    Box-Muller. Row b of the result is row ``row_offset + b`` of the stream, whatever the batch is split into.

    Args:
        seed: 64-bit seed, an int or a one-element int64 tensor.
        shape: (B, *event), rank 1 or more.
        row_offset: index of the first row in the stream.
        draw: which of several draws for the same rows: what ``num_samples=K`` uses are draws 0 to K - 1.
        device: where to draw; the seed tensor's device, or torch's default device, if None.
        dtype: float32, bfloat16, float16 or float64.

    >>> import torch, fastvae
    >>> whole = fastvae.noise(7, (4, 3))
    >>> torch.equal(whole[2:], fastvae.noise(7, (2, 3), row_offset=2))
    True
    """
    sizes = check_shape(shape)
    row_offset = check_row_offset(row_offset)
    draw = check_count("draw", draw, 0, bits=32)
    check_dtype("dtype", dtype)
    if seed is None:
        raise TypeError("seed is None, expected an int or a one-element int64 tensor")
    drawn_from = seed_tensor(seed, None, device)
    return ops.noise(drawn_from.expand(sizes), drawn_from, row_offset, dtype, draw, backend.requested)
