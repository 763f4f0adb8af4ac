"""`LikelihoodHead`, and the models that compute log p(x|z) with it in their decoder's forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastvae.likelihoods as L
from fastvae.kernels import head_spec
from fastvae.likelihoods.base import mean_given
from fastvae.nn import VAE, ConditionalVAE, HierarchicalVAE, LikelihoodHead, MLPDecoder, MLPEncoder, StandardizedDecoder
from fastvae.nn.head import can_fuse, scorer
from fastvae.objectives import ELBO, IWAE, log_marginal, naive_log_marginal
from fastvae.training.model_config import _MeanOfCounts

SHAPE = (2, 6)
COUNTS = torch.poisson(torch.full((5, *SHAPE), 2.0), torch.Generator().manual_seed(0))
UNIT = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several draws that fit into one chunk are not fused."""
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 1)
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 4)


def of_counts(decoder):
    """With two outputs beside each other, as `fastvae train` has them."""
    return _MeanOfCounts(decoder, inflated=True, positive=True)


# The likelihood, the data, how many outputs of the decoder, and what stands around the decoder.
LIKELIHOODS = {
    "Bernoulli": (L.Bernoulli, UNIT.round(), 1, None),
    "Bernoulli, standardized": (L.Bernoulli, UNIT.round(), 1, lambda decoder: StandardizedDecoder(decoder, (2, 1))),
    "continuous Bernoulli": (L.ContinuousBernoulli, UNIT, 1, None),
    "Gaussian": (lambda: L.Gaussian(0.3, learned=True), UNIT, 1, lambda decoder: StandardizedDecoder(decoder, (2, 1))),
    "Gaussian with logvar": (lambda: L.Gaussian(None, clamp=(-1, 1)), UNIT, 2, None),
    "Laplace": (L.Laplace, UNIT, 1, None),
    "log-normal": (lambda: L.LogNormal(0.3, learned=True), 0.1 + UNIT, 1, None),
    "Poisson": (L.Poisson, COUNTS, 1, None),
    "Poisson, library": (lambda: L.Poisson(20.0), COUNTS, 1, None),
    "negative binomial": (lambda: L.NegativeBinomial(SHAPE, 20.0), COUNTS, 1, None),
    "zero-inflated": (lambda: L.ZeroInflatedNegativeBinomial(SHAPE, 20.0), COUNTS, 2, None),
    "zero-inflated, theta of the decoder": (lambda: L.ZeroInflatedNegativeBinomial(None, 20.0), COUNTS, 3, None),
    "zero-inflated, softplus": (lambda: L.ZeroInflatedNegativeBinomial(SHAPE), COUNTS, 1, of_counts),
}


