"""Heads on every backend: log p and gradients that take the place of a layer's outputs, against autograd in float64."""

from __future__ import annotations

import pytest
import torch

from fastvae.kernels.backend import implementation
from fastvae.kernels.head_spec import HeadSpec
from fastvae.kernels.likelihood_spec import MIXTURE, NO_BOUNDS, Bounds, channels_of_mixture
from fastvae.kernels.reference.head import activated
from fastvae.kernels.reference.likelihoods import log_prob_elementwise
from tests.conftest import interpreter_truncates
from tests.formulas import assert_no_worse_than_eager

from .cases import data_of

INFLATED = "zero_inflated_negative_binomial"
# Each with the size of what is given: of an event, or of one element.
HEADS = {
    "bernoulli": (HeadSpec("bernoulli"), ()),
    "continuous Bernoulli": (HeadSpec("continuous_bernoulli"), ()),
    "Gaussian": (HeadSpec("gaussian", second="identity"), ()),
    "Gaussian, clamped": (HeadSpec("gaussian", second="identity", clamp=True), ()),
    "Gaussian, one variance": (HeadSpec("gaussian", second="given"), ("one",)),
    "Laplace, shared scale": (HeadSpec("laplace", second="given"), ("event",)),
    "log-normal, clamped": (HeadSpec("log_normal", second="identity", clamp=True), ()),
    "Poisson": (HeadSpec("poisson"), ()),
    "Poisson, softmax": (HeadSpec("poisson", "softmax"), ()),
    "negative binomial": (HeadSpec("negative_binomial", "softplus", "exp"), ()),
    "negative binomial, softmax": (HeadSpec("negative_binomial", "softmax", "given"), ("event",)),
    "zero-inflated": (HeadSpec(INFLATED, "softmax", "given", "identity"), ("event",)),
    "zero-inflated, all of layers": (HeadSpec(INFLATED, "exp", "softplus", "identity"), ()),
    "zero-inflated, given logits": (HeadSpec(INFLATED, "softmax", "exp", "given"), ("one",)),
    "mixture": (HeadSpec(MIXTURE, components=2), ()),
}
FLOOR = {torch.float32: 8e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(params=HEADS)
def case(request):
    return HEADS[request.param]


@pytest.fixture
def kernels(backend, device):
    return implementation(backend, device, torch.float32)


def bounds_of(spec):
    if spec.kind == MIXTURE:
        return Bounds(low=-7.0)
    return Bounds(-0.5, 0.5) if spec.clamp else NO_BOUNDS


def drawn(case, rows, event, dtype=torch.float32):
    """x, outputs and what is given, library sizes."""
    spec, given = case
    sizes = iter(given)
    if spec.kind == MIXTURE:
        x = torch.randint(0, 256, (rows, 3, event)) / 255
        return x, (0.5 * torch.randn(rows, channels_of_mixture(3, 2), event, dtype=dtype),), None
    parameters = []
    for how in spec.activations:
        if how == "given":
            parameters.append(0.5 + torch.rand(event if next(sizes) == "event" else 1))
        else:
            parameters.append(torch.randn(rows, event).to(dtype))
    x = data_of(spec.kind, (rows, event))
    return x, tuple(parameters), 1 + x.sum(1) if spec.first == "softmax" else None


def expected(case, x, parameters, library, grad, dtype):
    spec = case[0]
    leaves = [one.to(dtype, copy=True).requires_grad_() for one in parameters]
    sizes = None if library is None else library.to(dtype, copy=True).requires_grad_()
    each = log_prob_elementwise(x.to(dtype), activated(tuple(leaves), sizes, spec), spec.likelihood, bounds_of(spec))
    log_prob = each.flatten(1).sum(1)
    weights = torch.ones_like(log_prob) if grad is None else grad.to(dtype)
    wanted = leaves if sizes is None else [*leaves, sizes]
    return log_prob.detach(), torch.autograd.grad(log_prob, wanted, weights)


def run(kernels, device, case, x, parameters, library, grad, wants):
    """log p, and the gradients of parameters and library sizes, on the CPU."""
    spec = case[0]
    own = tuple([one.to(device, copy=True) for one in parameters])
    x, library, grad = (None if one is None else one.to(device) for one in (x, library, grad))
    found = kernels.head(x, own, library, grad, spec, bounds_of(spec), wants)
    if not any(wants):
        assert all(torch.equal(one.cpu(), before) for one, before in zip(own, parameters, strict=True))
        return found.log_prob.cpu(), []
    gradients = [
        given if how == "given" else one for one, given, how in zip(own, found.given, spec.activations, strict=True)
    ]
    return found.log_prob.cpu(), [one.cpu() for one in (*gradients, found.library) if one is not None]


def assert_right(kernels, device, case, x, parameters, library, grad, floor):
    exact, exact_grads = expected(case, x, parameters, library, grad, torch.float64)
    eager, eager_grads = expected(case, x, parameters, library, grad, torch.float32)
    log_prob, grads = run(kernels, device, case, x, parameters, library, grad, (True,) * len(parameters))
    assert log_prob.dtype == torch.float32
    assert_no_worse_than_eager(log_prob, exact, eager, FLOOR[torch.float32])
    assert len(grads) == len(exact_grads)
    for one, exact_grad, eager_grad in zip(grads, exact_grads, eager_grads, strict=True):
        assert_no_worse_than_eager(one, exact_grad, eager_grad, floor)
    value, _ = run(kernels, device, case, x, parameters, library, None, (False,) * len(parameters))
    assert_no_worse_than_eager(value, exact, eager, FLOOR[torch.float32])


@pytest.mark.parametrize(("rows", "event", "weighted"), [(1, 5, False), (70, 33, True), (2, 1300, True)])
def test_values_and_gradients(case, backend, kernels, device, rows, event, weighted, poisoned_memory):
    if case[0].kind == MIXTURE:
        event = min(event, 40)  # pixels, each with 20 numbers
    if backend == "triton":
        rows = min(rows, 2)  # a program each, and the interpreter takes its time
    x, parameters, library = drawn(case, rows, event)
    grad = torch.randn(rows) if weighted else None
    assert_right(kernels, device, case, x, parameters, library, grad, FLOOR[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_outputs(case, backend, kernels, device, dtype):
    if interpreter_truncates(backend, dtype):
        pytest.skip("the interpreter rounds bfloat16 another way")
    x, parameters, library = drawn(case, 2, 20, dtype)
    assert_right(kernels, device, case, x, parameters, library, torch.randn(2), FLOOR[dtype])


def test_data_of_other_dtypes_and_strides(case, kernels, device):
    x, parameters, library = drawn(case, 2, 20)
    whole = (x * (255 if case[0].kind == MIXTURE else 3)).round().to(torch.uint8)
    grad, wants = torch.randn(2), (True,) * len(parameters)
    as_floats = whole / 255 if case[0].kind == MIXTURE else whole.float()
    strided = as_floats.transpose(0, -1).contiguous().transpose(0, -1)
    plain = run(kernels, device, case, as_floats, parameters, library, grad, wants)
    for given in (whole, strided):
        torch.testing.assert_close(run(kernels, device, case, given, parameters, library, grad, wants), plain)


@pytest.mark.parametrize(("draws", "batch", "event"), [(3, 2, 20), (2, 5, 33), (4, 1, 20)])
def test_data_that_draws_share(case, backend, kernels, device, draws, batch, event):
    if backend == "triton":
        draws, batch = 2, min(batch, 2)
    x, parameters, library = drawn(case, draws * batch, event)
    few, grad, wants = x[:batch].clone(), torch.randn(draws * batch), (True,) * len(parameters)
    whole = few.repeat(draws, *[1] * (x.dim() - 1))
    for wanted in (wants, (False,) * len(wants)):
        one, other = (run(kernels, device, case, given, parameters, library, grad, wanted) for given in (few, whole))
        assert torch.equal(one[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_the_same_bits_whatever_the_threads(case, backend, kernels, device):
    x, parameters, library = drawn(case, *((2, 30) if backend == "triton" else (200, 150)))  # enough for two threads
    wants, threads = (True,) * len(parameters), torch.get_num_threads()
    first = run(kernels, device, case, x, parameters, library, None, wants)
    try:
        torch.set_num_threads(1 + threads % 2)
        second = run(kernels, device, case, x, parameters, library, None, wants)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


def test_nan_of_an_output_stays_in_its_row(case, kernels, device):
    x, parameters, library = drawn(case, 3, 12)
    parameters[0][2].flatten()[3] = torch.nan
    log_prob, grads = run(kernels, device, case, x, parameters, library, None, (True,) * len(parameters))
    assert log_prob.isnan().tolist() == [False, False, True]
    assert grads[0][2].isnan().any()
    assert not grads[0][:2].isnan().any()


def test_large_logits_do_not_overflow_a_softmax(kernels, device):
    case = HEADS["negative binomial, softmax"]
    x, (logits, theta), library = drawn(case, 2, 30)
    parameters = (100 * logits + 500, theta)
    assert_right(kernels, device, case, x, parameters, library, None, 1e-4)


@pytest.mark.parametrize("kind", ["negative_binomial", INFLATED])
def test_values_and_gradients_in_one_pass_are_as_right_as_apart(kind):
    """Counts, means and dispersions of any size, on the CPU, where one pass shares what both need."""
    device = torch.device("cpu")
    kernels, sizes = implementation("cpu", device, torch.float32), [1e-6, 0.02, 0.9, 3.0, 700.0, 1e5, 1e9]
    x = [0.0, 0.3, 1.0, 7.0, 500.0, 1e5]
    x, mean, theta = torch.cartesian_prod(torch.tensor(x), torch.tensor(sizes), torch.tensor([*sizes, 1e20])).unbind(1)
    logits = torch.linspace(-5, 5, len(x))
    parameters = [one.unsqueeze(1).clone() for one in (mean, theta, logits)[: 2 if kind != INFLATED else 3]]
    spec = HeadSpec(kind, *["identity"] * len(parameters))
    wants = (True,) * len(parameters)
    value = kernels.likelihood_forward(x.unsqueeze(1), tuple(parameters), spec.likelihood, NO_BOUNDS)
    apart = kernels.likelihood_backward(
        torch.ones(len(x)), x.unsqueeze(1), tuple(parameters), spec.likelihood, NO_BOUNDS, wants
    )
    found = kernels.head(x.unsqueeze(1), tuple(parameters), None, None, spec, NO_BOUNDS, wants)
    torch.testing.assert_close(found.log_prob, value, rtol=2e-6, atol=1e-7)
    for one, other, part in zip(parameters, apart, (x / mean, (x > 0) / theta, 0 * x), strict=False):
        # Rounding of the largest part of a derivative.
        assert ((one - other).abs() <= 2e-5 * other.abs() + 5e-7 * part.unsqueeze(1) + 1e-7).all()


def test_no_rows(case, kernels, device):
    x, parameters, library = drawn(case, 0, 5)
    log_prob, grads = run(kernels, device, case, x, parameters, library, None, (True,) * len(parameters))
    assert log_prob.shape == (0,)
    assert not any(grad.any() for grad in grads)
