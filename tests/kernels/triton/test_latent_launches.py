"""Launches of the family of latents: how many, how the work is shared out, and that no value is waited for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae.kernels import reference, triton
from fastvae.kernels.family import PLAIN, Options
from fastvae.kernels.triton import latent_launch, launch
from tests.conftest import backend_device

from .test_launches import fake_gpu, launches  # noqa: F401  (fixtures)

DEVICE = backend_device("triton")
SEED = torch.tensor([7], device=DEVICE)


def parameters(shape, prior=None, device=DEVICE):
    """mu, scale and the prior's two, of which there is as much as ``prior`` says."""
    size = {None: None, "full": shape, "shared": (1, *shape[1:]), "one": (1,) * len(shape)}[prior]
    return [None if size is None else torch.randn(size, device=device) for size in (shape, shape, size, size)]


@pytest.mark.parametrize("prior", [None, "full", "shared", "one"])
@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "batchmean", "channel"])
def test_every_latent_is_one_kernel_forward_and_one_backward(launches, prior, reduction):  # noqa: F811
    given = parameters((5, 2, 4, 8), prior)
    for draws in (None, 3):
        launches.clear()
        z, kl, _, log_q, log_p = triton.latent_forward(*given, SEED, 0, draws, reduction, True, True, PLAIN)
        assert [one.kernel for one in launches] == [latent_launch.latent_forward_kernel]
        gradients = [torch.ones_like(output) for output in (z, kl, log_q, log_p)]
        triton.latent_backward(*gradients, *given, SEED, 0, draws, reduction, PLAIN, prior is not None)
        assert [one.kernel for one in launches[1:]] == [latent_launch.latent_backward_kernel]


@pytest.mark.parametrize("prior", [None, "full", "shared", "one"])
@pytest.mark.parametrize("draws", [None, 3])
def test_launching_a_latent_looks_at_no_value(fake_gpu, prior, draws):  # noqa: F811
    """The tensors have no values: whatever asked for one (item, tolist, equal, nonzero, a bool) would raise."""
    device = torch.device("cuda", torch.cuda.device_count() - 1 if torch.cuda.is_available() else 1)
    seed = torch.empty(1, dtype=torch.int64, device=device)
    for shape in ((6, 10), (8, 30_000), (4, 3, 8, 8)):
        fake_gpu.clear()
        given = parameters(shape, prior, device)
        options = Options(scale="logstd", clamp="soft", high=5.0, free_bits=0.1)
        z, kl, mean, log_q, log_p = triton.latent_forward(*given, seed, 0, draws, "channel", True, True, options)
        # The sums over the batch of other priors end with a copy, which a PyTorch without CUDA cannot do for a GPU.
        wants_prior = prior == "full" or (prior is not None and torch.cuda.is_available())
        triton.latent_backward(z, kl, log_q, log_p, *given, seed, 0, draws, "channel", options, wants_prior)
        assert [one for _, one in fake_gpu] == [device] * 2
        assert {one.device for one in (z, kl, mean, log_q, log_p)} == {device}


def test_columns_counted_in_64_bits_give_the_same_bits(launches, monkeypatch):  # noqa: F811
    given = parameters((3, 600), "shared")

    def results():
        forward = triton.latent_forward(*given, SEED, 0, 2, "sample", True, True, PLAIN)
        gradients = [forward.z, forward.kl, forward.log_q, forward.log_p]
        return [*forward, *triton.latent_backward(*gradients, *given, SEED, 0, 2, "sample", PLAIN, True)]

    narrow = results()
    monkeypatch.setattr(launch, "WIDE_EVENT", 1)
    wide = results()
    assert [one.constants["WIDE"] for one in launches] == [False, False, True, True]
    assert all(torch.equal(one, other) for one, other in zip(narrow, wide, strict=True))


