"""The hierarchical VAE: bound and weights in plain PyTorch, level by level, noise, shaping, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastvae
from fastvae.likelihoods import Bernoulli
from fastvae.nn import HierarchicalVAE, Level, MLPDecoder, MLPEncoder

SHAPE, DIMS, BATCH = (1, 4, 5), (3, 4, 6), 7
OPTIONS = {
    "residual": {},
    "plain": {"residual": False},
    "residual logstd, soft clamp": {"scale": "logstd", "soft_clamp": 0.7},
    "plain std of softplus": {"residual": False, "scale": "softplus"},
}


@pytest.fixture(params=list(OPTIONS))
def options(request):
    return OPTIONS[request.param]


def _vae(seed: int = 0, dims: tuple[int, ...] = DIMS, **options) -> HierarchicalVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HierarchicalVAE.of_mlps(SHAPE, 16, dims, Bernoulli(), **options)


def _x(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1)).round().to(dtype)


# The model in plain PyTorch


def _std(vae: HierarchicalVAE, raw: torch.Tensor) -> torch.Tensor:
    if vae.soft_clamp is not None:
        raw = vae.soft_clamp * torch.tanh(raw / vae.soft_clamp)
    if vae.scale == "softplus":
        return nn.functional.softplus(raw)
    return torch.exp(raw if vae.scale == "logstd" else 0.5 * raw)


def _features(vae: HierarchicalVAE, x: torch.Tensor) -> list[torch.Tensor]:
    features = [x]
    for module in vae.bottom_up:
        features.append(module(features[-1]))
    return features[:0:-1]


def _level(vae: HierarchicalVAE, index: int, features: torch.Tensor, state: torch.Tensor | None):
    """Posterior and prior of a level."""
    level = vae.levels[index]
    if state is None:
        mu, raw = level.posterior(features)
        return torch.distributions.Normal(mu, _std(vae, raw)), torch.distributions.Normal(
            torch.zeros_like(mu), torch.ones_like(mu)
        )
    (mu, raw), (prior_mu, prior_raw) = level.posterior(features, state), level.prior(state)
    if vae.residual:
        mu, raw = mu + prior_mu, raw + prior_raw
    return torch.distributions.Normal(mu, _std(vae, raw)), torch.distributions.Normal(prior_mu, _std(vae, prior_raw))


def _merge(vae: HierarchicalVAE, index: int, z: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
    return vae.levels[index].merge(z) if state is None else vae.levels[index].merge(z, state)


def _seed_of(seed: int, level: int) -> int:
    return (seed + level * 0x9E3779B97F4A7C15) % 2**64


def _log_likelihood(vae: HierarchicalVAE, state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Bernoulli(logits=vae.decoder(state)).log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize("seed", [3, 2**64 - 1])
def test_the_bound_is_the_one_that_torch_distributions_computes(options, seed):
    vae, x = _vae(**options).double(), _x(torch.float64)
    bound = vae.elbo(x, seed=seed)
    state, kls = None, []
    for index, features in enumerate(_features(vae, x)):
        posterior, prior = _level(vae, index, features, state)
        kls.append(torch.distributions.kl_divergence(posterior, prior).sum(1))
        eps = fastvae.noise(_seed_of(seed, index), posterior.loc.shape, dtype=torch.float64)
        state = _merge(vae, index, posterior.loc + posterior.scale * eps, state)
    reconstruction = _log_likelihood(vae, state, x)
    torch.testing.assert_close(bound.kl, sum(kls))
    torch.testing.assert_close(vae(x, seed=seed).kl_per_level, tuple(kls))
    torch.testing.assert_close(bound.reconstruction, reconstruction)
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(bound.elbo.mean(), parameters),
        torch.autograd.grad((reconstruction - sum(kls)).mean(), parameters),
    )


def test_log_weights_are_those_that_torch_distributions_computes(options):
    vae, x, draws, row_offset = _vae(**options).double(), _x(torch.float64), 3, 5
    came = vae.log_weights(x, draws, seed=3, row_offset=row_offset)
    state, log_weights = None, torch.zeros(BATCH * draws, dtype=torch.float64)
    for index, features in enumerate(_features(vae, x)):
        # Draw k of row b is row b K + k: at the top one of K draws for each row, below a row of its own.
        posterior, prior = _level(vae, index, features.repeat_interleave(draws, 0), state)
        seed, shape = _seed_of(3, index), (BATCH, DIMS[index])
        if state is None:
            each = [
                fastvae.noise(seed, shape, row_offset=row_offset, draw=k, dtype=torch.float64) for k in range(draws)
            ]
            eps = torch.stack(each, 1).flatten(0, 1)
        else:
            eps = fastvae.noise(seed, posterior.loc.shape, row_offset=row_offset * draws, dtype=torch.float64)
        z = posterior.loc + posterior.scale * eps
        torch.testing.assert_close(came.z[index], z.view(BATCH, draws, -1).transpose(0, 1))
        log_weights = log_weights + (prior.log_prob(z) - posterior.log_prob(z)).sum(1)
        state = _merge(vae, index, z, state)
    log_weights = log_weights + _log_likelihood(vae, state, x.repeat_interleave(draws, 0))
    expected = log_weights.view(BATCH, draws).T
    torch.testing.assert_close(came.log_weights, expected)
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(came.log_weights.logsumexp(0).mean(), parameters),
        torch.autograd.grad(expected.logsumexp(0).mean(), parameters),
    )


def test_generate_goes_down_the_priors(options):
    vae = _vae(**options)
    state = None
    for index, dim in enumerate(DIMS):
        eps = fastvae.noise(_seed_of(4, index), (5, dim))
        if state is None:
            z = eps
        else:
            mu, raw = vae.levels[index].prior(state)
            z = mu + _std(vae, raw) * eps
        state = _merge(vae, index, z, state)
    torch.testing.assert_close(vae.generate(5, seed=4), torch.sigmoid(vae.decoder(state)))
    images = torch.distributions.Bernoulli(logits=vae.decoder(state).unsqueeze(1))
    expected = images.log_prob(_x()).flatten(2).sum(2)
    torch.testing.assert_close(vae.log_likelihood_under_prior(_x(), 5, seed=4), expected)


def test_encode_and_reconstruct_follow_the_means(options):
    vae, x = _vae(**options), _x()
    state, posteriors = None, []
    for index, features in enumerate(_features(vae, x)):
        posterior, _ = _level(vae, index, features, state)
        posteriors.append((posterior.loc, 2.0 * posterior.scale.log()))
        state = _merge(vae, index, posterior.loc, state)
    for came, expected in zip(vae.encode(x), posteriors, strict=True):
        torch.testing.assert_close(tuple(came), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.reconstruct(x), torch.sigmoid(vae.decoder(state)))
    torch.testing.assert_close(vae.decode([mu for mu, _ in posteriors]), vae.reconstruct(x))


# What makes it hierarchical


def test_a_residual_of_zero_is_the_prior():
    """NVAE's reason for residuals: a posterior that adds nothing costs nothing."""
    vae = _vae()
    for level in vae.levels[1:]:
        for tensor in (level.posterior.layers[-1].weight, level.posterior.layers[-1].bias):
            nn.init.zeros_(tensor)
    kls = vae(_x(), seed=0).kl_per_level
    assert (kls[0] > 0).all()
    assert all(torch.equal(kl, torch.zeros(BATCH)) for kl in kls[1:])


