"""diffusers, patched: its posterior's numbers, shapes, dtypes and generators, in every autoencoder."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders import vae

import fastvae
from bench.clients.diffusers import make_autoencoder_step

from .training import check_same_losses, check_same_spread

SHAPES = {"image": (2, 8, 4, 6), "video": (2, 8, 3, 4, 6)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


def moments(shape=SHAPES["image"], dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    given = (2 * torch.randn(shape, generator=generator)).to(dtype)
    if dtype != torch.float16:  # whose own exp(20) is infinite
        given.flatten()[-3:] = torch.tensor([25.0, -40.0, 20.0])  # logvar beyond the clamp, and on it
    return given.requires_grad_()


def off_bounds(given, by):
    """On the bounds of a clamp, the gradient of torch.clamp is another one since PyTorch 2.14."""
    given = given.detach()
    return torch.where((given == 20) | (given == -30), given * (1 - by), given).requires_grad_()


def posterior(given, *, deterministic=False):
    return vae.DiagonalGaussianDistribution(given, deterministic)


def test_the_losses_are_those_of_an_unpatched_run():
    check_same_losses(make_autoencoder_step, "diffusers")


def test_with_fastvaes_noise_the_final_loss_is_within_those_of_other_seeds():
    check_same_spread(make_autoencoder_step, "diffusers", seeds=6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("drawn_first", [True, False])
def test_kl_and_its_gradient_are_diffusers_own(shape, dtype, drawn_first):
    exact = off_bounds(moments(shape, dtype).double(), 1e-9)
    expected = posterior(exact).kl()
    theirs = posterior(moments(shape, dtype)).kl()
    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
    given = moments(shape, dtype)
    with fastvae.patch("diffusers"):
        ours = posterior(given)
        if drawn_first:
            ours.sample()
        kl = ours.kl()
        (gradient,) = torch.autograd.grad(kl.sum(), given)
    assert (kl.shape, kl.dtype) == (theirs.shape, theirs.dtype)
    assert gradient.dtype == dtype
    torch.testing.assert_close(kl.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_whole_event_of_a_video_on_request():
    given = moments(SHAPES["video"])
    with fastvae.patch("diffusers", whole_event=True):
        ours = posterior(given)
        kl = ours.kl()
        other = ours.kl(posterior(moments(SHAPES["video"], seed=1)))
    theirs = posterior(given)
    torch.testing.assert_close(kl, theirs.kl().sum(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(other, theirs.kl(posterior(moments(SHAPES["video"], seed=1))).sum(1), rtol=1e-5, atol=1)


def test_a_draw_is_the_mean_and_noise_times_the_std():
    given = off_bounds(moments(), 1e-6)
    with fastvae.patch("diffusers"):
        ours = posterior(given)
        z = ours.sample(seeded(5))
        again = ours.sample(seeded(5))
    assert torch.equal(z, again)
    theirs = posterior(given)
    eps = ((z - theirs.mean) / theirs.std).detach()
    (of_ours,) = torch.autograd.grad(z.square().sum(), given)
    (of_theirs,) = torch.autograd.grad((theirs.mean + theirs.std * eps).square().sum(), given)
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-4, atol=1e-4)
    assert abs(eps[theirs.std > 1e-3].mean()) < 0.5


def test_torchs_noise_gives_diffusers_own_numbers():
    for generator in (None, torch.Generator(), [torch.Generator(), torch.Generator()]):
        draws = []
        for patched in (False, True):
            torch.manual_seed(0)
            for index, one in enumerate(generator if isinstance(generator, list) else [generator]):
                if one is not None:
                    one.manual_seed(index)
            if patched:
                with fastvae.patch("diffusers", noise="torch"):
                    draws.append(posterior(moments()).sample(generator))
            else:
                draws.append(posterior(moments()).sample(generator))
        assert torch.equal(*draws)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_each_generator_of_a_list_determines_its_own_sample(with_gradient):
    given = moments().requires_grad_(with_gradient)
    with fastvae.patch("diffusers"):
        first, second = (
            posterior(given).sample([torch.Generator().manual_seed(seed) for seed in seeds])
            for seeds in ((1, 2), (1, 3))
        )
        assert torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])
        torch.manual_seed(0)
        default = posterior(given).sample()
        torch.manual_seed(0)
        assert torch.equal(posterior(given).sample(), default)


def test_attributes_and_methods_are_as_there():
    given = moments()
    theirs = posterior(given)
    sample = torch.randn(2, 4, 4, 6)
    with fastvae.patch("diffusers"):
        ours = posterior(given)
        assert isinstance(ours, type(theirs))
        assert set(vars(ours)).isdisjoint({"std", "var", "logvar"})  # not computed yet
        assert torch.equal(ours.mode(), theirs.mode())
        for name in ("mean", "logvar", "std", "var", "parameters"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert ours.std.requires_grad
        assert torch.equal(ours.nll(sample), theirs.nll(sample))
        assert torch.equal(ours.nll(sample, dims=[1]), theirs.nll(sample, dims=[1]))
        torch.testing.assert_close(
            ours.kl(posterior(moments(seed=1))), theirs.kl(posterior_of_diffusers(moments(seed=1)))
        )
        assert not ours.deterministic
        with pytest.raises(AttributeError, match="no_such"):
            ours.no_such  # noqa: B018
        point = posterior(given, deterministic=True)
        assert torch.equal(point.sample(), theirs.mean)
        assert torch.equal(point.kl(), torch.tensor([0.0]))
        with torch.no_grad():
            constant = posterior(given)
        assert not constant.std.requires_grad  # as it was when it was made
        assert not posterior(given.detach()).sample().requires_grad


def posterior_of_diffusers(given):
    original = vae.DiagonalGaussianDistribution.__bases__[0]
    return original(given)


def test_an_overridden_mean_or_std_is_used():
    theirs, given = posterior(moments()), moments()
    with fastvae.patch("diffusers"):
        ours = posterior(given)
        for one in (theirs, ours):
            one.mean = one.mean + 1
            one.var = torch.ones_like(one.var)
        assert torch.equal(ours.kl(), theirs.kl())
        torch.manual_seed(0)
        z = ours.sample()
    torch.manual_seed(0)
    assert torch.equal(z, theirs.sample())


def test_it_can_be_pickled_patched_and_afterwards():
    with fastvae.patch("diffusers"):
        ours = posterior(moments().detach())
        assert type(pickle.loads(pickle.dumps(ours))) is type(ours)
    loaded = pickle.loads(pickle.dumps(ours))
    assert type(loaded) is vae.DiagonalGaussianDistribution
    assert torch.equal(loaded.parameters, ours.parameters)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
@pytest.mark.parametrize("patched_then", [True, False])
def test_overridden_attributes_are_copied(again, patched_then):
    with fastvae.patch("diffusers"):
        ours = posterior(moments().detach())
        ours.mean = torch.ones_like(ours.mean)
        ours.label = "mine"
        copied = again(ours) if patched_then else None
    copied = copied or again(ours)
    assert copied.label == "mine"
    assert torch.equal(copied.mode(), ours.mean)
    assert torch.equal(copied.kl(), ours.kl())


def test_objects_made_before_the_patch_are_instances_too():
    before = posterior(moments())
    with fastvae.patch("diffusers"):
        assert isinstance(before, vae.DiagonalGaussianDistribution)
        assert isinstance(posterior(moments()), type(before))
        assert not isinstance(0, vae.DiagonalGaussianDistribution)


def test_objects_made_under_a_patch_run_diffusers_code_after_it():
    given, theirs = moments(), posterior(moments())
    with fastvae.patch("diffusers"):
        ours = posterior(given)
    draws = [one.sample(torch.Generator().manual_seed(0)) for one in (ours, theirs)]
    assert torch.equal(*draws)
    assert torch.equal(ours.kl(), theirs.kl())


def test_lists_of_generators_are_taken_as_there():
    given = moments()

    def generators(count):
        return [torch.Generator().manual_seed(seed) for seed in range(count)]

    def outcome(generator):
        try:
            return posterior(given).sample(generator).shape
        except Exception as error:
            return type(error)

    wrong = [[], (), tuple(generators(2)), 3, generators(5)]
    theirs = [outcome(generator) for generator in wrong]
    with fastvae.patch("diffusers"):
        assert [outcome(generator) for generator in wrong] == theirs
        assert torch.equal(*(posterior(given).sample(generators(count)) for count in (2, 4)))
        alone, listed = (posterior(given).sample(one) for one in (generators(1)[0], generators(1)))
        assert torch.equal(alone, listed)


def test_the_class_is_replaced_and_restored_in_every_module():
    name = "DiagonalGaussianDistribution"
    original = vae.DiagonalGaussianDistribution
    early = importlib.import_module("diffusers.models.autoencoders.autoencoder_kl")
    late = "diffusers.models.autoencoders.autoencoder_kl_mochi"
    sys.modules.pop(late, None)
    with fastvae.patch("diffusers"):
        fused = vae.DiagonalGaussianDistribution
        assert fused is not original
        mochi = importlib.import_module(late)
        assert getattr(early, name) is getattr(mochi, name) is fused
        with fastvae.patch("diffusers"):
            assert vae.DiagonalGaussianDistribution is fused
    for module in list(sys.modules.values()):
        assert getattr(module, "__dict__", {}).get(name) is not fused
    assert getattr(early, name) is getattr(mochi, name) is vae.DiagonalGaussianDistribution is original


def test_an_autoencoder_gives_a_fused_posterior():
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    with fastvae.patch("diffusers"):
        encoded = model.encode(torch.randn(2, 3, 8, 8)).latent_dist
        assert "_setting" in vars(encoded)
        z, kl = encoded.sample(), encoded.kl()
        (z.sum() + kl.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_a_draw_computes_its_kl_only_in_training():
    given = moments()
    with fastvae.patch("diffusers"):
        training, evaluation = posterior(given), posterior(given.detach())
        z = training.sample()
        assert training.kl().grad_fn is z.grad_fn
        evaluation.sample()
        assert evaluation._kl is None
        with torch.no_grad():
            assert not training.kl().requires_grad
        before = training.kl().detach().clone()
        training.kl().mul_(2.0)
        torch.testing.assert_close(training.kl(), before)


def test_a_second_kl_is_a_new_tensor():
    with fastvae.patch("diffusers"):
        posterior = vae.DiagonalGaussianDistribution(torch.randn(2, 8, 4, 4, requires_grad=True))
        posterior.sample()
        logged = posterior.kl().detach()
        before = logged.clone()
        kl = posterior.kl()
        kl *= 0.0
    assert torch.equal(logged, before)
