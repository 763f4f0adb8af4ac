"""scvi-tools, patched: the same losses, step by step, and likelihoods that differ by rounding."""

from __future__ import annotations

import warnings

import pytest
import scvi.distributions._negative_binomial as scvi_counts
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.module import PEAKVAE
from scvi.nn import Encoder
from torch.distributions import Normal, kl_divergence
from torch.distributions import kl as torch_kl

import fastvae
from bench.clients.scvi import make_multivi, make_peakvi, make_step
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
    unusual = [(x, mu, theta, 1e-3), (x.double(), mu.double(), theta.double(), 1e-8)]
    expected = [scvi_counts.log_nb_positive(*arguments) for arguments in unusual]
    with fastvae.patch("scvi"):
        for arguments, theirs in zip(unusual, expected, strict=True):
            assert torch.equal(scvi_counts.log_nb_positive(*arguments), theirs)


# Of x, mu, theta and pi.
BROADCASTING = {
    "one cell, several draws of many": ((1, 7), (3, 16, 7), (7,), (3, 16, 7)),
    "the cells of several draws": ((16, 7), (3, 16, 7), (7,), (3, 16, 7)),
    "a dimension in front": ((1, 16, 7), (3, 16, 7), (3, 16, 7), (3, 16, 7)),
    "draws of a dispersion by cell": ((16, 7), (3, 16, 7), (16, 1), (1,)),
    "a cell for all": ((1, 7), (16, 7), (7,), (16, 7)),
    "a vector for all": ((7,), (16, 7), (16, 7), (7,)),
    "classes behind": ((16, 7, 1), (16, 7, 4), (7, 4), (1, 7, 1)),
    "a mean for all": ((16, 7), (1, 7), (16, 7), (7,)),
    "four dimensions": ((16, 7), (2, 3, 16, 7), (7,), (3, 1, 7)),
    "x has most": ((3, 16, 7), (16, 7), (7,), (16, 7)),
}


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("name", BROADCASTING)
def test_what_broadcasts_is_fused_too(monkeypatch, kind, name):
    torch.manual_seed(0)
    x, mu, theta, pi = map(torch.rand, BROADCASTING[name])
    given = [tensor.requires_grad_() for tensor in (4 * mu, theta, pi)]
    x = (4 * x).floor()
    expected, expected_gradients = log_prob_and_gradients(kind, x, given)
    with fastvae.patch("scvi"):
        monkeypatch.setattr(torch, "lgamma", None)  # not called
        found, gradients = log_prob_and_gradients(kind, x, given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=2e-4, atol=2e-4)


def test_what_repeats_is_not_copied(monkeypatch):
    """Neither x nor its parameters: the kernel reads the same memory."""
    read = []
    kernels = fastvae.kernels.cpu
    forward = kernels.likelihood_forward
    monkeypatch.setattr(kernels, "likelihood_forward", lambda *given: (read.append(given), forward(*given))[1])
    x, mu, theta = torch.ones(1, 7), torch.rand(3, 16, 7), torch.rand(7)
    with fastvae.patch("scvi"):
        scvi_counts.log_nb_positive(x, mu, theta)
        scvi_counts.log_nb_positive(torch.ones(16, 7), mu, theta)
    assert len(read) == 2
    for (given, parameters, *_), rows in zip(read, (48, 16), strict=True):
        assert given.shape[0] == rows
        assert given.untyped_storage().nbytes() == 4 * 7 * (1 if rows == 48 else 16)
        assert [one.data_ptr() for one in parameters] == [mu.data_ptr(), theta.data_ptr()]


