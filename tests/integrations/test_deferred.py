"""Layers that are deferred, and the likelihood of counts that comes from them, without scvi-tools."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastvae.integrations import scvi_heads
from fastvae.integrations.deferred import Deferred, Outputs, defer_layers, is_waiting
from fastvae.integrations.scvi_adam import _fused
from fastvae.integrations.scvi_heads import LogProb, are_counts, head_of, with_deferred_layers
from fastvae.likelihoods import zero_inflated_negative_binomial_log_prob

CELLS, GENES, HIDDEN = 5, 7, 3


class Decoder(nn.Module):
    """Decodes counts as scvi-tools' decoder does, from the last hidden units."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.px_scale_decoder = nn.Sequential(nn.Linear(HIDDEN, GENES), nn.Softmax(dim=-1))
        self.px_r_decoder = nn.Linear(HIDDEN, GENES)
        self.px_dropout_decoder = nn.Linear(HIDDEN, GENES)

    def forward(self, hidden, library):
        scale = self.px_scale_decoder(hidden)
        rate = torch.exp(library) * scale
        return scale, self.px_r_decoder(hidden), rate, self.px_dropout_decoder(hidden)


@pytest.fixture
def deferring(monkeypatch):
    monkeypatch.setattr(scvi_heads, "setting_of", lambda library: object())
    return with_deferred_layers(Decoder.forward)


def inputs(draws=()):
    torch.manual_seed(1)
    hidden = torch.rand(*draws, CELLS, HIDDEN, requires_grad=True)
    return hidden, torch.rand(*draws, CELLS, 1, requires_grad=True)


