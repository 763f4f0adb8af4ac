"""Missing values: entries that the mask leaves out have no part in log p nor in any gradient, whatever stands there."""

from __future__ import annotations

import math

import pytest
import torch

import fastvae
from fastvae import likelihoods as L
from fastvae.kernels.likelihood_spec import KINDS, MIXTURE

from .cases import data_of

SHAPE = (4, 3, 5)
ONE_FOR_EACH = ("mean", "theta")
ELEMENTWISE = [kind for kind in KINDS if kind not in ("scaled_bernoulli", MIXTURE)]


def _case(name):
    torch.manual_seed(0)
    x = data_of(name, SHAPE)
    parameters = [(torch.rand(SHAPE) + 0.5).requires_grad_() for _ in range(KINDS[name].parameters)]
    return getattr(L, f"{name}_log_prob"), x, parameters, torch.rand(SHAPE) < 0.6


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("hole", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_missing_entries_contribute_nothing(name, hole, backend):
    if backend == "auto" and not fastvae.backends()["cpu"]["available"]:
        pytest.skip("the CPU kernels are not built")
    log_prob, x, parameters, mask = _case(name)
    holed = torch.where(mask, x, hole).requires_grad_()
    broken = [torch.where(mask, p.detach(), torch.nan).requires_grad_() for p in parameters]
    with fastvae.use_backend("reference" if backend == "reference" else "cpu"):
        came = log_prob(*broken, holed, mask=mask)
        expected = (log_prob(*parameters, x, reduction="none") * mask).flatten(1).sum(1)
        torch.testing.assert_close(came, expected)
        came.sum().backward()
        expected.sum().backward()
    for given, other in zip(broken, parameters, strict=True):
        assert (given.grad[~mask] == 0).all()
        torch.testing.assert_close(given.grad, other.grad)
    assert (holed.grad[~mask] == 0).all()
    assert torch.isfinite(holed.grad).all()


def test_reductions_are_over_the_observed_entries():
    log_prob, x, (mean, logvar), mask = _case("gaussian")
    each = log_prob(mean, logvar, x, reduction="none", mask=mask)
    assert (each[~mask] == 0).all()
    torch.testing.assert_close(log_prob(mean, logvar, x, reduction="sum", mask=mask), each.sum())
    torch.testing.assert_close(log_prob(mean, logvar, x, reduction="batchmean", mask=mask), each.sum() / 4)
    of_pixels = torch.rand(3, 5) < 0.5
    torch.testing.assert_close(
        log_prob(mean, logvar, x, mask=of_pixels), log_prob(mean, logvar, x, mask=of_pixels.expand(SHAPE))
    )
    assert log_prob(mean, logvar, x, mask=torch.zeros(1, dtype=torch.bool)).tolist() == [0, 0, 0, 0]


def test_a_shared_parameter_learns_from_the_observed_rows():
    log_prob, x, (mean, _), mask = _case("negative_binomial")
    theta = torch.ones(3, 5, requires_grad=True)
    log_prob(mean, theta, torch.where(mask, x, torch.nan), mask=mask).sum().backward()
    full = torch.ones(SHAPE, requires_grad=True)
    (log_prob(mean, full, x, reduction="none") * mask).sum().backward()
    torch.testing.assert_close(theta.grad, full.grad.sum(0))


def test_the_gradient_of_a_shared_parameter_is_rounded_once():
    """To bfloat16, after the sum over the rows, as without a mask."""
    torch.manual_seed(0)
    x, mean, theta = torch.poisson(torch.ones(300, 4)), torch.rand(300, 4), torch.rand(300, 4)
    mask = torch.rand(300, 4) < 0.7
    narrow = torch.randn(4).bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    came, expected = (
        torch.autograd.grad(L.zero_inflated_negative_binomial_log_prob(mean, theta, one, x, mask=mask).sum(), one)[0]
        for one in (narrow, wide)
    )
    assert torch.equal(came, expected.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_rows_without_data_have_a_log_p_of_exactly_0(name, dtype):
    """Also where the rows share a scale of another dtype, which the kernels would not round to 0."""
    log_prob, x, parameters, _ = _case(name)
    first, *others = [parameter.detach() for parameter in parameters]
    mask = torch.tensor([True, False, True, False])[:, None, None]
    first = first.to(dtype).requires_grad_()
    came = log_prob(first, *[other[0] for other in others], x.to(dtype), mask=mask)
    came.sum().backward()
    assert came[1::2].tolist() == [0, 0]
    assert (came[::2] != 0).all()
    assert (first.grad[1::2] == 0).all()


def test_a_missing_entry_has_no_part_in_a_clamped_scale():
    log_prob, x, (mean, _), mask = _case("gaussian")
    for logvar in (torch.tensor([3.0]), torch.randn(3, 5), torch.randn(SHAPE)):
        given, other = (logvar.clone().requires_grad_() for _ in "12")
        came = log_prob(mean, given, torch.where(mask, x, torch.nan), mask=mask, clamp=(-0.5, 3.0))
        expected = (log_prob(mean, other, x, reduction="none", clamp=(-0.5, 3.0)) * mask).flatten(1).sum(1)
        torch.testing.assert_close(came, expected)
        came.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(given.grad, other.grad)


def test_data_without_event_dimensions_have_masks():
    logits, x, mask = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")]), torch.tensor([True, False])
    expected = torch.stack([L.bernoulli_log_prob(logits[:1], x[:1])[0], torch.tensor(0.0)])
    assert torch.equal(L.bernoulli_log_prob(logits, x, mask=mask), expected)


def test_several_draws_share_the_mask():
    log_prob, x, _, mask = _case("gaussian")
    draws = torch.randn(6, *SHAPE)
    holed = torch.where(mask, x, torch.nan)
    came = log_prob(draws, torch.zeros(1), holed, mask=mask)
    expected = torch.stack([log_prob(draw, torch.zeros(1), holed, mask=mask) for draw in draws])
    torch.testing.assert_close(came, expected)


def test_a_mixture_leaves_out_whole_pixels():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 4, 4)).float() / 255
    parameters = torch.randn(2, 100, 4, 4, requires_grad=True)
    mask = torch.rand(2, 4, 4) < 0.5
    likelihood = L.MissingAsNaN(L.DiscretizedLogisticMixture())
    holed = x.clone()
    holed[:, 1][~mask] = torch.nan
    each = L.discretized_logistic_mixture_log_prob(parameters, x, reduction="none")
    came = likelihood.log_prob(parameters, holed)
    torch.testing.assert_close(came, (each * mask).flatten(1).sum(1))
    came.sum().backward()
    assert (parameters.grad.movedim(1, -1)[~mask] == 0).all()
    draws = L.discretized_logistic_mixture_log_prob(parameters.detach().expand(3, 2, 100, 4, 4), holed, mask=mask)
    torch.testing.assert_close(draws, came.detach().expand(3, 2))


