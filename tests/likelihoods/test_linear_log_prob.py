"""The decoder's last layers and the likelihood in one op: against ``F.linear`` and the formulas in float64."""

from __future__ import annotations

import typing

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import fastvae
import fastvae.likelihoods as L
from fastvae import head_chunks, head_op
from fastvae.kernels import head_spec
from fastvae.likelihoods import Linear, linear_log_prob
from tests.conftest import backend_device, skip_without_triton
from tests.formulas import assert_no_worse_than_eager

from .cases import data_of

B, H, D, K = 11, 6, 13, 3
FUNCTIONS = {"identity": lambda a: a, "exp": torch.exp, "softplus": F.softplus}
INFLATED = "zero_inflated_negative_binomial"
# Activations of the layers; None: a tensor that is given.
DENSITIES = {
    "bernoulli": ("identity",),
    "continuous_bernoulli": ("identity",),
    "gaussian": ("identity", None),
    "laplace": ("identity", "identity"),
    "log_normal": ("identity", None),
    "poisson": ("softmax",),
    "negative_binomial": ("softplus", "exp"),
    INFLATED: ("softmax", None, "identity"),
    "discretized_logistic_mixture": ("identity",),
}


@pytest.fixture(params=DENSITIES)
def density(request):
    return request.param


@pytest.fixture(params=("reference", "cpu"))
def backend(request):
    """The kernels of all backends have their own tests, and what is here is the same for all: but for one density."""
    with fastvae.use_backend(request.param):
        yield request.param


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks, of which the last is shorter."""
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 1)
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 4)


def drawn(density, dtype=torch.float32, device="cpu", draws=False):
    """hidden, layers' tensors, library sizes (all leaves), and x."""
    event = 30 * 4 if "mixture" in density else D
    x = torch.rand(B, 3, 4) if "mixture" in density else data_of(density, (B, D))
    hidden = torch.randn(*([K] if draws else []), B, H)
    leaves = [hidden]
    for how in DENSITIES[density]:
        leaves += [0.5 + torch.rand(D)] if how is None else [0.5 * torch.randn(event, H), torch.randn(event)]
    if DENSITIES[density][0] == "softmax":
        leaves.append(1 + x.sum(1))
    leaves = [one.to(device, dtype).requires_grad_() for one in leaves]
    return leaves, x.to(device)


def with_layers(density, leaves):
    """hidden, the parameters as linear_log_prob takes them, library."""
    hidden, rest = leaves[0], list(leaves[1:])
    parameters = []
    for how in DENSITIES[density]:
        parameters.append(rest.pop(0) if how is None else Linear(rest.pop(0), rest.pop(0), how))
    return hidden, parameters, rest[0] if rest else None


def fused(density, leaves, x, reduction="sample"):
    hidden, parameters, library = with_layers(density, leaves)
    return linear_log_prob(density, hidden, parameters, x, library=library, components=3, reduction=reduction)


def composed(density, leaves, x, reduction="sample"):
    """By ``F.linear`` and the likelihood's own function, which has tests of its own."""
    hidden, parameters, library = with_layers(density, leaves)
    values = []
    for one in parameters:
        if isinstance(one, torch.Tensor):
            values.append(one)
            continue
        output = F.linear(hidden, one.weight, one.bias)
        if one.activation == "softmax":
            log_mean = torch.log_softmax(output, -1) + library.to(output.dtype).log().unsqueeze(1)
            output = log_mean if density == "poisson" else log_mean.exp()
        else:
            output = FUNCTIONS[one.activation](output)
        values.append(output.unflatten(-1, (30, 4)) if "mixture" in density else output)
    options = {"components": 3} if "mixture" in density else {}
    return getattr(L, f"{density}_log_prob")(*values, x, reduction=reduction, **options)


def gradients(function, density, leaves, x, reduction, weigh):
    log_prob = function(density, leaves, x, reduction)
    return log_prob.detach(), torch.autograd.grad(weigh(log_prob), leaves)


def mean(values):
    return values.mean()


def weighted(values):
    return (
        values * torch.linspace(-1, 2, values.numel(), dtype=values.dtype, device=values.device).view(values.shape)
    ).sum()