def test_what_is_asked_for_is_what_the_layers_give(deferring):
    decoder, (hidden, library) = Decoder(), inputs()
    expected = decoder(hidden, library)
    found = deferring(decoder, hidden, library)
    assert all(is_waiting(one) and one.shape == (CELLS, GENES) for one in found)
    for theirs, ours in zip(expected, found, strict=True):
        assert torch.equal(ours + 0, theirs)
        leaves = [hidden, *decoder.parameters()]
        gradients = [
            torch.autograd.grad(one.square().sum(), leaves, allow_unused=True, retain_graph=True)
            for one in (theirs, ours)
        ]
        for one, other in zip(*gradients, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
        assert type(ours * 2) is torch.Tensor
        assert type(pickle.loads(pickle.dumps(ours.detach()))) is torch.Tensor
        assert torch.equal(copy.deepcopy(ours.detach()), theirs)


@pytest.mark.parametrize("change", [lambda one: one * 2, lambda one: one + 1, torch.relu, lambda one: one.t()])
def test_other_operations_compute_it_first(deferring, change):
    decoder, given = Decoder(), inputs()
    for theirs, ours in zip(decoder(*given), deferring(decoder, *given), strict=True):
        assert torch.equal(change(ours), change(theirs))
        assert not is_waiting(ours)


@pytest.mark.parametrize("draws", [(), (2,)])
@pytest.mark.parametrize("dispersion", ["of genes", "of genes and cells"])
def test_the_sum_over_genes_comes_from_the_head_alone(deferring, draws, dispersion):
    decoder, (hidden, library) = Decoder(), inputs(draws)
    x = torch.poisson(torch.rand(CELLS, GENES) * 2)
    log_theta = torch.rand(GENES, requires_grad=True)
    _, own_r, rate, logits = decoder(hidden, library)
    theta = torch.exp(log_theta if dispersion == "of genes" else own_r)
    expected = zero_inflated_negative_binomial_log_prob(
        *[one.expand(rate.shape).flatten(0, -2) for one in (rate, theta, logits)],
        x.expand(rate.shape).flatten(0, -2),
        reduction="none",
    ).unflatten(0, rate.shape[:-1])
    _, r, mu, zi = deferring(decoder, hidden, library)
    head = head_of("zero_inflated_negative_binomial", x, mu, torch.exp(log_theta if theta.dim() == 1 else r), zi)
    assert head is not None
    log_prob = LogProb.of(head, mu.shape, lambda: expected)
    found = log_prob.sum(-1)
    assert all(map(is_waiting, (mu, zi, log_prob)))
    torch.testing.assert_close(found, expected.sum(-1))
    leaves = [hidden, library, *decoder.parameters(), log_theta]
    weights = torch.rand(rate.shape[:-1])
    gradients = [
        torch.autograd.grad((one * weights).sum(), leaves, allow_unused=True) for one in (found, expected.sum(-1))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(log_prob.sum(), expected.sum())  # of the elements
    assert not is_waiting(log_prob)


def test_what_does_not_come_from_one_head_is_refused(deferring):
    decoder, (hidden, library) = Decoder(), inputs()
    x, theta = torch.ones(CELLS, GENES), torch.rand(GENES)
    scale, r, mu, zi = deferring(decoder, hidden, library)
    kind = "zero_inflated_negative_binomial"
    assert head_of(kind, x, mu, theta, zi) is not None
    other_zi = deferring(decoder, hidden.clone(), library)[3]
    unusual = [
        (x, scale, theta, zi),
        (x, mu, theta, other_zi),
        (x, mu, theta.expand(CELLS, GENES).clone(), zi),
        (x, mu, r, zi),
        (x[:1], mu, theta, zi),
        (x.double(), mu, theta, zi),
        (x, mu, theta, torch.exp(zi)),
        (x.clone().requires_grad_(), mu, theta, zi),
    ]
    for given in unusual:
        assert head_of(kind, *given) is None
    mu.sum()
    assert head_of(kind, x, mu, theta, zi) is None  # its values are known, and somebody may observe their gradients


def test_layers_that_are_not_named_and_other_dtypes_are_not_deferred():
    one, other = nn.Linear(HIDDEN, GENES), nn.Linear(HIDDEN, GENES)
    hidden = torch.rand(CELLS, HIDDEN)
    with defer_layers([one.weight]):
        assert type(one(hidden)) is Outputs
        assert type(other(hidden)) is torch.Tensor
        assert type(one(hidden[0])) is torch.Tensor
        with torch.autocast("cpu", torch.bfloat16):
            assert one(hidden).dtype == torch.bfloat16
        assert type(F.linear(hidden.double(), one.weight.double())) is torch.Tensor
    assert type(one(hidden)) is torch.Tensor


@pytest.mark.parametrize("adam", [torch.optim.Adam, torch.optim.AdamW, _fused])
def test_to_ask_for_it_after_a_step_of_the_optimizer_is_an_error(adam):
    layer, hidden = nn.Linear(HIDDEN, GENES), torch.rand(CELLS, HIDDEN)
    with defer_layers([layer.weight]):
        early, late = layer(hidden), layer(hidden)
    value = early + 0
    layer(hidden).sum().backward()
    optimizer = _fused(torch.optim.Adam, layer.parameters()) if adam is _fused else adam(layer.parameters())
    optimizer.step()
    assert torch.equal(early + 0, value)
    with pytest.raises(RuntimeError, match="changed in place"):
        late.sum()


@pytest.mark.parametrize("hooked", ["", "px_scale_decoder", "px_dropout_decoder", "px_scale_decoder.0"])
def test_nothing_is_deferred_where_a_hook_is_registered(deferring, hooked):
    decoder, heard = Decoder(), []
    module = decoder.get_submodule(hooked)
    module.register_full_backward_hook(lambda layer, given, grads: heard.append(grads[0]))
    decoder.forward = lambda *given: deferring(decoder, *given)
    *_, rate, _ = outputs = decoder(*inputs())
    rate.square().sum().backward()
    assert not any(map(is_waiting, outputs if hooked == "" else outputs[:1] if "scale" in hooked else outputs[3:]))
    assert decoder.px_scale_decoder[0].weight.grad.isfinite().all()
    assert bool(heard) == (hooked != "px_dropout_decoder")


def test_it_is_computed_in_the_grad_mode_in_which_it_was_made():
    layer, hidden = nn.Linear(HIDDEN, GENES), torch.rand(CELLS, HIDDEN)
    with defer_layers([layer.weight]):
        with torch.no_grad():
            without = layer(hidden)
        with torch.inference_mode():
            inference = layer(hidden + 0)
        recorded = layer(hidden)
    assert not without.requires_grad
    assert inference.is_inference()
    with torch.no_grad():
        assert recorded.requires_grad
    assert isinstance(recorded, Deferred)


@pytest.mark.parametrize("wrong", [None, 0.5, -1.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("genes", [3, 2**19])
def test_what_are_no_counts_is_noticed(wrong, genes):
    x = torch.zeros(3, genes)
    x[0, 1] = 7.0
    if wrong is not None:
        x[2, -1] = wrong
    assert are_counts(x) == (wrong is None)


def test_integers_are_counts_unless_one_is_negative():
    x = torch.tensor([[3, 0], [2, 1]])
    assert are_counts(x)
    assert not are_counts(x - 1)
    assert are_counts(x[:0])
