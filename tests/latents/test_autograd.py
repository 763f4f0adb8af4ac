"""What autograd sees: gradients by finite differences, what is kept for backward, a second backward, the draws."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastvae


def leaves(*shape, dtype=torch.float32, device="cpu"):
    return [torch.randn(shape, dtype=dtype).to(device).requires_grad_() for _ in range(2)]


OPS = {
    "sample_and_kl": lambda mu, logvar: fastvae.sample_and_kl(mu, logvar, seed=3),
    "reparameterize": lambda mu, logvar: (fastvae.reparameterize(mu, logvar, seed=3),),
    "gaussian_kl": lambda mu, logvar: (fastvae.gaussian_kl(mu, logvar),),
}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def grads_of(outputs, inputs, **kwargs):
    return torch.autograd.grad(sum(output.sum() for output in outputs), inputs, **kwargs)


@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "batchmean"])
def test_gradients_pass_finite_differences(reduction):
    mu, logvar = leaves(3, 2, 2, dtype=torch.float64)
    with fastvae.use_backend("reference"):
        for function in (
            lambda m, v: fastvae.sample_and_kl(m, v, seed=1, reduction=reduction),
            lambda m, v: fastvae.reparameterize(m, v, seed=1),
            lambda m, v: fastvae.gaussian_kl(m, v, reduction=reduction),
        ):
            assert torch.autograd.gradcheck(function, (mu, logvar))


def test_gradients_through_broadcasting_pass_finite_differences():
    mu = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: fastvae.sample_and_kl(m, v, seed=1), (mu, logvar))


def saved_storages(function):
    """Storages of the tensors kept for backward, by address: bytes of each."""
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = function()
    return found, outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_kept_but_the_inputs_and_an_8_byte_seed(backend, device, op, dtype):
    mu, logvar = leaves(16, 10, dtype=dtype, device=device)
    inputs = {t.untyped_storage().data_ptr() for t in (mu, logvar)}
    kept, _outputs = saved_storages(lambda: op(mu, logvar))
    beyond = {address: size for address, size in kept.items() if address not in inputs}
    assert sum(beyond.values()) == (0 if op is OPS["gaussian_kl"] else 8)


def test_packed_halves_are_kept_as_given(backend, device, op):
    moments = torch.randn(4, 6, device=device, requires_grad=True)
    kept, _outputs = saved_storages(lambda: op(*moments.chunk(2, 1)))
    assert sum(size for address, size in kept.items() if address != moments.untyped_storage().data_ptr()) <= 8


def test_a_second_backward_gives_the_same_gradients(backend, device, op):
    mu, logvar = leaves(4, 6, device=device)
    outputs = op(mu, logvar)
    first = grads_of(outputs, (mu, logvar), retain_graph=True, materialize_grads=True)
    second = grads_of(outputs, (mu, logvar), materialize_grads=True)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_gradients_accumulate(backend, device, op):
    mu, logvar = leaves(4, 6, device=device)
    expected = grads_of(op(mu, logvar), (mu, logvar), materialize_grads=True)
    for _ in range(3):
        sum(output.sum() for output in op(mu, logvar)).backward()
    torch.testing.assert_close(mu.grad, 3 * expected[0])
    torch.testing.assert_close(logvar.grad, 3 * expected[1])


def test_using_only_z_or_only_kl_gives_that_part_of_the_gradient(backend, device):
    mu, logvar = leaves(4, 6, device=device)
    z, kl = fastvae.sample_and_kl(mu, logvar, seed=3)
    for part, alone in ((z, OPS["reparameterize"]), (kl, OPS["gaussian_kl"])):
        got = torch.autograd.grad(part.sum(), (mu, logvar), retain_graph=True)
        for one, other in zip(got, grads_of(alone(mu, logvar), (mu, logvar)), strict=True):
            torch.testing.assert_close(one, other)


def test_one_input_alone_may_want_a_gradient(backend, device, op):
    mu, logvar = leaves(4, 6, device=device)
    expected = grads_of(op(mu, logvar), (mu, logvar))
    for index in (0, 1):
        inputs = [mu.detach(), logvar.detach()]
        inputs[index].requires_grad_()
        (got,) = grads_of(op(*inputs), [inputs[index]])
        torch.testing.assert_close(got, expected[index])


def test_without_gradients_nothing_is_recorded(backend, device, op):
    mu, logvar = leaves(4, 6, device=device)
    with torch.no_grad():
        assert not any(output.requires_grad for output in op(mu, logvar))
    with torch.inference_mode():
        op(mu, logvar)


@pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
def test_gradients_in_batches_are_those_one_by_one(backend, device, op, way):
    mu, logvar = leaves(4, 3, device=device)
    for output in op(mu, logvar):
        directions = torch.randn(5, *output.shape, device=device).to(output.dtype)

        def gradient(direction, output=output, **keywords):
            return torch.autograd.grad(output, (mu, logvar), direction, retain_graph=True, **keywords)

        batch = torch.func.vmap(gradient)(directions) if way == "vmap" else gradient(directions, is_grads_batched=True)
        one_by_one = [torch.stack(grads) for grads in zip(*map(gradient, directions), strict=True)]
        torch.testing.assert_close(list(batch), one_by_one, rtol=1e-4, atol=1e-5)


def test_a_hook_of_an_input_is_called_once_for_a_recorded_gradient(backend, device, op):
    mu, logvar = leaves(4, 3, device=device)
    calls = []
    mu.register_hook(calls.append)
    grads_of(op(mu, logvar), (mu, logvar), create_graph=True)
    assert len(calls) == 1


@pytest.mark.parametrize("reduction", ["none", "sample", "sum", "batchmean"])
def test_second_derivatives_pass_finite_differences(reduction):
    mu, logvar = leaves(2, 3, dtype=torch.float64)
    for function in (
        lambda m, v: fastvae.sample_and_kl(m, v, seed=1, reduction=reduction),
        lambda m, v: fastvae.reparameterize(m, v, seed=1),
        lambda m, v: fastvae.gaussian_kl(m, v, reduction=reduction),
    ):
        assert torch.autograd.gradgradcheck(function, (mu, logvar))


def test_second_derivatives_of_linear_losses_are_right(backend, device, op):
    """Where the incoming gradient is a constant, the graph of the gradient must still reach the inputs."""
    mu, logvar = leaves(4, 6, device=device)
    recorded = grads_of(op(mu, logvar), (mu, logvar), create_graph=True)
    plain = grads_of(op(mu, logvar), (mu, logvar))
    for one, other in zip(recorded, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
    (second,) = torch.autograd.grad(recorded[1].sum(), (logvar,))
    exact_mu, exact_logvar = (t.detach().cpu().double().requires_grad_() for t in (mu, logvar))
    with fastvae.use_backend("reference"):
        (first,) = grads_of(op(exact_mu, exact_logvar), (exact_logvar,), create_graph=True)
    (expected,) = torch.autograd.grad(first.sum(), (exact_logvar,))
    torch.testing.assert_close(second.cpu().double(), expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_replays_the_draw(backend, device):
    mu, logvar = leaves(4, 6, device=device)
    drawn = []

    def block(mu, logvar):
        z, kl = fastvae.sample_and_kl(mu, logvar)
        drawn.append(z.detach().clone())
        return z.square().sum() + kl.sum()

    for use_reentrant in (False, True):
        drawn.clear()
        loss = checkpoint(block, mu, logvar, use_reentrant=use_reentrant)
        got = torch.autograd.grad(loss, (mu, logvar)) if not use_reentrant else loss.backward()
        assert len(drawn) == 2
        assert torch.equal(drawn[0], drawn[1])
        assert use_reentrant or all(grad.isfinite().all() for grad in got)


def test_torch_manual_seed_rules_the_draw(backend, device):
    mu, logvar = leaves(4, 6, device=device)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append((fastvae.reparameterize(mu, logvar), fastvae.reparameterize(mu, logvar)))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])
    assert not torch.equal(draws[0][0], draws[2][0])


def test_a_generator_rules_the_draw_and_torchs_own_is_left_alone(backend, device):
    mu, logvar = leaves(4, 6, device=device)
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        generator = torch.Generator(device=device).manual_seed(seed)
        draws.append(fastvae.sample_and_kl(mu, logvar, generator=generator)[0])
        draws.append(fastvae.reparameterize(mu, logvar, generator=generator))
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[1], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[4])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_given_seed_leaves_torchs_generator_alone(backend, device, op):
    before = torch.get_rng_state()
    op(*leaves(4, 6, device=device))
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    leaves(4, 6, device=device)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.fixture
def restored_thread_count():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(700, 37), (3, 9001), (64, 1024), (1, 70001)], ids=str)
def test_the_bits_do_not_depend_on_the_number_of_threads(restored_thread_count, shape):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        mu, logvar = leaves(*shape)
        with fastvae.use_backend("cpu"):
            z, kl = fastvae.sample_and_kl(mu, logvar, seed=9)
            total = fastvae.gaussian_kl(mu, logvar, reduction="sum")
            grads = torch.autograd.grad(z.square().sum() + kl.sum() + total, (mu, logvar))
        results.append((z, kl, total, *grads))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_threads_started_by_the_caller_get_the_same_results(name):
    """Two Python threads at once: no shared scratch memory, no state. (Triton's interpreter itself has state.)"""
    mu, logvar = (t.detach() for t in leaves(50, 30))
    with fastvae.use_backend(name), ThreadPoolExecutor(2) as pool:
        expected = fastvae.sample_and_kl(mu, logvar, seed=4)
        results = list(pool.map(lambda _: fastvae.sample_and_kl(mu, logvar, seed=4), range(20)))
    for z, kl in results:
        assert torch.equal(z, expected[0])
        assert torch.equal(kl, expected[1])