def test_a_level_depends_on_the_draws_above_it():
    vae, x = _vae(), _x()
    weights = vae.log_weights(x, 2, seed=0)
    features = _features(vae, x)
    for k in range(2):
        state = _merge(vae, 0, weights.z[0][k], None)
        posterior, _ = _level(vae, 1, features[1], state)
        eps = (weights.z[1][k] - posterior.loc) / posterior.scale
        rows = fastvae.noise(_seed_of(0, 1), (BATCH * 2, DIMS[1])).view(BATCH, 2, -1)
        torch.testing.assert_close(eps, rows[:, k], rtol=1e-3, atol=1e-3)


def test_each_level_has_its_own_noise_stream():
    vae = _vae(dims=(4, 4, 4), residual=False)
    for level in vae.levels:
        for module in (level.posterior, level.prior):
            for parameter in () if module is None else module.layers[-1].parameters():
                nn.init.zeros_(parameter)  # mu = 0, logvar = 0: z is the noise
    first, second, third = vae(_x(), seed=0).z
    assert torch.equal(first, fastvae.noise(0, (BATCH, 4)))
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(second, third).any()


def test_a_model_of_one_level_is_a_vae():
    hierarchical, x = _vae(dims=(4,)), _x()
    top = hierarchical.levels[0]
    encoder = nn.Sequential(*hierarchical.bottom_up, top.posterior)
    vae = fastvae.nn.VAE(encoder, nn.Sequential(top.merge, hierarchical.decoder), Bernoulli(), latent_shape=4)
    assert torch.equal(hierarchical.elbo(x, seed=3).elbo, vae.elbo(x, seed=3).elbo)
    torch.testing.assert_close(hierarchical.log_weights(x, 3, seed=3), vae.log_weights(x, 3, seed=3))
    torch.testing.assert_close(hierarchical.generate(2, seed=3), vae.generate(2, seed=3))