class Composed(nn.Module):
    """A decoder's parameters alone: models go the way of decoders that end in no head."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, *given):
        return self.decoder(*given)


def make(name):
    """The same model twice, with its decoder fused with the likelihood and not; and the data."""
    likelihood, x, outputs, around = LIKELIHOODS[name]
    shape = (2 * SHAPE[0], SHAPE[1]) if around is of_counts else SHAPE
    decoder = MLPDecoder(3, 8, shape, outputs=outputs)
    if around is not None:
        decoder = around(decoder)
    if isinstance(decoder, StandardizedDecoder):
        decoder.set_statistics(torch.tensor([[0.5], [-0.5]]), torch.tensor([[2.0], [0.5]]))
    likelihood, encoder = likelihood(), MLPEncoder(SHAPE, 8, 3)
    if name.endswith("theta of the decoder"):  # must be positive
        with torch.no_grad():
            head = decoder.layers[-1]
            head.weight.abs_()
            head.bias.abs_()
    return VAE(encoder, decoder, likelihood), VAE(encoder, Composed(decoder), likelihood), x


def compare(fused, composed, function):
    results = []
    for model in (fused, composed):
        model.zero_grad()
        value = function(model)
        value.sum().backward()
        results.append((value.detach(), [one.grad.clone() for one in model.parameters() if one.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=2e-5, atol=2e-5)


@pytest.fixture(params=LIKELIHOODS)
def models(request):
    return make(request.param)


def test_every_objective_is_that_of_the_parameters(models):
    fused, composed, x = models
    assert can_fuse(fused.likelihood, fused.decoder, x)
    assert not can_fuse(composed.likelihood, composed.decoder, x)
    compare(fused, composed, lambda model: ELBO()(model, x, seed=1).loss)
    compare(fused, composed, lambda model: IWAE(3)(model, x, seed=1).loss)
    compare(fused, composed, lambda model: model.elbo(x, seed=1).elbo * torch.arange(5.0))


def test_estimates_of_log_p_are_those_of_the_parameters(models):
    fused, composed, x = models
    for estimate in (log_marginal, naive_log_marginal):
        came, expected = estimate(fused, x, 70, seed=1), estimate(composed, x, 70, seed=1)
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)


def test_forward_gives_parameters_unless_it_is_asked(models):
    fused, _, x = models
    output = fused(x, seed=1)
    asked = fused(x, seed=1, log_likelihood=True)
    assert not hasattr(asked, "parameters")
    torch.testing.assert_close(asked.log_likelihood, fused.likelihood.log_prob(output.parameters, x))
    expected = mean_given(fused.likelihood, fused.decoder(fused.encode(x).mu), x)
    assert torch.equal(fused.reconstruct(x), expected)


def test_conditional_and_hierarchical_models():
    x = UNIT.round()
    encoder, decoder = MLPEncoder(SHAPE, 8, 3, condition_dim=4), MLPDecoder(3, 8, SHAPE, condition_dim=4)
    pair = [ConditionalVAE(encoder, one, L.Bernoulli(), num_classes=4) for one in (decoder, Composed(decoder))]
    condition = torch.arange(5) % 4
    compare(*pair, lambda model: model.elbo(x, condition=condition, seed=1).elbo)
    compare(*pair, lambda model: IWAE(3)(model, x, condition=condition, seed=1).loss)
    model = HierarchicalVAE.of_mlps(SHAPE, 8, (2, 3), L.Bernoulli())
    plain = HierarchicalVAE(model.bottom_up, model.levels, Composed(model.decoder), L.Bernoulli())
    compare(model, plain, lambda model: model.elbo(x, seed=1).elbo)
    compare(model, plain, lambda model: IWAE(3)(model, x, seed=1).loss)


def test_several_draws_that_fit_into_a_chunk_are_kept_for_backward(monkeypatch):
    """Of 15 rows the outputs are kept, which saves a product; of more they are not. Nor for importance weights."""
    fused, _, x = make("Bernoulli")
    sizes, z = [], torch.randn(3 * len(x), 3)

    def largest_kept(log_ratio=None):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
            fused.decoder(z, score=scorer(fused.likelihood, x, log_ratio))
        return max(sizes)

    assert largest_kept() < 3 * x.numel()
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 15)
    assert largest_kept() == 3 * x.numel()
    assert largest_kept(torch.zeros(3, len(x))) < 3 * x.numel()


def test_hooks_of_the_decoder_and_its_layers_run():
    fused, _, x = make("Bernoulli")
    called = []
    for name, module in fused.decoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    fused.elbo(x)
    assert called == ["layers.0", "layers.1", "layers.2", "layers", ""]


def test_what_is_not_known_is_computed_from_the_parameters():
    class Doubled(L.Bernoulli):
        def log_prob(self, parameters, x, **options):
            return 2 * super().log_prob(parameters, x, **options)

    fused, _, x = make("Bernoulli")
    once = fused.elbo(x, seed=1).reconstruction
    fused.likelihood = Doubled()
    torch.testing.assert_close(fused.elbo(x, seed=1).reconstruction, 2 * once)
    fused.likelihood = L.MissingAsNaN(L.Bernoulli())
    torch.testing.assert_close(fused.elbo(x, seed=1).reconstruction, once)

    class Strict(VAE):
        def forward(self, x, *, condition=None, seed=None):
            return super().forward(x, seed=seed)

    strict = Strict(fused.encoder, fused.decoder, L.Bernoulli())
    torch.testing.assert_close(strict.elbo(x, seed=1).reconstruction, once)


def test_the_gradient_of_x_is_that_of_the_parameters():
    fused, composed, x = make("continuous Bernoulli")
    given = x.clone().requires_grad_()
    (came,) = torch.autograd.grad(fused.elbo(given, seed=1).elbo.sum(), given)
    (expected,) = torch.autograd.grad(composed.elbo(given, seed=1).elbo.sum(), given)
    torch.testing.assert_close(came, expected)


def test_a_head_on_its_own():
    head = LikelihoodHead(4, SHAPE, L.Gaussian(None), outputs=2)
    hidden = torch.randn(5, 4)
    parameters = head(hidden)
    assert [part.shape for part in parameters] == [(5, *SHAPE)] * 2
    torch.testing.assert_close(head(hidden, UNIT), L.Gaussian(None).log_prob(parameters, UNIT))
    draws = torch.randn(3, 5, 4)
    several = head(draws.flatten(0, 1), UNIT)
    torch.testing.assert_close(several, torch.cat([head(draw, UNIT) for draw in draws]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head(hidden, UNIT), L.Gaussian(None).log_prob(head(hidden), UNIT))


def test_weights_are_those_of_a_linear_layer():
    """Checkpoints of before load, and seeds give the weights that they gave."""
    torch.manual_seed(0)
    decoder = MLPDecoder(3, 8, SHAPE)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 12))
    state = decoder.state_dict()
    assert list(state) == [f"layers.{name}" for name in plain.state_dict()]
    assert all(torch.equal(state[f"layers.{name}"], value) for name, value in plain.state_dict().items())


@pytest.mark.slow
@pytest.mark.slow
def test_under_torch_compile():
    fused, _, x = make("zero-inflated")
    compiled = torch.compile(lambda x: fused.elbo(x, seed=1).elbo.mean(), fullgraph=True, backend="aot_eager")
    compiled(x).backward()
    came = [one.grad.clone() for one in fused.parameters()]
    fused.zero_grad()
    fused.elbo(x, seed=1).elbo.mean().backward()
    torch.testing.assert_close(came, [one.grad for one in fused.parameters()])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: LikelihoodHead(0, 3), ValueError, "in_features is 0"),
        (lambda: LikelihoodHead(4, 3, outputs=0), ValueError, "outputs is 0"),
        (
            lambda: LikelihoodHead(4, 3, "Bernoulli"),
            TypeError,
            "likelihood is a str, expected a torch.nn.Module",
        ),
        (
            lambda: LikelihoodHead(4, 3)(torch.zeros(2, 4), torch.zeros(2, 3)),
            ValueError,
            "x was given to a head without",
        ),
    ],
)
def test_what_is_wrong_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
