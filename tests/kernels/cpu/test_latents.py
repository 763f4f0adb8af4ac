"""Latents on the CPU backend, asked directly: tensors as C sees them, work in units of several tiles, bad arguments."""

from __future__ import annotations

import pytest
import torch

from fastvae.kernels import reference, selection
from fastvae.kernels.family import PLAIN, SCALES, Options

if selection.reason_unavailable("cpu"):
    pytest.skip(f"no CPU kernels here: {selection.reason_unavailable('cpu')}", allow_module_level=True)

from fastvae.kernels import cpu
from fastvae.kernels.cpu import _kernels

EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
SEED = torch.tensor([5])


def permuted(*shape: int) -> torch.Tensor:
    """A tensor of this shape whose memory runs through its dimensions backwards: of rank 4, no two merge."""
    return torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))


def step(kernels, mu, scale, prior_mu, prior_scale, draws=2, out=None):
    """Everything forward and backward give, with gradients of the shapes of what forward gave."""
    latents = kernels.latent_forward(mu, scale, prior_mu, prior_scale, SEED, 3, draws, "channel", True, True, PLAIN)
    torch.manual_seed(1)
    grads = [torch.randn_like(output) for output in (latents.z, latents.kl, latents.log_q, latents.log_p)]
    gradients = kernels.latent_backward(
        *grads, mu, scale, prior_mu, prior_scale, SEED, 3, draws, "channel", PLAIN, True, out
    )
    return (*latents, *gradients)


def assert_all_close(came, expected):
    for one, other in zip(came, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


PRIOR_SHAPES = [((2, 3, 4, 5), (2, 3, 4, 5)), ((1, 3, 4, 5), (1, 1, 1, 1)), ((1, 1, 1, 1), (1, 3, 4, 5))]


@pytest.mark.parametrize(("mean_shape", "scale_shape"), PRIOR_SHAPES)
def test_strides_that_two_event_indices_cannot_say_are_copied(mean_shape, scale_shape):
    mu, prior_mu, prior_scale = torch.randn(2, 3, 4, 5), permuted(*mean_shape), permuted(*scale_shape)
    scale, out = permuted(2, 3, 4, 5), (permuted(2, 3, 4, 5), permuted(2, 3, 4, 5))
    came = step(cpu, mu, scale, prior_mu, prior_scale, out=out)
    assert_all_close(came, step(reference, mu, scale, prior_mu, prior_scale))
    assert came[5] is out[0]
    assert came[6] is out[1]


@pytest.mark.parametrize(("mean_shape", "scale_shape"), PRIOR_SHAPES)
@pytest.mark.parametrize("exchanges", [True, False])
def test_priors_of_any_shape_are_seen_by_either_way_of_looking(exchanges, mean_shape, scale_shape):
    if exchanges and EXCHANGE is None:
        pytest.skip(f"torch {torch.__version__} has no DLPack exchange interface")
    tensors = [torch.randn(shape) for shape in ((2, 3, 4, 5), (2, 3, 4, 5), mean_shape, scale_shape)]
    _kernels.use_exchange(EXCHANGE if exchanges else None)
    try:
        came = step(cpu, *tensors)
    finally:
        _kernels.use_exchange(EXCHANGE)
    assert_all_close(came, step(reference, *tensors))


@pytest.mark.parametrize("shape", [(100, 50), (5000, 20), (200, 1100), (3, 70_000)])
@pytest.mark.parametrize("draws", [None, 3])
def test_sums_over_the_batch_have_the_same_bits_on_any_number_of_threads(shape, draws):
    mu, scale = torch.randn(2, *shape, 1)
    priors = torch.randn(1, *shape[1:], 1), torch.randn(1, 1, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = step(cpu, mu, scale, *priors, draws)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            for one, other in zip(step(cpu, mu, scale, *priors, draws), alone, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


def test_bad_arguments_of_the_extension_are_errors():
    with pytest.raises(TypeError, match="expected 16 arguments, got 2"):
        _kernels.latent_forward(None, None)
    with pytest.raises(TypeError, match="expected 19 arguments, got 0"):
        _kernels.latent_backward()
    with pytest.raises(TypeError, match="expected 7 arguments, got 1"):
        _kernels.noise(None)
    mu, rest = torch.zeros(2, 3), (0, None, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="not packed options"):
        _kernels.latent_forward(mu, mu, None, None, None, None, None, None, None, b"options", *rest)
    with pytest.raises(TypeError, match="expected bytes"):
        _kernels.latent_forward(mu, mu, None, None, None, None, None, None, None, "options", *rest)


@pytest.mark.parametrize("length", [1, 3, 10, 15, 16, 17, 31, 33, 64, 65, 127, 200])
def test_a_row_has_the_same_bits_whatever_rows_are_computed_with_it(length):
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 39, length)
    for prior in ((None, None), (prior_mu, prior_logvar)):
        for row in range(0, 39, 7):
            rows = [tensor if tensor is None else tensor[row : row + 1] for tensor in prior]
            alone = cpu.latent_forward(
                mu[row : row + 1], logvar[row : row + 1], *rows, SEED, row, None, "sample", False, True, PLAIN
            )
            all_rows = cpu.latent_forward(mu, logvar, *prior, SEED, 0, None, "sample", False, True, PLAIN)
            for name in ("kl", "log_q", "log_p"):
                assert torch.equal(getattr(all_rows, name)[row : row + 1], getattr(alone, name)), (name, prior is None)


@pytest.mark.parametrize("scale", SCALES)
def test_a_prior_of_the_posteriors_shape_is_as_good_as_one_with_other_options(scale):
    """Without free bits such a prior has kernels of its own; with some that cut nothing off it has not."""
    mu, given, prior_mu, prior_given = 0.3 + torch.rand(4, 7, 203)
    grad_z, grad_kl = torch.randn(7, 203), torch.randn(7)
    found = []
    for free_bits in (0.0, 1e-38):
        options = Options(scale=scale, free_bits=free_bits, temperature=0.7)
        latents = cpu.latent_forward(mu, given, prior_mu, prior_given, SEED, 2, None, "sample", False, False, options)
        gradients = cpu.latent_backward(
            grad_z, grad_kl, None, None, mu, given, prior_mu, prior_given, SEED, 2, None, "sample", options, True
        )
        found.append((latents.z, latents.kl, *gradients))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
