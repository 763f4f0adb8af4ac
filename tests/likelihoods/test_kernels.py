"""The family of likelihoods on every backend, against the usual formulas in float64."""

from __future__ import annotations

import pytest
import torch

from fastvae.kernels.backend import implementation
from fastvae.kernels.likelihood_spec import COUNTS, MIXTURE, NOTICING
from tests.conftest import interpreter_truncates
from tests.formulas import assert_no_worse_than_eager, reduce

from .cases import CASES, draw, shapes_of

REDUCTIONS = ("none", "sample", "sum", "batchmean")
# Relative to the larger of 1 and the value; float32 rounds sums of a few hundred terms by less.
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
GRADIENT_FLOOR = 8e-6  # of float32: the terms of a sum over the batch may be larger than the sum

ELEMENTWISE = [name for name, case in CASES.items() if case.spec.kind != MIXTURE]
SHARING = [name for name, case in CASES.items() if set(case.shapes) != {"full"}]
NOTICED = ["Poisson", "negative binomial", "zero-inflated", "scaled Bernoulli"]
COUNTING = [name for name, case in CASES.items() if case.spec.kind in COUNTS[1:]]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def kernels(backend, device):
    return implementation(backend, device, torch.float32)


def reduced(values, reduction):
    if reduction == "channel":
        return values.flatten(2).sum(2) if values.dim() > 2 else values
    return reduce(values, reduction)


def run(kernels, device, case, x, parameters, reduction, grad=None, wants=None):
    """log p and the gradients of the parameters, on the CPU."""
    x, parameters = x.to(device), tuple(parameter.to(device) for parameter in parameters)
    log_prob = kernels.likelihood_forward(x, parameters, *case.under(reduction))
    if grad is None:
        return log_prob.cpu(), ()
    wants = (True,) * len(parameters) if wants is None else wants
    gradients = kernels.likelihood_backward(grad.to(device), x, parameters, *case.under(reduction), wants)
    return log_prob.cpu(), tuple(None if gradient is None else gradient.cpu() for gradient in gradients)


def expected(case, x, parameters, reduction, grad, dtype=torch.float64):
    leaves = [parameter.detach().to(dtype, copy=True).requires_grad_() for parameter in parameters]
    log_prob = reduced(case.formula(x.to(dtype), *leaves), reduction)
    return log_prob.detach(), torch.autograd.grad(log_prob, leaves, grad.to(log_prob.dtype))


def grad_like(case, x, parameters, reduction):
    return torch.randn_like(reduced(case.formula(x, *[parameter.float() for parameter in parameters]), reduction))


def assert_close(case, kernels, device, x, parameters, reduction, floor=GRADIENT_FLOOR):
    grad = grad_like(case, x, parameters, reduction)
    exact, exact_grads = expected(case, x, parameters, reduction, grad)
    eager, eager_grads = expected(case, x, parameters, reduction, grad, torch.float32)
    log_prob, grads = run(kernels, device, case, x, parameters, reduction, grad)
    assert log_prob.dtype == torch.float32
    assert_no_worse_than_eager(log_prob, exact, eager, FLOOR[torch.float32])
    for one, parameter, exact_grad, eager_grad in zip(grads, parameters, exact_grads, eager_grads, strict=True):
        assert one.dtype == parameter.dtype
        assert_no_worse_than_eager(one, exact_grad, eager_grad, floor)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_and_gradients(case, kernels, device, reduction, poisoned_memory):
    for shape in shapes_of(case):
        assert_close(case, kernels, device, *draw(case, shape), reduction)


@pytest.mark.parametrize("case", ELEMENTWISE, indirect=True)
def test_sums_over_the_dimensions_behind_the_second(case, kernels, device):
    for shape in ((3, 4), (2, 3, 4, 5)):
        assert_close(case, kernels, device, *draw(case, shape), "channel")


def test_rows_longer_than_a_tile(case, kernels, device):
    shape = (2, 1, 1100) if case.spec.kind == MIXTURE else (3, 1100)
    assert_close(case, kernels, device, *draw(case, shape), "sample")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters(case, backend, kernels, device, dtype):
    if interpreter_truncates(backend, dtype):
        pytest.skip("the interpreter rounds bfloat16 another way")
    x, parameters = draw(case, shapes_of(case)[0], dtype)
    assert_close(case, kernels, device, x, parameters, "sample", FLOOR[dtype])


