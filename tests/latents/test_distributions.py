"""DiagonalGaussian as a torch.distributions.Distribution, and over packed moments."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

import fastvae
from fastvae import DiagonalGaussian

from .test_autograd import saved_storages

STD = {
    "logvar": lambda raw: torch.exp(0.5 * raw),
    "logstd": torch.exp,
    "std": lambda raw: raw,
    "var": torch.sqrt,
    "softplus": torch.nn.functional.softplus,
}


def parameters(shape, device, scale="logvar"):
    mu, raw = torch.randn(shape), torch.randn(shape)
    raw = raw.exp() if scale in ("std", "var") else raw
    return [tensor.to(device).requires_grad_() for tensor in (mu, raw)]


def compare(got, expected, inputs):
    """Values, and gradients of a weighted sum."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(got, inputs, weights, retain_graph=True),
        torch.autograd.grad(expected, inputs, weights, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def graph_of(output):
    """Names of the nodes that a gradient goes through, but for views of the whole: a split would be one of them."""
    names, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name().rpartition(":")[2])
        nodes += [following for following, _ in node.next_functions if following is not None]
    return {name for name in names if not name.startswith(("View", "UnsafeView", "ReshapeAlias", "Expand"))}


# As torch.distributions has it


@pytest.mark.parametrize("scale", STD)
def test_moments_and_densities_are_torchs(backend, device, scale):
    mu, raw = parameters((4, 3, 2), device, scale)
    ours = DiagonalGaussian(mu, raw, scale=scale)
    theirs = Independent(Normal(mu, STD[scale](raw)), 2)
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
    value = torch.randn(5, 4, 3, 2, device=device)
    compare(ours.log_prob(value), theirs.log_prob(value), (mu, raw))
    compare(ours.entropy(), theirs.entropy(), (raw,))
    compare(ours.stddev, theirs.stddev, (raw,))
    compare(ours.variance, theirs.variance, (raw,))
    assert ours.mean is mu
    assert torch.equal(ours.mode, theirs.mode)
    torch.testing.assert_close(ours.logvar, 2 * torch.log(ours.std))
    assert ours.has_rsample
    assert ours.support.event_dim == theirs.support.event_dim
    positive = torch.distributions.constraints.positive
    assert (ours.arg_constraints["logvar"] is positive) == (scale in ("std", "var"))


@pytest.mark.parametrize("event_dims", [0, 1, 2, 3])
def test_shapes_are_torchs_for_every_number_of_event_dimensions(backend, device, event_dims):
    mu, raw = parameters((4, 3, 2), device)
    ours = DiagonalGaussian(mu, raw, event_dims=event_dims)
    theirs = Independent(Normal(mu, torch.exp(0.5 * raw)), event_dims)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    for sample_shape in [(), (3,), (2, 5), (0,)]:
        assert ours.rsample(sample_shape).shape == theirs.rsample(sample_shape).shape
        assert ours.sample(sample_shape).shape == theirs.sample(sample_shape).shape
    compare(ours.kl(), kl_divergence(theirs, Independent(Normal(mu * 0, mu * 0 + 1), event_dims)), (mu, raw))
    assert ours.log_prob(mu).shape == theirs.log_prob(mu).shape
    assert ours.entropy().shape == theirs.entropy().shape


def test_rsample_is_the_noise_scaled_with_its_gradients(backend, device):
    mu, raw = parameters((4, 3), device)
    z = DiagonalGaussian(mu, raw).rsample((2, 2), seed=3)
    eps = torch.stack([fastvae.noise(3, (4, 3), draw=k, device=device) for k in range(4)]).view(2, 2, 4, 3)
    compare(z, mu + torch.exp(0.5 * raw) * eps, (mu, raw))
    assert torch.equal(DiagonalGaussian(mu, raw).rsample(seed=3), z[0, 0])
    cold = DiagonalGaussian(mu, raw).rsample(seed=3, temperature=0.5)
    torch.testing.assert_close(cold, mu + 0.5 * torch.exp(0.5 * raw) * eps[0, 0])