def assert_like_float64(density, device, reduction, weigh, draws=False):
    leaves, x = drawn(density, device=device, draws=draws)
    wide = [one.detach().double().cpu().requires_grad_() for one in leaves]
    with fastvae.use_backend("reference"):
        exact, exact_grads = gradients(composed, density, wide, x.cpu().double(), reduction, weigh)
        eager, eager_grads = gradients(composed, density, leaves, x, reduction, weigh)
    came, grads = gradients(fused, density, leaves, x, reduction, weigh)
    assert_no_worse_than_eager(came.cpu(), exact, eager.cpu(), 2e-6)
    for one, exact_grad, eager_grad in zip(grads, exact_grads, eager_grads, strict=True):
        assert_no_worse_than_eager(one.cpu(), exact_grad, eager_grad.cpu(), 1e-5)


@pytest.mark.parametrize(
    ("reduction", "weigh"), [("sample", mean), ("sample", weighted), ("sum", mean), ("batchmean", mean)]
)
def test_values_and_gradients(density, backend, device, reduction, weigh, small_chunks, poisoned_memory):
    assert_like_float64(density, device, reduction, weigh)


def test_on_the_backend_of_gpus(small_chunks):
    skip_without_triton()
    with fastvae.use_backend("triton"):
        assert_like_float64("negative_binomial", backend_device("triton"), "sample", mean)


def test_several_draws(density, backend, device, small_chunks):
    assert_like_float64(density, device, "sample", weighted, draws=True)


def test_several_draws_in_chunks_of_whole_draws(monkeypatch):
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 1)
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 2 * B)
    assert_like_float64("bernoulli", "cpu", "sample", weighted, draws=True)
    assert_like_float64(INFLATED, "cpu", "sample", weighted, draws=True)


def test_second_derivatives(density):
    leaves, x = drawn(density, torch.float64)

    def curvature(function):
        first = torch.autograd.grad(function(density, leaves, x).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), leaves)

    torch.testing.assert_close(curvature(fused), curvature(composed), rtol=1e-8, atol=1e-8)


def test_backward_twice_gives_the_same(backend, device):
    leaves, x = drawn(INFLATED, device=device)
    loss = fused(INFLATED, leaves, x).mean()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("weigh", [mean, weighted, torch.sum])
def test_through_the_dispatcher_and_directly(density, weigh):
    leaves, x = drawn(density)
    log_prob, grads = gradients(fused, density, leaves, x, "sample", weigh)

    class Pass(torch.utils._python_dispatch.TorchDispatchMode):
        names: typing.ClassVar = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    with Pass():
        came, of_ops = gradients(fused, density, leaves, x, "sample", weigh)
    assert "fastvae::head" in Pass.names
    torch.testing.assert_close(came, log_prob)
    torch.testing.assert_close(of_ops, grads, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("factor", "is_expected"), [(-1.0, True), (1.0, False), (-3.0, False)])
@pytest.mark.parametrize("rows", [1, 3, 11, 49, 100])
def test_gradients_ahead_are_those_of_minus_a_mean(rows, factor, is_expected, monkeypatch):
    factors, real = [], head_op.times
    monkeypatch.setattr(head_op, "times", lambda ahead, factor: factors.append(factor) or real(ahead, factor))
    weight = torch.randn(5, 4, requires_grad=True)
    hidden, x = torch.randn(rows, 4), torch.rand(rows, 5).round()
    (factor * linear_log_prob("bernoulli", hidden, [Linear(weight)], x).mean()).backward()
    expected = factor * (x - torch.sigmoid(hidden @ weight.detach().T)).T @ hidden / rows
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-6)
    assert [one == 1.0 for one in factors] == [is_expected]


def test_only_what_is_wanted_has_a_gradient(density):
    leaves, x = drawn(density)
    every = torch.autograd.grad(fused(density, leaves, x).sum(), leaves)
    for index, leaf in enumerate(leaves):
        own = [one if one is leaf else one.detach() for one in leaves]
        (found,) = torch.autograd.grad(fused(density, own, x).sum(), [leaf])
        torch.testing.assert_close(found, every[index])


