"""How the C extension looks at tensors: by DLPack's exchange interface or by their methods, in any strides."""

from __future__ import annotations

import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import fastvae
from fastvae.kernels import backend

if backend.reason_unavailable("cpu"):
    pytest.skip(f"no CPU kernels here: {backend.reason_unavailable('cpu')}", allow_module_level=True)

from fastvae.kernels.cpu import _kernels
from fastvae.likelihoods import gaussian_log_prob

EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
needs_exchange = pytest.mark.skipif(
    EXCHANGE is None, reason=f"torch {torch.__version__} has no DLPack exchange interface"
)


@pytest.fixture(params=["exchange", "methods"])
def access(request):
    """Either way of looking at a tensor."""
    if request.param == "exchange" and EXCHANGE is None:
        pytest.skip(f"torch {torch.__version__} has no DLPack exchange interface")
    assert _kernels.use_exchange(EXCHANGE if request.param == "exchange" else None) is (request.param == "exchange")
    yield request.param
    _kernels.use_exchange(EXCHANGE)


def step(mu, logvar, grad_z):
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    with fastvae.use_backend("cpu"):
        z, kl = fastvae.sample_and_kl(mu, logvar, seed=1)
        return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), (grad_z, torch.arange(1.0, 1 + len(kl))))


@pytest.mark.parametrize(
    "shape", [(4,), (4, 1), (0, 3), (3, 0), (128, 10), (2, 3, 4, 5), (2, 1, 1, 7), (1, 2, 1, 2, 1, 2, 1, 2)]
)
def test_both_ways_of_looking_at_a_tensor_give_the_same(access, shape):
    mu, logvar, grad_z = (torch.randn(shape) for _ in range(3))
    came = step(mu, logvar, grad_z)
    _kernels.use_exchange(EXCHANGE)
    for one, other in zip(came, step(mu, logvar, grad_z), strict=True):
        assert torch.equal(one, other)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5).flatmap(
        lambda shape: st.tuples(
            st.just(shape),
            st.lists(st.permutations(range(len(shape))), min_size=3, max_size=3),
            st.lists(st.integers(1, 2), min_size=3, max_size=3),
            st.lists(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)), min_size=3, max_size=3),
        )
    )
)
def test_any_strides_are_read_in_logical_order(case):
    """Permuted, with gaps, expanded: values and gradients are those of contiguous copies."""
    shape, orders, gaps, expanded = case
    tensors = []
    for order, gap, is_expanded in zip(orders, gaps, expanded, strict=True):
        stored = [1 if is_expanded[dim] else shape[dim] for dim in order]
        tensor = torch.randn([*stored[:-1], stored[-1] * gap])[..., ::gap]
        tensors.append(tensor.permute([order.index(dim) for dim in range(len(shape))]).expand(shape))
    dense = [tensor.contiguous() for tensor in tensors]
    for one, other in zip(step(*tensors), step(*dense), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 1, 1, 1), (1, 1, 1, 1), (3, 4, 1, 1), (3, 1, 5, 1), (3, 1, 1, 6), (1, 4, 5, 6)])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 1, 6), (3, 1, 1, 1)])
def test_an_expanded_gradient_of_each_kl_or_log_probability_is_read_as_a_dense_one(sizes, shape):
    """Whatever part of the event it is the same for."""
    grad = torch.randn([min(size, whole) for size, whole in zip(sizes, shape, strict=True)]).expand(shape)
    mu, logvar, prior_mu, prior_logvar = (torch.randn(shape, requires_grad=True) for _ in range(4))
    inputs = (mu, logvar, prior_mu, prior_logvar)
    with fastvae.use_backend("cpu"):
        to_standard = fastvae.gaussian_kl(mu, logvar, reduction="none")
        to_prior = fastvae.gaussian_kl(*inputs, reduction="none")
        with_options = fastvae.gaussian_kl(*inputs, scale="softplus", reduction="none")
        log_prob = gaussian_log_prob(mu, logvar, torch.zeros(shape), reduction="none")
        for output in (to_standard, to_prior, with_options, log_prob):
            wanted = inputs if output is to_prior or output is with_options else (mu, logvar)
            found, expected = (
                torch.autograd.grad(output, wanted, given, retain_graph=True) for given in (grad, grad.contiguous())
            )
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one, other)


def test_more_dimensions_than_any_tensor_has_are_refused_when_asked_by_methods():
    class Odd:
        shape = (1,) * 65
        dtype = torch.float32

        def data_ptr(self):
            return 0

        def stride(self):
            return (1,) * 65

    _kernels.use_exchange(None)
    try:
        with pytest.raises(ValueError, match="more than 64 dimensions"):
            _kernels.noise(Odd(), None, 0, 0)
        with pytest.raises(AttributeError, match="data_ptr"):
            _kernels.noise(1, None, 0, 0)
    finally:
        _kernels.use_exchange(EXCHANGE)


def test_dtypes_without_kernels_are_refused(access):
    with pytest.raises(TypeError, match="a dtype that there are no kernels for"):
        _kernels.noise(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([1]), 0, 0)