def test_rows_share_the_prior_of_a_wide_tile_and_the_result_is_the_same(launches, monkeypatch):  # noqa: F811
    given = parameters((5, 1024), "shared")
    arguments = (SEED, 0, None, "sample", False, True, PLAIN)
    by_row = triton.latent_forward(*given, *arguments)
    monkeypatch.setattr(latent_launch, "wide_columns", lambda dtype: 2**20)
    latent_launch.plan_of.cache_clear()
    by_element = triton.latent_forward(*given, *arguments)
    latent_launch.plan_of.cache_clear()
    assert [one.constants["PRIOR_MU"] for one in launches] == [latent_launch.SHARED.value, latent_launch.FULL.value]
    torch.testing.assert_close(by_row.z, by_element.z, rtol=0, atol=0)
    torch.testing.assert_close(by_row[1], by_element[1])
    torch.testing.assert_close(by_row[4], by_element[4])


@given(
    rows=st.integers(1, 2**31 - 1),
    event=st.integers(1, 300) | st.integers(1, 2**31 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    with_shared_prior=st.booleans(),
    down=st.booleans(),
)
def test_every_coordinate_is_in_exactly_one_tile_of_one_program(rows, event, dtype, with_shared_prior, down):
    """Programs stand one after another on both axes: together they reach the end, and the last one begins before it."""
    shared, is_down, tiles = latent_launch.plan_of(rows, event, dtype, with_shared_prior, down)
    assert is_down is down
    assert (tiles - 1) * shared.columns < event <= tiles * shared.columns
    if down:
        columns, share = shared.grid[0] * shared.columns, shared.tiles_a_program * shared.rows_a_program
        assert columns - shared.columns < event <= columns
        assert (shared.grid[1] - 1) * share < rows <= shared.grid[1] * share
    else:
        share = shared.tiles_a_program * shared.columns
        assert (shared.grid[0] - 1) * shared.rows_a_program < rows <= shared.grid[0] * shared.rows_a_program
        assert (shared.grid[1] - 1) * share < event <= shared.grid[1] * share
    assert shared.grid[0] < 2**31
    assert shared.grid[1] <= 65535


@given(rows=st.integers(1, 2**24), event=st.integers(1, 2**20), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_sums_over_the_batch_write_a_small_part_of_what_is_summed(rows, event, dtype):
    plan = latent_launch.plan_of(rows, event, dtype, True, True)
    assert plan.shared.grid[1] <= math.ceil(rows / 32)
    assert plan.shared.grid[0] * plan.shared.grid[1] <= max(launch.ENOUGH_PROGRAMS, plan.tiles) * 2


@given(channels=st.integers(1, 40), height=st.integers(1, 64), width=st.integers(1, 64), rows=st.integers(1, 64))
def test_no_program_has_its_part_in_two_channels(channels, height, width, rows):
    mu = torch.empty(rows, channels, height, width, device="meta")
    channel = latent_launch.channel_to_sum(mu)
    if channel is None:
        assert (height * width) % latent_launch.LEAST_COLUMNS_OF_A_CHANNEL != 0
        return
    for down in (False, True):
        plan = latent_launch.plan_of(rows, channels * channel, torch.float32, False, down, channel)
        share = plan.shared.columns * (1 if down else plan.shared.tiles_a_program)
        assert channel % share == 0
        assert plan.programs_a_row == channels * channel // share


@pytest.mark.parametrize("draws", [1, 4, 7, 50])
def test_draws_are_shared_out_among_programs_when_rows_are_few(launches, monkeypatch, draws):  # noqa: F811
    given = parameters((3, 20), "one")
    shared = triton.latent_forward(*given, SEED, 0, draws, None, False, True, PLAIN)
    monkeypatch.setattr(launch, "ENOUGH_PROGRAMS", 1)
    whole = triton.latent_forward(*given, SEED, 0, draws, None, False, True, PLAIN)
    assert [one.grid[2] > 1 for one in launches] == [draws >= 2 * latent_launch.LEAST_DRAWS, False]
    assert all(torch.equal(one, other) for one, other in zip(shared, whole, strict=True) if one is not None)


def test_priors_of_any_strides_are_read_where_they_are():
    """Expanded, permuted, and such as two event indices do not do for, which are copied."""
    mu, scale = parameters((4, 3, 5, 2))[:2]
    turned = mu.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for prior in (
        torch.randn(1, 3, 1, 1).expand(1, 3, 5, 2),
        torch.randn(1, 1, 5, 1).expand(1, 3, 5, 2),
        torch.randn(4, 1, 1, 2).expand(4, 3, 5, 2),
        torch.randn(1, 2, 5, 3).permute(0, 3, 2, 1),
    ):
        given = (turned, scale, prior.to(DEVICE), 0.5 * prior.to(DEVICE))
        assert_as_the_reference(given, 2, "sample")


def assert_as_the_reference(given, draws, reduction, options=PLAIN):
    wants_prior = given[2] is not None
    arguments = (SEED, 0, draws, reduction, True, True, options)
    right = reference.latent_forward(*given, *arguments)
    found = triton.latent_forward(*given, *arguments)
    gradients = [torch.randn_like(output) for output in (right.z, right.kl, right.log_q, right.log_p)]
    gradients[0] = torch.randn_like(right.z[..., :1]).expand(right.z.shape)
    rest = (*given, SEED, 0, draws, reduction, options, wants_prior)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert one.stride() == other.stride()
    for one, other in zip(
        triton.latent_backward(*gradients, *rest), reference.latent_backward(*gradients, *rest), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 2, 3), (3, 0, 3)], ids=str)