def test_training_raises_the_bound_and_uses_the_latents():
    vae = _vae()
    x = torch.ones(64, *SHAPE) * (torch.arange(64) % 2).view(-1, 1, 1, 1)  # all paper or all ink: one bit to learn
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        (-vae.elbo(x, seed=step).elbo.mean()).backward()
        optimizer.step()
    bound = vae.elbo(x, seed=0)
    assert bound.elbo.mean() > -5  # 14 without latents
    assert bound.kl.mean() > 0.5


# Shaping


@pytest.mark.parametrize(
    ("group", "over", "priced"),
    [
        ("latent", "sample", lambda kls, each: sum(kl.clamp_min(1.0).mean() for kl in kls)),
        ("latent", "batch", lambda kls, each: sum(kl.mean().clamp_min(1.0) for kl in kls)),
        ("coordinate", "batch", lambda kls, each: sum(kl.clamp_min(1.0).sum() for kl in each)),
    ],
)
def test_free_bits_hold_for_each_level(group, over, priced):
    vae, x = _vae(), _x()
    with torch.no_grad():
        for level in vae.levels:
            level.posterior.layers[-1].bias.normal_()
    raw = vae.terms(x, seed=0, per_coordinate=True)
    came = vae.terms(x, seed=0, per_coordinate=True, free_bits=1.0, free_bits_group=group, free_bits_over=over)
    torch.testing.assert_close(came.kl, priced(vae(x, seed=0).kl_per_level, raw.kl_per_latent))
    assert came.kl > raw.kl + 0.01
    torch.testing.assert_close(came.kl_per_latent, raw.kl_per_latent)


def test_a_level_within_its_free_bits_has_no_gradient_from_the_kl():
    vae, x = _vae(), _x()
    vae.terms(x, seed=0, free_bits=100.0, free_bits_group="latent").kl.backward()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in vae.parameters())


@pytest.mark.parametrize("reduction", ["sample", "sum", "batchmean"])
def test_beta_and_capacity_are_for_the_sum_of_the_levels(reduction):
    vae, x = _vae(), _x()
    kl = vae.terms(x, seed=0, reduction=reduction).kl
    came = vae.terms(x, seed=0, reduction=reduction, beta=2.0, capacity=1.5).kl
    torch.testing.assert_close(came, 2.0 * (kl - 1.5).abs())


# Levels of one's own