@pytest.mark.skipif(EXCHANGE is None, reason="this PyTorch has no DLPack exchange interface")
def test_a_normal_is_looked_at_in_one_pass():
    assert _kernels.look_at_normal(torch.zeros(5), torch.ones(5)) == 3
    assert _kernels.look_at_normal(torch.ones(5), torch.ones(5)) == 1
    assert _kernels.look_at_normal(torch.zeros(2, 5)[1:], torch.ones(2, 5)[1:]) == 3
    assert _kernels.look_at_normal(torch.zeros(5), torch.full((5,), torch.nan)) == 0
    assert _kernels.look_at_normal(torch.full((5,), torch.nan), torch.ones(5)) == 0
    last = torch.tensor([1.0, 1.0, 0.0])
    assert _kernels.look_at_normal(torch.zeros(3), last) == 0
    assert _kernels.look_at_normal(1.0 - last, torch.ones(3)) == 1
    assert _kernels.look_at_normal(torch.zeros(3), 3.0 - last) == 1
    with pytest.raises(TypeError, match="expected loc and scale"):
        _kernels.look_at_normal(torch.zeros(5))


@pytest.mark.parametrize(
    ("loc", "scale"),
    [
        (0.0, 1.0),
        (torch.zeros(()), torch.ones(())),
        (torch.zeros(5), torch.ones(1)),
        (torch.zeros(5, dtype=torch.bfloat16), torch.ones(5, dtype=torch.bfloat16)),
        (torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)),
        (torch.zeros(5, 4).t(), torch.ones(4, 5)),
        (torch.zeros(4, 5), torch.ones(4, 10)[:, ::2]),
        (torch.zeros(_kernels.elements_worth_threads + 1), torch.ones(_kernels.elements_worth_threads + 1)),
    ],
    ids=["numbers", "0-d", "shapes", "bfloat16", "float64", "transposed", "gaps", "large"],
)
def test_other_normals_are_not_for_the_extension_to_look_at(loc, scale):
    assert _kernels.look_at_normal(loc, scale) == -1


def test_without_the_exchange_interface_no_normal_is_looked_at():
    _kernels.use_exchange(None)
    try:
        assert _kernels.look_at_normal(torch.zeros(5), torch.ones(5)) == -1
    finally:
        _kernels.use_exchange(EXCHANGE)


@needs_exchange
def test_layouts_tell_tensors_apart_but_for_their_values_and_addresses():
    given = [
        torch.zeros(4, 6), torch.zeros(6, 4), torch.zeros(6, 4).t(), torch.zeros(4, 12)[:, ::2], torch.zeros(4, 1, 6),
        torch.zeros(24), torch.zeros(()), torch.zeros(4, 0), torch.zeros(4, 6, dtype=torch.float16),
        torch.zeros(4, 6, dtype=torch.bfloat16), torch.zeros(4, 6, dtype=torch.int16), torch.zeros(4, 6).bool(), None,
    ]  # fmt: skip
    pairs = [_kernels.layouts(first, second) for first in given for second in given]
    assert len(set(pairs)) == len(given) ** 2
    assert _kernels.layouts(torch.ones(9, 6)[5:], None) == _kernels.layouts(torch.nn.Parameter(given[0]), None)


@needs_exchange
@pytest.mark.parametrize(
    "other", [torch.zeros(3, device="meta"), torch.eye(3).to_sparse(), torch.zeros([1] * 60), "no tensor"], ids=str
)
def test_layouts_that_cannot_be_told_are_none(other):
    assert _kernels.layouts(torch.zeros(3), *[other] * 3) is None


@needs_exchange
def test_arguments_of_a_launch_are_aligned_addresses_and_what_follows_them():
    tensor = torch.zeros(64)
    tensor = tensor[-tensor.data_ptr() % 64 // 4 :]
    addresses = tensor.data_ptr(), None, tensor[4:].data_ptr()
    assert _kernels.launch_arguments((tensor, None, tensor[4:]), (1.5, 2**40), ("logvar",)) == (
        *addresses, 1.5, 2**40, "logvar"
    )  # fmt: skip
    for other in (tensor[1:], tensor[2:], torch.zeros(3, device="meta"), "no tensor"):
        assert _kernels.launch_arguments((tensor, other), (), ()) is None
    with pytest.raises(TypeError):
        _kernels.launch_arguments((tensor,), [1.5], ())
    _kernels.use_exchange(None)
    try:
        assert _kernels.launch_arguments((tensor,), (), ()) is None
        assert _kernels.layouts(tensor) is None
    finally:
        _kernels.use_exchange(EXCHANGE)


def test_arguments_of_a_launch_hold_references_of_their_own():
    tensor, number, count = torch.zeros(3), 2.0**70, 1000
    before = sys.getrefcount(number), sys.getrefcount(tensor)
    kept = [_kernels.launch_arguments((tensor,), (number,), ()) for _ in range(count)]
    expected = count if EXCHANGE is not None else 0
    assert (sys.getrefcount(number), sys.getrefcount(tensor)) == (before[0] + expected, before[1])
    del kept
    assert (sys.getrefcount(number), sys.getrefcount(tensor)) == before


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="True, False and None are immortal, and what their counts say is undefined"
)
def test_answers_hold_a_reference_of_their_own():
    """Built by Python 3.12 or later, for which True, False and None are immortal, it runs in 3.10 and 3.11 too."""
    plain, count = torch.zeros(2, 3), 1000
    before = [sys.getrefcount(one) for one in (True, False, None)]
    for _ in range(count):
        assert _kernels.plain(plain)
        assert not _kernels.plain(plain.to_sparse())
        assert _kernels.use_exchange(EXCHANGE) is (EXCHANGE is not None)
    after = [sys.getrefcount(one) for one in (True, False, None)]
    assert all(abs(one - other) < count / 2 for one, other in zip(before, after, strict=True))