@pytest.mark.parametrize(
    ("options", "std"),
    [
        ({"scale": "softplus", "floor": 0.2}, lambda raw: torch.nn.functional.softplus(raw) + 0.2),
        ({"clamp": (-0.5, 0.5)}, lambda raw: torch.exp(0.5 * raw.clamp(-0.5, 0.5))),
        ({"soft_clamp": 2.0}, lambda raw: torch.exp(torch.tanh(raw / 2.0))),
    ],
    ids=["floor", "clamp", "soft_clamp"],
)
def test_floor_and_clamps_hold_in_all_that_it_gives(backend, device, options, std):
    mu, raw = parameters((4, 3), device)
    ours, theirs = DiagonalGaussian(mu, raw, **options), Independent(Normal(mu, std(raw)), 1)
    standard = Independent(Normal(torch.zeros_like(mu), 1.0), 1)
    compare(ours.std, theirs.stddev, (raw,))
    compare(ours.kl(), kl_divergence(theirs, standard), (mu, raw))
    compare(ours.sample_and_kl()[1], kl_divergence(theirs, standard), (mu, raw))
    compare(ours.rsample(seed=3), mu + std(raw) * fastvae.noise(3, (4, 3), device=device), (mu, raw))
    compare(ours.log_prob(mu.detach() + 1), theirs.log_prob(mu.detach() + 1), (mu, raw))


def test_samples_have_the_moments_that_they_claim():
    mu, raw = parameters((2, 3), "cpu")
    gaussian = DiagonalGaussian(mu, raw)
    z = gaussian.expand((4000, 2)).sample((10,)).double().flatten(0, 1)
    error = gaussian.std / math.sqrt(40000)
    assert ((z.mean(0) - mu).abs() < 5 * error).all()
    torch.testing.assert_close(z.var(0).float(), gaussian.var, rtol=0.05, atol=0)


def test_torchs_sample_has_no_gradient_and_follows_manual_seed():
    gaussian = DiagonalGaussian(*parameters((3, 4), "cpu"))
    torch.manual_seed(1)
    first = gaussian.sample()
    assert not first.requires_grad
    assert not gaussian.sample((2,)).requires_grad
    torch.manual_seed(1)
    assert torch.equal(gaussian.rsample(), first)


def test_expand_keeps_the_values(backend, device):
    mu, raw = parameters((3, 2), device)
    gaussian = DiagonalGaussian(mu, raw, scale="logstd").expand((5, 3))
    assert isinstance(gaussian, DiagonalGaussian)
    assert (gaussian.batch_shape, gaussian.event_shape) == ((5, 3), (2,))
    assert torch.equal(gaussian.mean, mu.expand(5, 3, 2))
    assert gaussian.rsample().shape == (5, 3, 2)
    assert not torch.equal(*gaussian.rsample()[:2] - mu)
    compare(gaussian.kl(), DiagonalGaussian(mu, raw, scale="logstd").kl().expand(5, 3), (mu, raw))


def test_it_works_in_torchs_wrappers():
    mu, raw = parameters((2, 5, 3), "cpu")
    base, value = DiagonalGaussian(mu, raw, event_dims=0), torch.randn(2, 5, 3)
    theirs = Independent(Normal(mu, torch.exp(0.5 * raw)), 1)
    ours = Independent(base, 1)
    compare(ours.log_prob(value), theirs.log_prob(value), (mu, raw))
    compare(ours.expand((4, 2, 5)).entropy(), theirs.expand((4, 2, 5)).entropy(), (raw,))
    assert ours.rsample((4,)).shape == (4, 2, 5, 3)
    weights = Categorical(logits=torch.zeros(2, 5))
    ours, theirs = (MixtureSameFamily(weights, one) for one in (DiagonalGaussian(mu, raw, event_dims=1), theirs))
    compare(ours.log_prob(value[:, 0]), theirs.log_prob(value[:, 0]), (mu, raw))
    assert ours.sample((4,)).shape == (4, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_densities_of_every_dtype_are_sums_of_float32_or_wider(dtype):
    mu, raw = (tensor.to(dtype) for tensor in parameters((8, 64), "cpu"))
    value, wide = torch.randn(8, 64).to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    ours = DiagonalGaussian(mu, raw, soft_clamp=5.0)
    std = torch.exp(2.5 * torch.tanh(raw.double() / 5.0))
    theirs = Independent(Normal(mu.double(), std), 1)
    for got, expected in (
        (ours.log_prob(value), theirs.log_prob(value.double())),
        (ours.entropy(), theirs.entropy()),
        (ours.kl(), kl_divergence(theirs, Independent(Normal(mu.double() * 0, 1.0), 1))),
    ):
        assert got.dtype == wide
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-5)
    assert ours.std.dtype == ours.logvar.dtype == ours.rsample().dtype == dtype
    assert torch.equal(ours.std, std.to(dtype)) or dtype == torch.float64


