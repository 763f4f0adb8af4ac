"""Latents on the CPU backend, asked directly: tensors as C sees them, work in units of several tiles, bad arguments."""

from __future__ import annotations

import pytest
import torch

from fastvae.kernels import backend, reference
from fastvae.kernels.latent_spec import SCALES, LatentInputs, LatentOutputs, LatentScalars, LatentSpec

if backend.reason_unavailable("cpu"):
    pytest.skip(f"no CPU kernels here: {backend.reason_unavailable('cpu')}", allow_module_level=True)

from fastvae.kernels import cpu
from fastvae.kernels.cpu import _kernels

EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
SEED = torch.tensor([5])


def permuted(*shape: int) -> torch.Tensor:
    """A tensor of this shape whose memory runs through its dimensions backwards: of rank 4, no two merge."""
    return torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))


# Every output, the KL as a sum over each channel.
ALL = LatentSpec(free_bits="channel", per_coordinate=True, log_probs=True)


def step(kernels, mu, scale, prior_mu, prior_scale, draws=2):
    """Everything forward and backward give, with gradients of the shapes of what forward gave."""
    inputs, scalars = LatentInputs(mu, scale, prior_mu, prior_scale, SEED), LatentScalars(3, draws)
    outputs = kernels.latent_forward(inputs, ALL, scalars)
    torch.manual_seed(1)
    z, kl, log_q, log_p = [torch.randn_like(outputs[i]) for i in (0, 1, 3, 4)]
    grads = LatentOutputs(z, kl, None, log_q, log_p)
    return (*outputs, *kernels.latent_backward(grads, inputs, ALL, scalars, True))


