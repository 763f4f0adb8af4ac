"""The latent ops under torch.func and forward-mode differentiation: what single calls and autograd give."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import fastvae
from fastvae import ops
from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.objectives import IWAE

TO_ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def with_prior(mu, logvar):
    z, kl, each = fastvae.sample_and_kl(
        mu, logvar, 0.5 * mu.detach()[0], logvar.detach().tanh(), seed=3, num_samples=2, temperature=0.7,
        free_bits=0.1, clamp=(-1.0, 1.0), per_coordinate=True,
    )  # fmt: skip
    return z.square().sum() + kl.sin().sum() + each.sum()


def of_both(mu, logvar):
    z, kl = fastvae.sample_and_kl(mu, logvar, seed=3)
    return z.sin().sum() + kl.sin().sum()


def of_log_probs(mu, logvar):
    z, log_q, log_p = fastvae.sample_and_log_prob(mu, logvar, mu.tanh(), logvar.sin(), seed=3, num_samples=3)
    return z.sin().sum() + (log_p - log_q).logsumexp(0).sum()


def of_moments(mu, logvar):
    z, kl = fastvae.sample_and_kl_packed(
        torch.cat((mu, logvar), 1), seed=3, free_bits=0.5, free_bits_over="batch", reduction="batchmean"
    )
    return z.sin().sum() + kl


LOSSES = {
    "z and KL": of_both,
    "z": lambda mu, logvar: fastvae.reparameterize(mu, logvar, seed=3).sin().sum(),
    "KL": lambda mu, logvar: fastvae.gaussian_kl(mu, logvar, mu.sin(), mu.cos(), residual=True).sin().sum(),
    "prior, draws and free bits": with_prior,
    "log probabilities": of_log_probs,
    "moments": of_moments,
    "distribution": lambda mu, logvar: fastvae.DiagonalGaussian(mu, logvar).rsample((2,), seed=3).sin().sum(),
}


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def parameters(*shape, device="cpu", dtype=torch.float32):
    return [torch.randn(shape, device=device, dtype=dtype) for _ in range(2)]


def gradients(loss, *inputs, **keywords):
    leaves = [one.detach().requires_grad_() for one in inputs]
    return torch.autograd.grad(loss(*leaves), leaves, **keywords)


def test_grad_is_the_gradient_of_autograd(loss):
    inputs = parameters(3, 4)
    torch.testing.assert_close(grad(loss, (0, 1))(*inputs), gradients(loss, *inputs), **TO_ROUNDING)


def test_every_backend_runs_under_grad_and_jvp(backend, device):
    inputs = parameters(3, 4, device=device)
    expected = gradients(of_both, *inputs)
    torch.testing.assert_close(grad(of_both, (0, 1))(*inputs), expected, **TO_ROUNDING)
    slope = jvp(of_both, tuple(inputs), tuple(map(torch.ones_like, inputs)))[1]
    torch.testing.assert_close(slope, sum(one.sum() for one in expected), **TO_ROUNDING)


def test_under_grad_and_vjp_the_kernels_run(monkeypatch):
    ran = []
    for name in ("latent", "latent_backward"):
        run = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *given, name=name, run=run: ran.append(name) or run(*given))
    inputs = parameters(3, 4)
    grad(of_both)(*inputs)
    assert ran == ["latent", "latent_backward"]
    value, backward = vjp(of_both, *inputs)
    backward(torch.ones_like(value))
    assert ran == ["latent", "latent_backward"] * 2


def test_gradients_of_gradients(loss):
    inputs = parameters(2, 3, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(loss, tuple(inputs))
    for nested in (hessian, lambda f, argnums: jacrev(jacrev(f, argnums), argnums)):
        torch.testing.assert_close(nested(loss, (0, 1))(*inputs), expected)
    along = [torch.randn_like(one) for one in inputs]

    def slope(*at):
        return sum((one * other).sum() for one, other in zip(grad(loss, (0, 1))(*at), along, strict=True))

    products = torch.autograd.functional.hvp(loss, tuple(inputs), tuple(along))[1]
    leaf = inputs[0].clone().requires_grad_()
    torch.testing.assert_close(grad(slope, (0, 1))(*inputs), products)  # by the kernels' gradients
    torch.testing.assert_close(torch.autograd.grad(slope(leaf, inputs[1]), leaf)[0], products[0])
    value, backward = vjp(loss, leaf, inputs[1])
    of_vjp = sum((one * other).sum() for one, other in zip(backward(torch.ones_like(value)), along, strict=True))
    torch.testing.assert_close(torch.autograd.grad(of_vjp, leaf)[0], products[0])


def test_a_gradient_of_every_sample(loss):
    inputs = parameters(5, 1, 4)
    came = vmap(grad(loss, (0, 1)))(*inputs)
    one_by_one = [gradients(loss, *rows) for rows in zip(*inputs, strict=True)]
    torch.testing.assert_close(came, tuple(map(torch.stack, zip(*one_by_one, strict=True))), **TO_ROUNDING)


def test_vmap_of_values_is_each_value_and_has_their_gradients(loss):
    inputs = [one.requires_grad_() for one in parameters(5, 2, 4)]
    came = vmap(loss)(*inputs)
    expected = torch.stack([loss(*rows) for rows in zip(*inputs, strict=True)])
    torch.testing.assert_close(came, expected, **TO_ROUNDING)
    one, other = (torch.autograd.grad(values.sum(), inputs) for values in (came, expected))
    torch.testing.assert_close(one, other, **TO_ROUNDING)


def test_vmap_over_other_dimensions_and_over_one_of_the_inputs():
    mu, logvar = torch.randn(3, 6, 4), torch.randn(3, 4)
    came = vmap(lambda mu, logvar: fastvae.sample_and_kl(mu, logvar, seed=2), (1, None), (2, 0))(mu, logvar)
    each = [fastvae.sample_and_kl(mu[:, i], logvar, seed=2) for i in range(6)]
    torch.testing.assert_close(came[0], torch.stack([z for z, _ in each], 2), **TO_ROUNDING)
    torch.testing.assert_close(came[1], torch.stack([kl for _, kl in each]), **TO_ROUNDING)


def test_jacobians_are_those_of_autograd(loss):
    inputs = parameters(2, 3, dtype=torch.float64)

    def rows(mu, logvar):
        return torch.stack([loss(mu, logvar), loss(2 * mu, logvar)])

    expected = torch.autograd.functional.jacobian(rows, tuple(inputs))
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(jacobian(rows, (0, 1))(*inputs), expected)


# Randomness


def draws(seed=None):
    return lambda mu: fastvae.reparameterize(mu, torch.zeros_like(mu), seed=seed)


def test_with_randomness_error_a_draw_is_an_error_and_a_given_seed_is_none():
    mu = torch.zeros(3, 2, 5)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draws())(mu)
    z = vmap(draws(7))(mu)
    torch.testing.assert_close(z, fastvae.noise(7, (2, 5)).expand(3, 2, 5), **TO_ROUNDING)


def test_with_randomness_same_all_share_one_noise():
    torch.manual_seed(5)
    z = vmap(draws(), randomness="same")(torch.zeros(3, 2, 5))
    torch.manual_seed(5)
    torch.testing.assert_close(z, draws()(torch.zeros(2, 5)).expand(3, 2, 5), **TO_ROUNDING)


def test_with_randomness_different_each_has_its_own_noise():
    torch.manual_seed(5)
    z = vmap(draws(), randomness="different")(torch.zeros(3, 2, 5))
    assert len(z.unique()) == z.numel()
    torch.manual_seed(5)
    assert torch.equal(z, vmap(draws(), randomness="different")(torch.zeros(3, 2, 5)))


def test_a_batch_of_seeds_draws_what_each_seed_draws():
    mu, seeds = torch.randn(4, 2, 5), torch.tensor([3, -1, 2**62, 0])
    came = vmap(lambda mu, seed: draws(seed)(mu))(mu, seeds)
    torch.testing.assert_close(came, torch.stack([draws(int(seed))(one) for one, seed in zip(mu, seeds, strict=True)]))
    nested = vmap(vmap(lambda seed: fastvae.noise(seed, (2, 3), row_offset=1)))(seeds.reshape(2, 2).t())
    assert torch.equal(nested[1, 0], fastvae.noise(-1, (2, 3), row_offset=1))


# Forward mode


@pytest.mark.parametrize("name", ["z and KL", "KL", "log probabilities", "moments"])
def test_forward_mode_passes_finite_differences(name):
    inputs = [one.requires_grad_() for one in parameters(2, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(LOSSES[name], inputs, check_forward_ad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(LOSSES[name], inputs, check_fwd_over_rev=True)


def test_jvp_is_the_gradient_along_the_tangent(loss):
    inputs, tangents = parameters(3, 4), parameters(3, 4)
    along = sum((g * t).sum() for g, t in zip(gradients(loss, *inputs), tangents, strict=True))
    value, slope = jvp(loss, tuple(inputs), tuple(tangents))
    torch.testing.assert_close((value, slope), (loss(*inputs), along), **TO_ROUNDING)


def test_a_dual_number_that_only_one_input_has():
    mu, logvar = parameters(3, 4)
    with forward_ad.dual_level():
        z = fastvae.reparameterize(forward_ad.make_dual(mu, torch.ones_like(mu)), logvar, seed=3)
        assert torch.equal(forward_ad.unpack_dual(z).tangent, torch.ones_like(mu))


def test_the_tangent_of_a_gradient_goes_through_a_backward_that_is_not_recorded():
    mu, logvar = (one.requires_grad_() for one in parameters(3, 4))
    z = fastvae.sample_and_kl(mu, logvar, seed=3)[0]
    direction, tangent = torch.randn(2, 3, 4)
    with forward_ad.dual_level():
        came = torch.autograd.grad(z, logvar, forward_ad.make_dual(direction, tangent), retain_graph=True)[0]
        got = forward_ad.unpack_dual(came)
    expected = [torch.autograd.grad(z, logvar, one, retain_graph=True)[0] for one in (direction, tangent)]
    torch.testing.assert_close((got.primal, got.tangent), tuple(expected), **TO_ROUNDING)


# Models


@pytest.fixture
def vae():
    return VAE(MLPEncoder(6, 8, 3), MLPDecoder(3, 8, 6), Bernoulli())


@pytest.mark.parametrize(
    "bound",
    [
        lambda vae, x: -vae.elbo(x, seed=1).elbo.mean(),
        lambda vae, x: IWAE(4)(vae, x, seed=1).loss,
        lambda vae, x: IWAE(4, gradient="dreg")(vae, x, seed=1).loss,
    ],
)
def test_gradients_of_a_model_by_functional_call(vae, bound):
    x = torch.rand(5, 6).round()
    weights = dict(vae.named_parameters())

    def of_weights(weights, x):
        return functional_call(_Bound(vae, bound), {f"vae.{name}": weight for name, weight in weights.items()}, x)

    came = grad(of_weights)({name: weight.detach() for name, weight in weights.items()}, x)
    expected = dict(zip(weights, torch.autograd.grad(bound(vae, x), weights.values()), strict=True))
    torch.testing.assert_close(came, expected, **TO_ROUNDING)


class _Bound(torch.nn.Module):
    def __init__(self, vae, bound):
        super().__init__()
        self.vae, self.bound = vae, bound

    def forward(self, x):
        return self.bound(self.vae, x)


def test_gradients_of_a_model_for_every_sample(vae):
    x = torch.rand(5, 6).round()
    weights = {name: weight.detach() for name, weight in vae.named_parameters()}

    def loss(weights, row):
        output = functional_call(vae, weights, (row.unsqueeze(0),), {"seed": 1})
        return (output.kl - vae.likelihood.log_prob(output.parameters, row.unsqueeze(0))).sum()

    came = vmap(grad(loss), (None, 0))(weights, x)
    for i, row in enumerate(x):
        torch.testing.assert_close({name: each[i] for name, each in came.items()}, grad(loss)(weights, row))


def test_an_ensemble_of_models():
    models = [VAE(MLPEncoder(6, 8, 3), MLPDecoder(3, 8, 6), Bernoulli()) for _ in range(3)]
    weights, buffers = stack_module_state(models)
    x = torch.rand(5, 6)
    came = vmap(lambda w, b: functional_call(models[0], (w, b), (x,), {"seed": 1}).parameters)(weights, buffers)
    expected = torch.stack([model(x, seed=1).parameters for model in models])
    torch.testing.assert_close(came, expected, **TO_ROUNDING)


@pytest.mark.parametrize("transformed", [lambda loss: grad(loss, (0, 1)), lambda loss: vmap(grad(loss, (0, 1)))])
def test_transforms_inside_of_compiled_code(transformed):
    inputs = parameters(4, 1, 5)
    function = transformed(of_both)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(*inputs), **TO_ROUNDING)