def test_each_tensor_has_a_dtype_of_its_own(case, kernels, device):
    x, parameters = draw(case, shapes_of(case)[0])
    parameters = (parameters[0].half(), *parameters[1:])
    assert_close(case, kernels, device, x, parameters, "sample", FLOOR[torch.float16])


def test_integer_data(case, backend, kernels, device):
    dtypes = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    if backend == "triton":  # the interpreter is slow: each kind meets two of them, by turns
        dtypes = dtypes[list(CASES.values()).index(case) % 3 :: 3]
    for dtype in dtypes:
        x, parameters = draw(case, shapes_of(case)[0])
        if case.spec.kind == MIXTURE:
            integers = (x * (127 if dtype == torch.int8 else 255)).round().to(dtype)
            x = integers / 255
        else:
            integers = (x.abs() * 3).ceil().to(dtype)
            x = integers.float()
        grad = grad_like(case, x, parameters, "sample")
        came = run(kernels, device, case, integers, parameters, "sample", grad)
        as_floats = run(kernels, device, case, x, parameters, "sample", grad)
        torch.testing.assert_close(came, as_floats, rtol=2e-5, atol=2e-5)


def test_strided_data_parameters_and_gradients(case, kernels, device):
    shape = shapes_of(case)[0]
    x, parameters = draw(case, shape)
    grad = grad_like(case, x, parameters, "none")
    dense = run(kernels, device, case, x, parameters, "none", grad)

    def backwards(tensor):
        """The same values, the memory running through the dimensions backwards."""
        dims = tuple(reversed(range(tensor.dim())))
        return tensor.permute(dims).contiguous().permute(dims)

    strided = run(kernels, device, case, backwards(x), tuple(map(backwards, parameters)), "none", backwards(grad))
    torch.testing.assert_close(strided, dense, rtol=1e-6, atol=1e-6)


def test_channels_last(case, kernels, device):
    x, parameters = draw(case, (2, 3, 4, 5))
    grad = grad_like(case, x, parameters, "sample")
    dense = run(kernels, device, case, x, parameters, "sample", grad)
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, *parameters)]
    came = run(kernels, device, case, last[0], tuple(last[1:]), "sample", grad)
    torch.testing.assert_close(came, dense, rtol=1e-5, atol=1e-5)


def test_expanded_data_and_gradients(case, kernels, device):
    x, parameters = draw(case, shapes_of(case)[0])
    one = x[:1].expand(x.shape)
    for reduction in ("none", "sample"):
        grad = torch.ones(()).expand(grad_like(case, x, parameters, reduction).shape)
        came = run(kernels, device, case, one, parameters, reduction, grad)
        dense = run(kernels, device, case, one.contiguous(), parameters, reduction, grad.contiguous())
        torch.testing.assert_close(came, dense, rtol=1e-6, atol=1e-6)


def test_gradients_that_are_not_wanted_are_not_given(case, kernels, device):
    x, parameters = draw(case, shapes_of(case)[0])
    grad = grad_like(case, x, parameters, "sample")
    _, every = run(kernels, device, case, x, parameters, "sample", grad)
    for index in range(len(parameters)):
        wants = tuple(other == index for other in range(len(parameters)))
        _, grads = run(kernels, device, case, x, parameters, "sample", grad, wants)
        assert [gradient is not None for gradient in grads] == list(wants)
        torch.testing.assert_close(grads[index], every[index])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_nothing_to_compute(case, kernels, device, shape):
    x, parameters = draw(case, shape)
    for reduction, size in (("sample", shape[:1]), ("sum", ())):
        grad = torch.ones(size)
        log_prob, grads = run(kernels, device, case, x, parameters, reduction, grad)
        assert log_prob.shape == size
        assert not log_prob.any()
        assert [gradient.shape for gradient in grads] == [parameter.shape for parameter in parameters]
        assert not any(gradient.any() for gradient in grads)


def test_nan_stays_nan(case, kernels, device):
    for poisoned in range(1 + len(case.shapes)):
        x, parameters = draw(case, shapes_of(case)[0])
        tensors = [x, *parameters]
        tensors[poisoned][(0,) * tensors[poisoned].dim()] = torch.nan
        log_prob, grads = run(kernels, device, case, x, parameters, "sample", torch.ones(len(x)))
        assert log_prob[0].isnan()
        if poisoned == 0 or case.shapes[poisoned - 1] == "full":
            assert not log_prob[1:].isnan().any()
            assert grads[0][0].isnan().any()


