"""KL between diagonal Gaussians: every pair that holds a DiagonalGaussian, against torch.distributions."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from fastvae import DiagonalGaussian

from .test_distributions import STD, compare, graph_of, parameters


def normals(shape, device):
    loc, scale = parameters(shape, device, "std")
    return Normal(loc, scale), (loc, scale)


@pytest.mark.parametrize("scale", STD)
@pytest.mark.parametrize("other_shape", [(4, 3, 2), (3, 2), (1, 3, 2), (2,), (), (4, 1, 1)], ids=str)
def test_kl_with_a_normal_on_either_side(backend, device, other_shape, scale):
    if backend == "triton" and (list(STD).index(scale) + len(other_shape)) % 2:
        pytest.skip("the interpreter is slow: each parameterisation meets every other shape")
    mu, raw = parameters((4, 3, 2), device, scale)
    ours = DiagonalGaussian(mu, raw, scale=scale)
    other, leaves = normals(other_shape, device)
    theirs = Independent(Normal(mu, STD[scale](raw)), 2)
    expanded = Independent(Normal(other.loc.expand(4, 3, 2), other.scale.expand(4, 3, 2)), 2)
    compare(kl_divergence(ours, other), kl_divergence(theirs, expanded), (mu, raw, *leaves))
    compare(kl_divergence(other, ours), kl_divergence(expanded, theirs), (mu, raw, *leaves))
    if len(other_shape) >= 2:
        shape = (*other_shape[:-2], 3, 2)
        whole = Independent(Normal(other.loc.expand(shape), other.scale.expand(shape)), 2)
        compare(kl_divergence(ours, whole), kl_divergence(theirs, expanded), (mu, raw, *leaves))
        compare(kl_divergence(whole, ours), kl_divergence(expanded, theirs), (mu, raw, *leaves))


@pytest.mark.parametrize("scales", [("logvar", "logvar"), ("std", "std"), ("logvar", "softplus"), ("var", "logstd")])
@pytest.mark.parametrize("other_shape", [(4, 3), (1, 3), (3,)], ids=str)
def test_kl_between_two(backend, device, scales, other_shape):
    mu, raw = parameters((4, 3), device, scales[0])
    other_mu, other_raw = parameters(other_shape, device, scales[1])
    q = DiagonalGaussian(mu, raw, scale=scales[0])
    p = DiagonalGaussian(other_mu, other_raw, scale=scales[1], event_dims=1)
    expected = kl_divergence(
        Independent(Normal(mu, STD[scales[0]](raw)), 1),
        Independent(Normal(other_mu.expand(4, 3), STD[scales[1]](other_raw).expand(4, 3)), 1),
    )
    compare(kl_divergence(q, p), expected, (mu, raw, other_mu, other_raw))
    compare(q.kl(p), expected, (mu, raw, other_mu, other_raw))
    assert torch.equal(kl_divergence(q, q), torch.zeros(4, device=device))


def test_the_clamp_of_one_says_nothing_about_the_other(backend, device):
    mu, raw = parameters((4, 3), device)
    other_mu, other_raw = parameters((4, 3), device)
    q = DiagonalGaussian(mu, raw, clamp=(-0.1, 0.1))
    expected = kl_divergence(
        Independent(Normal(mu, torch.exp(0.5 * raw.clamp(-0.1, 0.1))), 1),
        Independent(Normal(other_mu, torch.exp(0.5 * other_raw)), 1),
    )
    compare(kl_divergence(q, DiagonalGaussian(other_mu, other_raw)), expected, (mu, raw, other_mu, other_raw))


def test_kl_is_the_mean_of_the_difference_of_log_densities():
    q = DiagonalGaussian(*parameters((2, 6), "cpu"))
    for p in (DiagonalGaussian(*parameters((2, 6), "cpu")), Independent(normals((6,), "cpu")[0], 1)):
        z = q.expand((20000, 2)).sample()
        terms = (q.log_prob(z) - p.log_prob(z)).double()
        error = terms.std(0) / math.sqrt(20000)
        assert ((terms.mean(0) - kl_divergence(q, p)).abs() < 4 * error).all()


def test_kl_of_other_dtypes_promotes_as_torch_does():
    mu, raw = (t.double() for t in parameters((2, 3), "cpu"))
    assert kl_divergence(DiagonalGaussian(mu, raw), Normal(0.0, 1.0)).dtype == torch.float64
    narrow = DiagonalGaussian(mu.float(), raw.float())
    assert kl_divergence(narrow, DiagonalGaussian(mu, raw)).dtype == torch.float64
    assert kl_divergence(narrow, Normal(0.0, 1.0)).dtype == torch.float32


@pytest.mark.parametrize("scale", ["logvar", "std", "softplus"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parameters_are_not_rounded(backend, device, dtype, scale):
    mu, raw = (tensor.detach().to(dtype).requires_grad_() for tensor in parameters((4, 3), device, scale))
    ours = DiagonalGaussian(mu, raw, scale=scale)
    for prior in (Normal(0.1, 0.3), Normal(torch.randn(3, device=device), torch.rand(3, device=device) + 0.1)):
        got = kl_divergence(ours, prior)
        theirs = Normal(mu.double(), STD[scale](raw.double()))
        expected = kl_divergence(theirs, Normal(prior.loc.double(), prior.scale.double())).sum(1)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        for one, other in zip(
            torch.autograd.grad(got.sum(), (mu, raw)), torch.autograd.grad(expected.sum(), (mu, raw)), strict=True
        ):
            # Rounded to half precision once; Triton's interpreter cuts bfloat16 off.
            torch.testing.assert_close(one, other, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_pairs_of_one_parameterisation_are_one_call_and_repeat_no_prior(backend, device):
    mu, raw = parameters((4, 16, 3), device)
    q = DiagonalGaussian(mu, raw, clamp=(-1.0, 1.0), event_dims=1)
    for shape in ((4, 16, 3), (1, 1, 3), (1, 3), (3,)):
        leaves = parameters(shape, device)
        p = DiagonalGaussian(*leaves, clamp=(-1.0, 1.0), event_dims=1)
        kept = {}  # elements by address

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            kl = kl_divergence(q, p)
        assert graph_of(kl) == {"LatentBackward", "AccumulateGrad"}
        assert kept == {tensor.data_ptr(): tensor.numel() for tensor in (mu, raw, *leaves)}


def test_packed_moments_stay_packed_when_they_are_widened(backend, device):
    moments = torch.randn(4, 6, device=device).bfloat16().requires_grad_()
    kl = kl_divergence(DiagonalGaussian.from_moments(moments), Normal(0.0, 1.0))
    assert graph_of(kl) == {"LatentBackward", "ToCopyBackward0", "AccumulateGrad"}


def test_a_normal_of_numbers_is_on_the_device_of_the_other():
    on_meta = DiagonalGaussian(torch.empty(4, 3, device="meta"), torch.empty(4, 3, device="meta"))
    for kl in (kl_divergence(Normal(0.0, 1.0), on_meta), kl_divergence(on_meta, Normal(0.0, 1.0))):
        assert (kl.device.type, kl.shape) == ("meta", (4,))


def test_no_pair_is_ambiguous():
    class Wrapped(Independent):
        pass

    class Scalar(Normal):
        pass

    class Posterior(DiagonalGaussian):
        pass

    mu, raw = parameters((2, 3), "cpu")
    std = torch.exp(0.5 * raw)
    expected = kl_divergence(Independent(Normal(mu, std), 1), Independent(Normal(std, std), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for posterior in (DiagonalGaussian, Posterior):
            ours = posterior(mu, raw)
            for other in (Wrapped(Normal(std, std), 1), Wrapped(Scalar(std, std), 1), Scalar(std, std)):
                torch.testing.assert_close(kl_divergence(ours, other), expected)
                torch.testing.assert_close(
                    kl_divergence(other, ours), kl_divergence(Normal(std, std), Normal(mu, std)).sum(1)
                )
            torch.testing.assert_close(kl_divergence(ours, posterior(std, raw)), expected)
            base = posterior(std, raw, event_dims=0)
            for other in (Independent(base, 1), Independent(Independent(base.expand((1, 2, 3)), 1), 0)):
                torch.testing.assert_close(kl_divergence(ours, other).view(2), expected)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (lambda z: DiagonalGaussian(z[:, :2], z[:, :2]), ValueError, r"event_shape \(3,\) and \(2,\)"),
        (lambda z: Independent(Normal(z, z + 1), 2), ValueError, r"event_shape \(3,\) and \(2, 3\)"),
        (lambda z: Normal(torch.zeros(5), torch.ones(5)), ValueError, r"shapes \(2, 3\) and \(5,\)"),
        (lambda z: Normal(torch.zeros(4, 1), torch.ones(4, 1)), ValueError, r"shapes \(2, 3\) and \(4, 1\)"),
        (lambda z: Independent(Bernoulli(logits=z), 1), NotImplementedError, "expected a DiagonalGaussian, a Normal"),
    ],
)
def test_incompatible_shapes_are_named(other, error, message):
    z = torch.zeros(2, 3)
    with pytest.raises(error, match=message):
        kl_divergence(DiagonalGaussian(z, z), other(z))


def test_the_event_is_not_broadcast():
    z = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"shapes \(2, 1\) and \(5,\) were given, expected .* events of shape \(1,\)"):
        kl_divergence(DiagonalGaussian(z, z), Normal(torch.zeros(5), torch.ones(5)))
