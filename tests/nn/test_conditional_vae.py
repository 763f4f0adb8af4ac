"""The conditional VAE: its bound in plain PyTorch, classes and vectors, the conditional prior, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastvae
from fastvae.likelihoods import Bernoulli
from fastvae.nn import ConditionalVAE, MLPDecoder, MLPEncoder
from fastvae.objectives import IWAE
from fastvae.priors import LearnedGaussian, VampPrior

SHAPE, CLASSES, LATENT, BATCH = (1, 4, 5), 3, 6, 8
LABELS = torch.arange(BATCH) % CLASSES


def _vae(prior: nn.Module | None = None, num_classes: int | None = CLASSES) -> ConditionalVAE:
    return ConditionalVAE(
        MLPEncoder(SHAPE, 16, LATENT, condition_dim=CLASSES),
        MLPDecoder(LATENT, 16, SHAPE, condition_dim=CLASSES),
        Bernoulli(),
        num_classes=num_classes,
        prior=prior,
    )


def _conditional_prior() -> nn.Module:
    return MLPEncoder(CLASSES, 8, LATENT)


def _x(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1)).round().to(dtype)


def _normal(mu: torch.Tensor, logvar: torch.Tensor) -> torch.distributions.Normal:
    return torch.distributions.Normal(mu, torch.exp(0.5 * logvar))


def _prior_of(vae: ConditionalVAE, condition: torch.Tensor) -> torch.distributions.Normal:
    if isinstance(vae.prior, MLPEncoder):
        return _normal(*vae.prior(condition))
    return torch.distributions.Normal(torch.zeros(len(condition), LATENT).to(condition), 1.0)


def _log_likelihood(vae: ConditionalVAE, z: torch.Tensor, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Bernoulli(logits=vae.decoder(z, condition)).log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize("prior", [lambda: None, _conditional_prior], ids=["N(0, I)", "conditional"])
def test_the_bound_is_the_one_that_torch_distributions_computes(prior):
    vae, x = _vae(prior()).double(), _x(torch.float64)
    bound = vae.elbo(x, condition=LABELS, seed=3)
    condition = F.one_hot(LABELS, CLASSES).double()
    posterior = _normal(*vae.encoder(x, condition))
    z = posterior.loc + posterior.scale * fastvae.noise(3, posterior.loc.shape, dtype=torch.float64)
    kl = torch.distributions.kl_divergence(posterior, _prior_of(vae, condition)).sum(1)
    reconstruction = _log_likelihood(vae, z, x, condition)
    torch.testing.assert_close(bound.kl, kl)
    torch.testing.assert_close(bound.reconstruction, reconstruction)
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(bound.elbo.mean(), parameters),
        torch.autograd.grad((reconstruction - kl).mean(), parameters),
    )


@pytest.mark.parametrize("hold_posterior", [False, True])
@pytest.mark.parametrize("prior", [lambda: None, _conditional_prior], ids=["N(0, I)", "conditional"])
def test_log_weights_are_those_that_torch_distributions_computes(prior, hold_posterior):
    vae, x = _vae(prior()).double(), _x(torch.float64)
    came = vae.log_weights(x, 3, condition=LABELS, seed=3, hold_posterior=hold_posterior).log_weights
    condition = F.one_hot(LABELS, CLASSES).double()
    mu, logvar = vae.encoder(x, condition)
    log_q_of = _normal(mu.detach(), logvar.detach()) if hold_posterior else _normal(mu, logvar)
    expected = []
    for k in range(3):
        z = mu + torch.exp(0.5 * logvar) * fastvae.noise(3, mu.shape, draw=k, dtype=torch.float64)
        log_ratio = (_prior_of(vae, condition).log_prob(z) - log_q_of.log_prob(z)).sum(1)
        expected.append(_log_likelihood(vae, z, x, condition) + log_ratio)
    torch.testing.assert_close(came, torch.stack(expected))
    parameters = list(vae.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(came.logsumexp(0).mean(), parameters),
        torch.autograd.grad(torch.stack(expected).logsumexp(0).mean(), parameters),
    )


def test_doubly_reparameterised_gradients_reach_the_conditional_prior():
    """They are the bound's own for decoder and prior, and differ for the encoder alone."""
    vae, x = _vae(_conditional_prior()).double(), _x(torch.float64)
    gradients = {}
    for gradient in ("standard", "dreg"):
        vae.zero_grad()
        IWAE(4, gradient)(vae, x, condition=LABELS, seed=0).loss.backward()
        gradients[gradient] = {name: parameter.grad for name, parameter in vae.named_parameters()}
    for name, standard in gradients["standard"].items():
        same = torch.allclose(gradients["dreg"][name], standard)
        assert same != name.startswith("encoder"), name


