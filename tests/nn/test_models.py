"""What all models share: bound, terms, importance weights, seeds, split batches, dtypes, copies, compilation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fastvae import objectives
from tests.nn.models import BATCH, ESTIMATED, MODELS, SHAPE, data_of, make_model, rows_of


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


# The bound and its terms


def test_elbo_is_reconstruction_minus_kl_in_float32(name):
    x, given = data_of(name)
    bound = make_model(name).elbo(x, seed=0, **given)
    assert all(part.shape == (BATCH,) and part.dtype == torch.float32 for part in bound)
    assert torch.equal(bound.elbo, bound.reconstruction - bound.kl)
    if name not in ESTIMATED:
        assert (bound.kl >= 0).all()


def test_the_bound_has_a_gradient_for_every_parameter(name):
    model, (x, given) = make_model(name), data_of(name)
    model.elbo(x, seed=0, **given).elbo.mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_terms_are_those_of_the_bound_averaged(name):
    model, (x, given) = make_model(name), data_of(name)
    bound, terms = model.elbo(x, seed=0, **given), model.terms(x, seed=0, **given)
    assert torch.equal(terms.reconstruction, bound.reconstruction)
    assert terms.kl.shape == ()
    torch.testing.assert_close(terms.kl, bound.kl.mean())
    torch.testing.assert_close(model.terms(x, seed=0, reduction="sample", **given).kl, bound.kl)
    assert all(kl is None for kl in terms.kl_per_latent)


def test_the_kl_of_each_latent_adds_up_to_the_kl(name):
    model, (x, given) = make_model(name), data_of(name)
    terms = model.terms(x, seed=0, per_coordinate=True, beta=3.0, **given)
    if name in ESTIMATED:
        assert terms.kl_per_latent == (None,)
        return
    z = model.log_weights(x, 1, seed=0, **given).z
    assert [kl.shape for kl in terms.kl_per_latent] == [one.shape[2:] for one in z]
    assert not any(kl.requires_grad for kl in terms.kl_per_latent)
    torch.testing.assert_close(3.0 * sum(kl.sum() for kl in terms.kl_per_latent), terms.kl.detach())


def test_beta_and_capacity_shape_the_sum(name):
    model, (x, given) = make_model(name), data_of(name)
    kl = model.terms(x, seed=0, **given).kl
    shaped = model.terms(x, seed=0, beta=0.5, capacity=30.0, **given).kl
    torch.testing.assert_close(shaped, 0.5 * (kl - 30.0).abs())


def test_hooks_of_forward_see_every_pass_of_training(name):
    model, (x, given) = make_model(name), data_of(name)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    model.elbo(x, **given)
    model.terms(x, **given)
    assert len(seen) == 2


# Importance weights


def test_log_weights_are_k_for_each_row_with_the_draws_beside_them(name):
    model, (x, given) = make_model(name), data_of(name)
    drawn = model.log_weights(x, 4, seed=0, **given)
    assert drawn.log_weights.shape == (4, BATCH)
    assert drawn.log_weights.dtype == torch.float32
    assert all(z.shape[:2] == (4, BATCH) for z in drawn.z)
    drawn.log_weights.logsumexp(0).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_first_draw_is_the_bounds_own_and_the_others_differ(name):
    model, (x, given) = make_model(name), data_of(name)
    output, drawn = model(x, seed=3, **given), model.log_weights(x, 2, seed=3, **given)
    top = output.z[0] if isinstance(output.z, tuple) else output.z
    torch.testing.assert_close(drawn.z[0][0], top)
    for z in drawn.z:
        assert not torch.equal(z[0], z[1])


def test_log_weights_are_the_bound_on_average(name):
    """E[log w] = ELBO: what is drawn in the one, the KL, is exact in the other."""
    model, (x, given) = make_model(name), data_of(name)
    draws = 2000
    with torch.no_grad():
        weights = model.log_weights(x, draws, seed=0, **given).log_weights
        repeated = {key: tensor.repeat(draws, *[1] * (tensor.dim() - 1)) for key, tensor in given.items()}
        bounds = model.elbo(x.repeat(draws, 1, 1, 1), seed=1, **repeated).elbo.view(draws, BATCH)
    error = ((weights.var(0) + bounds.var(0)) / draws).sqrt()
    assert ((weights.mean(0) - bounds.mean(0)).abs() < 5 * error).all()
    assert (error < 0.1).all()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_log_weights_of_a_split_batch_are_those_of_the_whole(name, num_samples):
    model, (x, given) = make_model(name), data_of(name)
    whole = model.log_weights(x, num_samples, seed=5, row_offset=7, **given)
    parts = [
        model.log_weights(x[rows], num_samples, seed=5, row_offset=7 + rows.start, **rows_of(given, rows))
        for rows in (slice(0, 2), slice(2, BATCH))
    ]
    torch.testing.assert_close(torch.cat([part.log_weights for part in parts], 1), whole.log_weights)
    for level, z in enumerate(whole.z):
        torch.testing.assert_close(torch.cat([part.z[level] for part in parts], 1), z)


def test_log_likelihood_under_the_prior_has_one_set_of_draws_for_all_rows(name):
    model, (x, given) = make_model(name), data_of(name)
    whole = model.log_likelihood_under_prior(x, 5, seed=2, **given)
    assert whole.shape == (5, BATCH)
    part = model.log_likelihood_under_prior(x[2:], 5, seed=2, **rows_of(given, slice(2, BATCH)))
    torch.testing.assert_close(part, whole[:, 2:])
    assert (whole[1:] != whole[:-1]).all()


class _PlainLikelihood(nn.Module):
    """A likelihood of one's own, which knows nothing of draws."""

    def log_prob(self, parameters, x):
        assert parameters.shape == x.shape
        return torch.distributions.Bernoulli(logits=parameters).log_prob(x).flatten(1).sum(1)

    def mean(self, parameters):
        return torch.sigmoid(parameters)


