"""Heads that are 1x1 convolutions: against ``F.conv2d`` and the likelihood's own function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastvae
import fastvae.likelihoods as L
from fastvae.kernels import head_spec
from fastvae.likelihoods import Linear, linear_log_prob
from fastvae.nn import VAE, ConvEncoder, ConvLikelihoodHead, StandardizedDecoder
from fastvae.nn.head import can_fuse
from fastvae.objectives import ELBO, IWAE, log_marginal
from tests.formulas import assert_no_worse_than_eager

B, C, SHAPE, K = 7, 5, (3, 4, 6), 3
FUNCTIONS = {"identity": lambda a: a, "exp": torch.exp, "softplus": F.softplus}
MIXTURE = "discretized_logistic_mixture"
# Activations of the layers; a shape: of a tensor that is given.
DENSITIES = {
    "bernoulli": ("identity",),
    "gaussian": ("identity", (1,)),
    "laplace": ("identity", SHAPE),
    "negative_binomial": ("softplus", "exp"),
    "zero_inflated_negative_binomial": ("exp", SHAPE, "identity"),
    MIXTURE: ("identity",),
}


@pytest.fixture(params=DENSITIES)
def density(request):
    return request.param


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 3 * 72 * 4)


def drawn(density, dtype=torch.float32, draws=()):
    """hidden and the layers' tensors (all leaves), and x."""
    x = torch.poisson(2 * torch.rand(B, *SHAPE)) if "binomial" in density else torch.rand(B, *SHAPE)
    leaves = [torch.randn(*draws, B, C, *SHAPE[1:])]
    channels = 30 if density == MIXTURE else SHAPE[0]
    for how in DENSITIES[density]:
        layer = [0.5 * torch.randn(channels, C, 1, 1), torch.randn(channels)]
        leaves += layer if isinstance(how, str) else [0.5 + torch.rand(how)]
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], x


def layers_of(density, leaves):
    rest, found = list(leaves[1:]), []
    for how in DENSITIES[density]:
        found.append(Linear(rest.pop(0), rest.pop(0), how) if isinstance(how, str) else rest.pop(0))
    return found


def fused(density, leaves, x, **options):
    return linear_log_prob(density, leaves[0], layers_of(density, leaves), x, components=3, **options)


def composed(density, leaves, x, **options):
    hidden, values = leaves[0], []
    for one in layers_of(density, leaves):
        if isinstance(one, Linear):
            output = F.conv2d(hidden.flatten(0, -4), one.weight, one.bias)
            one = FUNCTIONS[one.activation](output).unflatten(0, hidden.shape[:-3])
        values.append(one)
    options |= {"components": 3} if density == MIXTURE else {}
    return getattr(L, f"{density}_log_prob")(*values, x, **options)


def gradients(function, density, leaves, x, weighted, **options):
    log_prob = function(density, leaves, x, **options)
    weights = torch.linspace(-1, 2, log_prob.numel()).view(log_prob.shape).to(log_prob) if weighted else 0.5
    return log_prob.detach(), torch.autograd.grad((weights * log_prob).sum(), leaves)


def assert_like_float64(density, leaves, x, weighted, floor, **options):
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with fastvae.use_backend("reference"):
        exact, exact_grads = gradients(composed, density, wide, x.double(), weighted, **options)
        eager, eager_grads = gradients(composed, density, leaves, x, weighted, **options)
    came, grads = gradients(fused, density, leaves, x, weighted, **options)
    assert_no_worse_than_eager(came, exact, eager, floor)
    for one, leaf, exact_grad, eager_grad in zip(grads, leaves, exact_grads, eager_grads, strict=True):
        assert one.dtype == leaf.dtype
        assert_no_worse_than_eager(one, exact_grad, eager_grad, floor)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("weighted", "reduction"), [(True, "sample"), (False, "sample"), (False, "batchmean")])
def test_values_and_gradients(density, backend, weighted, reduction, poisoned_memory):
    with fastvae.use_backend(backend):
        assert_like_float64(density, *drawn(density), weighted, 1e-5, reduction=reduction)


def test_several_draws(density):
    assert_like_float64(density, *drawn(density, draws=(K,)), True, 1e-5)


def test_draws_of_an_importance_weighted_bound(density, monkeypatch):
    outputs = 720 if density == MIXTURE else 72 * sum(how in FUNCTIONS for how in DENSITIES[density])
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 3 * K * outputs * 4)  # three images with their draws
    leaves, x = drawn(density, draws=(K,))
    log_ratio, losses = torch.randn(K, B), []
    for function, options in ((fused, {"log_ratio": log_ratio}), (composed, {})):
        log_prob = function(density, leaves, x, **options)
        assert ("Weighed" in str(log_prob.grad_fn.next_functions[0][0])) == bool(options)
        losses.append(torch.logsumexp(log_prob + log_ratio, 0).mean())
    torch.testing.assert_close(*losses)
    came, expected = (torch.autograd.grad(loss, leaves) for loss in losses)
    torch.testing.assert_close(came, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "floor"), [(torch.bfloat16, 8e-2), (torch.float16, 1e-2)])
def test_narrow_layers(density, dtype, floor):
    assert_like_float64(density, *drawn(density, dtype), False, floor)