def test_large_chunks_leave_no_memory_behind(monkeypatch):
    hidden, weight, x = (
        torch.randn(500, 4, requires_grad=True),
        torch.randn(50, 4, requires_grad=True),
        torch.rand(500, 50),
    )

    def gradients():
        return torch.autograd.grad(linear_log_prob("bernoulli", hidden, [Linear(weight)], x).mean(), [hidden, weight])

    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 64)
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 1)
    expected, kept = gradients(), []
    monkeypatch.setattr(head_chunks, "scratch", lambda *given: kept.append(given))
    monkeypatch.setattr(head_chunks, "_LARGEST_KEPT", 0)
    assert all(torch.equal(one, other) for one, other in zip(gradients(), expected, strict=True))
    assert kept == []


@pytest.mark.parametrize("reduction", ["sample", "batchmean"])
def test_no_more_than_a_chunk_is_held(reduction, monkeypatch):
    """Elements of the tensors that the op makes, counted: of outputs, a chunk's, whatever the batch."""
    rows, made = 4096, []
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    x = torch.rand(rows, 50)
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 64)
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 64 * 50 * 4)
    monkeypatch.setattr(head_chunks, "scratch", lambda name, shape, *others: made.append(shape) or torch.empty(shape))

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() not in given:
                    self.largest = max(self.largest, one.untyped_storage().nbytes())
            return out

    given = {one.untyped_storage().nbytes() for one in (hidden, weight, x)}
    with Watch() as watch:
        linear_log_prob("bernoulli", hidden, [Linear(weight)], x, reduction=reduction).mean().backward()
    assert made
    assert all(shape == (64, 50) for shape in made)
    assert watch.largest <= 4 * rows