@pytest.mark.parametrize("prior", [None, "shared"])
def test_nothing_is_started_for_nothing(launches, shape, prior):  # noqa: F811
    given = parameters(shape, prior)
    for reduction in ("none", "sample", "channel"):
        arguments = (SEED, 0, 2, reduction, False, True, PLAIN)
        found, right = triton.latent_forward(*given, *arguments), reference.latent_forward(*given, *arguments)
        gradients = [torch.zeros_like(output) for output in (right.z, right.kl, right.log_q, right.log_p)]
        rest = (*given, SEED, 0, 2, reduction, PLAIN, prior is not None)
        found = [*found, *triton.latent_backward(*gradients, *rest)]
        right = [*right, *reference.latent_backward(*gradients, *rest)]
        for one, other in zip(found, right, strict=True):
            assert (one is None) is (other is None)
            assert one is None or torch.equal(one, other)
    assert launches == []


@pytest.mark.parametrize("shape", [(200, 12), (64, 700)], ids=str)
def test_sums_over_the_batch_are_the_same_bits_every_time(shape):
    given = parameters(shape, "shared")
    grad_z = torch.randn(shape, device=DEVICE)
    sums = [
        triton.latent_backward(grad_z, None, None, None, *given, SEED, 0, None, None, Options(residual=True), True)
        for _ in range(2)
    ]
    assert torch.equal(sums[0].prior_mu, sums[1].prior_mu)
    assert torch.equal(sums[0].prior_scale, sums[1].prior_scale)
    torch.testing.assert_close(sums[0].prior_mu, grad_z.double().sum(0, keepdim=True).float(), rtol=1e-5, atol=1e-5)


def test_masked_coordinates_take_no_part_in_any_sum():
    """Where there is nothing to load a tile still computes; of every scale, nothing of that may reach a result."""
    for shape in ((3, 5), (5, 33)):
        for scale in ("logvar", "std", "var", "softplus"):
            mu, raw, prior_mu, prior_raw = (one.abs() + 0.2 for one in parameters(shape, "one"))
            options = Options(scale=scale, free_bits=0.3, clamp="hard", low=0.1, high=4.0)
            assert_as_the_reference((mu, raw, prior_mu, prior_raw), 2, "sample", options)
            assert math.isfinite(
                triton.latent_forward(mu, raw, None, None, SEED, 0, None, "sum", True, True, options).kl
            )
