"""The family of Gaussian latents against torch.distributions in float64: values, gradients, every backend and dtype."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

import fastvae
from tests.conftest import interpreter_truncates
from tests.formulas import assert_no_worse_than_eager, reduce

from .test_ops import FLOOR

SEED = 41
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((9, 10), (2, 3, 4, 5))


class Config(NamedTuple):
    """What a latent is asked for: the prior's shapes, and arguments of the ops."""

    prior: tuple[str, str] | None = None  # of prior_mu and prior_logvar: "full", "shared" or "one"
    arguments: tuple[tuple[str, object], ...] = ()


def config(prior=None, **arguments):
    return Config((prior, prior) if isinstance(prior, str) else prior, tuple(arguments.items()))


PRIORS = {
    "full prior": config("full"),
    "shared prior": config("shared"),
    "prior of one element": config("one"),
    "shared mean": config(("shared", "full")),
    "one variance": config(("full", "one")),
}
PARAMETERISATIONS = {
    "logstd": config(scale="logstd"),
    "std": config(scale="std"),
    "var": config(scale="var"),
    "softplus": config(scale="softplus", floor=1e-4),
    "logstd with prior": config("full", scale="logstd"),
    "std with prior": config("shared", scale="std"),
    "var with prior": config("full", scale="var"),
    "softplus with prior": config("one", scale="softplus", floor=0.25),
    "hard clamp": config(clamp=(-0.5, 0.75)),
    "hard clamp with prior": config("full", clamp=(-0.5, 0.75)),
    "hard clamp of std": config("full", scale="std", clamp=(0.5, 1.5)),
    "soft clamp": config(scale="logstd", soft_clamp=1.5),
    "soft clamp with prior": config("shared", scale="logstd", soft_clamp=5.0),
    "residual": config("full", scale="logstd", residual=True),
    "residual to a shared prior": config("shared", residual=True),
    "residual with clamp": config("full", residual=True, clamp=(-1.0, 1.0)),
    "residual with soft clamp": config("full", scale="logstd", residual=True, soft_clamp=5.0),
}
DRAWS = {
    "one draw": config(num_samples=1),
    "draws": config(num_samples=3),
    "draws with prior": config("full", num_samples=2),
    "draws with a shared prior": config("shared", num_samples=3, scale="std"),
    "draws with one prior": config("one", num_samples=2, temperature=0.5),
    "temperature": config(temperature=0.5),
    "draws of a residual": config("full", num_samples=2, scale="logstd", residual=True, soft_clamp=5.0),
}
EVERYTHING = PRIORS | PARAMETERISATIONS | DRAWS


def draw_inputs(shape, dtype, config):
    """mu, scale and, if there is one, the prior's two: CPU tensors, leaves."""
    arguments = dict(config.arguments)
    shapes = [shape, shape]
    if config.prior:
        shapes += [{"full": shape, "shared": (1, *shape[1:]), "one": (1,) * len(shape)}[kind] for kind in config.prior]
    positive = arguments.get("scale") in ("std", "var")
    tensors = []
    for index, size in enumerate(shapes):
        values = torch.randn(size, dtype=torch.float64)
        if index % 2:
            values = torch.exp(0.5 * values) if positive else values
        tensors.append(values.to(dtype).requires_grad_())
    return tensors


def std_of(raw, scale="logvar", floor=0.0, clamp=None, soft_clamp=None):
    if clamp is not None:
        raw = raw.clamp(*clamp)
    if soft_clamp is not None:
        raw = soft_clamp * torch.tanh(raw / soft_clamp)
    return {
        "logvar": lambda: torch.exp(0.5 * raw),
        "logstd": lambda: torch.exp(raw),
        "std": lambda: raw,
        "var": lambda: torch.sqrt(raw),
        "softplus": lambda: F.softplus(raw) + floor,
    }[scale]()


def expected(inputs, eps, reduction, num_samples=None, temperature=1.0, residual=False, **parameterisation):
    """z, kl, kl per coordinate, log q and log p by torch.distributions, for eps of shape (draws, *mu.shape)."""
    mu, raw, *prior = inputs
    if residual:
        mu, raw = mu + prior[0], raw + prior[1]
    posterior = Normal(mu, std_of(raw, **parameterisation), validate_args=False)
    if prior:
        against = Normal(prior[0], std_of(prior[1], **parameterisation), validate_args=False)
    else:
        against = Normal(torch.zeros_like(mu), torch.ones_like(mu), validate_args=False)
    kl = kl_divergence(posterior, against)
    z = mu + temperature * posterior.stddev * eps
    log_q, log_p = (
        one.log_prob(z).float() if z.dtype != torch.float64 else one.log_prob(z) for one in (posterior, against)
    )
    log_q, log_p = (one.reshape(*one.shape[:2], -1).sum(2) for one in (log_q, log_p))
    if num_samples is None:
        z, log_q, log_p = z[0], log_q[0], log_p[0]
    kl = kl if kl.dtype == torch.float64 else kl.float()
    return z, reduce(kl, reduction), kl.mean(0), log_q, log_p


