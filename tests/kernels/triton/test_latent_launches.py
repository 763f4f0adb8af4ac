"""Launches of latents: how many, how the work is shared out, and that no value is waited for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae.kernels import reference, triton
from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from fastvae.kernels.triton import latent_launch, launch, views
from fastvae.kernels.triton.latent_backward_kernel import latent_backward_kernel
from fastvae.kernels.triton.latent_forward_kernel import latent_forward_kernel
from fastvae.kernels.triton.launch import Work, channel_to_sum, tiling_of
from fastvae.kernels.triton.tiles import FULL, SHARED
from tests.conftest import backend_device, without_triton

from .test_launches import counted_launches, fake_gpu, launches  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(bool(without_triton()), reason=without_triton())
DEVICE = backend_device("triton")
REDUCTIONS = ("none", "sample", "sum", "batchmean", "channel")


def inputs_of(shape, prior=None, device=DEVICE):
    """Random parameters, of the prior's as much as ``prior`` says."""
    size = {None: None, "full": shape, "shared": (1, *shape[1:]), "one": (1,) * len(shape)}[prior]
    drawn = [None if size is None else torch.randn(size, device=device) for size in (shape, shape, size, size)]
    return LatentInputs(*drawn, torch.full((1,), 7, device=device))


def spec_of(reduction, **fields):
    """A latent whose kernel reduces the KL so: sums of channels are for free bits on them."""
    if reduction == "channel":
        return LatentSpec(free_bits="channel", **fields)
    return LatentSpec(reduction=reduction, **fields)


def gradients_of(outputs):
    """A gradient for every output but the mean over the batch."""
    made = [None if output is None else torch.randn_like(output) for output in outputs]
    return LatentOutputs(*made)._replace(kl_mean=None)


EVERYTHING = {"log_probs": True, "per_coordinate": True}


