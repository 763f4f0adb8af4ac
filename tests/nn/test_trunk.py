"""Importance-weighted bounds in chunks of rows, hidden layers included: the same results in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastvae.likelihoods as L
from fastvae import trunk
from fastvae.kernels import head_spec
from fastvae.nn import VAE, ConditionalVAE, MLPDecoder, MLPEncoder, head
from fastvae.objectives import IWAE

K, B, H, D = 4, 7, 5, 9
LIKELIHOODS = {
    "bernoulli": (lambda: L.Bernoulli(), 1),
    "gaussian with a variance of its own": (lambda: L.Gaussian(1.0, learned=True), 1),
    "gaussian": (lambda: L.Gaussian(None), 2),
    "counts": (lambda: L.NegativeBinomial(D, library_size=5.0), 1),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two rows of x, with their draws."""
    monkeypatch.setattr(head_spec, "_LARGEST_CHUNK", 1)
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", 10)


@pytest.fixture
def taken(monkeypatch):
    """The chunks of each call, in rows of hidden units; None of calls that took the usual way."""
    calls, real, apply_layers = [], head.trunk_log_prob, trunk.apply_layers

    def spy(*given, **options):
        calls.append([])
        found = real(*given, **options)
        calls[-1] = calls[-1] if found is not None else None
        return found

    monkeypatch.setattr(head, "trunk_log_prob", spy)
    monkeypatch.setattr(
        trunk, "apply_layers", lambda layers, h, tensors: calls[-1].append(len(h)) or apply_layers(layers, h, tensors)
    )
    return calls


def model(likelihood="bernoulli", **options):
    make, outputs = LIKELIHOODS[likelihood]
    torch.manual_seed(0)
    return VAE(MLPEncoder(D, H, 2), MLPDecoder(2, (H, 6), D, outputs=outputs, **options), make())


def data():
    return torch.poisson(2 * torch.rand(B, D))


def loss_and_gradients(vae, x, weigh=lambda output: output.loss, gradient="standard"):
    loss = weigh(IWAE(K, gradient=gradient)(vae, x, seed=1))
    return loss.detach(), torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)


def the_usual_way(monkeypatch, *given, **options):
    with monkeypatch.context() as patch:
        patch.setattr(head, "trunk_log_prob", lambda *_, **options: None)
        return loss_and_gradients(*given, **options)


@pytest.mark.parametrize("gradient", ["standard", "dreg"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_and_gradients(likelihood, gradient, taken, monkeypatch):
    vae, x = model(likelihood), data()
    came = loss_and_gradients(vae, x, gradient=gradient)
    torch.testing.assert_close(came, the_usual_way(monkeypatch, vae, x, gradient=gradient), rtol=2e-5, atol=1e-5)
    assert taken == [[2 * K, 2 * K, 2 * K, K]]


def test_other_gradients_are_computed_again(taken, monkeypatch):
    def weigh(output):
        return (output.bound * torch.linspace(-1, 1, B)).sum()

    vae, x = model(), data()
    came = loss_and_gradients(vae, x, weigh)
    torch.testing.assert_close(came, the_usual_way(monkeypatch, vae, x, weigh), rtol=2e-5, atol=1e-5)
    assert taken == [[2 * K, 2 * K, 2 * K, K, B * K]]


def test_backward_twice():
    vae, x = model(), data()
    loss = IWAE(K)(vae, x, seed=1).loss
    first = torch.autograd.grad(loss, list(vae.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(vae.parameters()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_second_derivatives(monkeypatch):
    vae, x = model().double(), data().double()

    def curvature():
        parameters = list(vae.decoder.parameters())
        first = torch.autograd.grad(IWAE(K)(vae, x, seed=1).loss, parameters, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), parameters)

    came = curvature()
    monkeypatch.setattr(head, "trunk_log_prob", lambda *_, **options: None)
    torch.testing.assert_close(came, curvature(), rtol=1e-8, atol=1e-8)


def test_what_is_frozen_gets_no_gradient(monkeypatch):
    vae, x = model(), data()
    expected = loss_and_gradients(vae, x)[1]
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_("bias" in name)
    IWAE(K)(vae, x, seed=1).loss.backward()
    for (name, parameter), one in zip(vae.named_parameters(), expected, strict=True):
        assert (parameter.grad is None) == ("bias" not in name)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, one)
    vae.requires_grad_(False)
    assert not IWAE(K)(vae, x, seed=1).loss.requires_grad


def test_a_condition(taken, monkeypatch):
    encoder, decoder = MLPEncoder(D, H, 2, condition_dim=3), MLPDecoder(2, H, D, condition_dim=3)
    cvae = ConditionalVAE(encoder, decoder, L.Bernoulli())
    x, condition = data().clamp(max=1), torch.rand(B, 3)
    losses = [IWAE(K)(cvae, x, condition=condition, seed=1).loss]
    with monkeypatch.context() as patch:
        patch.setattr(head, "trunk_log_prob", lambda *_, **options: None)
        losses.append(IWAE(K)(cvae, x, condition=condition, seed=1).loss)
    torch.testing.assert_close(*[torch.autograd.grad(one, list(cvae.parameters())) for one in losses])
    assert taken[0]


class Shift(nn.Module):
    """Subtracts the mean over the batch, which a chunk would have another of."""

    def forward(self, h):
        return h - h.mean(0)


@pytest.mark.parametrize("activation", [Shift, lambda: nn.BatchNorm1d(H), nn.Dropout])
def test_layers_that_may_mix_the_rows_take_the_usual_way(activation, taken):
    vae = VAE(MLPEncoder(D, H, 2), MLPDecoder(2, H, D, activation=activation), L.Bernoulli())
    IWAE(K)(vae, data()).loss.backward()
    assert taken == [None]


def test_hooks_see_all_hidden_units(taken):
    for layer, rows in ((0, "trunk"), (-1, "head")):
        vae, seen = model(), []
        vae.decoder.layers[layer].register_forward_pre_hook(lambda module, given, to=seen: to.append(given[0].shape))
        IWAE(K)(vae, data()).loss.backward()
        assert [shape[0] for shape in seen] == [K * B], rows
    assert not any(taken)


def test_under_checkpointing(taken):
    vae, x = model(), data()
    expected = loss_and_gradients(vae, x)[1]
    came = checkpoint(lambda x: IWAE(K)(vae, x, seed=1).loss, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(came, list(vae.parameters())), expected)
    assert taken[0]


def test_in_a_compiled_graph(taken):
    vae, x = model(), data()
    objective = IWAE(K)
    compiled = torch.compile(lambda x: objective(vae, x, seed=1).loss, backend="aot_eager")
    grads = torch.autograd.grad(compiled(x), list(vae.parameters()))
    torch.testing.assert_close(grads, loss_and_gradients(vae, x)[1])


def test_of_one_chunk_the_usual_way_is_taken(taken, monkeypatch):
    monkeypatch.setattr(head_spec, "_FEWEST_ROWS", K * B)
    IWAE(K)(model(), data()).loss.backward()
    assert taken == [None]