@pytest.mark.parametrize("name", ["vae", "classes", "conditional prior", "two levels"])
def test_a_likelihood_without_a_draws_dimension_gives_the_same(name):
    model, (x, given) = make_model(name), data_of(name)
    plain = copy.deepcopy(model)
    plain.likelihood = _PlainLikelihood()
    for come in (
        lambda one: one.elbo(x, seed=0, **given).elbo,
        lambda one: one.log_weights(x, 3, seed=0, **given).log_weights,
        lambda one: one.log_likelihood_under_prior(x, 3, seed=0, **given),
        lambda one: one.reconstruct(x, **given),
    ):
        torch.testing.assert_close(come(plain), come(model))


@pytest.mark.parametrize(
    "objective", [objectives.ELBO(beta=0.5, free_bits=1.0, free_bits_group="latent"), objectives.IWAE(3)]
)
def test_objectives_work_on_every_model(name, objective):
    model, (x, given) = make_model(name), data_of(name)
    came = objective(model, x, seed=0, **given)
    assert came.bound.shape == (BATCH,)
    came.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_log_marginal_lies_above_the_bound(name):
    model, (x, given) = make_model(name), data_of(name)
    draws = {key: tensor.repeat(500, *[1] * (tensor.dim() - 1)) for key, tensor in given.items()}
    with torch.no_grad():
        elbo = model.elbo(x.repeat(500, 1, 1, 1), seed=0, **draws).elbo.view(500, BATCH).mean(0)
    assert (objectives.log_marginal(model, x, 500, seed=0, **given).estimate > elbo - 0.05).all()


# Seeds