def assert_all_close(came, expected):
    for one, other in zip(came, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


PRIOR_SHAPES = [((2, 3, 4, 5), (2, 3, 4, 5)), ((1, 3, 4, 5), (1, 1, 1, 1)), ((1, 1, 1, 1), (1, 3, 4, 5))]


@pytest.mark.parametrize(("mean_shape", "scale_shape"), PRIOR_SHAPES)
def test_strides_that_two_event_indices_cannot_say_are_copied(mean_shape, scale_shape):
    mu, prior_mu, prior_scale = torch.randn(2, 3, 4, 5), permuted(*mean_shape), permuted(*scale_shape)
    scale = permuted(2, 3, 4, 5)
    came = step(cpu, mu, scale, prior_mu, prior_scale)
    assert_all_close(came, step(reference, mu, scale, prior_mu, prior_scale))
    assert came[6].stride() == scale.stride()


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed_dim", [1, 3])
@pytest.mark.parametrize("make", [torch.randn, permuted])
def test_a_packed_latent_is_that_of_its_halves(exchanges, dtype, packed_dim, make):
    if exchanges and EXCHANGE is None:
        pytest.skip(f"torch {torch.__version__} has no DLPack exchange interface")
    moments = make(2, 4, 5, 6).to(dtype)
    packed, spec = LatentInputs(moments, None, seed=SEED), LatentSpec(packed_dim=packed_dim)
    halves = LatentInputs(*moments.chunk(2, packed_dim), seed=SEED)
    expected = cpu.latent_forward(halves, LatentSpec(), LatentScalars())
    grads = LatentOutputs(torch.randn_like(expected.z), torch.randn(2))
    apart = cpu.latent_backward(grads, halves, LatentSpec(), LatentScalars(), False)
    _kernels.use_exchange(EXCHANGE if exchanges else None)
    try:
        outputs = cpu.latent_forward(packed, spec, LatentScalars())
        gradient, *none = cpu.latent_backward(grads, packed, spec, LatentScalars(), False)
    finally:
        _kernels.use_exchange(EXCHANGE)
    assert none == [None] * 3
    assert gradient.stride() == moments.stride()
    assert torch.equal(gradient, torch.cat(apart[:2], packed_dim))
    assert torch.equal(outputs.z, expected.z)
    assert torch.equal(outputs.kl, expected.kl)


def test_a_packed_tensor_that_cannot_be_halved_is_refused():
    for moments, packed_dim in ((torch.randn(2, 3), 1), (torch.randn(2, 4), 2), (torch.randn(2, 4), -1), (None, 1)):
        outputs = LatentOutputs(torch.empty(2, 2))
        code = cpu._latent_code(LatentSpec(packed_dim=packed_dim))
        with pytest.raises(ValueError, match="cannot be halved"):
            _kernels.latent_forward(LatentInputs(moments, None, seed=SEED), outputs, code, LatentScalars())


@pytest.mark.parametrize(("mean_shape", "scale_shape"), PRIOR_SHAPES)
@pytest.mark.parametrize("exchanges", [True, False])
def test_priors_of_any_shape_are_seen_by_either_way_of_looking(exchanges, mean_shape, scale_shape):
    if exchanges and EXCHANGE is None:
        pytest.skip(f"torch {torch.__version__} has no DLPack exchange interface")
    tensors = [torch.randn(shape) for shape in ((2, 3, 4, 5), (2, 3, 4, 5), mean_shape, scale_shape)]
    _kernels.use_exchange(EXCHANGE if exchanges else None)
    try:
        came = step(cpu, *tensors)
    finally:
        _kernels.use_exchange(EXCHANGE)
    assert_all_close(came, step(reference, *tensors))


@pytest.mark.parametrize("shape", [(100, 50), (5000, 20), (200, 1100), (3, 70_000)])
@pytest.mark.parametrize("draws", [None, 3])
def test_sums_over_the_batch_have_the_same_bits_on_any_number_of_threads(shape, draws):
    mu, scale = torch.randn(2, *shape, 1)
    priors = torch.randn(1, *shape[1:], 1), torch.randn(1, 1, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = step(cpu, mu, scale, *priors, draws)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            for one, other in zip(step(cpu, mu, scale, *priors, draws), alone, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


def test_bad_arguments_of_the_extension_are_errors():
    mu = torch.zeros(2, 3)
    inputs, outputs, scalars = LatentInputs(mu, mu, seed=SEED), LatentOutputs(mu), LatentScalars()
    for function, expected in ((_kernels.latent_forward, 4), (_kernels.latent_backward, 5), (_kernels.noise, 4)):
        with pytest.raises(TypeError, match=f"expected {expected} arguments, got 1"):
            function(None)
    with pytest.raises(ValueError, match="the code has 4 bytes, expected 24"):
        _kernels.latent_forward(inputs, outputs, b"code", scalars)
    with pytest.raises(TypeError, match="expected bytes"):
        _kernels.latent_forward(inputs, outputs, "code", scalars)
    code = bytes(24)
    with pytest.raises(TypeError, match="expected a tuple of 5 items, got None"):
        _kernels.latent_forward(None, outputs, code, scalars)
    with pytest.raises(TypeError, match="expected a tuple of 5 items"):
        _kernels.latent_forward(inputs, (mu,), code, scalars)
    with pytest.raises(TypeError, match="expected a tuple of 7 items"):
        _kernels.latent_forward(inputs, outputs, code, (0, None))
    with pytest.raises(TypeError, match="must be real number, not str"):
        _kernels.latent_forward(inputs, outputs, code, LatentScalars(temperature="warm"))


def test_a_latent_that_cannot_be_computed_is_refused():
    mu = torch.zeros(2, 3)
    inputs, spec, scalars = LatentInputs(mu, mu, seed=SEED), LatentSpec(), LatentScalars()
    for missing in ("mu", "scale"):
        with pytest.raises(ValueError, match=f"{missing} is None"):
            _kernels.latent_forward(inputs._replace(**{missing: None}), LatentOutputs(mu), bytes(24), scalars)
    with pytest.raises(ValueError, match="z is wanted, and seed is None"):
        cpu.latent_forward(inputs._replace(seed=None), spec, scalars)
    with pytest.raises(ValueError, match="log_q and log_p are wanted without z"):
        cpu.latent_forward(inputs, LatentSpec(sample=False, log_probs=True), scalars)
    of_z, of_kl, of_mean = LatentOutputs(mu), LatentOutputs(kl=mu[:, 0]), LatentOutputs(kl_mean=mu[0])
    with pytest.raises(ValueError, match="z or log_p has a gradient, and seed is None"):
        cpu.latent_backward(of_z, inputs._replace(seed=None), spec, scalars, False)
    with pytest.raises(ValueError, match="kl_mean has a gradient"):
        cpu.latent_backward(of_mean, inputs, spec, scalars, False)
    without_mu = inputs._replace(mu=None)
    for grads, of_spec, of_scalars in (
        (of_kl, spec, scalars),
        (of_z, LatentSpec(residual=True), scalars),
        (LatentOutputs(mu.expand(2, 2, 3)), spec, LatentScalars(num_samples=2)),
    ):
        with pytest.raises(ValueError, match="mu is None, which does where z alone has a gradient"):
            cpu.latent_backward(grads, without_mu, of_spec, of_scalars, False)


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("clamp", ["none", "hard"])
def test_the_gradient_of_z_alone_needs_no_mu(scale, clamp, with_prior):
    mu, given, prior_mu, prior_given = 0.3 + torch.rand(4, 7, 203)
    prior = (prior_mu, prior_given) if with_prior else (None, None)
    inputs, grads = LatentInputs(mu, given, *prior, SEED), LatentOutputs(torch.randn(7, 203))
    spec, scalars = LatentSpec(scale, clamp), LatentScalars(row_offset=2, low=0.5, high=1.0)
    expected = cpu.latent_backward(grads, inputs, spec, scalars, with_prior)
    found = cpu.latent_backward(grads, inputs._replace(mu=None), spec, scalars, with_prior)
    assert torch.equal(expected.mu, grads.z)
    assert found.mu is None
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("length", [1, 3, 10, 15, 16, 17, 31, 33, 64, 65, 127, 200])
def test_a_row_has_the_same_bits_whatever_rows_are_computed_with_it(length):
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 39, length)
    spec = LatentSpec(log_probs=True)
    for prior in ((None, None), (prior_mu, prior_logvar)):
        all_rows = cpu.latent_forward(LatentInputs(mu, logvar, *prior, SEED), spec, LatentScalars())
        for row in range(0, 39, 7):
            tensors = [tensor if tensor is None else tensor[row : row + 1] for tensor in (mu, logvar, *prior)]
            alone = cpu.latent_forward(LatentInputs(*tensors, SEED), spec, LatentScalars(row))
            for name in ("kl", "log_q", "log_p"):
                assert torch.equal(getattr(all_rows, name)[row : row + 1], getattr(alone, name)), (name, prior is None)


@pytest.mark.parametrize("scale", SCALES)
def test_a_prior_of_the_posteriors_shape_is_as_good_as_one_with_other_options(scale):
    """Without free bits such a prior has kernels of its own; with some that cut nothing off it has not."""
    mu, given, prior_mu, prior_given = 0.3 + torch.rand(4, 7, 203)
    inputs = LatentInputs(mu, given, prior_mu, prior_given, SEED)
    grads = LatentOutputs(torch.randn(7, 203), torch.randn(7))
    found = []
    for free_bits in (0.0, 1e-38):
        spec = LatentSpec(scale, free_bits="coordinate" if free_bits else "none")
        scalars = LatentScalars(row_offset=2, temperature=0.7, free_bits=free_bits)
        outputs = cpu.latent_forward(inputs, spec, scalars)
        found.append((*outputs[:2], *cpu.latent_backward(grads, inputs, spec, scalars, True)))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_numbers_that_the_spec_does_not_ask_for_have_no_effect():
    inputs = LatentInputs(*torch.randn(2, 5, 20), seed=SEED)
    plain = cpu.latent_forward(inputs, LatentSpec(), LatentScalars())
    others = cpu.latent_forward(inputs, LatentSpec(), LatentScalars(low=-0.1, high=0.1, floor=1.0, free_bits=2.0))
    assert torch.equal(plain.z, others.z)
    assert torch.equal(plain.kl, others.kl)