def test_values_are_checked_where_they_are_observed():
    x = torch.tensor([[0.5, 7.0]])
    mask = torch.tensor([[True, False]])
    L.bernoulli_log_prob(torch.zeros(1, 2), x, check=True, mask=mask)
    with pytest.raises(ValueError, match="x is 7"):
        L.bernoulli_log_prob(torch.zeros(1, 2), x, check=True, mask=~mask)


def test_second_derivatives_and_integers():
    x, mask = torch.tensor([[3, 200]], dtype=torch.uint8), torch.tensor([[True, False]])
    rate = torch.zeros(1, 2, requires_grad=True)
    (first,) = torch.autograd.grad(L.poisson_log_prob(rate, x, mask=mask).sum(), rate, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), rate)
    assert first.tolist() == [[2.0, 0.0]]
    assert second.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ([True], TypeError, "mask is a list"),
        (torch.ones(4, 3, 5), TypeError, "mask is float32, expected bool"),
        (torch.ones(4, 3, dtype=torch.bool), ValueError, r"mask has shape \(4, 3\), expected \(4, 3, 5\)"),
        (torch.ones(2, 4, 3, 5, dtype=torch.bool), ValueError, "mask has shape"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, error, words):
    log_prob, x, parameters, _ = _case("gaussian")
    with pytest.raises(error, match=words):
        log_prob(*parameters, x, mask=mask)