def test_the_elbo_of_a_split_batch_is_that_of_the_whole(name):
    model, (x, given) = make_model(name), data_of(name)
    whole = model.elbo(x, seed=7, **given).elbo
    parts = [
        model.elbo(x[rows], seed=7, row_offset=rows.start, **rows_of(given, rows)).elbo
        for rows in (slice(0, 1), slice(1, 4), slice(4, BATCH))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_seed_fixes_the_draw_and_another_one_changes_it(name):
    model, (x, given) = make_model(name), data_of(name)
    first = model.elbo(x, seed=1, **given).elbo
    assert torch.equal(model.elbo(x, seed=torch.tensor([1]), **given).elbo, first)
    assert not torch.equal(model.elbo(x, seed=2, **given).elbo, first)


DRAWS = {
    "elbo": lambda model, x, given, **draw: model.elbo(x, **given, **draw).elbo,
    "terms": lambda model, x, given, **draw: model.terms(x, **given, **draw).reconstruction,
    "log_weights": lambda model, x, given, **draw: model.log_weights(x, 2, **given, **draw).log_weights,
    "under the prior": lambda model, x, given, **draw: model.log_likelihood_under_prior(x, 2, **given, **draw),
    "reconstruct": lambda model, x, given, **draw: model.reconstruct(x, sample=True, **given, **draw),
    "generate": lambda model, x, given, **draw: model.generate(BATCH, **given, **draw),
    "pixels": lambda model, x, given, **draw: model.generate(BATCH, sample=True, **given, **draw),
}


@pytest.mark.parametrize("what", list(DRAWS))
def test_only_the_generator_determines_every_draw(name, what):
    model, (x, given) = make_model(name), data_of(name)
    state = torch.get_rng_state()
    first = DRAWS[what](model, x, given, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(DRAWS[what](model, x, given, generator=torch.Generator().manual_seed(1)), first)
    assert not torch.equal(DRAWS[what](model, x, given, generator=torch.Generator().manual_seed(2)), first)
    assert torch.equal(DRAWS[what](model, x, given, seed=4), DRAWS[what](model, x, given, seed=4))


# Images


def test_reconstructions_and_new_images_have_the_datas_shape(name):
    model, (x, given) = make_model(name), data_of(name)
    assert model.reconstruct(x, **given).shape == x.shape
    assert torch.equal(model.reconstruct(x, **given), model.reconstruct(x, **given))
    assert model.generate(BATCH, **given).shape == x.shape
    assert model.generate(0, **rows_of(given, slice(0, 0))).shape == (0, *SHAPE)
    output = model(x, seed=2, **given)
    torch.testing.assert_close(model.decode(output.z, **given), model.reconstruct(x, sample=True, seed=2, **given))


# Dtypes, copies, devices, compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_work_in_other_dtypes(name, dtype):
    model, (x, given) = make_model(name).to(dtype), data_of(name, dtype)
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    bound = model.elbo(x, seed=0, **given)
    assert {part.dtype for part in bound} == {expected_dtype}
    (-bound.elbo.mean()).backward()
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
    float32_x, float32_given = data_of(name)
    expected = make_model(name).elbo(float32_x, seed=0, **float32_given).elbo
    torch.testing.assert_close(bound.elbo.float(), expected, rtol=0.03, atol=0.2)
    assert model.log_weights(x, 2, **given).log_weights.dtype == expected_dtype
    assert model.log_likelihood_under_prior(x, 2, **given).dtype == expected_dtype
    assert model.generate(BATCH, **given).dtype == model.reconstruct(x, **given).dtype == dtype


def test_autocast_keeps_the_bound_in_float32(name):
    model, (x, given) = make_model(name), data_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        bound = model.elbo(x, seed=0, **given).elbo
        weights = model.log_weights(x, 2, seed=0, **given).log_weights
    assert bound.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(bound, model.elbo(x, seed=0, **given).elbo, rtol=0.03, atol=0.2)


def test_models_pickle_copy_and_reload(name):
    model, (x, given) = make_model(name), data_of(name)
    loaded = make_model(name, seed=1)
    assert not torch.equal(loaded.elbo(x, seed=0, **given).elbo, model.elbo(x, seed=0, **given).elbo)
    loaded.load_state_dict(model.state_dict())
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), loaded):
        assert torch.equal(twin.elbo(x, seed=0, **given).elbo, model.elbo(x, seed=0, **given).elbo)
        assert torch.equal(twin.generate(BATCH, seed=0, **given), model.generate(BATCH, seed=0, **given))


