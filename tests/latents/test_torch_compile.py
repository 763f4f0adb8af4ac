"""The ops as PyTorch's compiler and its op checks see them."""

from __future__ import annotations

import shutil

import pytest
import torch

import fastvae
from fastvae.kernels.family import Options

ARGUMENTS = (0, "sample", "auto")


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if shutil.which("g++") is None:
        pytest.fail("torch.compile on a CPU needs g++, which is not on the PATH: install it to run these tests")


def tensors(count, *shape):
    return [torch.randn(shape) for _ in range(count)]


def opcheck_cases():
    ops = torch.ops.fastvae
    seed = torch.tensor([5])
    mu, logvar, grad_z = tensors(3, 3, 4)
    halves = torch.randn(3, 8, 2, 3).to(memory_format=torch.channels_last).chunk(2, 1)
    for reduction, shape in (("none", (3, 4)), ("sample", (3,)), ("sum", ()), ("batchmean", ())):
        grad_kl = torch.randn(shape)
        yield ops.sample_and_kl, (mu, logvar, seed, 0, reduction, "auto")
        yield ops.sample_and_kl_backward, (grad_z, grad_kl, mu, logvar, seed, 0, reduction, "auto")
        yield ops.gaussian_kl, (mu, logvar, reduction, "auto")
        yield ops.gaussian_kl_backward, (grad_kl, mu, logvar, reduction, "auto")
    moments = torch.randn(3, 8)
    yield ops.sample_and_kl_packed, (moments, seed, 1, *ARGUMENTS)
    yield ops.sample_and_kl_packed_backward, (moments, grad_z, torch.randn(3), seed, 1, *ARGUMENTS)
    yield ops.sample_and_kl_packed_backward, (moments, grad_z, None, seed, 1, *ARGUMENTS)
    yield ops.sample_and_kl_packed_backward, (moments, None, torch.randn(3), seed, 1, *ARGUMENTS)
    yield ops.sample_and_kl, (*halves, seed, *ARGUMENTS)
    yield ops.sample_and_kl, (mu.bfloat16(), logvar.bfloat16(), seed, *ARGUMENTS)
    yield ops.sample_and_kl, (mu.double(), logvar.double(), seed, *ARGUMENTS)
    yield ops.reparameterize, (*halves, seed, 0, "reference")
    yield ops.reparameterize, (mu, logvar, seed, 7, "auto")
    yield ops.reparameterize_backward, (grad_z, logvar, seed, 7, "auto")
    yield ops.noise, (seed, (3, 4), 0, torch.float16, 0, "auto")
    plain = Options()
    prior = torch.randn(1, 4), torch.randn(1, 1)
    logs = torch.randn(2, 3)
    draws = torch.randn(2, 3, 4)
    yield ops.latent, (mu, logvar, *prior, seed, 1, 0, 2, "sample", True, True, "auto", *plain)
    yield ops.latent, (moments, None, None, None, seed, 1, 7, None, "channel", False, False, "reference", *plain)
    yield ops.latent, (*halves, None, None, None, 1, 0, None, "none", True, False, "auto", *plain)
    yield ops.latent, (*halves, None, None, seed, 1, 0, 3, None, False, True, "auto", *plain)
    grads = draws, torch.randn(3), logs, logs
    yield ops.latent_backward, (mu, logvar, *prior, seed, *grads, 1, 0, 2, "sample", True, "auto", *plain)
    yield ops.latent_backward, (mu, logvar, *prior, seed, *grads, 1, 0, 2, "sample", False, "reference", *plain)
    yield (
        ops.latent_backward,
        (
            moments,
            None,
            None,
            None,
            None,
            None,
            torch.randn(3),
            None,
            None,
            1,
            0,
            None,
            "sample",
            False,
            "auto",
            *plain,
        ),
    )


@pytest.mark.parametrize("index", range(len(list(opcheck_cases()))))
def test_every_op_passes_opcheck(index):
    op, arguments = list(opcheck_cases())[index]
    torch.library.opcheck(op, arguments)


