"""scvi-tools, patched: the same losses, step by step, and likelihoods that differ by rounding."""

from __future__ import annotations

import pytest
import scvi.distributions._negative_binomial as scvi_counts
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.nn import Encoder
from torch.distributions import Normal, kl_divergence

import fastvae
from bench.clients.scvi import make_step
from fastvae.integrations import scvi as integration

from .training import check_same_losses, check_same_spread

GENES, CELLS = 50, 32


def make(likelihood="zinb", **options):
    return lambda: make_step(likelihood, cells=CELLS, genes=GENES, learning_rate=1e-3, **options)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_the_losses_are_those_of_an_unpatched_run(likelihood):
    check_same_losses(make(likelihood), "scvi")


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_the_losses_are_the_same_for_every_kind_of_dispersion(dispersion):
    check_same_losses(make(dispersion=dispersion, use_observed_lib_size=False), "scvi")


def test_with_fastvaes_noise_the_final_loss_is_within_those_of_other_seeds():
    check_same_spread(make(), "scvi")


def parameters(cells=16, genes=7, draws=(), dtype=torch.float32):
    torch.manual_seed(3)
    mu = torch.rand(*draws, cells, genes, dtype=dtype) * 4
    pi = torch.randn(*draws, cells, genes, dtype=dtype)
    log_theta = torch.randn(genes, dtype=dtype)
    x = torch.poisson(torch.rand(cells, genes) * 2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return x, [tensor.requires_grad_() for tensor in (mu, log_theta, pi)]


def log_prob_and_gradients(kind, x, given):
    mu, log_theta, pi = given
    theta = log_theta.exp()
    if kind is NegativeBinomial:
        distribution, used = kind(mu=mu, theta=theta), given[:2]
    else:
        distribution, used = kind(mu=mu, theta=theta, zi_logits=pi), given
    log_prob = distribution.log_prob(x)
    return log_prob, torch.autograd.grad(log_prob.sum(-1).square().sum(), used)


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("draws", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_prob_and_its_gradients_are_scvi_tools_own(kind, draws, dtype):
    x, given = parameters(draws=draws, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected, expected_gradients = log_prob_and_gradients(kind, x.double(), exact)
    with fastvae.patch("scvi"):
        found, gradients = log_prob_and_gradients(kind, x, given)
    assert found.dtype == torch.promote_types(dtype, x.dtype)
    assert found.shape == expected.shape
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for gradient, exactly in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), exactly, rtol=20 * tolerance, atol=20 * tolerance)


def test_integer_counts_and_single_rows():
    x, given = parameters()
    expected = log_prob_and_gradients(ZeroInflatedNegativeBinomial, x, given)[0]
    with fastvae.patch("scvi"):
        found = log_prob_and_gradients(ZeroInflatedNegativeBinomial, x.int(), given)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_shared_dispersion_is_used_before_expand_only_if_nothing_else_lies_between():
    theta = torch.rand(5, requires_grad=True)
    assert integration._before_expand(theta.expand(3, 5).expand(2, 3, 5)) is theta
    computed = theta.exp()
    assert integration._before_expand(computed.expand(3, 5)) is computed
    constant = theta.detach()
    assert not integration._before_expand(constant.expand(3, 5)).requires_grad
    for other in (
        theta.detach().expand(3, 5).requires_grad_(),  # a leaf of its own
        Reversed.apply(theta).expand(3, 5),
        theta.exp()[:3].expand(2, 3),
        theta.expand(3, 5)[:, :3],
        torch.rand(3, 5),
        2.0,
    ):
        assert integration._before_expand(other) is other


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_beside_float32_counts_gives_float32(half):
    x, (mu, log_theta, pi) = parameters()
    arguments = [tensor.detach().to(half) for tensor in (mu, log_theta.exp(), pi)]
    for kind, given in ((NegativeBinomial, arguments[:2]), (ZeroInflatedNegativeBinomial, arguments)):
        names = ("mu", "theta", "zi_logits")
        plain = kind(**dict(zip(names, given, strict=False))).log_prob(x)
        with fastvae.patch("scvi"):
            patched = kind(**dict(zip(names, given, strict=False))).log_prob(x)
        assert patched.dtype == plain.dtype
        torch.testing.assert_close(patched.float(), plain.float(), rtol=2e-2, atol=2e-2)


def test_hooks_on_an_expanded_dispersion_still_get_its_gradient():
    x, (mu, log_theta, _) = parameters()
    heard = []
    with fastvae.patch("scvi"):
        theta = log_theta.exp().expand(16, 7)
        theta.register_hook(lambda grad: heard.append(grad.shape))
        theta.retain_grad()
        NegativeBinomial(mu=mu, theta=theta).log_prob(x).sum().backward()
    assert heard == [(16, 7)]
    assert theta.grad.shape == (16, 7)


def test_unsupported_tensors_run_scvi_tools_own_code():
    x, (mu, log_theta, _) = parameters()
    theta = log_theta.exp()
    unusual = [(x, mu, theta, 1e-3), (x, mu[:1], theta, 1e-8), (x.double(), mu.double(), theta.double(), 1e-8)]
    expected = [scvi_counts.log_nb_positive(*arguments) for arguments in unusual]
    with fastvae.patch("scvi"):
        for arguments, theirs in zip(unusual, expected, strict=True):
            assert torch.equal(scvi_counts.log_nb_positive(*arguments), theirs)


def test_the_encoder_gives_the_same_draws_and_kl():
    torch.manual_seed(0)
    encoder = Encoder(GENES, 10, return_dist=True).eval()
    x = torch.rand(CELLS, GENES)
    torch.manual_seed(1)
    theirs, z = encoder(x)
    expected = kl_divergence(theirs, Normal(torch.zeros_like(z), torch.ones_like(z)))
    with fastvae.patch("scvi", noise="torch"):
        torch.manual_seed(1)
        ours, same = encoder(x)
        assert torch.equal(same, z)
    with fastvae.patch("scvi"):
        ours, other = encoder(x)
        assert isinstance(ours, Normal)
        assert (other.shape, other.dtype) == (z.shape, z.dtype)
        assert not torch.equal(other, z)
        kl = kl_divergence(ours, Normal(torch.zeros_like(z), torch.ones_like(z)))
        torch.testing.assert_close(kl, expected, rtol=1e-5, atol=1e-6)
        assert kl_divergence(ours.expand((2, CELLS, 10)), Normal(0.0, 1.0)).shape == (2, CELLS, 10)
    assert ours.rsample().shape == z.shape  # what was made under the patch lives on


def test_undo_restores_everything():
    from scvi.nn import _base_components

    before = (_base_components.Normal, scvi_counts.log_nb_positive, scvi_counts.log_zinb_positive)
    with fastvae.patch("scvi"):
        assert scvi_counts.log_nb_positive is not before[1]
        assert scvi_counts.log_zinb_positive.__name__ == "log_zinb_positive"
    assert (_base_components.Normal, scvi_counts.log_nb_positive, scvi_counts.log_zinb_positive) == before