def test_a_copy_shares_nothing_with_its_model(name):
    model, (x, given) = make_model(name), data_of(name)
    before, twin = model.elbo(x, seed=0, **given).elbo, copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin.elbo(x, seed=0, **given).elbo, before)


def test_models_move_between_devices(name):
    # No second device is needed to see that every tensor follows.
    model = make_model(name).to("meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    x, given = data_of(name)
    on_meta = {key: tensor.to("meta") for key, tensor in given.items()}
    assert model.elbo(x.to("meta"), seed=0, **on_meta).elbo.device.type == "meta"


@pytest.fixture
def compiler():
    """Each model is compiled afresh: the compiler counts how often one function was."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
def test_the_elbo_compiles_as_one_graph(name):
    model, (x, given) = make_model(name), data_of(name)

    def loss(x: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        return -model.elbo(x, seed=3, **given).elbo.mean()

    # Gradients of the graph as well, for those that have every kind of part; of others that there is one graph.
    backend = "aot_eager" if name in ("vae", "two levels", "conditional prior") else "eager"
    came, expected = torch.compile(loss, fullgraph=True, backend=backend)(x, given), loss(x, given)
    torch.testing.assert_close(came, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(came, parameters), torch.autograd.grad(expected, parameters))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ["vae", "two levels"])
def test_shaped_terms_and_importance_weights_compile_as_one_graph(name):
    model, (x, _) = make_model(name), data_of(name)

    def loss(x: torch.Tensor) -> torch.Tensor:
        terms = model.terms(x, seed=3, beta=0.5, free_bits=0.5, free_bits_group="latent", per_coordinate=True)
        return terms.kl - terms.reconstruction.mean() - model.log_weights(x, 2, seed=4).log_weights.logsumexp(0).mean()

    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(x), loss(x))


# What they refuse


@pytest.mark.parametrize("method", ["elbo", "terms", "encode", "reconstruct"])
def test_invalid_data_is_refused_by_name(name, method):
    _, given = data_of(name)
    with pytest.raises(TypeError, match=r"x is a list, expected a torch\.Tensor"):
        getattr(make_model(name), method)([[1.0]], **given)


@pytest.mark.parametrize("method", ["log_weights", "log_likelihood_under_prior"])
def test_an_invalid_number_of_draws_is_refused(name, method):
    model, (x, given) = make_model(name), data_of(name)
    with pytest.raises(ValueError, match="num_samples is 0, expected 1 or more"):
        getattr(model, method)(x, 0, **given)
    with pytest.raises(TypeError, match="num_samples is a float, expected an int"):
        getattr(model, method)(x, 2.0, **given)
    with pytest.raises(TypeError, match=r"x is a int, expected a torch\.Tensor"):
        getattr(model, method)(3, 2, **given)


def test_a_wrong_argument_of_the_kl_is_named(name):
    model, (x, given) = make_model(name), data_of(name)
    with pytest.raises(TypeError, match="free_bit is not an argument of the KL, expected one of reduction, beta"):
        model.terms(x, free_bit=1.0, **given)
    with pytest.raises(ValueError, match=r"beta is -1\.0, expected a finite number of 0 or more"):
        model.terms(x, beta=-1.0, **given)
    with pytest.raises(ValueError, match="reduction is 'mean', expected one of"):
        model.terms(x, reduction="mean", **given)


@pytest.mark.parametrize("name", ["vae", "two levels"])
def test_a_condition_for_a_model_without_one_is_refused(name):
    model, (x, _) = make_model(name), data_of(name)
    condition = torch.zeros(BATCH, dtype=torch.int64)
    for call in (
        lambda: model.elbo(x, condition=condition),
        lambda: model.terms(x, condition=condition),
        lambda: model.log_weights(x, 2, condition=condition),
        lambda: model.log_likelihood_under_prior(x, 2, condition=condition),
        lambda: model.encode(x, condition=condition),
        lambda: model.reconstruct(x, condition=condition),
        lambda: model.generate(BATCH, condition=condition),
    ):
        with pytest.raises(TypeError, match=r"condition was given to a \w+, expected None: it is unconditional"):
            call()