@pytest.mark.parametrize("prior", [lambda: None, _conditional_prior, lambda: LearnedGaussian(LATENT)])
def test_log_likelihood_under_the_prior_sees_the_condition_of_each_row(prior):
    vae, x = _vae(prior()), _x()
    came = vae.log_likelihood_under_prior(x, 4, condition=LABELS, seed=9)
    condition = F.one_hot(LABELS, CLASSES).float()
    p_z = _prior_of(vae, condition)  # a LearnedGaussian starts as N(0, I)
    for k, eps in enumerate(fastvae.noise(9, (4, LATENT))):
        torch.testing.assert_close(came[k], _log_likelihood(vae, p_z.loc + p_z.scale * eps, x, condition))


def test_classes_are_the_vectors_with_a_one_at_their_place():
    classes, vectors = _vae(), _vae(num_classes=None)
    vectors.load_state_dict(classes.state_dict())
    x, condition = _x(), F.one_hot(LABELS, CLASSES).float()
    assert torch.equal(
        classes.elbo(x, condition=LABELS, seed=0).elbo, vectors.elbo(x, condition=condition, seed=0).elbo
    )
    assert torch.equal(classes.generate(8, condition=LABELS, seed=0), vectors.generate(8, condition=condition, seed=0))


def test_one_int_is_the_class_of_all():
    vae, x = _vae(_conditional_prior()), _x()
    all_ones = torch.ones(BATCH, dtype=torch.int64)
    assert torch.equal(vae.elbo(x, condition=1, seed=0).elbo, vae.elbo(x, condition=all_ones, seed=0).elbo)
    assert torch.equal(vae.generate(BATCH, condition=1, seed=0), vae.generate(BATCH, condition=all_ones, seed=0))


@pytest.mark.parametrize("prior", [lambda: None, _conditional_prior, lambda: LearnedGaussian(LATENT)])
def test_generate_draws_z_from_the_prior_of_its_condition(prior):
    vae = _vae(prior())
    condition = F.one_hot(LABELS, CLASSES).float()
    p_z = _prior_of(vae, condition)
    z = p_z.loc + p_z.scale * fastvae.noise(9, (BATCH, LATENT))
    came = vae.generate(BATCH, condition=LABELS, seed=9)
    torch.testing.assert_close(came, vae.decode(z, condition=LABELS))
    torch.testing.assert_close(came, torch.sigmoid(vae.decoder(z, condition)))
    assert not torch.allclose(came, vae.generate(BATCH, condition=LABELS.flip(0), seed=9))


def test_every_method_passes_the_condition_on():
    vae, x = _vae(), _x()
    other = (LABELS + 1) % CLASSES
    for call in (
        lambda labels: vae.encode(x, condition=labels).mu,
        lambda labels: vae.reconstruct(x, condition=labels),
        lambda labels: vae.reconstruct(x, condition=labels, sample=True, seed=0),
        lambda labels: vae.terms(x, condition=labels, seed=0).reconstruction,
    ):
        assert torch.equal(call(LABELS), call(LABELS))
        assert not torch.equal(call(LABELS), call(other))