def test_memory_kept_for_backward_is_not_of_the_outputs():
    kept = []
    leaves, x = drawn("bernoulli", draws=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        fused("bernoulli", leaves, x)
    assert max(kept) <= max(K * B * H, B * D, D * H) < K * B * D


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_layers_are_as_exact_as_composed_ones(density, dtype, small_chunks):
    leaves, x = drawn(density, dtype)
    wide = [one.detach().double().requires_grad_() for one in leaves]
    exact, exact_grads = gradients(composed, density, wide, x.double(), "sample", mean)
    eager, eager_grads = gradients(composed, density, leaves, x, "sample", mean)
    came, grads = gradients(fused, density, leaves, x, "sample", mean)
    assert came.dtype == torch.float32
    floor = 4e-2 if dtype == torch.bfloat16 else 5e-3
    assert_no_worse_than_eager(came, exact, eager, floor)
    for one, leaf, exact_grad, eager_grad in zip(grads, leaves, exact_grads, eager_grads, strict=True):
        assert one.dtype == leaf.dtype
        assert_no_worse_than_eager(one, exact_grad, eager_grad, floor)


def test_autocast_computes_layers_as_linear_does():
    leaves, x = drawn("bernoulli")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        came, expected = fused("bernoulli", leaves, x), composed("bernoulli", leaves, x)
    assert came.dtype == torch.float32
    torch.testing.assert_close(came, expected)
    grads = torch.autograd.grad(came.mean(), leaves)
    assert all(one.dtype == torch.float32 for one in grads)
    for one, other in zip(grads, torch.autograd.grad(expected.mean(), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("weigh", [mean, weighted])
def test_in_a_compiled_graph(weigh):
    leaves, x = drawn(INFLATED)
    compiled = torch.compile(lambda leaves, x: weigh(fused(INFLATED, leaves, x)), fullgraph=True, backend="aot_eager")
    came = torch.autograd.grad(compiled(leaves, x), leaves)
    torch.testing.assert_close(came, torch.autograd.grad(weigh(fused(INFLATED, leaves, x)), leaves))


def test_the_registered_op_passes_opcheck():
    leaves, x = drawn("gaussian")
    run = head_op.HeadRun(head_spec.HeadSpec("gaussian", second="given"), L.functional.NO_BOUNDS, "auto", True)
    hidden, weight, bias, logvar = [one.detach() for one in leaves]
    tensors = (hidden, x, None, weight, bias, logvar, None)
    wants = (True, False, False, True, True, True, False)
    arguments = head_op.op_arguments(tensors, wants, run)
    torch.library.opcheck(torch.ops.fastvae.head.default, arguments)
    torch.library.opcheck(torch.ops.fastvae.head_backward.default, (torch.rand(B), [], *arguments))


def test_under_checkpointing():
    leaves, x = drawn("bernoulli")
    came = checkpoint(lambda *leaves: fused("bernoulli", leaves, x), *leaves, use_reentrant=False).mean()
    expected = torch.autograd.grad(fused("bernoulli", leaves, x).mean(), leaves)
    assert all(torch.equal(one, other) for one, other in zip(torch.autograd.grad(came, leaves), expected, strict=True))


def test_data_of_integers_and_of_several_dimensions():
    leaves, x = drawn("negative_binomial")
    expected = fused("negative_binomial", leaves, x)
    torch.testing.assert_close(fused("negative_binomial", leaves, x.to(torch.int32)), expected)
    hidden, layers, _ = with_layers("negative_binomial", leaves)
    torch.testing.assert_close(linear_log_prob("negative_binomial", hidden, layers, x.unflatten(1, (1, D))), expected)


def test_no_rows(density):
    leaves, x = drawn(density)
    leaves = [one[:0] if one.shape[0] == B else one for one in leaves]
    leaves = [one.detach().requires_grad_() for one in leaves]
    log_prob = fused(density, leaves, x[:0])
    assert log_prob.shape == (0,)
    assert not any(one.any() for one in torch.autograd.grad(log_prob.sum(), leaves))


_WEIGHT = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"density": "normal"}, ValueError, "density is 'normal', expected one of 'bernoulli'"),
        ({"parameters": []}, ValueError, "parameters has 0 items, expected 1 for 'bernoulli'"),
        ({"parameters": [torch.zeros(3)]}, TypeError, r"parameters\[0\] is a Tensor, expected a Linear"),
        (
            {"parameters": [Linear(_WEIGHT, None, "relu")]},
            ValueError,
            "activation is 'relu', expected one of",
        ),
        (
            {"parameters": [Linear(_WEIGHT, None, "softmax")]},
            ValueError,
            "'softmax', expected it of the mean of",
        ),
        ({"parameters": [Linear(_WEIGHT.T)]}, ValueError, r"weight has shape \(4, 3\), expected \(3, 4\)"),
        ({"parameters": [Linear(_WEIGHT, torch.zeros(4))]}, ValueError, r"bias has shape \(4,\), expected \(3,\)"),
        ({"parameters": [Linear(_WEIGHT.double())]}, TypeError, "weight is torch.float64, hidden is torch.float32"),
        ({"hidden": torch.zeros(5, 4)}, ValueError, r"hidden has shape \(5, 4\), expected \(2, H\) or \(K, 2, H\)"),
        ({"x": torch.zeros(2, 3, requires_grad=True)}, ValueError, "x requires a gradient"),
        ({"library": torch.ones(2)}, ValueError, "library is given with the activation 'identity', expected None"),
        ({"reduction": "none"}, ValueError, "reduction is 'none', expected one of 'sample'"),
        ({"hidden": torch.zeros(7, 2, 4), "reduction": "sum"}, ValueError, "'sum' with several draws"),
    ],
)
def test_what_is_wrong_is_named(change, error, words):
    given = {
        "density": "bernoulli",
        "hidden": torch.zeros(2, 4),
        "parameters": [Linear(_WEIGHT)],
        "x": torch.ones(2, 3),
    }
    with pytest.raises(error, match=words):
        linear_log_prob(**given | change)


def test_per_sample_gradients_by_torch_func():
    (hidden, *tensors), x = drawn("bernoulli")[0], drawn("bernoulli")[1]
    weight = tensors[0].detach()

    def log_prob(weight, h, one):
        return linear_log_prob("bernoulli", h[None], [Linear(weight)], one[None])[0]

    each = torch.func.vmap(torch.func.grad(log_prob), (None, 0, 0))(weight, hidden.detach(), x)
    expected = torch.stack(
        [torch.outer(one - torch.sigmoid(weight @ h), h) for h, one in zip(hidden.detach(), x, strict=True)]
    )
    torch.testing.assert_close(each, expected)
