"""Launches of the likelihoods: how many, how the work is shared out, what they compile to, and what they compute."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import scipy.special
import torch
import triton
import triton.language as tl

from fastvae.kernels import reference
from fastvae.kernels import triton as backend
from fastvae.kernels.likelihood_spec import MIXTURE, NO_BOUNDS, LikelihoodSpec, channels_of_mixture
from fastvae.kernels.triton import launch, special
from tests.conftest import backend_device, without_triton
from tests.likelihoods.cases import CASES, draw, shapes_of

from .ptx import likelihoods as ptx
from .ptx.floats import Accuracy
from .test_launches import counted_launches, fake_gpu, launches  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(bool(without_triton()), reason=without_triton())
DEVICE = backend_device("triton")
REDUCTIONS = ("none", "sample", "sum", "batchmean", "channel")
NEGATIVE_BINOMIAL = CASES["negative binomial"]


def drawn(case, shape=None, device=DEVICE):
    x, parameters = draw(case, shapes_of(case)[0] if shape is None else shape)
    return x.to(device), tuple(parameter.to(device) for parameter in parameters)


def forward_and_backward(case, x, parameters, reduction="sample", wants=None):
    """log p, and the gradients for a gradient of 1."""
    log_p = backend.likelihood_forward(x, parameters, *case.under(reduction))
    wants = (True,) * len(parameters) if wants is None else wants
    return log_p, backend.likelihood_backward(torch.ones_like(log_p), x, parameters, *case.under(reduction), wants)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_likelihood_is_one_kernel_forward_and_one_backward(counted_launches, case, reduction):  # noqa: F811
    launches = counted_launches  # noqa: F811
    if case.spec.kind == MIXTURE and reduction == "channel":
        pytest.skip("a mixture's log p has no channels")
    for shape in (*shapes_of(case), (2, 1, 700) if case.spec.kind == MIXTURE else (2, 1100)):
        launches.clear()
        forward_and_backward(case, *drawn(case, shape), reduction)
        names = [one.kernel.fn.__name__ for one in launches]
        kind = "mixture" if case.spec.kind == MIXTURE else "likelihood"
        assert names == [f"{kind}_forward_kernel", f"{kind}_backward_kernel"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_launching_a_likelihood_looks_at_no_value(fake_gpu, case):  # noqa: F811
    """The tensors have no values: whatever asked for one (item, tolist, equal, nonzero, a bool) would raise."""
    device = torch.device("cuda", torch.cuda.device_count() - 1 if torch.cuda.is_available() else 1)
    with torch.device("cpu"):
        x, parameters = draw(case, shapes_of(case)[0])
    x, parameters = (
        torch.empty(x.shape, device=device),
        tuple(torch.empty(parameter.shape, device=device) for parameter in parameters),
    )
    # The sums over the batch of other parameters end with a copy, which a PyTorch without CUDA cannot do for a GPU.
    wants = tuple(parameter.shape == parameters[0].shape or torch.cuda.is_available() for parameter in parameters)
    log_p, gradients = forward_and_backward(case, x, parameters, wants=wants)
    assert [one for _, one in fake_gpu] == [device] * 2
    assert {one.device for one in (log_p, *gradients) if one is not None} == {device}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_that_are_not_wanted_are_not_computed(launches, case):  # noqa: F811
    x, parameters = drawn(case)
    _, whole = forward_and_backward(case, x, parameters)
    for wants in itertools.product((False, True), repeat=len(parameters)):
        launches.clear()
        _, gradients = forward_and_backward(case, x, parameters, wants=wants)
        assert [gradient is not None for gradient in gradients] == list(wants)
        assert len(launches) == 1 + any(wants)
        if any(wants) and case.spec.kind != MIXTURE:
            pointers = launches[-1].arguments[5 : 5 + len(wants)]
            assert [pointer is not None for pointer in pointers] == list(wants)
        for gradient, right in zip(gradients, whole, strict=True):
            # How rows are shared out, and so how they are summed, is up to what is wanted.
            assert gradient is None or torch.allclose(gradient, right, rtol=1e-5, atol=1e-5)


def test_columns_counted_in_64_bits_give_the_same_bits(launches, monkeypatch):  # noqa: F811
    for case, shape in ((NEGATIVE_BINOMIAL, (3, 600)), (CASES["mixture"], (2, 1, 600))):
        launches.clear()
        x, parameters = drawn(case, shape)
        with monkeypatch.context() as patch:
            narrow = forward_and_backward(case, x, parameters)
            patch.setattr(launch, "WIDE_EVENT", 1)
            launch.forget()
            wide = forward_and_backward(case, x, parameters)
        assert [one.constants["TILES"].wide for one in launches] == [False, False, True, True]
        for one, other in zip((narrow[0], *narrow[1]), (wide[0], *wide[1]), strict=True):
            assert torch.equal(one, other)


def test_sums_over_the_batch_are_the_same_bits_every_time():
    x, parameters = drawn(NEGATIVE_BINOMIAL, (70, 60))
    first, second = (forward_and_backward(NEGATIVE_BINOMIAL, x, parameters)[1] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_rows_share_the_theta_of_a_wide_tile_and_the_result_is_the_same(launches, monkeypatch):  # noqa: F811
    x, parameters = drawn(NEGATIVE_BINOMIAL, (5, 1024))
    by_row, _ = forward_and_backward(NEGATIVE_BINOMIAL, x, parameters)
    expanded = (parameters[0], parameters[1].expand(x.shape))
    by_element, _ = forward_and_backward(NEGATIVE_BINOMIAL, x, expanded)
    assert launches[0].constants["SECOND"] != launches[2].constants["SECOND"]
    torch.testing.assert_close(by_row, by_element)


@pytest.mark.parametrize("name", [name for name in CASES if name != "mixture"])
def test_tensors_of_any_strides_are_read_where_they_are(name):
    """Expanded, permuted, and such as two event indices do not do for, which are copied."""
    case, by_turns = CASES[name], (("none", "sample")[list(CASES).index(name) % 2],)
    x, parameters = drawn(case, (4, 3, 5, 2))
    for dims in ((0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 2, 3)):
        back = tuple(torch.tensor(dims).argsort().tolist())
        turned = tuple(parameter.permute(dims).contiguous().permute(back) for parameter in parameters)
        assert_as_the_reference(case, x, turned, by_turns)
    assert_as_the_reference(case, x[..., :1].expand(x.shape), parameters, by_turns)
    assert_as_the_reference(case, x, (parameters[0][:1].expand(x.shape), *parameters[1:]), by_turns)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_any_strides_are_read_where_they_are(channels):
    case = CASES["mixture"]
    x = torch.randint(0, 256, (2, channels, 4, 6), device=DEVICE)
    parameter = torch.randn(2, channels_of_mixture(channels, case.spec.components), 4, 6, device=DEVICE)
    for format in (torch.contiguous_format, torch.channels_last):
        assert_as_the_reference(case, x.to(memory_format=format), (parameter.contiguous(memory_format=format),))
    assert_as_the_reference(case, x, (parameter.transpose(2, 3).contiguous().transpose(2, 3),))
    assert_as_the_reference(case, x[:, :1].expand(x.shape), (parameter[:, :, :1].expand(parameter.shape),))


def assert_as_the_reference(case, x, parameters, reductions=("none", "sample")):
    for reduction in reductions:
        right = reference.likelihood_forward(x, parameters, *case.under(reduction))
        grad = torch.randn_like(right).mean(-1, keepdim=True).expand(right.shape)
        wants = (True,) * len(parameters)
        found = backend.likelihood_backward(grad, x, parameters, *case.under(reduction), wants)
        exact = reference.likelihood_backward(grad, x, parameters, *case.under(reduction), wants)
        torch.testing.assert_close(
            backend.likelihood_forward(x, parameters, *case.under(reduction)), right, rtol=1e-4, atol=1e-4
        )
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_counts_may_be_of_any_dtype(dtype):
    for name in ("bernoulli", "negative binomial"):
        case = CASES[name]
        x, parameters = drawn(case, (3, 21))
        x = x.round().to(dtype)
        found = forward_and_backward(case, x, parameters)
        right = forward_and_backward(case, x.float(), parameters)
        assert torch.equal(found[0], right[0])
        assert all(torch.equal(one, other) for one, other in zip(found[1], right[1], strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 2, 3), (3, 0, 3)], ids=str)
def test_nothing_is_started_for_nothing(launches, shape):  # noqa: F811
    x = torch.zeros(shape, device=DEVICE)
    parameters = (torch.ones(shape, device=DEVICE), torch.ones(1, *shape[1:], device=DEVICE))
    for reduction in REDUCTIONS[:2]:
        right = reference.likelihood_forward(x, parameters, *NEGATIVE_BINOMIAL.under(reduction))
        found, gradients = forward_and_backward(NEGATIVE_BINOMIAL, x, parameters, reduction)
        assert torch.equal(found, right)
        for gradient, parameter in zip(gradients, parameters, strict=True):
            assert torch.equal(gradient, torch.zeros_like(parameter))
    assert launches == []


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_nothing_is_started_for_no_pixels(launches, shape):  # noqa: F811
    x = torch.zeros(shape, device=DEVICE)
    parameter = torch.zeros(shape[0], 30, *shape[2:], device=DEVICE)
    for reduction in ("none", "sample"):
        found, gradients = forward_and_backward(CASES["mixture"], x, (parameter,), reduction)
        assert torch.equal(found, torch.zeros(shape[:1] if reduction == "sample" else (shape[0], *shape[2:])))
        assert gradients[0].shape == parameter.shape
    assert launches == []


def test_masked_coordinates_take_no_part_in_any_sum():
    """Where there is nothing to load a tile still computes; nothing of that may reach a result."""
    for case in CASES.values():
        for shape in ((2, 1, 3), (1, 3, 9, 9)) if case.spec.kind == MIXTURE else ((3, 5), (5, 33)):
            assert_as_the_reference(case, *drawn(case, shape))


@triton.jit
def functions_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """Rows of out: exp(log x), log(1 + x) - x, lgamma(x) and digamma(x), from the parts that kernels put together."""
    index = tl.arange(0, BLOCK)
    inside = index < count
    x = tl.load(x_ptr + index, mask=inside, other=1.0)
    log_x, less, inverse = tl.log(x), special.log_excess(1.0 + x, x), 1.0 / (1.0 + x)
    log1p = tl.log(1.0 + x)
    digamma = log1p - inverse * (0.5 + inverse * special.stirling_slope(inverse * inverse)) - 1.0 / x
    lgamma = (x + 0.5) * log1p - x - 1.0 + special.HALF_LOG_2_PI + special.stirling(inverse) - log_x
    tl.store(out_ptr + index, special.exp(log_x), mask=inside)
    tl.store(out_ptr + count + index, less, mask=inside)
    tl.store(out_ptr + 2 * count + index, lgamma, mask=inside)
    tl.store(out_ptr + 3 * count + index, digamma, mask=inside)


def test_special_functions_are_right_to_4_units_in_the_last_place():
    """Or to 1e-6 where that is more: near the roots of lgamma and digamma; and log(1 + x) - x however near 0."""
    x = np.concatenate([np.geomspace(1e-8, 1e8, 1900), np.linspace(0.5, 3.0, 500), np.arange(1, 101)])
    x = x.astype(np.float32)
    out = torch.empty(4, len(x), device=DEVICE)
    functions_kernel[(1,)](torch.from_numpy(x).to(DEVICE), out, len(x), BLOCK=4096)
    exp, less, lgamma, digamma = out.cpu().double().numpy()
    wide = x.astype(np.float64)
    ulp = 2.0**-23
    np.testing.assert_allclose(exp, np.exp(np.log(x).astype(np.float64)), rtol=4 * ulp)
    exact = np.where(wide < 1e-3, wide**2 * (wide * (1 / 3 - wide / 4) - 0.5), np.log1p(wide) - wide)
    np.testing.assert_allclose(less, exact, rtol=8 * ulp)  # a difference, to which the polynomial was not fitted
    np.testing.assert_allclose(lgamma, scipy.special.gammaln(wide), rtol=4 * ulp, atol=1e-6)
    np.testing.assert_allclose(digamma, scipy.special.digamma(wide), rtol=4 * ulp, atol=1e-6)


def test_rates_of_any_size_have_their_exponential():
    rates = torch.tensor([[-torch.inf, -200.0, -104.0, -87.5, 0.0, 88.0, 89.0, 200.0, torch.inf, torch.nan]])
    parameters, x = (rates.to(DEVICE),), torch.zeros(rates.shape, device=DEVICE)
    (gradient,) = backend.likelihood_backward(
        x + 1, x, parameters, LikelihoodSpec("poisson", "none"), NO_BOUNDS, (True,)
    )
    torch.testing.assert_close(-gradient.cpu(), rates.exp(), rtol=1e-6, atol=1e-44, equal_nan=True)


@pytest.mark.parametrize("theta", [1e-8, 1e-3, 0.3, 0.999, 1.0, 5.0, 1e3, 1e6, 1e8])
@pytest.mark.parametrize("most", [3.0, 1e4])
def test_no_theta_and_no_count_is_too_large_for_a_negative_binomial(theta, most):
    """lgamma(x + theta) and lgamma(theta) are off by 60 nats at 1e8: their difference must not be."""
    mean = most * torch.rand(1, 500, device=DEVICE)
    x, theta = torch.poisson(mean), torch.full_like(mean, theta)
    wants, what = (True, True), (LikelihoodSpec("negative_binomial", "none"), NO_BOUNDS)
    exact = (mean.double(), theta.double())
    right = reference.likelihood_forward(x.double(), exact, *what)
    tolerance = {"rtol": 1e-6, "atol": 2e-6 + 3e-7 * most}
    found = backend.likelihood_forward(x, (mean, theta), *what)
    torch.testing.assert_close(found, right.float(), **tolerance)
    grad = torch.ones_like(mean)
    found = backend.likelihood_backward(grad, x, (mean, theta), *what, wants)
    right = reference.likelihood_backward(grad.double(), x.double(), exact, *what, wants)
    torch.testing.assert_close(found[0], right[0].float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[1], right[1].float(), rtol=2e-6, atol=2e-6)


TARGETS = (
    pytest.param("sm_80", marks=pytest.mark.slow),
    "sm_90",
    pytest.param("sm_100", marks=pytest.mark.slow),
    pytest.param("gfx90a", marks=pytest.mark.slow),
    pytest.param("gfx942", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request, tmp_path_factory):
    return request.param, ptx.dump(tmp_path_factory.mktemp("likelihoods"), request.param)


def test_every_kind_compiles_and_spills_nothing(compiled):
    _, kernels = compiled
    assert len(kernels) == 2 * 2 * len(CASES)
    assert [key for key, one in kernels.items() if one["local_memory"]] == []


def test_offsets_are_64_bits_wide_before_they_are_multiplied(compiled):
    _, kernels = compiled
    for key, one in kernels.items():
        code = one["intermediate"]
        products = set(re.findall(r"(%\w+) = arith\.muli .* : (?:tensor<\w+x)?i32>?", code))
        used = set(re.findall(r"arith\.extsi (%\w+)", code)) | set(re.findall(r"tt\.addptr %\w+, (%\w+)", code))
        # Which row, column or channel it is may be a product of 32 bits: a tile's place times its size.
        assert used, key
        assert not products & used, key


@pytest.mark.parametrize("dtype", ptx.DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_kernel_computes_the_formula(compiled, name, dtype):
    """Approximate functions give anything that the PTX manual allows."""
    target, kernels = compiled
    if not target.startswith("sm_"):
        pytest.skip("only PTX is executed")
    what, (x, parameters, grad) = CASES[name].under("none"), ptx.inputs(name, dtype)
    exact = tuple(parameter.double() for parameter in parameters)
    right = reference.likelihood_forward(x, exact, *what)
    log_p = ptx.execute(kernels[name, dtype, "forward"], Accuracy())["out"]
    torch.testing.assert_close(log_p.double(), right, rtol=5e-6, atol=5e-6)
    right = reference.likelihood_backward(grad.double(), x, exact, *what, (True,) * len(parameters))
    found = ptx.execute(kernels[name, dtype, "backward"], Accuracy()).values()
    for gradient, one in zip(found, right, strict=True):
        # Sums over the batch come as one for each program.
        summed = gradient if gradient.shape == one.shape else gradient.double().sum_to_size(one.shape)
        tolerance = 4e-3 if dtype == "bfloat16" and summed is gradient else 1e-5
        torch.testing.assert_close(summed.double(), one, rtol=tolerance, atol=tolerance)
