"""scvi-tools, patched: likelihoods that come from the decoder's last layers, and the models' own methods."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings

import anndata
import numpy as np
import pytest
import scvi
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.module import VAE

import fastvae
from bench.clients.scvi import tensors_of
from fastvae.integrations import scvi_heads
from fastvae.integrations.deferred import is_waiting

GENES, CELLS = 30, 24

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def heads(monkeypatch):
    """The densities of heads that were computed."""
    seen = []
    log_prob = scvi_heads.Head.log_prob
    monkeypatch.setattr(scvi_heads.Head, "log_prob", lambda head: (seen.append(head.density), log_prob(head))[1])
    return seen


@pytest.fixture(scope="module")
def adata():
    rng = np.random.default_rng(0)
    made = anndata.AnnData(rng.poisson(rng.gamma(0.5, 2.0, (CELLS, GENES))).astype(np.float32) + np.eye(CELLS, GENES))
    made.obs["batch"] = np.array(["a", "b"])[np.arange(CELLS) % 2]
    made.obs["label"] = np.array(["x", "y", "unknown"])[np.arange(CELLS) % 3]
    made.obsm["protein"] = rng.poisson(3.0, (CELLS, 4)).astype(np.float32)
    return made


def loss_and_gradients(module, tensors):
    torch.manual_seed(5)
    module.zero_grad()
    outputs = module(tensors, loss_kwargs={"kl_weight": 0.5})[2]
    outputs.loss.backward()
    found = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return outputs.loss.detach(), found


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
@pytest.mark.parametrize("observed", [True, False])
def test_loss_and_gradients_of_every_parameter_are_the_same(heads, likelihood, dispersion, observed):
    torch.manual_seed(0)
    tensors = tensors_of(torch.poisson(torch.rand(CELLS, GENES) * 3))
    sizes = {} if observed else {f"library_log_{name}": np.ones((1, 2)) for name in ("means", "vars")}
    options = {"gene_likelihood": likelihood, "dispersion": dispersion, "use_observed_lib_size": observed}
    module = VAE(GENES, n_batch=2, n_hidden=16, **options, **sizes)
    expected, expected_gradients = loss_and_gradients(module, tensors)
    with fastvae.patch("scvi", noise="torch"):
        found, gradients = loss_and_gradients(module, tensors)
    assert len(heads) == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, theirs in expected_gradients.items():
        torch.testing.assert_close(gradients[name], theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_parameters_are_scvi_tools_own_when_somebody_asks(heads):
    module = VAE(GENES, n_batch=2, n_hidden=16).eval()
    tensors = tensors_of(torch.poisson(torch.rand(CELLS, GENES) * 3))
    names = ("mu", "mean", "scale", "theta", "zi_logits", "variance")

    def generate():
        torch.manual_seed(1)
        return module(tensors, compute_loss=False)[1]["px"]

    expected = generate()
    with fastvae.patch("scvi", noise="torch"):
        found = generate()
        assert type(found) is ZeroInflatedNegativeBinomial
        assert is_waiting(found.mu)
        asked_before = found.log_prob(tensors["X"])
        for name in names:
            torch.testing.assert_close(getattr(found, name) + 0, getattr(expected, name), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(asked_before + 0, expected.log_prob(tensors["X"]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(asked_before.sum(-1), expected.log_prob(tensors["X"]).sum(-1))
        assert found.sample().shape == (CELLS, GENES)
        assert repr(found) == repr(expected)
    torch.testing.assert_close(generate().mean, expected.mean)
    assert found.log_prob(tensors["X"]).sum(-1).shape == (CELLS,)  # what was made under the patch lives on
    assert not heads


def test_a_hook_on_a_layer_sees_its_outputs_and_gradients(heads):
    module, heard = VAE(GENES, n_batch=2, n_hidden=16), []
    module.decoder.px_scale_decoder[0].register_forward_hook(lambda layer, given, output: heard.append(output.mean()))
    module.decoder.px_scale_decoder.register_full_backward_hook(lambda layer, given, grads: heard.append(grads[0]))
    tensors = tensors_of(torch.poisson(torch.rand(CELLS, GENES)))
    with fastvae.patch("scvi"):
        loss_and_gradients(module, tensors)
    assert not heads
    assert len(heard) == 2
    assert heard[1].shape == (CELLS, GENES)


def train(kind, adata, patched, **options):
    scvi.settings.seed = 0
    scvi.settings.verbosity = logging.ERROR
    setup = {"labels_key": "label", "unlabeled_category": "unknown"} if kind is scvi.model.SCANVI else {}
    setup |= {"protein_expression_obsm_key": "protein"} if kind is scvi.model.TOTALVI else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.setup_anndata(adata, batch_key="batch", **setup)
        model = kind(adata, **options)
        with fastvae.patch("scvi", noise="torch") if patched else contextlib.nullcontext():
            model.train(3, train_size=0.75, batch_size=8, enable_progress_bar=False, accelerator="cpu")
            torch.manual_seed(0)
            elbo = model.get_elbo()
    return model, [float(elbo), *model.history["elbo_train"].to_numpy().ravel().astype(float)]


MODELS = {
    "SCVI": (scvi.model.SCVI, {"n_hidden": 16}, True),
    "SCVI, its library is latent": (scvi.model.SCVI, {"n_hidden": 16, "use_observed_lib_size": False}, True),
    "SCVI, a dispersion a batch": (scvi.model.SCVI, {"n_hidden": 16, "dispersion": "gene-batch"}, False),
    "SCVI, Poisson": (scvi.model.SCVI, {"n_hidden": 16, "gene_likelihood": "poisson"}, False),
    "SCANVI": (scvi.model.SCANVI, {"n_hidden": 16}, True),
    "LinearSCVI": (scvi.model.LinearSCVI, {"n_hidden": 16, "use_batch_norm": False}, True),
    "LinearSCVI, batch norm": (scvi.model.LinearSCVI, {"n_hidden": 16}, False),
    "TOTALVI": (scvi.model.TOTALVI, {}, True),
    "TOTALVI, zero-inflated": (scvi.model.TOTALVI, {"gene_likelihood": "zinb"}, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_the_same_losses(heads, adata, name):
    kind, options, comes_from_a_head = MODELS[name]
    _, expected = train(kind, adata.copy(), False, **options)
    assert not heads
    _, found = train(kind, adata.copy(), True, **options)
    assert bool(heads) == comes_from_a_head
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_the_models_methods_give_the_same_numbers(heads, adata):
    model, _ = train(scvi.model.SCVI, adata.copy(), False, n_hidden=16)

    def asked():
        torch.manual_seed(0)
        scvi.settings.seed = 0
        likelihood = model.get_likelihood_parameters()
        return [
            model.get_normalized_expression(return_numpy=True),
            model.get_normalized_expression(return_numpy=True, gene_list=[str(i) for i in range(5)], n_samples=3),
            *[likelihood[name] for name in sorted(likelihood)],
            np.asarray(model.get_marginal_ll(n_mc_samples=6, n_mc_samples_per_pass=3)),
            np.asarray(model.get_marginal_ll(n_mc_samples=3)),
            model.get_latent_library_size(give_mean=False),
            model.differential_expression(groupby="batch", silent=True).select_dtypes("number").to_numpy(),
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = asked()
        with fastvae.patch("scvi", noise="torch"):
            found = asked()
    assert len(heads) > 1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_checkpoints_are_the_same_with_and_without_a_patch(adata, tmp_path):
    model, _ = train(scvi.model.SCVI, adata.copy(), True, n_hidden=16)
    plain, _ = train(scvi.model.SCVI, adata.copy(), False, n_hidden=16)
    assert model.module.state_dict().keys() == plain.module.state_dict().keys()
    model.save(tmp_path / "model")
    again = scvi.model.SCVI.load(tmp_path / "model", adata=model.adata, accelerator="cpu")
    np.testing.assert_allclose(again.get_latent_representation(), model.get_latent_representation(), rtol=1e-6)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_default_optimizer_is_fused_unless_that_is_declined(adata, name):
    module = VAE(GENES, n_batch=2, n_hidden=16)
    plan = scvi.train.TrainingPlan(module, optimizer=name)
    made = [plan.configure_optimizers()["optimizer"]]
    with fastvae.patch("scvi"):
        made.append(plan.configure_optimizers()["optimizer"])
        with fastvae.patch("scvi", optimizer=False):
            made.append(plan.configure_optimizers()["optimizer"])
        own = scvi.train.TrainingPlan(
            module, optimizer="Custom", optimizer_creator=lambda params: torch.optim.Adam(params)
        )
        made.append(own.configure_optimizers()["optimizer"])
    assert [type(one).__name__ for one in made] == [name, name, name, "Adam"]
    unpatched = True if "fused_optimizer" in inspect.signature(scvi.train.TrainingPlan).parameters else None
    assert [one.defaults["fused"] for one in made] == [unpatched, True, unpatched, None]
    settings = [{key: value for key, value in one.defaults.items() if key != "fused"} for one in made[:3]]
    assert settings[0] == settings[1] == settings[2]


def test_distributions_of_parameters_that_come_from_elsewhere_are_as_before(heads):
    with fastvae.patch("scvi"):
        log_prob = NegativeBinomial(mu=torch.rand(3, 5), theta=torch.rand(5)).log_prob(torch.ones(3, 5))
    assert type(log_prob) is torch.Tensor
    assert not heads
