"""The ops as PyTorch's compiler and its op checks see them."""

from __future__ import annotations

import shutil

import pytest
import torch

import fastvae
from fastvae.kernels.latent_spec import LatentScalars, LatentSpec
from fastvae.ops import _packed as packed

# The ops are opaque to the code generator, whatever backend they run on: it takes seconds, and is tried with one.
COMPILERS = {"reference": "aot_eager", "cpu": "inductor"}


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if shutil.which("g++") is None:
        pytest.fail("torch.compile on a CPU needs g++, which is not on the PATH: install it to run these tests")


def tensors(count, *shape):
    return [torch.randn(shape) for _ in range(count)]


def how(backend="auto", scalars=LatentScalars(), **spec):  # noqa: B008 - it is immutable
    """The arguments of the latent ops that are no tensors."""
    row_offset, num_samples, *floats = scalars
    return LatentSpec(**spec).encode(), [row_offset, num_samples or 0], floats, None, backend


def opcheck_cases():
    ops = torch.ops.fastvae
    seed = torch.tensor([5])
    mu, logvar, grad_z = tensors(3, 3, 4)
    moments = torch.randn(3, 8)
    halves = torch.randn(3, 8, 2, 3).to(memory_format=torch.channels_last).chunk(2, 1)
    prior = torch.randn(1, 4), torch.randn(1, 1)
    logs, draws = torch.randn(2, 3), torch.randn(2, 3, 4)
    twice, no_prior = LatentScalars(num_samples=2), (None, None)
    for reduction, shape in (("none", (3, 4)), ("sample", (3,)), ("sum", ()), ("batchmean", ())):
        grads = [grad_z, torch.randn(shape), None, None, None]
        inputs = [mu, logvar, *no_prior, seed]
        yield ops.latent, (*packed(inputs), *how(reduction=reduction))
        yield ops.latent, (*packed([mu, logvar, *no_prior, None]), *how(reduction=reduction, sample=False))
        yield ops.latent_backward, (*packed(grads + inputs), False, *how(reduction=reduction))
    for halves_or_whole in (halves, [t.bfloat16() for t in halves], [mu.double(), logvar.double()]):
        yield ops.latent, (*packed([*halves_or_whole, *no_prior, seed]), *how())
    whole = [moments, None, *no_prior, seed]
    yield ops.latent, (*packed(whole), *how(packed_dim=1))
    for grads in ([grad_z, torch.randn(3)], [grad_z, None], [None, torch.randn(3)]):
        yield ops.latent_backward, (*packed([*grads, None, None, None, *whole]), False, *how(packed_dim=1))
    z_alone = how("auto", LatentScalars(row_offset=7), reduction=None)
    yield ops.latent, (*packed([mu, logvar, *no_prior, seed]), *z_alone)
    yield ops.latent_backward, (*packed([grad_z, *[None] * 5, logvar, *no_prior, seed]), False, *z_alone)
    everything = {"free_bits": "coordinate", "per_coordinate": True, "log_probs": True}
    of_prior = [mu, logvar, *prior, seed]
    grads = [draws, torch.randn(3), None, logs, logs]
    yield ops.latent, (*packed(of_prior), *how("auto", twice, **everything))
    yield ops.latent_backward, (*packed(grads + of_prior), True, *how("auto", twice, **everything))
    yield ops.latent_backward, (*packed(grads + of_prior), False, *how("reference", twice, **everything))
    yield (
        ops.latent,
        (*packed([*halves, *no_prior, None]), *how(reduction="none", sample=False, free_bits_over_batch=True)),
    )
    yield ops.latent, (*packed(whole), *how("reference", packed_dim=1, free_bits="channel"))
    floats_as_tensor = (LatentSpec(clamp="hard").encode(), [0, 0], [], torch.ones(5, dtype=torch.float64), "auto")
    yield ops.latent, (*packed([mu, logvar, *no_prior, seed]), *floats_as_tensor)
    yield ops.noise, (mu, seed, 0, torch.float16, 0, "auto")


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
        got = torch.compile(loss_of, fullgraph=True, backend=COMPILERS[name])(mu, logvar, 3)
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
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
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
    forward = reference.latent_forward
    monkeypatch.setattr(reference, "latent_forward", lambda *arguments: calls.append(1) or forward(*arguments))
    compiled = torch.compile(
        lambda mu, logvar: fastvae.reparameterize(mu, logvar, seed=0), fullgraph=True, backend="aot_eager"
    )
    mu, logvar = tensors(2, 4, 5)
    with fastvae.use_backend("cpu"):
        compiled(mu, logvar)
    assert calls == []
    with fastvae.use_backend("reference"):
        compiled(mu, logvar)
    assert calls == [1]


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        ("reference", "aot_eager"),
        ("cpu", "aot_eager"),
        pytest.param("cpu", "inductor", marks=pytest.mark.slow),
    ],
)
def test_the_family_compiles_without_a_graph_break(name, compiler):
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
        got = torch.compile(function, fullgraph=True, backend=compiler)(*leaves)
        got_grads = torch.autograd.grad(got[0], leaves)
    torch.testing.assert_close(got, expected)
    for one, other in zip(got_grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other)


def graphs_made(function, *arguments_of_calls):
    """How many graphs torch.compile makes of a function for these calls, whose results must be the uncompiled ones."""
    graphs = []

    def counting(module, example_inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def compiler(graph, inputs):
            return make_boxed_func(graph.forward)

        graphs.append(module)
        return aot_autograd(fw_compiler=compiler)(module, example_inputs)

    compiled = torch.compile(function, fullgraph=True, backend=counting)
    for mu, logvar, value in arguments_of_calls:
        came, expected = compiled(mu, logvar, value), function(mu, logvar, value)
        torch.testing.assert_close(came, expected)
        came, expected = (torch.autograd.grad(loss, (mu, logvar)) for loss in (came, expected))
        torch.testing.assert_close(came, expected)
    return len(graphs)


@pytest.mark.parametrize("option", ["temperature", "beta", "capacity", "free_bits", "floor", "clamp", "soft_clamp"])
def test_a_number_that_changes_is_an_input_of_one_graph(option):
    """The compiler takes the first value for a constant, and the second for the first of many."""

    def loss_of_value(mu, logvar, value):
        given = {option: (-value, value) if option == "clamp" else value}
        if option == "floor":
            given["scale"] = "softplus"
        z, kl = fastvae.sample_and_kl(mu, logvar, seed=3, reduction="batchmean", **given)
        return z.square().sum() + kl

    mu, logvar = (t.requires_grad_() for t in tensors(2, 6, 5))
    assert graphs_made(loss_of_value, *[(mu, logvar, 0.1 * step) for step in range(1, 9)]) <= 2
