"""The likelihoods as functions with gradients: draws, broadcasting, second derivatives, refusals."""

from __future__ import annotations

import pytest
import torch

import fastvae
from fastvae import likelihoods
from fastvae.kernels.likelihood_spec import MIXTURE
from fastvae.likelihoods import (
    bernoulli_log_prob,
    discretized_logistic_mixture_log_prob,
    gaussian_log_prob,
    laplace_log_prob,
    log_normal_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from tests.formulas import reduce

from .cases import CASES, COMPONENTS, draw, shapes_of


def log_prob_of(case, x, parameters, **arguments):
    if case.spec.kind == MIXTURE:
        arguments["components"] = COMPONENTS
    if case.spec.clamp:
        arguments["clamp"] = tuple(case.bounds)
    return getattr(likelihoods, f"{case.spec.kind}_log_prob")(*parameters, x, **arguments)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def leaves_of(case, shape, dtype=torch.float32):
    x, parameters = draw(case, shape)
    return x.to(dtype), [parameter.to(dtype).requires_grad_() for parameter in parameters]


@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "batchmean"])
def test_values_and_gradients_are_those_of_the_formula(case, reduction):
    for shape in shapes_of(case):
        x, leaves = leaves_of(case, shape)
        came = log_prob_of(case, x, leaves, reduction=reduction)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        expected = reduce(case.formula(x.double(), *wide), reduction)
        torch.testing.assert_close(came.double(), expected, rtol=1e-4, atol=1e-4)
        weights = torch.randn_like(came)
        grads = torch.autograd.grad((came * weights).sum(), leaves)
        expected_grads = torch.autograd.grad((expected * weights).sum(), wide)
        for one, other in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def small_shape_of(case):
    """Finite differences are of every element with every other."""
    return (2, 1, 3) if case.spec.kind == MIXTURE else (2, 3, 2)


def test_float64_gradients(case):
    x, leaves = leaves_of(case, small_shape_of(case), torch.float64)
    assert torch.autograd.gradcheck(lambda *given: log_prob_of(case, x, given), leaves)


@pytest.mark.parametrize(
    "name",
    ["continuous Bernoulli", "Gaussian, shared variance", "Poisson", "zero-inflated", "scaled Bernoulli", "mixture"],
)
def test_second_derivatives(name):
    case = CASES[name]
    x, leaves = leaves_of(case, small_shape_of(case), torch.float64)
    assert torch.autograd.gradgradcheck(lambda *given: log_prob_of(case, x, given), leaves)


@pytest.mark.parametrize("name", ["bernoulli", "Gaussian", "Laplace, one scale", "log-normal"])
def test_the_gradient_of_the_data(name):
    case = CASES[name]
    x, leaves = leaves_of(case, (3, 4), torch.float64)
    x.requires_grad_()
    came = torch.autograd.grad(log_prob_of(case, x, leaves).sum(), (x, *leaves))
    torch.testing.assert_close(came, torch.autograd.grad(case.formula(x, *leaves).sum(), (x, *leaves)))