# ---- the size of the library


@pytest.mark.parametrize(
    "make", [L.Poisson, lambda **o: L.NegativeBinomial(6, **o), lambda **o: L.NegativeBinomial(**o)]
)
def test_means_add_up_to_the_size_of_the_library(make):
    torch.manual_seed(0)
    likelihood, x = make(library_size=50.0), torch.randint(0, 9, (4, 6)).float()
    logits = torch.randn(4, 6)
    own_theta = isinstance(likelihood, L.NegativeBinomial) and likelihood.log_theta is None
    parameters = (logits, torch.ones(4, 6)) if own_theta else logits
    torch.testing.assert_close(likelihood.mean(parameters).sum(1), torch.full((4,), 50.0))
    torch.testing.assert_close(likelihood.mean(parameters, x).sum(1), x.sum(1))
    assert likelihood.sample(parameters).shape == (4, 6)


def test_the_library_size_is_that_of_scvi():
    """As scVI's decoder: softmax over the genes times the sum of the counts, a dispersion for each gene."""
    torch.manual_seed(0)
    x, logits = torch.randint(0, 9, (4, 6)).float(), torch.randn(4, 6, requires_grad=True)
    likelihood = L.NegativeBinomial(6, library_size=10.0)
    means = torch.softmax(logits, 1) * x.sum(1, keepdim=True)
    expected = L.negative_binomial_log_prob(means, torch.ones(6), x)
    torch.testing.assert_close(likelihood.log_prob(logits, x), expected)
    draws = logits.detach().expand(3, 4, 6)
    torch.testing.assert_close(likelihood.log_prob(draws, x), expected.detach().expand(3, 4))
    inflated = L.ZeroInflatedNegativeBinomial(6, library_size=10.0)
    zeros = torch.zeros(4, 6)
    expected = L.zero_inflated_negative_binomial_log_prob(means, torch.ones(6), zeros, x)
    torch.testing.assert_close(inflated.log_prob((logits, zeros), x), expected)


def test_missing_genes_have_no_part_in_the_library():
    torch.manual_seed(0)
    x, logits = torch.randint(0, 9, (4, 6)).float(), torch.randn(4, 6)
    holed = x.clone()
    holed[:, 4:] = torch.nan
    for whole in (L.Poisson, L.NegativeBinomial):
        options = {} if whole is L.Poisson else {"features": 4}
        part = whole(**options, library_size=10.0)
        options = {} if whole is L.Poisson else {"features": 6}
        likelihood = L.MissingAsNaN(whole(**options, library_size=10.0))
        torch.testing.assert_close(likelihood.log_prob(logits, holed), part.log_prob(logits[:, :4], x[:, :4]))
        torch.testing.assert_close(likelihood.mean(logits, holed)[:, :4].sum(1), x[:, :4].sum(1))


@pytest.mark.parametrize("kind", [L.Poisson, L.NegativeBinomial])
def test_an_empty_cell_has_a_finite_log_likelihood_and_gradient(kind):
    likelihood = kind(library_size=10.0) if kind is L.Poisson else kind(6, library_size=10.0)
    logits = torch.randn(2, 6, requires_grad=True)
    log_prob = likelihood.log_prob(logits, torch.zeros(2, 6))
    log_prob.sum().backward()
    assert log_prob.abs().max() < 1e-6
    assert torch.isfinite(logits.grad).all()
    missing = L.MissingAsNaN(likelihood).log_prob(logits, torch.full((2, 6), torch.nan))
    assert missing.tolist() == [0, 0]


def test_a_library_size_is_positive():
    with pytest.raises(ValueError, match="library_size is 0"):
        L.Poisson(library_size=0.0)
    with pytest.raises(TypeError, match="library_size is a bool"):
        L.NegativeBinomial(3, library_size=True)