@pytest.mark.parametrize("shapes", [((16, 5), (3, 16, 5)), ((16, 1, 5), (4, 5)), ((5,), (16, 5)), ((), (16, 5))])
def test_a_prior_may_have_more_dimensions_than_the_posterior(monkeypatch, shapes):
    torch.manual_seed(0)
    given = [torch.rand(shape).add(0.5).requires_grad_() for shape in (*[shapes[0]] * 2, *[shapes[1]] * 2)]
    expected = kl_divergence(Normal(*given[:2]), Normal(*given[2:]))
    expected_gradients = torch.autograd.grad(expected.square().sum(), given)
    with fastvae.patch("scvi"):
        monkeypatch.setitem(torch_kl._KL_REGISTRY, (Normal, Normal), None)  # not called
        found = kl_divergence(integration.FusedNormal(*given[:2]), Normal(*given[2:]))
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), given)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.5, -1.0, torch.nan, torch.inf])
def test_values_that_are_no_counts_are_warned_of_as_without_a_patch(monkeypatch, value):
    x, (mu, log_theta, pi) = parameters()
    theta = log_theta.exp()
    distributions = [
        NegativeBinomial(mu=mu, theta=theta, validate_args=True),
        ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi),
    ]
    silent = NegativeBinomial(mu=mu, theta=theta)
    wrong = x.clone()
    wrong[3, 2] = value
    with fastvae.patch("scvi"), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        monkeypatch.setattr(torch, "remainder", None)  # no pass of its own
        for distribution in (*distributions, silent):
            distribution.log_prob(x)
        silent.log_prob(wrong)
        assert not heard
        for distribution in distributions:
            distribution.log_prob(wrong)
    assert [(one.category, str(one.message), one.filename) for one in heard] == 2 * [
        (UserWarning, "The value argument must be within the support of the distribution", __file__)
    ]


@pytest.mark.parametrize("kind", [NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize(("before", "read"), [(1.0, 0.5), (0.5, 1.0)])
def test_the_kernel_finds_values_that_are_no_counts(monkeypatch, kind, before, read):
    """There is no pass over x before or after: only what is in it while the kernel runs counts."""
    x, (mu, log_theta, pi) = parameters()
    kernels = fastvae.kernels.cpu
    forward = kernels.likelihood_forward
    calls = []

    def changing_x(given, *others):
        assert given.data_ptr() == x.data_ptr()
        calls.append(given)
        given[3, 2] = read
        found = forward(given, *others)
        given[3, 2] = before
        return found

    monkeypatch.setattr(kernels, "likelihood_forward", changing_x)
    options = {"zi_logits": pi} if kind is ZeroInflatedNegativeBinomial else {}
    x[3, 2] = before
    with fastvae.patch("scvi"), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        kind(mu=mu, theta=log_theta.exp(), validate_args=True, **options).log_prob(x)
    assert (len(calls), len(heard)) == (1, int(read == 0.5))


@pytest.mark.parametrize("make", [make_peakvi, make_multivi])
def test_the_losses_of_accessibility_are_those_of_an_unpatched_run(make):
    check_same_losses(lambda: make(cells=CELLS, genes=GENES, learning_rate=1e-3), "scvi")


@pytest.mark.parametrize("factors", [{}, {"region_factors": False}, {"model_depth": False}])
def test_the_binary_cross_entropy_of_peakvi_is_fused(monkeypatch, factors):
    torch.manual_seed(0)
    module = PEAKVAE(9, n_hidden=4, n_latent=2, region_factors=factors.get("region_factors", True))
    p, x = torch.rand(5, 9, requires_grad=True), torch.poisson(torch.rand(5, 9))
    d = torch.rand(5, 1, requires_grad=True) if factors.get("model_depth", True) else 1
    f = torch.rand(9, requires_grad=True) if module.region_factors is not None else 1
    leaves = [one for one in (p, d, f) if isinstance(one, torch.Tensor)]
    weights = torch.rand(5)
    expected = module.get_reconstruction_loss(p, d, f, x)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), leaves)
    with fastvae.patch("scvi"), monkeypatch.context() as without:
        without.setattr(torch.nn, "BCELoss", None)  # not called
        found = module.get_reconstruction_loss(p, d, f, x)
        gradients = torch.autograd.grad((found * weights).sum(), leaves)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, expected_gradients)


def test_what_is_no_probability_is_refused_as_without_a_patch():
    module, p = PEAKVAE(9, n_hidden=4, n_latent=2), torch.rand(5, 9)
    p[2, 3] = torch.nan
    with fastvae.patch("scvi"), pytest.raises(RuntimeError, match="between 0 and 1"):
        module.get_reconstruction_loss(p, 1, 1, torch.ones(5, 9))


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