@pytest.mark.parametrize("prior", [None, "full", "shared", "one"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_latent_is_one_kernel_forward_and_one_backward(counted_launches, prior, reduction):  # noqa: F811
    given, spec, launches = inputs_of((5, 2, 4, 8), prior), spec_of(reduction, **EVERYTHING), counted_launches  # noqa: F811
    for draws in (None, 3):
        launches.clear()
        outputs = triton.latent_forward(given, spec, LatentScalars(num_samples=draws))
        assert [one.kernel for one in launches] == [latent_forward_kernel]
        triton.latent_backward(gradients_of(outputs), given, spec, LatentScalars(num_samples=draws), prior is not None)
        assert [one.kernel for one in launches[1:]] == [latent_backward_kernel]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_everything_at_once_is_as_the_reference_has_it(reduction):
    given, draws = inputs_of((5, 2, 4, 8), "shared"), LatentScalars(num_samples=3)
    assert_as_the_reference(given, spec_of(reduction, **EVERYTHING), draws)


def test_the_gradient_of_z_alone_reads_no_mu_and_writes_no_gradient_of_it(launches):  # noqa: F811
    given = inputs_of((6, 20))
    grads, spec, scalars = LatentOutputs(torch.randn(6, 20, device=DEVICE)), LatentSpec(), LatentScalars()
    whole = triton.latent_backward(grads, given, spec, scalars, False)
    alone = triton.latent_backward(grads, given._replace(mu=None), spec, scalars, False)
    assert torch.equal(whole.mu, grads.z)
    assert alone.mu is None
    assert torch.equal(alone.scale, whole.scale)
    names = launches[1].kernel.arg_names
    assert [launches[1].arguments[names.index(name)] for name in ("mu_ptr", "grad_mu_ptr")] == [None, None]


@pytest.mark.parametrize("prior", [None, "full", "shared", "one"])
@pytest.mark.parametrize("draws", [None, 3])
def test_launching_a_latent_looks_at_no_value(fake_gpu, prior, draws):  # noqa: F811
    """The tensors have no values: whatever asked for one (item, tolist, equal, nonzero, a bool) would raise."""
    device = torch.device("cuda", torch.cuda.device_count() - 1 if torch.cuda.is_available() else 1)
    for shape in ((6, 10), (8, 30_000), (4, 3, 8, 8)):
        fake_gpu.clear()
        given = inputs_of(shape, prior, device)
        spec = LatentSpec(scale="logstd", clamp="soft", free_bits="channel", **EVERYTHING)
        scalars = LatentScalars(num_samples=draws, high=5.0)
        outputs = triton.latent_forward(given, spec, scalars)
        # The sums over the batch of other priors end with a copy, which a PyTorch without CUDA cannot do for a GPU.
        wants_prior = prior == "full" or (prior is not None and torch.cuda.is_available())
        triton.latent_backward(outputs._replace(kl_mean=None), given, spec, scalars, wants_prior)
        assert [one for _, one in fake_gpu] == [device] * 2
        assert {one.device for one in outputs} == {device}


def test_columns_counted_in_64_bits_give_the_same_bits(launches, monkeypatch):  # noqa: F811
    given, spec, scalars = inputs_of((3, 600), "shared"), LatentSpec(**EVERYTHING), LatentScalars(num_samples=2)

    def results():
        outputs = triton.latent_forward(given, spec, scalars)
        return [*outputs, *triton.latent_backward(outputs._replace(kl_mean=None), given, spec, scalars, True)]

    narrow = results()
    monkeypatch.setattr(launch, "WIDE_EVENT", 1)
    launch.forget()
    wide = results()
    assert [one.constants["TILES"].wide for one in launches] == [False, False, True, True]
    assert all(torch.equal(one, other) for one, other in zip(narrow, wide, strict=True))


def test_rows_share_the_prior_of_a_wide_tile_and_the_result_is_the_same(launches, monkeypatch):  # noqa: F811
    given, spec, scalars = inputs_of((5, 1024), "shared"), LatentSpec(log_probs=True), LatentScalars()
    by_row = triton.latent_forward(given, spec, scalars)
    monkeypatch.setattr(views, "columns_loaded_at_once", lambda dtype: 2**20)
    launch.forget()
    by_element = triton.latent_forward(given, spec, scalars)
    assert [one.constants["PRIOR_MU"] for one in launches] == [SHARED.value, FULL.value]
    torch.testing.assert_close(by_row.z, by_element.z, rtol=0, atol=0)
    torch.testing.assert_close(by_row.kl, by_element.kl)
    torch.testing.assert_close(by_row.log_p, by_element.log_p)


@given(rows=st.integers(1, 2**24), event=st.integers(1, 2**20), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_sums_over_the_batch_write_a_small_part_of_what_is_summed(rows, event, dtype):
    tiling = tiling_of(Work(rows, event, dtype, 1024, shares_row=True, reduce_rows=True))
    assert tiling.grid[1] <= math.ceil(rows / 32)
    assert tiling.grid[0] * tiling.grid[1] <= max(launch.ENOUGH_PROGRAMS, tiling.tiles_a_row) * 2


@given(
    shape=st.tuples(st.integers(1, 64), st.integers(1, 40), st.integers(1, 64), st.integers(1, 64)),
    shares_row=st.booleans(),
)
def test_no_program_has_its_part_in_two_channels(shape, shares_row):
    rows, channels, height, width = shape
    work = Work(rows, channels * height * width, torch.float32, 1024, shares_row=shares_row)
    channel = channel_to_sum(torch.Size(shape), work)
    if channel is None:
        assert (height * width) % launch.LEAST_COLUMNS_OF_A_CHANNEL != 0
        return
    for reduce_rows in (False, True):
        tiling = tiling_of(work._replace(channel=channel, reduce_rows=reduce_rows))
        share = tiling.tile.columns * (1 if reduce_rows else tiling.tiles_a_program)
        assert channel % share == 0
        assert tiling.programs_a_row == channels * channel // share


@pytest.mark.parametrize("draws", [1, 4, 7, 11, pytest.param(50, marks=pytest.mark.slow)])
def test_draws_are_shared_out_among_programs_when_rows_are_few(launches, monkeypatch, draws):  # noqa: F811
    given, spec = inputs_of((3, 20), "one"), LatentSpec(reduction=None, log_probs=True)
    shared = triton.latent_forward(given, spec, LatentScalars(num_samples=draws))
    monkeypatch.setattr(launch, "ENOUGH_PROGRAMS", 1)
    launch.forget()
    whole = triton.latent_forward(given, spec, LatentScalars(num_samples=draws))
    assert [one.grid[2] > 1 for one in launches] == [draws >= 2 * latent_launch.LEAST_DRAWS, False]
    assert all(torch.equal(one, other) for one, other in zip(shared, whole, strict=True) if one is not None)


def test_priors_of_any_strides_are_read_where_they_are():
    """Expanded, permuted, and such as two event indices do not do for, which are copied."""
    mu, scale, *_ = inputs_of((4, 3, 5, 2))
    turned = mu.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for index, prior in enumerate(
        (
            torch.randn(1, 3, 1, 1).expand(1, 3, 5, 2),
            torch.randn(1, 1, 5, 1).expand(1, 3, 5, 2),
            torch.randn(4, 1, 1, 2).expand(4, 3, 5, 2),
            torch.randn(1, 2, 5, 3).permute(0, 3, 2, 1),
            torch.randn(3, 5, 2),  # without the dimension of the batch
        )
    ):
        given = inputs_of((4, 3, 5, 2))._replace(
            mu=turned, scale=scale, prior_mu=prior.to(DEVICE), prior_scale=0.5 * prior.to(DEVICE)
        )
        spec = LatentSpec(reduction=("none", "sample")[index % 2], **EVERYTHING)
        assert_as_the_reference(given, spec, LatentScalars(num_samples=2))


def assert_as_the_reference(given, spec, scalars):
    right = reference.latent_forward(given, spec, scalars)
    found = triton.latent_forward(given, spec, scalars)
    grads = gradients_of(right)
    grads = grads._replace(z=torch.randn_like(right.z[..., :1]).expand(right.z.shape))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert one.stride() == other.stride()
    rest = (grads, given, spec, scalars, given.prior_mu is not None)
    for one, other in zip(triton.latent_backward(*rest), reference.latent_backward(*rest), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 2, 3), (3, 0, 3)], ids=str)
@pytest.mark.parametrize("prior", [None, "shared"])
def test_nothing_is_started_for_nothing(launches, shape, prior):  # noqa: F811
    given, scalars = inputs_of(shape, prior), LatentScalars(num_samples=2)
    for reduction in ("none", "sample", "channel"):
        spec = spec_of(reduction, log_probs=True)
        found, right = triton.latent_forward(given, spec, scalars), reference.latent_forward(given, spec, scalars)
        rest = (gradients_of(right), given, spec, scalars, prior is not None)
        found = [*found, *triton.latent_backward(*rest)]
        right = [*right, *reference.latent_backward(*rest)]
        for one, other in zip(found, right, strict=True):
            assert (one is None) is (other is None)
            assert one is None or torch.equal(one, other)
    assert launches == []


@pytest.mark.parametrize("shape", [(70, 12), (34, 700)], ids=str)
def test_sums_over_the_batch_are_the_same_bits_every_time(shape):
    given, grad_z = inputs_of(shape, "shared"), torch.randn(shape, device=DEVICE)
    spec = LatentSpec(residual=True, reduction=None)
    sums = [triton.latent_backward(LatentOutputs(grad_z), given, spec, LatentScalars(), True) for _ in range(2)]
    assert torch.equal(sums[0].prior_mu, sums[1].prior_mu)
    assert torch.equal(sums[0].prior_scale, sums[1].prior_scale)
    torch.testing.assert_close(sums[0].prior_mu, grad_z.double().sum(0, keepdim=True).float(), rtol=1e-5, atol=1e-5)


def test_masked_coordinates_take_no_part_in_any_sum():
    """Where there is nothing to load a tile still computes; of every scale, nothing of that may reach a result."""
    for shape in ((3, 5), (5, 33)):
        for scale in ("logvar", "std", "var", "softplus"):
            *drawn, seed = inputs_of(shape, "one")
            given = LatentInputs(*[one.abs() + 0.2 for one in drawn], seed)
            spec = LatentSpec(scale, "hard", free_bits="coordinate", **EVERYTHING)
            scalars = LatentScalars(num_samples=2, free_bits=0.3, low=0.1, high=4.0)
            assert_as_the_reference(given, spec, scalars)
            alone, one_sum = given._replace(prior_mu=None, prior_scale=None), spec._replace(reduction="sum")
            assert math.isfinite(triton.latent_forward(alone, one_sum, scalars._replace(num_samples=None)).kl)
