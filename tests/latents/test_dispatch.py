"""The fast path: plain calls do not go through the dispatcher, and modes, profilers and tracers still see operators."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastvae
from fastvae import fast_path, torch_internals
from fastvae.kernels import backend
from fastvae.likelihoods import bernoulli_log_prob


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    """A subclass that keeps a list of the operators it was given to."""

    names: list[str] = []  # noqa: RUF012

    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_subclass(cls, tensor, tensor.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.names.append(func.name())
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


def step(mu, logvar):
    z, kl = fastvae.sample_and_kl(mu, logvar, seed=1)
    return torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))


@pytest.fixture
def latents():
    return [torch.randn(3, 4, requires_grad=True) for _ in range(2)]


OPERATORS = {"fastvae::latent", "fastvae::latent_backward"}


def test_a_plain_call_does_not_go_through_the_dispatcher(latents, monkeypatch):
    assert not torch_internals.is_observed()
    monkeypatch.setattr(torch_internals, "_profiler_is_on", lambda: False)  # as without the profiler that looks here
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(*latents)
    assert not OPERATORS & {event.key for event in profile.key_averages()}


def test_a_profiler_sees_the_operators(latents):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert torch_internals.is_observed()
        step(*latents)
    assert {event.key for event in profile.key_averages()} >= OPERATORS


def test_a_dispatch_mode_sees_the_operators(latents):
    with Recorder() as recorder:
        assert torch_internals.is_observed()
        step(*latents)
    assert set(recorder.names) >= OPERATORS


def test_a_tensor_subclass_sees_the_operators(latents):
    mu, logvar = (Wrapped(tensor.detach()).requires_grad_() for tensor in latents)
    Wrapped.names.clear()
    step(mu, logvar)
    assert set(Wrapped.names) >= OPERATORS


def test_fake_and_meta_tensors_get_shapes_and_no_numbers():
    with FakeTensorMode():
        z, kl = fastvae.sample_and_kl(torch.empty(3, 4), torch.empty(3, 4), seed=1)
        packed_z, _ = fastvae.sample_and_kl_packed(torch.empty(3, 8), seed=1)
    assert z.shape == packed_z.shape == (3, 4)
    assert kl.shape == (3,)
    z, kl = fastvae.sample_and_kl(torch.empty(3, 4, device="meta"), torch.empty(3, 4, device="meta"))
    assert z.is_meta
    assert kl.shape == (3,)


def test_a_parameter_is_as_plain_as_a_tensor(latents):
    expected = step(*latents)
    came = step(*(torch.nn.Parameter(tensor.detach()) for tensor in latents))
    for one, other in zip(came, expected, strict=True):
        assert torch.equal(one, other)


def test_a_tensor_that_left_its_transform_is_taken_for_what_it_wraps():
    leaked = []

    def leak(x):
        leaked.append(x * 2)
        return x.sum()

    torch.func.grad(leak)(torch.ones(3, 4))
    kl = fastvae.gaussian_kl(leaked[0], torch.zeros(3, 4))
    assert torch.equal(kl, torch.full((3,), 8.0))


def test_negative_views_have_their_own_signs(backend, device):
    """Real tensors that are marked as negated in memory, such as the imaginary part of a conjugate."""
    mu, logvar, grad_z = (torch.randn(3, 4, device=device) for _ in range(3))
    grad_kl = torch.randn(3, device=device)

    def results(view):
        leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]
        z, kl = fastvae.sample_and_kl(*map(view, leaves), seed=1)
        drawn = fastvae.reparameterize(*map(view, leaves), seed=1)
        packed_z, packed_kl = fastvae.sample_and_kl_packed(view(torch.cat(leaves, 1)), seed=1)
        kl_alone = fastvae.gaussian_kl(*map(view, leaves))
        outputs = (z, kl, drawn, packed_z, packed_kl, kl_alone)
        gradients = [view(grad_z if output.dim() == 2 else grad_kl) for output in outputs]
        return *outputs, *torch.autograd.grad(outputs, leaves, gradients)

    for one, other in zip(results(torch._neg_view), results(torch.neg), strict=True):
        torch.testing.assert_close(one, other)


def test_a_negative_view_of_a_seed_is_the_negative_seed():
    seed = torch.tensor([5])
    assert torch.equal(fastvae.noise(torch._neg_view(seed), (2, 3)), fastvae.noise(-5, (2, 3)))


def test_batched_gradients_are_those_of_each_vector(latents):
    z, kl = fastvae.sample_and_kl(*latents, seed=1)
    grad_z, grad_kl = torch.randn(2, 3, 4), torch.randn(2, 3)
    batched = torch.autograd.grad((z, kl), latents, (grad_z, grad_kl), is_grads_batched=True, retain_graph=True)
    for index in range(2):
        single = torch.autograd.grad((z, kl), latents, (grad_z[index], grad_kl[index]), retain_graph=True)
        for one, other in zip(batched, single, strict=True):
            torch.testing.assert_close(one[index], other)


def test_a_default_device_does_not_move_the_noise():
    expected = fastvae.noise(7, (4, 3))
    with torch.device("meta"):
        came = fastvae.noise(7, (4, 3), device="cpu")
    assert torch.equal(came, expected)


def test_tensors_without_memory_are_the_zeros_that_they_stand_for():
    zeros, logvar = torch._efficientzerotensor((3, 8)), torch.randn(3, 8)
    for function in (
        lambda mu: fastvae.reparameterize(mu, logvar, seed=1),
        lambda mu: fastvae.gaussian_kl(mu, logvar),
        lambda mu: fastvae.gaussian_kl(logvar, mu),
        lambda mu: fastvae.gaussian_kl(logvar, logvar, mu, logvar),
        lambda mu: fastvae.sample_and_kl_packed(mu, seed=1)[1],
        lambda mu: bernoulli_log_prob(logvar, mu),
    ):
        torch.testing.assert_close(function(zeros), function(torch.zeros(3, 8)))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_a_tracer_is_noticed():
    noticed = []
    torch.jit.trace(
        lambda x: (noticed.append(bool(torch_internals.is_observed())), x + 1)[1], torch.ones(2), check_trace=False
    )
    assert noticed == [True]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda x: fastvae.gaussian_kl(x, x, x, x), {"fastvae::latent", "fastvae::latent_backward"}),
        (lambda x: fastvae.sample_and_kl_packed(x, seed=1)[1], OPERATORS),
        (lambda x: bernoulli_log_prob(x, x.detach()), {"fastvae::likelihood", "fastvae::likelihood_backward"}),
    ],
)
def test_a_dispatch_mode_sees_the_operators_of_every_kind_of_op(call, names):
    x = torch.rand(3, 4, requires_grad=True)
    with Recorder() as recorder:
        call(x).sum().backward()
    assert set(recorder.names) >= names


def test_plain_is_a_tensor_of_the_cpu_that_holds_its_values():
    x = torch.randn(3, 4)
    others = [Wrapped(x), torch._neg_view(x), x.to("meta"), x.to_sparse()]
    assert fast_path.are_direct(x, None, x.double())
    for other in others:
        assert not fast_path.are_direct(x, other)
    for other in (*others, x[:0], 1.0, x.double(), x.bfloat16(), x[:2], x[0], torch.tensor(1.0)):
        assert not fast_path.are_alike(x, other)
        assert not fast_path.are_alike(other, x)
    assert fast_path.are_alike(x, torch.nn.Parameter(x.t().clone().t()))


def test_without_the_extension_no_tensor_of_the_cpu_is_known_to_be_plain(monkeypatch):
    monkeypatch.setitem(backend._unavailable, "cpu", "not here")
    for name in ("_plain", "_alike"):
        monkeypatch.setattr(fast_path, name, getattr(fast_path, name))  # put back after the test
    fast_path._load()
    assert not fast_path.are_direct(torch.randn(2))
    assert not fast_path.are_alike(torch.randn(2), torch.randn(2))


FAILING = {
    "latent_forward": lambda mu, logvar: fastvae.sample_and_kl(mu, logvar),
    "latent_backward": step,
    "likelihood_forward": lambda mu, logvar: bernoulli_log_prob(logvar, mu.detach()),
    "likelihood_backward": lambda mu, logvar: bernoulli_log_prob(logvar, mu.detach()).sum().backward(),
    "noise": lambda mu, logvar: fastvae.noise(1, (3, 4)),
}


@pytest.mark.parametrize("name", FAILING)
def test_an_error_of_a_kernel_is_raised_and_the_kernel_not_run_again(latents, monkeypatch, name):
    """Such as a GPU's memory that is used up: another way to the same result would only need more of it."""
    calls = []

    def fail(*arguments):
        calls.append(name)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend.implementation("auto", torch.device("cpu"), torch.float32), name, fail)
    with pytest.raises(torch.OutOfMemoryError):
        FAILING[name](*latents)
    assert calls == [name]