class _Classifier(nn.Module):
    """A prior that hands over its moments in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(CLASSES, 2 * LATENT)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        return self.table(condition)


def test_a_conditional_prior_may_return_moments_in_one_tensor():
    prior = _Classifier()
    vae, x = _vae(prior), _x()
    mu, logvar = prior(F.one_hot(LABELS, CLASSES).float()).chunk(2, 1)
    expected = fastvae.gaussian_kl(*vae.encode(x, condition=LABELS), mu, logvar)
    torch.testing.assert_close(vae.elbo(x, condition=LABELS, seed=0).kl, expected)
    assert vae.terms(x, condition=LABELS, per_coordinate=True).kl_per_latent[0].shape == (LATENT,)


def test_a_few_steps_teach_the_prior_what_the_condition_says():
    vae = _vae(_conditional_prior())
    x = torch.zeros(60, *SHAPE)
    labels = torch.arange(60) % CLASSES
    x[labels == 1, :, :2] = 1.0
    x[labels == 2] = 1.0
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-2)
    for step in range(60):
        optimizer.zero_grad()
        (-vae.elbo(x, condition=labels, seed=step).elbo.mean()).backward()
        optimizer.step()
    with torch.no_grad():
        images = torch.stack([vae.generate(20, condition=label, seed=0) for label in range(CLASSES)])
    ink = images.mean(1)[:, 0, :, :].mean(2)  # by class and line
    torch.testing.assert_close(ink, torch.tensor([[0.0] * 4, [1.0, 1.0, 0.0, 0.0], [1.0] * 4]), rtol=0, atol=0.2)


# What it refuses


CALLS = {
    "elbo": lambda vae, condition: vae.elbo(_x(), condition=condition),
    "terms": lambda vae, condition: vae.terms(_x(), condition=condition),
    "encode": lambda vae, condition: vae.encode(_x(), condition=condition),
    "reconstruct": lambda vae, condition: vae.reconstruct(_x(), condition=condition),
    "log_weights": lambda vae, condition: vae.log_weights(_x(), 2, condition=condition),
    "under the prior": lambda vae, condition: vae.log_likelihood_under_prior(_x(), 2, condition=condition),
    "generate": lambda vae, condition: vae.generate(BATCH, condition=condition),
    "decode": lambda vae, condition: vae.decode(torch.zeros(BATCH, LATENT), condition=condition),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (None, TypeError, r"condition is None, expected int64 classes \(batch,\) or one int"),
        ([0, 1], TypeError, "condition is a list, expected int64 classes"),
        (1.0, TypeError, "condition is a float, expected int64 classes"),
        (LABELS.float(), TypeError, r"condition is float32 of shape \(8,\), expected int64 classes"),
        (LABELS.view(-1, 1), TypeError, r"condition is int64 of shape \(8, 1\), expected int64 classes"),
        (LABELS[:7], ValueError, r"condition has shape \(7,\), expected 8 rows"),
        (LABELS - 1, ValueError, r"condition is -1 at index \[0\], expected a class from 0 to 2"),
        (LABELS + 1, ValueError, r"condition is 3 at index \[2\], expected a class from 0 to 2"),
        (3, ValueError, r"condition is 3 at index \[0\], expected a class from 0 to 2"),
        (LABELS.to("meta"), ValueError, "condition is on meta, expected it on cpu"),
    ],
)
def test_invalid_classes_are_refused(call, condition, error, message):
    with pytest.raises(error, match=message):
        call(_vae(_conditional_prior()), condition)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (None, TypeError, r"condition is None, expected a tensor \(batch, \.\.\.\)"),
        (1, TypeError, r"condition is a int, expected a torch\.Tensor"),
        (LABELS, TypeError, "condition is int64, expected one of float32"),
        (torch.zeros(8, 3, dtype=torch.float64), TypeError, "condition is float64, expected float32"),
        (torch.zeros(7, 3), ValueError, r"condition has shape \(7, 3\), expected 8 rows"),
        (torch.zeros(8, 4), ValueError, r"condition has shape \(\d+, 4\), expected \(batch, 3\)"),
    ],
)
def test_vectors_of_the_wrong_shape_or_dtype_are_refused(call, condition, error, message):
    with pytest.raises(error, match=message):
        call(_vae(num_classes=None), condition)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: _vae(num_classes=0), ValueError, "num_classes is 0, expected 1 or more"),
        (lambda: _vae(num_classes=3.0), TypeError, "num_classes is a float, expected an int"),
        (lambda: _vae(prior=lambda condition: condition), TypeError, r"prior is a function, expected a torch\.nn"),
    ],
)
def test_invalid_constructor_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_prior_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"prior_mu has shape \(8, 5\), mu has \(8, 6\)"):
        _vae(MLPEncoder(CLASSES, 8, 5)).elbo(_x(), condition=LABELS)
    with pytest.raises(TypeError, match=r"prior returned a Tensor of shape .*, expected the pair"):
        _vae(nn.Linear(CLASSES, 5)).elbo(_x(), condition=LABELS)


def test_a_vamp_prior_of_the_conditional_encoder_is_refused():
    encoder = MLPEncoder(4, 8, 3, condition_dim=2)
    with pytest.raises(ValueError, match="prior is a VampPrior of the model's encoder, which needs a condition"):
        ConditionalVAE(encoder, MLPDecoder(3, 8, 4, condition_dim=2), Bernoulli(), prior=VampPrior(encoder, 4, 2))
