"""torch.distributions under `fastvae.patch`: torch's own numbers to float32 accuracy, shapes, dtypes and errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.distributions import Independent, LogNormal, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import ExpTransform

import fastvae
from tests.clients.training import check_same_losses, check_same_spread

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.005, torch.float64: 1e-12}


@pytest.fixture
def patched():
    with fastvae.patch("torch"):
        yield


def parameters(shape=(6, 5), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    std = (0.3 + torch.rand(shape, generator=generator)).to(dtype).requires_grad_()
    return mu, std


def computed(tensors):
    """As an encoder gives them: not leaves of the graph."""
    return [tensor.view_as(tensor) for tensor in tensors]


PRIORS = {
    "numbers": lambda dtype: (0.0, 1.0),
    "other numbers": lambda dtype: (0.5, 2.0),
    "zeros and ones": lambda dtype: (torch.zeros(6, 5, dtype=dtype), torch.ones(6, 5, dtype=dtype)),
    "expanded": lambda dtype: (torch.zeros((), dtype=dtype).expand(6, 5), torch.ones((), dtype=dtype).expand(6, 5)),
    "learned, of the event": lambda dtype: parameters((5,), dtype, seed=1),
    "learned, for each row": lambda dtype: parameters((6, 5), dtype, seed=1),
}


def kl_and_gradients(posterior, prior, independent, drawn_first):
    q, p = Normal(*computed(posterior)), Normal(*prior)
    if independent:
        q = Independent(q, 1)
        p = Independent(p if p.batch_shape else p.expand((5,)), 1)
    if drawn_first:
        q.rsample()
    kl = kl_divergence(q, p)
    wanted = [tensor for tensor in (*posterior, *prior) if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
    weights = torch.arange(1, kl.numel() + 1).reshape(kl.shape)
    return kl, torch.autograd.grad((kl.double() * weights).sum(), wanted)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("drawn_first", [False, True])
def test_kl_and_its_gradients_are_torchs(prior, dtype, independent, drawn_first):
    def both(wide):
        given = [*parameters(dtype=dtype)], [*PRIORS[prior](dtype)]
        if wide:
            given = tuple([one.detach().double().requires_grad_(one.requires_grad) if isinstance(one, torch.Tensor)
                           else one for one in pair] for pair in given)  # fmt: skip
        return kl_and_gradients(*given, independent, drawn_first)

    expected, expected_gradients = both(wide=True)
    theirs, _ = both(wide=False)
    with fastvae.patch("torch"):
        kl, gradients = both(wide=False)
    assert (kl.shape, kl.dtype) == (theirs.shape, theirs.dtype)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(kl.double(), expected, rtol=tolerance, atol=tolerance)
    for found, exactly in zip(gradients, expected_gradients, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exactly, rtol=4 * tolerance, atol=8 * tolerance)


@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("shape", [(6, 5), (6,), (2, 3, 4)])
@pytest.mark.usefixtures("patched")
def test_a_draw_is_loc_and_scale_times_noise(sample_shape, shape):
    mu, std = parameters(shape)
    torch.manual_seed(0)
    z = Normal(mu, std).rsample(sample_shape)
    assert z.shape == (*sample_shape, *shape)
    eps = ((z - mu) / std).detach()
    torch.testing.assert_close(z, mu + std * eps)
    weights = torch.randn(z.shape)
    of_mu, of_std = torch.autograd.grad((z * weights).sum(), (mu, std))
    dims = tuple(range(len(sample_shape)))
    torch.testing.assert_close(of_mu, weights.sum(dims) if dims else weights)
    torch.testing.assert_close(of_std, (weights * eps).sum(dims) if dims else weights * eps, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    assert torch.equal(Normal(mu, std).rsample(sample_shape), z)
    assert not torch.equal(Normal(mu, std).rsample(sample_shape), z)


def test_draws_are_those_of_the_fused_ops(patched):
    mu, std = parameters((4, 8))
    torch.manual_seed(1)
    z = Normal(mu, std).rsample()
    torch.manual_seed(1)
    assert torch.equal(z, fastvae.reparameterize(mu, std, scale="std"))
    torch.manual_seed(1)
    assert torch.equal(Normal(*computed((mu, std))).rsample(), z)


def test_torchs_noise_gives_torchs_numbers():
    mu, std = parameters()
    torch.manual_seed(0)
    expected = [Normal(mu, std).rsample(shape) for shape in [(), (3,)]]
    torch.manual_seed(0)
    with fastvae.patch("torch", noise="torch"):
        assert all(
            torch.equal(Normal(mu, std).rsample(shape), z) for shape, z in zip([(), (3,)], expected, strict=True)
        )


def test_a_draw_and_its_kl_to_the_standard_normal_share_one_pass(patched):
    for prior in (Normal(0.0, 1.0), Normal(torch.zeros(6, 5), torch.ones(6, 5)), Normal(torch.zeros(5), torch.ones(5))):
        q = Normal(*computed(parameters()))
        z = q.rsample()
        assert kl_divergence(q, prior).grad_fn is z.grad_fn
    assert kl_divergence(q, Normal(0.0, 2.0)).grad_fn is not z.grad_fn
    learned = Normal(torch.zeros(6, 5, requires_grad=True), torch.ones(6, 5))
    assert kl_divergence(q, learned).grad_fn is not z.grad_fn
    assert kl_divergence(q, Normal(torch.zeros(2, 6, 5), torch.ones(2, 6, 5))).shape == (2, 6, 5)
    with torch.no_grad():
        assert not kl_divergence(q, Normal(0.0, 1.0)).requires_grad


def test_the_cache_of_a_normal_is_dropped_when_it_changes(patched):
    mu, std = computed(parameters())
    q, p = Normal(mu, std), Normal(torch.zeros(6, 5), torch.ones(6, 5))
    q.rsample()
    kl = kl_divergence(q, p)
    p.loc += 1
    assert not torch.allclose(kl_divergence(q, p), kl)
    p.loc -= 1
    torch.testing.assert_close(kl_divergence(q, p), kl)
    q.loc = mu + 1
    assert not torch.allclose(kl_divergence(q, p), kl)


def test_a_kl_may_be_changed_in_place(patched):
    q, p = Normal(*computed(parameters())), Normal(0.0, 1.0)
    q.rsample()
    kl = kl_divergence(q, p)
    before = kl.detach().clone()
    kl.clamp_(min=10.0)
    torch.testing.assert_close(kl_divergence(q, p), before)


def test_backward_through_draw_and_kl_separately_works_for_leaves(patched):
    mu, std = parameters()
    q = Normal(mu, std)
    q.rsample().sum().backward()
    kl_divergence(q, Normal(0.0, 1.0)).sum().backward()
    torch.testing.assert_close(mu.grad, 1 + mu.detach())


def test_gradients_of_gradients(patched):
    mu, std = parameters((3, 2))
    q = Normal(*computed((mu, std)))
    q.rsample()
    (gradient,) = torch.autograd.grad(kl_divergence(q, Normal(0.0, 1.0)).sum(), std, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), std)
    torch.testing.assert_close(second, 1 + 1 / std.detach().square(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mu", "std"),
    [
        (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])),
        (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0])),
        (torch.zeros(3), torch.tensor([1.0, float("nan"), 1.0])),
        (torch.tensor([0.0, float("nan"), 0.0]), torch.ones(3)),
    ],
)
def test_errors_are_torchs(mu, std):
    with pytest.raises(ValueError, match="to satisfy the constraint") as expected:
        Normal(mu, std, validate_args=True)
    with fastvae.patch("torch"):
        with pytest.raises(ValueError, match="to satisfy the constraint") as found:
            Normal(mu, std, validate_args=True)
        assert str(found.value) == str(expected.value)
        assert Normal(mu, std, validate_args=False).scale is std


def test_whether_arguments_are_validated_is_the_users_choice():
    default = torch.distributions.Distribution._validate_args
    for validate in (None, True, False):
        theirs = Normal(torch.zeros(3), torch.ones(3), validate_args=validate)
        with fastvae.patch("torch"):
            ours = Normal(torch.zeros(3), torch.ones(3), validate_args=validate)
        assert ours._validate_args == theirs._validate_args
        assert ("_validate_args" in vars(ours)) == ("_validate_args" in vars(theirs))
        assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert torch.distributions.Distribution._validate_args == default


@pytest.mark.usefixtures("patched")
def test_unsupported_tensors_run_torchs_own_code():
    assert Normal(0.0, 1.0).rsample().shape == ()
    assert Normal(torch.zeros(3, dtype=torch.float64), 1.0).rsample().dtype == torch.float64
    assert Normal(torch.zeros(0, 3), torch.ones(0, 3)).rsample().shape == (0, 3)
    assert Normal(torch.zeros(2, 3), torch.ones(3)).rsample((0,)).shape == (0, 2, 3)
    kl = kl_divergence(Normal(torch.zeros(3), torch.ones(3)), Normal(torch.zeros(2, 3), torch.ones(2, 3)))
    assert kl.shape == (2, 3)  # the prior has more of a batch than the posterior
    assert kl_divergence(Normal(0.0, 1.0), Normal(0.0, 1.0)) == 0.0
    mapped = torch.func.vmap(lambda mu: kl_divergence(Normal(mu, torch.ones(3)), Normal(0.0, 1.0)))(torch.zeros(2, 3))
    assert mapped.shape == (2, 3)
    with torch.inference_mode():
        q = Normal(torch.zeros(2, 3), torch.ones(2, 3))
        assert q.rsample().shape == (2, 3)
        assert kl_divergence(q, Normal(torch.zeros(2, 3), torch.ones(2, 3))).sum() == 0.0


@pytest.mark.usefixtures("patched")
def test_subclasses_and_derived_distributions_work():
    mu, std = parameters()
    assert LogNormal(mu, std).rsample().shape == (6, 5)
    assert TransformedDistribution(Normal(mu, std), [ExpTransform()]).rsample().min() > 0
    expanded = Normal(mu, std).expand((2, 6, 5))
    assert expanded.rsample().shape == (2, 6, 5)
    q = Normal(torch.zeros(2, 3), torch.ones(2, 3))
    for again in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(kl_divergence(again, Normal(1.0, 1.0)), torch.full((2, 3), 0.5))
    assert repr(q) == "Normal(loc: torch.Size([2, 3]), scale: torch.Size([2, 3]))"


def test_under_a_compiler_it_is_torchs_own():
    def price(mu, std):
        return kl_divergence(Normal(mu, std, validate_args=False), Normal(0.0, 1.0)).sum(-1)

    mu, std = (tensor.detach() for tensor in parameters())
    expected = price(mu, std)
    with fastvae.patch("torch"):
        found = torch.compile(price, backend="eager")(mu, std)
    torch.testing.assert_close(found, expected)


def make_vae_step():
    """A VAE as people write it with torch.distributions."""
    x = torch.rand(64, 30)
    encoder, decoder = torch.nn.Linear(30, 16), torch.nn.Linear(8, 30)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)

    def step():
        optimiser.zero_grad()
        mu, logvar = encoder(x).chunk(2, 1)
        q = Normal(mu, (0.5 * logvar).exp())
        reconstruction = decoder(q.rsample())
        kl = kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(-1)
        loss = ((reconstruction - x).square().sum(-1) + kl).mean()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def test_a_patched_training_run_has_the_same_losses():
    check_same_losses(make_vae_step, "torch")


def test_with_fastvaes_noise_the_final_loss_is_within_those_of_other_seeds():
    check_same_spread(make_vae_step, "torch", seeds=12)


@pytest.mark.parametrize("independent", [False, True])
def test_a_second_kl_is_a_new_tensor(patched, independent):
    loc, scale = torch.randn(4, 3, requires_grad=True) * 2, torch.rand(4, 3, requires_grad=True) + 0.5
    q, p = Normal(loc, scale), Normal(0.0, 1.0)
    if independent:
        q, p = Independent(q, 1), Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    q.rsample()
    logged = kl_divergence(q, p).detach()
    before = logged.clone()
    kl_divergence(q, p).mul_(0.0)
    assert torch.equal(logged, before)
    torch.testing.assert_close(kl_divergence(q, p).detach(), before)


def test_forward_mode_differentiation_is_torchs_own(patched):
    loc, scale, tangent = torch.ones(3), torch.full((3,), 2.0), torch.ones(3)
    with torch.autograd.forward_ad.dual_level():
        moved = torch.autograd.forward_ad.make_dual(loc, tangent)
        kl = kl_divergence(Normal(moved, scale), Normal(0.0, 1.0))
        assert torch.autograd.forward_ad.unpack_dual(kl).tangent.tolist() == [1.0, 1.0, 1.0]
        drawn = Normal(moved, scale).rsample()
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(drawn).tangent, tangent)