def test_parameters_of_several_draws(case):
    shape = shapes_of(case)[0]
    draws = 3
    x, _ = leaves_of(case, shape)
    parts = [leaves_of(case, shape)[1] for _ in range(draws)]
    # The first parameter differs from draw to draw; of the others those that the batch does not share.
    together = [
        torch.stack([part[index].detach() for part in parts]).requires_grad_() if name == "full" else parts[0][index]
        for index, name in enumerate(case.shapes)
    ]
    separate = [
        log_prob_of(case, x, [part[i] if name == "full" else parts[0][i] for i, name in enumerate(case.shapes)])
        for part in parts
    ]
    came = log_prob_of(case, x, together)
    assert came.shape == (draws, shape[0])
    torch.testing.assert_close(came, torch.stack(separate), rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(came)
    grads = torch.autograd.grad((came * weights).sum(), together)
    total = sum((one * weight).sum() for one, weight in zip(separate, weights, strict=True))
    for index, name in enumerate(case.shapes):
        if name == "full":
            expected = torch.stack(torch.autograd.grad(total, [part[index] for part in parts], retain_graph=True))
        else:
            (expected,) = torch.autograd.grad(total, [parts[0][index]], retain_graph=True)
        torch.testing.assert_close(grads[index], expected, rtol=1e-4, atol=1e-4)
    each = log_prob_of(case, x, together, reduction="none")
    torch.testing.assert_close(each.flatten(2).sum(2), came, rtol=1e-5, atol=1e-5)


def test_theta_of_each_cell_is_broadcast_and_its_gradient_summed():
    x, mean = torch.poisson(torch.rand(4, 6) * 3), torch.rand(4, 6)
    theta = torch.rand(4, 1).add(0.5).requires_grad_()
    (came,) = torch.autograd.grad(negative_binomial_log_prob(mean, theta, x).sum(), theta)
    full = theta.detach().expand(4, 6).clone().requires_grad_()
    (expected,) = torch.autograd.grad(negative_binomial_log_prob(mean, full, x).sum(), full)
    torch.testing.assert_close(came, expected.sum(1, keepdim=True))


def test_large_theta_loses_nothing():
    """A negative binomial of large theta is a Poisson; lgamma(x + theta) - lgamma(theta) would lose every digit."""
    x = torch.tensor([[0.0, 1.0, 3.0, 10.0]])
    mean = torch.full_like(x, 2.0)
    came = negative_binomial_log_prob(mean, torch.full((1,), 1e7), x, reduction="none")
    torch.testing.assert_close(came, poisson_log_prob(mean.log(), x, reduction="none"), rtol=1e-5, atol=1e-5)


def test_nothing_is_kept_but_the_inputs(case):
    x, leaves = leaves_of(case, shapes_of(case)[0])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        log_prob_of(case, x, leaves)
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *leaves)}
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} <= own


@pytest.mark.parametrize("name", ["Gaussian, shared variance", "zero-inflated", "mixture"])
def test_pytorch_sees_well_formed_operators(name):
    case = CASES[name]
    x, parameters = draw(case, shapes_of(case)[0])
    ops = torch.ops.fastvae
    tests = ("test_schema", "test_faketensor")
    for reduction, size in (("none", None), ("sample", x.shape[:1]), ("sum", ())):
        spec, bounds = case.under(reduction)
        how = (spec.encode(), list(bounds), None, "auto")
        torch.library.opcheck(ops.likelihood, (x, list(parameters), *how), test_utils=tests)
        grad = torch.randn(case.formula(x, *parameters).shape if size is None else size)
        wants = [True] * len(parameters)
        torch.library.opcheck(ops.likelihood_backward, (grad, x, list(parameters), wants, *how), test_utils=tests)


@pytest.mark.parametrize("name", ["Gaussian, one variance", "zero-inflated"])
def test_they_compile_whole(name):
    case = CASES[name]
    x, leaves = leaves_of(case, shapes_of(case)[0])

    def step(x, *leaves):
        return torch.autograd.grad(log_prob_of(case, x, leaves).mean(), leaves)

    compiled = torch.compile(lambda x, *leaves: log_prob_of(case, x, leaves), fullgraph=True, backend="aot_eager")
    came = torch.autograd.grad(compiled(x, *leaves).mean(), leaves)
    torch.testing.assert_close(came, step(x, *leaves))