def noise_of(shape, config, dtype, device):
    """The backend's own: that it is right is for `test_noise` to say."""
    draws = dict(config.arguments).get("num_samples") or 1
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    eps = [fastvae.noise(SEED, shape, draw=k, dtype=compute, device=device) for k in range(draws)]
    return torch.stack(eps).cpu().double()


def check(backend, device, dtype, shape, config, reduction="sample", names=("z", "kl", "log_q", "log_p")):
    """Values and gradients of the ops, under random gradients that come in, against float64."""
    arguments = dict(config.arguments)
    eager_inputs = draw_inputs(shape, dtype, config)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in eager_inputs]
    inputs = [tensor.detach().to(device).requires_grad_() for tensor in eager_inputs]
    eps = noise_of(shape, config, dtype, device)
    exact = expected(exact_inputs, eps, reduction, **arguments)
    eager = exact if dtype == torch.float64 else expected(eager_inputs, eps.to(dtype), reduction, **arguments)
    z, kl, kl_mean = fastvae.sample_and_kl(*inputs, seed=SEED, reduction=reduction, per_coordinate=True, **arguments)
    same_z, log_q, log_p = fastvae.sample_and_log_prob(*inputs, seed=SEED, **arguments)
    assert torch.equal(z, same_z)
    single = torch.float64 if dtype == torch.float64 else torch.float32
    floors = {
        name: FLOOR[kind] * (2 if interpreter_truncates(backend, kind) else 1)
        for name, kind in (("z", dtype), ("kl", single))
    }
    compared = {
        "z": (z, exact[0], eager[0], dtype, floors["z"]),
        "kl": (kl, exact[1], eager[1], single, floors["kl"]),
        "kl_mean": (kl_mean, exact[2], eager[2], single, floors["kl"]),
        "log_q": (log_q, exact[3], eager[3], single, floors["kl"]),
        "log_p": (log_p, exact[4], eager[4], single, floors["kl"]),
    }
    for name, (got, right, rough, kind, floor) in compared.items():
        assert got.dtype == kind, name
        assert_no_worse_than_eager(got.detach().cpu(), right, rough, floor)
    assert not kl_mean.requires_grad
    for chosen in (names[:2], (names[0], *names[2:])):
        grads = [torch.randn(compared[name][1].shape).to(compared[name][3]) for name in chosen]
        got = torch.autograd.grad(
            [compared[name][0] for name in chosen], inputs, [g.to(device) for g in grads], retain_graph=True
        )
        right = torch.autograd.grad(
            [compared[name][1] for name in chosen], exact_inputs, [g.double() for g in grads], retain_graph=True
        )
        rough = right
        if dtype != torch.float64:
            outputs = [compared[name][2] for name in chosen]
            rough = torch.autograd.grad(outputs, eager_inputs, grads, retain_graph=True)
        for name, one, exact_grad, eager_grad in zip(
            ("mu", "logvar", "prior_mu", "prior_logvar"), got, right, rough, strict=False
        ):
            assert one.dtype == dtype, name
            assert_no_worse_than_eager(one.cpu(), exact_grad, eager_grad, floors["z"])


def shapes_for(backend, name):
    """Both; in the interpreter, which is slow, by turns: to the kernels they are rows of one length or another."""
    place = list(EVERYTHING).index(name) % 2
    return SHAPES[place : place + 1] if backend == "triton" else SHAPES


@pytest.mark.parametrize("name", EVERYTHING)
def test_values_and_gradients_match_torch_distributions(backend, device, poisoned_memory, name):
    for shape in shapes_for(backend, name):
        check(backend, device, torch.float32, shape, EVERYTHING[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["full prior", "shared prior", "one variance", "std with prior", "residual", "draws"])
def test_half_precision_matches_float64(backend, device, poisoned_memory, name, dtype):
    for shape in shapes_for(backend, name):
        check(backend, device, dtype, shape, EVERYTHING[name])


@pytest.mark.parametrize("name", EVERYTHING)
def test_float64_is_computed_in_float64(poisoned_memory, name):
    with fastvae.use_backend("reference"):
        for shape in SHAPES:
            check("reference", torch.device("cpu"), torch.float64, shape, EVERYTHING[name])


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
@pytest.mark.parametrize("name", ["full prior", "shared prior", "std", "draws with prior"])
def test_every_reduction_matches(backend, device, poisoned_memory, name, reduction):
    check(backend, device, torch.float32, (5, 2, 3, 2), EVERYTHING[name], reduction)


@pytest.mark.parametrize(
    "shape", [(5,), (7, 1), (33, 2), (3, 31), (35, 33), (2, 1024), (3, 1029), (2, 2, 3, 2, 3)], ids=str
)
@pytest.mark.parametrize("name", ["shared prior", "draws with prior"])
def test_every_rank_and_remainder_is_right(backend, device, poisoned_memory, shape, name):
    if backend == "triton" and name == "draws with prior" and shape not in ((5,), (33, 2), (2, 1024)):
        pytest.skip("long in the interpreter; the other case has this shape")
    check(backend, device, torch.float32, shape, EVERYTHING[name])