def loss_of(mu, logvar, seed=None):
    z, kl = fastvae.sample_and_kl(mu.tanh(), logvar, seed=seed)
    again = fastvae.reparameterize(mu, logvar, seed=seed)
    return (z * again).sum() + kl.mean() + fastvae.gaussian_kl(mu, logvar, reduction="batchmean")


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_compiled_without_a_graph_break_gives_the_same_values_and_gradients(name):
    mu, logvar = (t.requires_grad_() for t in tensors(2, 8, 5))
    with fastvae.use_backend(name):
        expected = loss_of(mu, logvar, 3)
        expected_grads = torch.autograd.grad(expected, (mu, logvar))
        got = torch.compile(loss_of, fullgraph=True)(mu, logvar, 3)
        got_grads = torch.autograd.grad(got, (mu, logvar))
    torch.testing.assert_close(got, expected)
    for one, other in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_packed_halves_and_broadcasting():
    def function(moments, scale):
        mu, logvar = moments.chunk(2, 1)
        z, kl = fastvae.sample_and_kl(mu, logvar, seed=1)
        other, _ = fastvae.sample_and_kl(mu, scale, seed=1)
        in_one_piece, _ = fastvae.sample_and_kl_packed(moments, seed=1)
        return z, kl, other, in_one_piece

    for moments in (torch.randn(2, 6, 3, 3), torch.randn(2, 6, 3, 3).to(memory_format=torch.channels_last)):
        inputs = [moments.requires_grad_(), torch.zeros(1, 3, 1, 1, requires_grad=True)]
        expected, got = function(*inputs), torch.compile(function, fullgraph=True)(*inputs)
        for one, other in zip(got, expected, strict=True):
            assert one.stride() == other.stride()
            torch.testing.assert_close(one, other)
        for one, other in zip(
            torch.autograd.grad(sum(t.sum() for t in got), inputs),
            torch.autograd.grad(sum(t.sum() for t in expected), inputs),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


def test_compiled_once_for_batches_of_any_size():
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True)
    for rows in (3, 8, 5):
        mu, logvar = tensors(2, rows, 5)
        torch.testing.assert_close(compiled(mu, logvar, 3), loss_of(mu, logvar, 3))


def test_a_compiled_draw_is_new_every_time_and_ruled_by_manual_seed():
    compiled = torch.compile(lambda mu, logvar: fastvae.reparameterize(mu, logvar), fullgraph=True)
    mu, logvar = tensors(2, 4, 5)
    torch.manual_seed(0)
    first, second = compiled(mu, logvar), compiled(mu, logvar)
    torch.manual_seed(0)
    again = compiled(mu, logvar)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_a_compiled_function_follows_use_backend(monkeypatch):
    """The choice is part of what is compiled; another choice compiles anew instead of being ignored."""
    from fastvae.kernels import reference

    calls = []
    forward = reference.forward
    monkeypatch.setattr(reference, "forward", lambda *arguments: calls.append(1) or forward(*arguments))
    compiled = torch.compile(lambda mu, logvar: fastvae.reparameterize(mu, logvar, seed=0), fullgraph=True)
    mu, logvar = tensors(2, 4, 5)
    with fastvae.use_backend("cpu"):
        compiled(mu, logvar)
    assert calls == []
    with fastvae.use_backend("reference"):
        compiled(mu, logvar)
    assert calls == [1]


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_the_family_compiles_without_a_graph_break(name):
    def function(mu, logvar, prior_mu, prior_logvar, moments):
        z, kl, each = fastvae.sample_and_kl(
            mu, logvar, prior_mu, prior_logvar, seed=3, num_samples=2, free_bits=0.1, beta=2.0, per_coordinate=True
        )
        _, log_q, log_p = fastvae.sample_and_log_prob(mu, logvar, seed=4, num_samples=3, scale="logstd", soft_clamp=5.0)
        packed_z, packed_kl = fastvae.sample_and_kl_packed(
            moments, seed=5, clamp=(-1.0, 1.0), free_bits=0.5, free_bits_over="batch", reduction="batchmean"
        )
        residual = fastvae.gaussian_kl(mu, logvar, prior_mu, prior_logvar, residual=True)
        bound = (log_p - log_q).logsumexp(0)
        return z.sum() + kl.sum() + bound.sum() + packed_z.sum() + packed_kl + residual.sum(), each.sum()

    leaves = [t.requires_grad_() for t in (*tensors(2, 6, 5), *tensors(2, 5), *tensors(1, 6, 10))]
    with fastvae.use_backend(name):
        expected = function(*leaves)
        expected_grads = torch.autograd.grad(expected[0], leaves)
        got = torch.compile(function, fullgraph=True)(*leaves)
        got_grads = torch.autograd.grad(got[0], leaves)
    torch.testing.assert_close(got, expected)
    for one, other in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other)