# Packed moments


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_moments_are_read_in_place_and_their_gradient_is_one_tensor(backend, device, layout):
    moments = torch.randn(3, 8, 4, 2, device=device)
    if layout == "channels_last":
        moments = moments.to(memory_format=torch.channels_last)
    elif layout == "strided":
        moments = torch.randn(2, 4, 8, 5, device=device)[..., 1:4].permute(3, 2, 1, 0)
    moments.requires_grad_()
    packed = DiagonalGaussian.from_moments(moments, clamp=(-1.0, 1.0))
    mu, logvar = moments.chunk(2, 1)
    apart = DiagonalGaussian(mu, logvar, clamp=(-1.0, 1.0))
    prior = Normal(torch.randn(4, 4, 2, device=device), torch.rand(4, 4, 2, device=device) + 0.5)
    assert packed.parameters is moments
    for function in (
        lambda d: d.rsample(seed=1),
        lambda d: d.rsample((3,), seed=1),
        lambda d: d.kl(),
        lambda d: kl_divergence(d, prior),
        lambda d: torch.cat([part.flatten() for part in d.sample_and_kl(seed=1)]),
        lambda d: torch.cat([part.flatten() for part in d.sample_and_kl(prior, seed=1, free_bits=0.1)]),
        lambda d: d.log_prob(torch.zeros_like(mu)),
    ):
        compare(function(packed), function(apart), (moments,))
    unclamped = DiagonalGaussian.from_moments(moments)
    for output in (
        packed.kl(),
        packed.rsample((2, 2)),
        kl_divergence(unclamped, Normal(0.0, 1.0)),
        packed.sample_and_kl(beta=2.0)[0],
    ):
        assert graph_of(output) == {"LatentBackward", "AccumulateGrad"}


def test_moments_have_batches_of_any_rank(backend, device):
    moments = torch.randn(2, 3, 8, device=device, requires_grad=True)
    packed = DiagonalGaussian.from_moments(moments, dim=-1, event_dims=1)
    apart = DiagonalGaussian(*moments.chunk(2, -1), event_dims=1)
    assert (packed.batch_shape, packed.event_shape) == ((2, 3), (4,))
    for function in (
        lambda d: d.rsample((5,), seed=1),
        lambda d: d.kl(),
        lambda d: kl_divergence(d, Normal(0.0, 1.0)),
    ):
        compare(function(packed), function(apart), (moments,))
        assert graph_of(function(packed)) == {"LatentBackward", "AccumulateGrad"}
    for function in (
        lambda d: d.sample_and_kl(Normal(0.5, 2.0), seed=1)[1],
        lambda d: d.rsample(seed=1),
        lambda d: d.kl(),
    ):
        compare(function(packed.expand((2, 2, 3))), function(apart.expand((2, 2, 3))), (moments,))
    assert torch.equal(packed.expand((2, 2, 3)).parameters, moments.expand(2, 2, 3, 8))
    assert torch.equal(apart.parameters, moments)


def test_a_distribution_made_under_no_grad_is_differentiable_later():
    moments, mu, raw = torch.randn(4, 6, requires_grad=True), *parameters((3,), "cpu")
    with torch.no_grad():
        packed, broadcast = DiagonalGaussian.from_moments(moments), DiagonalGaussian(torch.zeros(4, 3), raw)
        expanded = DiagonalGaussian(mu, raw, event_dims=1).expand((4,))
        for gaussian in (packed, broadcast, expanded):
            assert not gaussian.std.requires_grad
    for gaussian, leaf in ((packed, moments), (broadcast, raw), (expanded, raw)):
        for output in (gaussian.std, gaussian.log_prob(torch.zeros(4, 3)), gaussian.rsample(), gaussian.kl()):
            assert torch.autograd.grad(output.sum(), leaf)[0].abs().sum() > 0