@pytest.mark.parametrize("is_cuda", [True, False], ids=["by the extension", "in Python"])
def test_tensors_of_other_devices_are_found_alike_as_those_of_the_cpu_are(monkeypatch, is_cuda):
    """As for tensors of a GPU, which PyTorch without one cannot make: the CPU's, said to be elsewhere."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", is_cuda, raising=False)
    mu = torch.randn(3, 4)
    assert fast_path.are_alike(mu, torch.nn.Parameter(mu.clone()))
    assert fast_path.are_alike(mu, mu.t().contiguous().t())
    others = {
        "shape": mu[:2],
        "dtype": mu.double(),
        "integers": mu.long(),
        "a subclass": Wrapped(mu.clone()),
        "a conjugated view": torch._neg_view(mu),
        "device": mu.to("meta"),
        "layout": mu.to_sparse(),
        "empty": mu[:0],
        "a number": 1.0,
        "none": None,
    }
    for what, other in others.items():
        assert not fast_path.are_alike(mu, other), what
        assert not fast_path.are_alike(other, other) or what in ("shape", "dtype"), what
        assert not fast_path.are_alike(mu, mu, other), what
    assert fast_path.are_alike(mu)
    assert not fast_path.are_alike(mu[0, 0], mu[0, 0])
    with FakeTensorMode():
        assert not fast_path.are_alike(torch.randn(2), torch.randn(2))