def test_the_same_bits_again(case, backend, kernels, device):
    shape = (40, 3, 11) if case.spec.kind == MIXTURE else (150, 33)
    if backend == "triton":  # the interpreter is slow: sums over the batch are of two programs
        shape = (9, 3, 11) if case.spec.kind == MIXTURE else (40, 33)
    x, parameters = draw(case, shape)
    grad = grad_like(case, x, parameters, "sample")
    first = run(kernels, device, case, x, parameters, "sample", grad)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        second = run(kernels, device, case, x, parameters, "sample", grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("case", NOTICED, indirect=True)
@pytest.mark.parametrize("shape", [(9, 10), (3, 2600)])
def test_values_outside_the_domain_are_noticed(case, backend, kernels, device, shape):
    x, parameters = draw(case, shape)
    where = (shape[0] - 1, shape[1] - 1)
    if case.spec.kind in COUNTS:
        tensor, wrong, right = x, (0.5, -1.0, torch.nan, torch.inf, 2.0**20 + 0.125), (0.0, -0.0, 2.0**24 + 2, 1e30)
    else:
        tensor, wrong, right = parameters[0], (1e4, -1e-6, torch.nan), (0.0, 1.0)
    if backend == "triton" and shape[1] > 1000:  # the interpreter is slow: every value is tried in short rows
        wrong, right = wrong[:1], right[:1]

    def notice(noticed):
        given = x.to(device), tuple(one.to(device) for one in parameters), *case.under("sample")
        kernels.likelihood_forward(*given, noticed)
        return bool(noticed)

    assert notice(torch.ones(1, dtype=torch.bool, device=device))  # it is set, never reset
    for values, expected in ((right, False), (wrong, True)):
        for value in values:
            tensor[where] = value
            assert notice(torch.zeros(1, dtype=torch.bool, device=device)) == expected, value


def test_without_a_domain_nothing_is_noticed(kernels, device):
    for case in CASES.values():
        if case.spec.kind not in NOTICING:
            x, parameters = draw(case, shapes_of(case)[0])
            noticed = torch.zeros(1, dtype=torch.bool, device=device)
            given = (0.5 * x).to(device), tuple(one.to(device) for one in parameters)
            kernels.likelihood_forward(*given, *case.under("sample"), noticed)
            assert not noticed


@pytest.mark.parametrize("case", SHARING, indirect=True)
def test_a_shared_gradient_is_summed_over_a_large_batch(case, backend, kernels, device):
    rows = 70 if backend == "triton" else 200  # three programs of 32 rows, in an interpreter that is slow
    assert_close(case, kernels, device, *draw(case, (rows, 40)), "sample")


def test_a_scaled_bernoulli_is_bounded_as_the_binary_cross_entropy(kernels, device):
    case = CASES["scaled Bernoulli, all of each"]
    q = torch.tensor([0.0, 1e-45, 1e-40, 1e-30, 1e-13, 1e-7, 0.5, 1 - 2**-24, 1.0]).repeat(2, 1)
    x, ones = torch.tensor([[1.0], [0.0]]).expand(q.shape), torch.ones_like(q)
    log_prob, (of_q, _, _) = run(kernels, device, case, x, (q, ones, ones), "none", ones)
    leaf = q.clone().requires_grad_()
    expected = case.formula(x, leaf, ones, ones)
    torch.testing.assert_close(log_prob, expected, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(of_q, *torch.autograd.grad(expected.sum(), leaf), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("case", COUNTING, indirect=True)
def test_extreme_counts(case, kernels, device):
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 7.0, 7.0, 3e4, 3e4, 1e6])
    mean = torch.tensor([0.0, 1e5, 0.0, 1e-3, 1e4, 1e-9, 3e4, 1.0, 1e6])
    thetas = torch.tensor([1e-6, 1e-2, 1.0, 3.99, 4.0, 50.0, 1e4, 1e6, 1e7])
    x, mean, theta = (torch.meshgrid(x, thetas, indexing="ij")[0], *torch.meshgrid(mean, thetas, indexing="ij"))
    parameters = (mean, theta, torch.zeros_like(x))[: len(case.shapes)]
    # The parts of a large count's log-probability cancel: a float32 result keeps six digits of them.
    assert_close(case, kernels, device, x, parameters, "none")