# What they refuse

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: poisson_log_prob(ONES, -ONES, check=True), r"x is -1\.0 at index \[0, 0\], expected a finite count"),
        (
            lambda: negative_binomial_log_prob(ONES, torch.tensor([1.0, 0.0, 1.0]), ONES, check=True),
            r"theta is 0\.0 at index \[1\], expected a finite number above 0",
        ),
        (
            lambda: zero_inflated_negative_binomial_log_prob(-ONES, ONES, ONES, ONES, check=True),
            r"mean is -1\.0 at index \[0, 0\], expected a finite number of 0 or more",
        ),
        (
            lambda: bernoulli_log_prob(ONES, torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 2.0]]), check=True),
            r"x is 2\.0 at index \[1, 2\], expected 0 to 1",
        ),
        (
            lambda: gaussian_log_prob(ONES, ONES * torch.nan, ONES, check=True),
            r"logvar is nan at index \[0, 0\], expected a finite number",
        ),
        (
            lambda: log_normal_log_prob(ONES, ONES, ONES * torch.tensor([1.0, 0.0, 1.0]), check=True),
            r"x is 0\.0 at index \[0, 1\], expected a finite number above 0",
        ),
        (
            lambda: discretized_logistic_mixture_log_prob(
                torch.zeros(1, 30, 2, 2), torch.full((1, 1, 2, 2), 256), check=True
            ),
            r"x is 256 at index \[0, 0, 0, 0\], expected 0 to 255",
        ),
        (lambda: bernoulli_log_prob(ONES, torch.ones(3, 2)), r"x has shape \(3, 2\), logits has \(2, 3\)"),
        (lambda: bernoulli_log_prob(ONES.expand(4, 2, 3), ONES, reduction="sum"), "reduction is 'sum' with several"),
        (lambda: gaussian_log_prob(ONES, torch.ones(2), ONES), r"logvar has shape \(2,\), x has \(2, 3\)"),
        (lambda: gaussian_log_prob(ONES, ONES, ONES, clamp=(1, 0)), "clamp is"),
        (lambda: laplace_log_prob(ONES, ONES, ONES, reduction="mean"), "reduction is 'mean'"),
        (lambda: poisson_log_prob(ONES, torch.tensor(1)), "x is 0-d"),
        (
            lambda: discretized_logistic_mixture_log_prob(torch.zeros(1, 20, 2, 2), torch.zeros(1, 3, 2, 2)),
            r"parameters has shape \(1, 20, 2, 2\), expected \(1, 100, 2, 2\)",
        ),
        (
            lambda: discretized_logistic_mixture_log_prob(torch.zeros(1, 20, 2, 2), torch.zeros(1, 2, 2, 2)),
            r"x has shape \(1, 2, 2, 2\), expected \(batch, 1 or 3, \*spatial\)",
        ),
        (
            lambda: discretized_logistic_mixture_log_prob(ONES, ONES, components=0),
            "components is 0, expected 1 or more",
        ),
    ],
)
def test_bad_values_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: poisson_log_prob([1.0], ONES), "log_rate is a list, expected a torch.Tensor"),
        (lambda: poisson_log_prob(ONES, ONES.to(torch.complex64)), "x is complex64"),
        (lambda: poisson_log_prob(ONES, ONES, check="yes"), "check is a str, expected a bool"),
        (lambda: poisson_log_prob(ONES, ONES, reduce="sum"), "unexpected keyword argument 'reduce', expected one of"),
        (lambda: discretized_logistic_mixture_log_prob(ONES, ONES, components=2.5), "components is a float"),
    ],
)
def test_wrong_kinds_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: x.to_sparse(), "sparse_coo"),
        (lambda x: x.to_sparse_csr(), "sparse_csr"),
        (lambda x: torch.nested.nested_tensor(list(x)), "nested"),
        (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "nested"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
@pytest.mark.filterwarnings("ignore")  # sparse CSR tensors and nested tensors are in beta state
def test_data_that_are_not_dense_are_refused(make, kind, dtype):
    x, ones = make(torch.eye(3).to(dtype)), torch.ones(3, 3)
    for call in (
        lambda: poisson_log_prob(ones, x),
        lambda: discretized_logistic_mixture_log_prob(torch.ones(3, 9), x, components=3),
        lambda: likelihoods.NegativeBinomial(3, library_size=1.0).log_prob(ones, x),
    ):
        with pytest.raises(TypeError, match=f"x is a .*{kind}.*, expected a dense one"):
            call()


def test_masks_and_seeds_that_are_not_dense_are_refused():
    ones, mask = torch.ones(3, 3), torch.eye(3).bool().to_sparse()
    with pytest.raises(TypeError, match=r"mask is a .*sparse.* expected a dense one"):
        bernoulli_log_prob(ones, ones, mask=mask)
    with pytest.raises(TypeError, match=r"seed is a .*sparse.* expected a dense one"):
        fastvae.noise(torch.ones(1, dtype=torch.int64).to_sparse(), (3, 3))
