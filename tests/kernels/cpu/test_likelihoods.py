"""Likelihoods on the CPU backend, asked directly: counts, other ways of looking at tensors, thread counts."""

from __future__ import annotations

import pytest
import torch

from fastvae.kernels import backend, reference
from fastvae.kernels.likelihood_spec import NO_BOUNDS, LikelihoodSpec
from tests.likelihoods.cases import CASES, draw, shapes_of

if backend.reason_unavailable("cpu"):
    pytest.skip(f"no CPU kernels here: {backend.reason_unavailable('cpu')}", allow_module_level=True)

from fastvae.kernels import cpu
from fastvae.kernels.cpu import _kernels

EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


def counts_and_thetas() -> tuple[torch.Tensor, torch.Tensor]:
    """Few and many counts, whole and not, beside small and large theta: each pair twice, among others."""
    x = torch.cat((torch.arange(0.0, 30.0), torch.tensor([0.5, 2.5, 7.5, 100.0])))
    theta = torch.tensor([1e-6, 1e-3, 0.1, 1.0, 1.7, 3.0, 40.0, 999.0, 9999.0, 1e4, 10001.0, 1e6])
    pairs = torch.cartesian_prod(x, theta)
    pairs = torch.cat((pairs, pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]))
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def test_few_counts_and_many_have_the_log_likelihood_and_gradients_of_the_formula():
    x, theta = counts_and_thetas()
    mean = torch.full_like(x, 2.5)

    def exactly(dtype):
        return _negative_binomial(x.to(dtype), mean.to(dtype), theta.to(dtype))

    spec, parameters = LikelihoodSpec("negative_binomial", "none"), (mean, theta)
    came = cpu.likelihood_forward(x, parameters, spec, NO_BOUNDS)
    of_mean, of_theta = cpu.likelihood_backward(torch.ones_like(x), x, parameters, spec, NO_BOUNDS, (True, True))
    expected, eager = exactly(torch.float64), exactly(torch.float32)
    for one, exact, usual in zip((came, of_mean, of_theta), expected, eager, strict=True):
        error, allowed = (one.double() - exact).abs(), 2 * (usual.double() - exact).abs() + 3e-6 * (1 + exact.abs())
        worst = (error - allowed).argmax()
        assert error[worst] <= allowed[worst], f"x = {x[worst]}, theta = {theta[worst]}: off by {error[worst]}"


def _negative_binomial(x, mean, theta):
    mean, theta = mean.requires_grad_(), theta.requires_grad_()
    log_of = [torch.log(y + 1e-8) for y in (theta, mean, theta + mean)]
    log_prob = theta * (log_of[0] - log_of[2]) + x * (log_of[1] - log_of[2])
    log_prob = log_prob + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return log_prob.detach(), *torch.autograd.grad(log_prob.sum(), (mean, theta))


@pytest.mark.parametrize("name", CASES)
def test_strides_that_two_event_indices_cannot_say_are_copied(name):
    case = CASES[name]
    x, parameters = draw(case, (2, 3, 4, 5))

    def backwards(tensor):
        dims = tuple(reversed(range(tensor.dim())))
        return tensor.permute(dims).contiguous().permute(dims)

    mixed = (x, tuple(map(backwards, parameters)), *case.under("sample"))
    grad = torch.randn(2)
    wants = (True,) * len(parameters)
    came, expected = cpu.likelihood_forward(*mixed), reference.likelihood_forward(*mixed)
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-4)
    came, expected = (kernels.likelihood_backward(grad, *mixed, wants) for kernels in (cpu, reference))
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)
    assert [one.stride() for one in came] == [one.stride() for one in expected]


@pytest.mark.skipif(EXCHANGE is None, reason=f"torch {torch.__version__} has no DLPack exchange interface")
@pytest.mark.parametrize("name", CASES)
def test_tensors_are_seen_alike_by_either_way_of_looking(name):
    case = CASES[name]
    x, parameters = draw(case, shapes_of(case)[0])
    grad, wants = torch.randn(len(x)), (True,) * len(parameters)

    def step():
        arguments = (x, parameters, *case.under("sample"))
        return cpu.likelihood_forward(*arguments), *cpu.likelihood_backward(grad, *arguments, wants)

    by_exchange = step()
    try:
        _kernels.use_exchange(None)
        by_methods = step()
    finally:
        _kernels.use_exchange(EXCHANGE)
    assert all(torch.equal(one, other) for one, other in zip(by_exchange, by_methods, strict=True))


def test_bad_arguments_of_the_extension_are_errors():
    x, code = torch.zeros(2, 3), bytes(16)
    for function, expected in ((_kernels.likelihood_forward, 6), (_kernels.likelihood_backward, 6)):
        with pytest.raises(TypeError, match=f"expected {expected} arguments, got 2"):
            function(x, x)
    with pytest.raises(ValueError, match="the code has 0 bytes, expected 16"):
        _kernels.likelihood_forward(x, (x,), torch.zeros(2), b"", NO_BOUNDS, None)
    with pytest.raises(TypeError, match="expected a tuple of 3 items, got"):
        _kernels.likelihood_forward(x, (), torch.zeros(2), code, NO_BOUNDS, None)
    with pytest.raises(TypeError, match="expected a tuple of 2 items, got None"):
        _kernels.likelihood_forward(x, (x,), torch.zeros(2), code, None, None)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "log_normal"])
def test_bounds_have_no_effect_without_a_clamp(kind):
    x, *parameters = torch.rand(3, 4, 7)
    free, bounded = (
        cpu.likelihood_forward(x, tuple(parameters), LikelihoodSpec(kind), bounds)
        for bounds in (NO_BOUNDS, NO_BOUNDS._replace(low=-0.1, high=0.1))
    )
    assert torch.equal(free, bounded)