class _Beside(nn.Module):
    """A convolution of its inputs side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, *images: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat(images, 1))


def _images(**options) -> HierarchicalVAE:
    """Latents with positions: 2 channels of 2x2 at the top, 3 of 4x4 below."""
    top = Level(
        _Beside(8, 4),
        nn.Sequential(nn.ConvTranspose2d(2, 5, 4, stride=2, padding=1), nn.ReLU()),
        latent_shape=(2, 2, 2),
    )
    below = Level(_Beside(6 + 5, 6), _Beside(3 + 5, 5), _Beside(5, 6), latent_shape=(3, 4, 4))
    bottom_up = [nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)]
    return HierarchicalVAE(
        bottom_up, [top, below], nn.ConvTranspose2d(5, 1, 4, stride=2, padding=1), Bernoulli(), **options
    )


@pytest.mark.parametrize("residual", [True, False])
def test_levels_may_be_spatial(residual):
    vae = _images(residual=residual)
    x = torch.rand(BATCH, 1, 8, 8).round()
    output = vae(x, seed=0)
    assert [z.shape for z in output.z] == [(BATCH, 2, 2, 2), (BATCH, 3, 4, 4)]
    whole = vae.log_weights(x, 3, seed=0)
    assert [z.shape for z in whole.z] == [(3, BATCH, 2, 2, 2), (3, BATCH, 3, 4, 4)]
    part = vae.log_weights(x[2:], 3, seed=0, row_offset=2)
    torch.testing.assert_close(part.log_weights, whole.log_weights[:, 2:])
    assert vae.generate(2).shape == (2, 1, 8, 8)
    vae.elbo(x).elbo.mean().backward()
    assert all(parameter.grad.any() for parameter in vae.parameters())


# What it refuses


def _level_of(prior: bool) -> Level:
    return Level(MLPEncoder(4, 8, 2), MLPDecoder(2, 8, 4), MLPEncoder(4, 8, 2) if prior else None)


def _of(levels: list, bottom_up: int | None = None, **options) -> HierarchicalVAE:
    up = [nn.Linear(4, 4) for _ in range(len(levels) if bottom_up is None else bottom_up)]
    return HierarchicalVAE(up, levels, nn.Linear(4, 4), Bernoulli(), **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: _of([]), ValueError, "bottom_up has 0 modules, levels has 0; expected one for each level, 1 or more"),
        (lambda: _of([_level_of(False)], 2), ValueError, "bottom_up has 2 modules, levels has 1; expected one for"),
        (lambda: _of([nn.Linear(4, 4)]), TypeError, r"levels\[0\] is a Linear, expected a Level"),
        (lambda: _of([_level_of(True)]), ValueError, r"levels\[0\]\.prior is MLPEncoder, expected None: the top level"),
        (
            lambda: _of([_level_of(False), _level_of(False)]),
            ValueError,
            r"levels\[1\]\.prior is None, expected a module: only the top level has none",
        ),
        (lambda: _of([_level_of(False)], scale="std"), ValueError, "residual is True with scale 'std', expected"),
        (lambda: _of([_level_of(False)], soft_clamp=0.0), ValueError, r"soft_clamp is 0\.0, expected more than 0"),
        (lambda: Level(MLPEncoder(4, 8, 2), torch.relu), TypeError, r"merge is a \w+, expected a torch\.nn\.Module"),
        (lambda: Level(None, nn.Identity()), TypeError, r"posterior is a NoneType, expected a torch\.nn\.Module"),
        (lambda: _vae(dims=()), ValueError, r"latent_dims is \(\), expected at least one size"),
        (lambda: _vae(dims=(3, 0)), ValueError, r"latent_dims\[1\] is 0, expected a positive int"),
        (lambda: HierarchicalVAE.of_mlps(4, (8, 8), (2, 2), Bernoulli()), TypeError, r"hidden is \(8, 8\), expected a"),
    ],
)
def test_invalid_constructor_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_dreg_is_refused_with_its_reason():
    with pytest.raises(
        ValueError, match=r"hold_posterior is True, expected False: .* supports one level of latents only"
    ):
        _vae().log_weights(_x(), 2, hold_posterior=True)


def test_an_unreduced_kl_is_refused():
    with pytest.raises(ValueError, match=r"reduction is 'none', expected .*: levels differ in shape"):
        _vae().terms(_x(), reduction="none")


def test_decode_names_an_invalid_z():
    with pytest.raises(TypeError, match="z is a Tensor, expected 3 tensors, one for each level"):
        _vae().decode(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="z is 2 tensors, expected 3 tensors"):
        _vae().decode((torch.zeros(2, 3), torch.zeros(2, 4)))
    with pytest.raises(ValueError, match=r"z has shape \(2, 3\), expected \(batch, 4\)"):
        _vae().decode((torch.zeros(2, 3),) * 3)


def test_data_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \(2, 20\), expected \(batch, 1, 4, 5\)"):
        _vae().elbo(torch.zeros(2, 20))


def test_generate_needs_a_known_shape_at_the_top():
    vae = _images()
    vae.levels[0].latent_shape = None
    with pytest.raises(RuntimeError, match="the shape of the top level's z is unknown"):
        vae.generate(2)
