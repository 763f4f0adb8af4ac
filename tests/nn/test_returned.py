"""What encoders, decoders, likelihoods and priors of a user's own return: wrong shapes are refused, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastvae.likelihoods import Bernoulli
from fastvae.nn import VAE, MLPDecoder, MLPEncoder
from fastvae.objectives import ELBO, IWAE
from fastvae.priors import Prior, StandardNormal

ROWS = SIZE = 6  # equal, so that what is wrong broadcasts
LATENT = 2


class Reduced(nn.Module):
    """A Gaussian whose log p is reduced in another way."""

    def __init__(self, reduce, takes_draws=False):
        super().__init__()
        self.reduce, self.takes_draws = reduce, takes_draws

    def log_prob(self, parameters, x):
        return self.reduce(-0.5 * (x - parameters).square())


class Changed(nn.Module):
    """A module whose output is changed."""

    def __init__(self, module, change):
        super().__init__()
        self.module, self.change = module, change

    def forward(self, x):
        return self.change(self.module(x))


class OwnPrior(Prior):
    def __init__(self, reduce, draw=lambda z: z):
        super().__init__(LATENT)
        self.reduce, self.draw = reduce, draw

    def log_prob(self, z):
        return self.reduce(-0.5 * z.square())

    def _draw(self, n, seed, temperature):
        return self.draw(torch.zeros(n, LATENT))


class OwnKL(StandardNormal):
    def __init__(self, change):
        super().__init__(LATENT)
        self.change = change

    def sample_and_kl(self, mu, logvar, **options):
        return self.change(*super().sample_and_kl(mu, logvar, **options))


class OtherEncoder(nn.Module):
    """Without moments, so that the prior draws."""

    def __init__(self):
        super().__init__()
        self.layers = MLPEncoder(SIZE, 8, LATENT)

    def forward(self, x):
        return self.layers(x)


def make(likelihood=None, *, encoder=lambda both: both, decoder=lambda out: out, prior=None):
    return VAE(
        Changed(OtherEncoder(), encoder),
        Changed(MLPDecoder(LATENT, 8, SIZE), decoder),
        likelihood or Reduced(lambda each: each.sum(-1)),
        prior=prior,
    )


X = torch.rand(ROWS, SIZE)
WRONG = {
    "each coordinate": lambda each: each,
    "kept dimension": lambda each: each.sum(-1, keepdim=True),
    "sum of all": lambda each: each.sum(),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("takes_draws", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda vae: vae.elbo(X),
        lambda vae: ELBO()(vae, X),
        lambda vae: IWAE(3)(vae, X),
        lambda vae: vae.log_likelihood_under_prior(X, 3),
    ],
)
def test_a_likelihood_returns_one_sum_for_each_row(wrong, takes_draws, use):
    prior = StandardNormal(LATENT)
    with pytest.raises(ValueError, match=r"Reduced.log_prob returned shape \(.*expected \(.*one sum for each"):
        use(make(Reduced(WRONG[wrong], takes_draws), prior=prior))
    use(make(Reduced(lambda each: each.sum(-1), takes_draws), prior=prior))


def test_a_likelihood_returns_a_tensor():
    with pytest.raises(TypeError, match=r"Reduced.log_prob returned a float, expected a tensor of shape \(6,\)"):
        make(Reduced(lambda each: 1.0)).elbo(X)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("use", [lambda vae: vae.elbo(X), lambda vae: IWAE(ROWS)(vae, X)])
def test_a_prior_returns_one_sum_for_each_z(wrong, use):
    with pytest.raises(ValueError, match=r"OwnPrior.log_prob returned shape .*one sum for each z"):
        use(make(prior=OwnPrior(WRONG[wrong])))
    use(make(prior=OwnPrior(lambda each: each.sum(-1))))


@pytest.mark.parametrize(
    "change", [lambda z, kl: (z[:1], kl), lambda z, kl: (z, kl[:, None]), lambda z, kl: (z, kl[0])]
)
def test_a_prior_returns_z_and_a_kl_of_the_right_shapes(change):
    with pytest.raises(ValueError, match=r"OwnKL.sample_and_kl returned shape"):
        make(prior=OwnKL(change)).elbo(X)
    make(prior=OwnKL(lambda z, kl: (z, kl))).elbo(X)


def test_a_prior_draws_as_many_as_it_is_asked_for():
    with pytest.raises(ValueError, match=r"OwnPrior._draw returned shape \(1, 2\), expected \(4, 2\)"):
        OwnPrior(None, lambda z: z[:1]).sample(4)


def test_an_encoder_returns_as_many_rows_as_it_got_and_a_scale_of_as_many_dimensions():
    with pytest.raises(ValueError, match=r"encoder returned shape \(1, 2\), expected 6 rows"):
        make(encoder=lambda both: tuple(one[:1] for one in both)).elbo(X)
    with pytest.raises(ValueError, match=r"encoder returned logvar of shape \(2,\), mu of \(6, 2\)"):
        make(encoder=lambda both: (both[0], both[1][0])).elbo(X)
    assert make(encoder=lambda both: (both[0], both[1][:, :1])).elbo(X).kl.shape == (ROWS,)


@pytest.mark.parametrize("use", [lambda vae: vae.elbo(X), lambda vae: IWAE(3)(vae, X)])
def test_a_decoder_returns_as_many_rows_as_it_got(use):
    with pytest.raises(ValueError, match=r"decoder returned shape \(1, 6\), expected (6|18) rows"):
        use(make(Bernoulli(), decoder=lambda out: out[:1]))


@pytest.mark.parametrize("name", ["reconstruction", "kl"])
def test_objectives_refuse_terms_of_another_shape(name):
    class Model(nn.Module):
        def terms(self, x, **options):
            found = vae.terms(x, **options)
            return found._replace(**{name: getattr(found, name)[:, None]})

    vae = make()
    with pytest.raises(ValueError, match=r"Model.terms returned shape \(6, 1\), expected \(6,\)"):
        ELBO()(Model(), X)