def test_images_whose_channels_are_last_are_not_copied():
    leaves, x = drawn("bernoulli")
    expected = gradients(fused, "bernoulli", leaves, x, True)
    hidden = leaves[0].detach().contiguous(memory_format=torch.channels_last)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.data_ptr()) or one, lambda one: one):
        came = gradients(fused, "bernoulli", [hidden.requires_grad_(), *leaves[1:]], x, True)
    torch.testing.assert_close(came, expected)
    assert hidden.data_ptr() in kept


def test_no_more_than_a_chunk_is_held(monkeypatch):
    from fastvae import head_chunks

    made = []
    monkeypatch.setattr(head_chunks, "scratch", lambda name, shape, *others: made.append(shape) or torch.empty(shape))
    leaves, x = drawn("bernoulli")
    fused("bernoulli", leaves, x).mean().backward()
    assert max(made) == (3, 72)


def test_second_derivatives():
    leaves, x = drawn("gaussian", torch.float64)

    def curvature(function):
        first = torch.autograd.grad(function("gaussian", leaves, x).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), leaves)

    torch.testing.assert_close(curvature(fused), curvature(composed), rtol=1e-8, atol=1e-8)


def test_autocast_and_compiled_graphs():
    leaves, x = drawn("bernoulli")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        came, expected = fused("bernoulli", leaves, x), composed("bernoulli", leaves, x)
    torch.testing.assert_close(came, expected, rtol=1e-3, atol=1e-3)
    assert came.dtype == torch.float32
    compiled = torch.compile(lambda leaves: fused("bernoulli", leaves, x).mean(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(leaves), leaves), torch.autograd.grad(fused("bernoulli", leaves, x).mean(), leaves)
    )


class Decoder(nn.Module):
    """One's own: upsampling, and a 1x1 convolution."""

    takes_score = True

    def __init__(self, outputs):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, C * 6), nn.Unflatten(1, (C, 2, 3)), nn.Upsample(scale_factor=2), nn.ReLU()
        )
        self.head = ConvLikelihoodHead(C, SHAPE[0], outputs=outputs)

    def forward(self, z, score=None):
        return self.head(self.body(z), score=score)


class Composed(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return self.decoder(z)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "statistics"),
    [
        (L.Bernoulli, 1, None),
        (lambda: L.Gaussian(None), 2, None),
        (lambda: L.Gaussian(0.3, learned=True), 1, (3, 1, 1)),
        (lambda: L.Gaussian(0.3, learned=True), 1, SHAPE),
    ],
)
def test_models_use_a_convolved_head(likelihood, outputs, statistics):
    x, decoder, encoder = torch.rand(B, *SHAPE).round(), Decoder(outputs), ConvEncoder(SHAPE, 4, 2)
    if statistics is not None:
        decoder = StandardizedDecoder(decoder, statistics)
        decoder.set_statistics(torch.rand(statistics), 0.5 + torch.rand(statistics))
    likelihood = likelihood()
    models = [VAE(encoder, one, likelihood) for one in (decoder, Composed(decoder))]
    assert can_fuse(likelihood, decoder, x) == (statistics != SHAPE)

    def all_of(model):
        model.zero_grad()
        losses = ELBO()(model, x, seed=1).loss, IWAE(4)(model, x, seed=1).loss
        sum(losses).backward()
        return losses, [one.grad.clone() for one in model.parameters()], log_marginal(model, x, 20, seed=1)

    torch.testing.assert_close(all_of(models[0]), all_of(models[1]), rtol=1e-4, atol=1e-4)


def test_a_head_on_its_own():
    head = ConvLikelihoodHead(C, SHAPE[0], L.Gaussian(None), outputs=2)
    hidden, x = torch.randn(B, C, *SHAPE[1:]), torch.rand(B, *SHAPE)
    parameters = head(hidden)
    assert [part.shape for part in parameters] == [(B, *SHAPE)] * 2
    torch.testing.assert_close(head(hidden, x), L.Gaussian(None).log_prob(parameters, x))
    assert isinstance(head, nn.Conv2d)
    assert list(head.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: linear_log_prob("bernoulli", torch.zeros(2, 5, 4, 4), [Linear(torch.zeros(3, 5, 1, 1))], x),
            r"expected \(2, C, 4, 6\)",
        ),
        (
            lambda x: linear_log_prob("bernoulli", torch.zeros(2, 5, 4, 6), [Linear(torch.zeros(3, 4, 1, 1))], x),
            r"\(3, 5, 1, 1\)",
        ),
        (
            lambda x: linear_log_prob("bernoulli", torch.zeros(2, 5, 4, 6), [Linear(torch.zeros(3, 5, 3, 3))], x),
            r"\(3, 5, 1, 1\)",
        ),
        (lambda x: ConvLikelihoodHead(5, 3)(torch.zeros(2, 5)), r"hidden has shape \(2, 5\)"),
        (
            lambda x: ConvLikelihoodHead(5, 3)(torch.zeros(2, 5, 4, 6), x),
            r"expected ConvLikelihoodHead\(..., likelihood\)",
        ),
        (lambda x: ConvLikelihoodHead(0, 3), "in_channels is 0"),
    ],
)
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, *SHAPE))