def test_everything_is_computed_lazily(backend, device):
    moments = torch.randn(4, 6, device=device, requires_grad=True)
    kept, gaussian = saved_storages(lambda: DiagonalGaussian.from_moments(moments))
    assert not kept
    kept, _z = saved_storages(lambda: gaussian.rsample((50,)))
    del kept[moments.untyped_storage().data_ptr()]
    assert sum(kept.values()) == 8


def test_sample_and_kl_is_the_op(backend, device):
    mu, raw = parameters((4, 3), device, "std")
    gaussian = DiagonalGaussian(mu, raw, scale="std")
    for got, expected in (
        (gaussian.sample_and_kl(seed=2), fastvae.sample_and_kl(mu, raw, seed=2, scale="std")),
        (
            gaussian.sample_and_kl(Normal(1.0, 2.0), seed=2, num_samples=3, beta=2.0),
            fastvae.sample_and_kl(mu, raw, 1.0, 2.0, seed=2, scale="std", num_samples=3, beta=2.0),
        ),
    ):
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)
    for keyword in ({"scale": "logvar"}, {"residual": True}):
        with pytest.raises(TypeError, match=next(iter(keyword))):
            gaussian.sample_and_kl(Normal(0.0, 1.0), **keyword)


@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "batchmean"])
def test_sample_and_kl_of_a_batch_of_two_dimensions_is_that_of_its_rows(backend, device, reduction):
    mu, raw = parameters((2, 3, 4), device)
    prior_mu, prior_raw = parameters((3, 4), device)
    gaussian = DiagonalGaussian(mu, raw, event_dims=1)
    prior = DiagonalGaussian(prior_mu, prior_raw)
    z, kl = gaussian.sample_and_kl(prior, seed=2, reduction=reduction, num_samples=2)
    priors = (tensor.expand(2, 3, 4).reshape(6, 4) for tensor in (prior_mu, prior_raw))
    expected_z, expected_kl = fastvae.sample_and_kl(
        mu.view(6, 4), raw.view(6, 4), *priors, seed=2, reduction=reduction, num_samples=2
    )
    assert z.shape == (2, 2, 3, 4)
    assert kl.shape == {"none": (2, 3, 4), "sample": (2, 3)}.get(reduction, ())
    compare(z.flatten(), expected_z.flatten(), (mu, raw))
    compare(kl.flatten(), expected_kl.flatten(), (mu, raw, prior_mu, prior_raw))


def test_sample_and_kl_with_a_wider_prior_keeps_the_dtype_of_z():
    mu, raw = (tensor.bfloat16() for tensor in parameters((4, 3), "cpu"))
    z, kl = DiagonalGaussian(mu, raw).sample_and_kl(Normal(torch.zeros(3), torch.ones(3)), seed=2)
    assert (z.dtype, kl.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(z, DiagonalGaussian(mu, raw).rsample(seed=2))


# Values that are checked, and bad input


def test_values_are_checked_only_with_validate_args():
    std = torch.tensor([[1.0, -1.0]])
    DiagonalGaussian(torch.zeros(1, 2), std, scale="std")
    with pytest.raises(ValueError, match=r"logvar, a std, is -1.0 at index \[0, 1\]"):
        DiagonalGaussian(torch.zeros(1, 2), std, scale="std", validate_args=True)
    with pytest.raises(ValueError, match="mu is nan"):
        DiagonalGaussian.from_moments(torch.tensor([[float("nan"), 0.0]]), validate_args=True)
    with pytest.raises(ValueError, match="logvar, a var, is 0 somewhere"):
        DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2), scale="var", validate_args=True)
    nan = torch.full((2, 3), float("nan"))
    assert DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)).log_prob(nan).isnan().all()
    gaussian = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3), validate_args=True)
    for checked in (gaussian, gaussian.expand((4, 2))):
        with pytest.raises(ValueError, match="support"):
            checked.log_prob(nan)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: DiagonalGaussian(z, z, event_dims=3), ValueError, "event_dims is 3, expected 0 to 2"),
        (lambda z: DiagonalGaussian(z, z, event_dims=1.0), TypeError, "event_dims is a float"),
        (lambda z: DiagonalGaussian(z, z, scale="sigma"), ValueError, "scale is 'sigma'"),
        (lambda z: DiagonalGaussian(z, z, deterministic=1), TypeError, "deterministic is a int"),
        (lambda z: DiagonalGaussian(z, [1.0]), TypeError, "logvar is a list"),
        (lambda z: DiagonalGaussian.from_moments(z), ValueError, "expected an even size in dim 1"),
        (
            lambda z: DiagonalGaussian.from_moments(z.view(1, 2, 3), event_dims=1),
            ValueError,
            "dim is 1, expected one of the last 1 dimensions of moments",
        ),
        (
            lambda z: DiagonalGaussian(z, z).log_prob(z[:, :1]),
            ValueError,
            r"value has shape \(2, 1\), expected dimensions that broadcast with batch_shape",
        ),
        (lambda z: DiagonalGaussian(z, z).nll(z[:, :2]), ValueError, r"sample has shape \(2, 2\)"),
        (lambda z: DiagonalGaussian(z, z).log_prob(torch.zeros(5, 3)), ValueError, r"value has shape \(5, 3\)"),
        (lambda z: DiagonalGaussian(z, z).log_prob(0.5), TypeError, "value is a float"),
        (lambda z: DiagonalGaussian(z, z).log_prob(z.int()), TypeError, "value is int32"),
        (lambda z: DiagonalGaussian(z, z).rsample(temperature=-1.0), ValueError, "temperature is -1.0"),
        (
            lambda z: DiagonalGaussian(z, z).sample_and_kl(Normal(torch.zeros(4, 2, 3), torch.ones(4, 2, 3))),
            ValueError,
            "prior has shape",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3))


def test_it_pickles_copies_and_prints():
    gaussian = DiagonalGaussian(torch.randn(2, 3), torch.randn(2, 3), scale="logstd", soft_clamp=5)
    for twin in (pickle.loads(pickle.dumps(gaussian)), copy.deepcopy(gaussian)):
        assert torch.equal(twin.rsample(seed=1), gaussian.rsample(seed=1))
    assert repr(gaussian) == "DiagonalGaussian(batch_shape=(2,), event_shape=(3,), scale='logstd')"


def test_it_compiles_without_a_graph_break():
    mu, raw = parameters((3, 4), "cpu")
    moments = torch.randn(3, 8, requires_grad=True)

    def function(mu, raw, moments):
        gaussian, packed = DiagonalGaussian(mu, raw), DiagonalGaussian.from_moments(moments, clamp=(-30, 20))
        loss = gaussian.rsample(seed=1).sum() + kl_divergence(gaussian, Normal(0.0, 1.0)).sum()
        z, kl = packed.sample_and_kl(DiagonalGaussian(mu, raw), seed=3)
        loss = loss + (z * gaussian.mode).sum() + kl.sum() + gaussian.kl(packed).sum() + packed.std.sum()
        loss = loss + gaussian.nll(mu).sum() + gaussian.entropy().sum()
        return loss + packed.kl().sum() + packed.rsample((2,), seed=2).sum() + gaussian.log_prob(mu).sum()

    expected = torch.autograd.grad(function(mu, raw, moments), (mu, raw, moments))
    got = torch.autograd.grad(
        torch.compile(function, fullgraph=True, backend="aot_eager")(mu, raw, moments), (mu, raw, moments)
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_an_expanded_one_compiles_without_a_graph_break():
    def function(mu, raw, family):
        return family(mu, raw).expand((2, 3)).mean.sum()

    mu, raw = torch.randn(3, 4), torch.rand(3, 4)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    try:
        compiled(mu[:, 0], raw[:, 0], Normal)
    except torch._dynamo.exc.Unsupported:
        pytest.skip("this torch cannot expand its own distributions in a graph")
    torch.testing.assert_close(compiled(mu, raw, DiagonalGaussian), function(mu, raw, DiagonalGaussian))
