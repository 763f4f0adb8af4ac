"""What holds for the family of Gaussian latents beyond its formulas: layouts, draws, memory, exactness."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

import fastvae

from .test_autograd import saved_storages
from .test_ops import LAYOUTS

LARGE_LOGVAR = 3.0


def leaves(*shapes, device="cpu", dtype=torch.float32):
    return [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]


# Draws


def test_draw_k_is_draw_k_of_the_noise(backend, device):
    mu, logvar = leaves((5, 6), (5, 6), device=device)
    z = fastvae.reparameterize(mu, logvar, seed=3, num_samples=4, row_offset=2)
    assert z.shape == (4, 5, 6)
    for k in range(4):
        eps = fastvae.noise(3, (5, 6), draw=k, row_offset=2, device=device)
        torch.testing.assert_close(z[k], mu + torch.exp(0.5 * logvar) * eps, rtol=1e-6, atol=1e-6)
    assert torch.equal(z[0], fastvae.reparameterize(mu, logvar, seed=3, row_offset=2))
    assert torch.equal(z[:2], fastvae.sample_and_kl(mu, logvar, seed=3, row_offset=2, num_samples=2)[0])


def test_row_offset_splits_many_draws(backend, device):
    mu, logvar = leaves((6, 11), (6, 11), device=device)
    whole = fastvae.sample_and_log_prob(mu, logvar, seed=5, row_offset=10, num_samples=3)
    parts = [
        fastvae.sample_and_log_prob(mu[a:b], logvar[a:b], seed=5, row_offset=10 + a, num_samples=3)
        for a, b in ((0, 4), (4, 6))
    ]
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat(others, 1), one, rtol=1e-6, atol=1e-6)


def test_a_temperature_of_0_draws_the_mean(backend, device):
    mu, logvar = leaves((4, 5), (4, 5), device=device)
    z, _kl = fastvae.sample_and_kl(mu, logvar, temperature=0.0)
    assert torch.equal(z, mu)
    grad_mu, grad_logvar = torch.autograd.grad(z.sum(), (mu, logvar))
    assert torch.equal(grad_mu, torch.ones_like(mu))
    assert torch.equal(grad_logvar, torch.zeros_like(logvar))


@pytest.mark.parametrize("prior", [False, True], ids=["standard prior", "shared prior"])
def test_monte_carlo_kl_agrees_with_the_closed_form(prior):
    mu, logvar = torch.randn(3, 8), torch.randn(3, 8)
    priors = (torch.randn(8), torch.randn(8)) if prior else ()
    kl = fastvae.gaussian_kl(mu, logvar, *priors)
    _z, log_q, log_p = fastvae.sample_and_log_prob(mu, logvar, *priors, seed=1, num_samples=20000)
    difference = (log_q - log_p).double()
    error = difference.std(0) / math.sqrt(len(difference))
    assert ((difference.mean(0) - kl).abs() < 4 * error).all()


# Memory


def test_the_noise_of_many_draws_is_never_kept(backend, device):
    mu, logvar, prior_mu, prior_logvar = leaves((10, 6), (10, 6), (6,), (6,), device=device)
    inputs = (mu, logvar, prior_mu, prior_logvar)
    addresses = {t.untyped_storage().data_ptr() for t in inputs}
    kept, _outputs = saved_storages(lambda: fastvae.sample_and_log_prob(*inputs, num_samples=5))
    assert sum(size for address, size in kept.items() if address not in addresses) == 8


def test_a_scale_is_kept_as_given(backend, device):
    mu, raw = leaves((16, 10), (16, 10), device=device)
    addresses = {t.untyped_storage().data_ptr() for t in (mu, raw)}
    kept, _outputs = saved_storages(lambda: fastvae.sample_and_kl(mu, raw, scale="softplus", floor=1e-4))
    assert sum(size for address, size in kept.items() if address not in addresses) == 8


# Exactness


@pytest.mark.parametrize("scale", ["logvar", "logstd", "std", "var", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_gaussians_have_a_kl_of_exactly_0(backend, device, scale, dtype):
    mu = torch.randn(7, 33).to(device, dtype)
    raw = (torch.randn(7, 33).abs() + 0.01).to(device, dtype)
    kl = fastvae.gaussian_kl(mu, raw, mu.clone(), raw.clone(), scale=scale, reduction="none")
    assert (kl == 0).all()
    if scale in ("logvar", "logstd"):
        zero = torch.zeros_like(mu)
        kl = fastvae.gaussian_kl(zero, zero, mu, raw, scale=scale, residual=True, reduction="none")
        assert (kl == 0).all()


@pytest.mark.parametrize("scale", ["logvar", "std", "var"])
def test_kl_of_nearly_equal_gaussians_is_never_negative(backend, device, scale):
    raw = torch.rand(40, 50, device=device) + 0.5
    other = raw * (1 + torch.randn(40, 50, device=device) * torch.logspace(-8, -1, 50, device=device))
    mu = torch.randn(40, 50, device=device)
    kl = fastvae.gaussian_kl(mu, raw, mu, other, scale=scale, reduction="none")
    assert (kl >= 0).all()
    assert kl.max() > 1e-4


def test_a_small_residual_has_an_exact_kl(backend, device):
    """The difference is what was given: no digits are lost to the prior that it is added to."""
    small = torch.logspace(-6, -2, 20, device=device).unsqueeze(1)
    large = torch.full_like(small, LARGE_LOGVAR)
    kl = fastvae.gaussian_kl(torch.zeros_like(small), small, large, large, residual=True)
    exact = small.double().square() / 4 * (1 + small.double() / 3 + small.double().square() / 12)
    torch.testing.assert_close(kl.double(), exact.squeeze(1), rtol=1e-6, atol=1e-8 if backend == "reference" else 0)


@pytest.mark.parametrize("value", [-30.0, 20.0])
def test_the_clamp_has_gradient_1_on_its_bounds_and_0_outside(backend, device, value):
    values = [math.nextafter(value, -math.inf), value, math.nextafter(value, math.inf)]
    logvar = torch.tensor([values], dtype=torch.float64).float().to(device)
    logvar[0, 0], logvar[0, 2] = (
        torch.nextafter(logvar[0, 1], logvar.new_tensor(end)) for end in (-math.inf, math.inf)
    )
    logvar.requires_grad_()
    kl = fastvae.gaussian_kl(torch.zeros_like(logvar), logvar, clamp=(-30.0, 20.0))
    inside = (logvar >= -30.0) & (logvar <= 20.0)
    expected = inside * 0.5 * torch.expm1(logvar.detach().double()).float()
    assert inside.tolist() == [[value == 20.0, True, value == -30.0]]
    for recorded in (False, True):  # the second time autograd differentiates the formula
        (grad,) = torch.autograd.grad(kl.sum(), logvar, create_graph=recorded, retain_graph=True)
        assert torch.equal(grad == 0, ~inside)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", ["logstd", "std", "var", "softplus"])
@pytest.mark.parametrize("value", [1e-6, 1e-3, 0.999, 1.0, 1.001, 30.0, 1e4])
def test_extreme_scales_are_right(backend, device, scale, value):
    raw_value = {"logstd": math.log(value), "softplus": value if value > 30 else math.log(math.expm1(value))}.get(
        scale, value * value if scale == "var" else value
    )
    raw = torch.full((2, 5), raw_value, device=device, requires_grad=True)
    mu = torch.zeros(2, 5, device=device)
    exact_raw = raw.detach().cpu().double().requires_grad_()
    exact_std = {
        "logstd": torch.exp, "std": lambda x: x, "var": torch.sqrt, "softplus": torch.nn.functional.softplus
    }[scale](exact_raw)  # fmt: skip
    log_std = torch.log(exact_std)
    exact = 0.5 * (torch.expm1(2 * log_std) - 2 * log_std)
    z, kl = fastvae.sample_and_kl(mu, raw, seed=1, scale=scale, reduction="none")
    eps = fastvae.noise(1, (2, 5), device=device).cpu().double()
    torch.testing.assert_close(z.cpu().double(), exact_std * eps, rtol=3e-6, atol=0)
    torch.testing.assert_close(kl.cpu().double(), exact, rtol=5e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(kl.sum(), raw)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_raw)
    torch.testing.assert_close(grad.cpu().double(), exact_grad, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("argument", range(4), ids=["mu", "logvar", "prior_mu", "prior_logvar"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 100)], ids=str)
def test_nan_stays_in_its_row(backend, device, argument, shape):
    inputs = [torch.randn(shape, device=device) for _ in range(4)]
    clean = fastvae.sample_and_log_prob(*inputs, seed=1), fastvae.gaussian_kl(*inputs)
    inputs[argument][1, 2] = float("nan")
    _z, _log_q, log_p = fastvae.sample_and_log_prob(*inputs, seed=1)
    kl = fastvae.gaussian_kl(*inputs)
    assert kl[1].isnan()
    assert log_p[1].isnan()
    others = [0, 2, 3, 4]
    assert torch.equal(kl[others], clean[1][others])
    assert torch.equal(log_p[others], clean[0][2][others])
    assert fastvae.gaussian_kl(*inputs, free_bits=0.1)[1].isnan()


# Layouts and gradients that come in


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_strides_give_what_contiguous_tensors_give(backend, device, poisoned_memory, layout):
    inputs = [*layout(torch.float32, device), *layout(torch.float32, device)]
    dense = [tensor.contiguous() for tensor in inputs]
    keywords = {"seed": 1, "num_samples": 2}
    results = []
    for given in (inputs, dense):
        given = [tensor.detach().requires_grad_() for tensor in given]
        z, kl, each = fastvae.sample_and_kl(*given, per_coordinate=True, **keywords)
        _, log_q, log_p = fastvae.sample_and_log_prob(*given, **keywords)
        loss = z.square().sum() + kl.square().sum() + log_q.square().sum() + log_p.square().sum()
        results.append((z, kl, each, log_q, log_p, *torch.autograd.grad(loss, given)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[3]], ids=["packed halves", "channels_last"])
def test_each_draw_has_the_memory_layout_of_mu(backend, device, layout):
    mu, logvar = layout(torch.float32, device)
    z = fastvae.reparameterize(mu, logvar, num_samples=3)
    assert z[1].stride() == torch.empty_like(mu).stride()


def test_a_prior_that_is_a_view_is_read_in_place(backend, device):
    moments, prior = leaves((4, 6, 2, 2), (4, 6, 2, 2), device=device)
    mu, logvar = moments.chunk(2, 1)
    prior_mu, prior_logvar = prior.chunk(2, 1)
    got = fastvae.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    torch.testing.assert_close(got, fastvae.gaussian_kl(mu, logvar, prior_mu.contiguous(), prior_logvar.contiguous()))


def test_priors_broadcast_to_the_event(backend, device):
    mu, logvar = leaves((4, 3, 2, 2), (4, 3, 2, 2), device=device)
    for shape in [(3, 1, 1), (1, 3, 2, 2), (2, 2), (4, 1, 1, 1), (1,), ()]:
        priors = leaves(shape, shape, device=device)
        full = [prior.expand(4, 3, 2, 2).clone() for prior in priors]
        got, expected = (fastvae.gaussian_kl(mu, logvar, *given) for given in (priors, full))
        torch.testing.assert_close(got, expected)
        inputs = (mu, logvar, *priors)
        got_grads, expected_grads = (torch.autograd.grad(kl.square().sum(), inputs) for kl in (got, expected))
        for prior, one, other in zip(inputs, got_grads, expected_grads, strict=True):
            assert one.shape == prior.shape
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        fastvae.gaussian_kl(mu, logvar, 1.5, -0.5),
        fastvae.gaussian_kl(mu, logvar, *(torch.full((), value, device=device) for value in (1.5, -0.5))),
    )


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_gradient_of_a_shared_prior_is_as_good_as_a_sum_in_float64(backend, device, rows):
    if backend == "triton" and rows == 1000:
        rows = 200  # the interpreter is slow
    mu, logvar = leaves((rows, 37), (rows, 37), device=device)
    prior = leaves((37,), (37,), device=device)
    grads = torch.autograd.grad(fastvae.gaussian_kl(mu, logvar, *prior).sum(), prior)
    exact_prior = [tensor.detach().cpu().double().requires_grad_() for tensor in prior]
    q = Normal(mu.detach().cpu().double(), torch.exp(0.5 * logvar.detach().cpu().double()))
    exact = torch.distributions.kl_divergence(q, Normal(exact_prior[0], torch.exp(0.5 * exact_prior[1]))).sum()
    for one, other in zip(grads, torch.autograd.grad(exact, exact_prior), strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-5, atol=1e-5 * math.sqrt(rows))


def test_expanded_and_permuted_gradients_are_right(backend, device):
    inputs = leaves((3, 4, 5), (3, 4, 5), (4, 5), (3, 4, 5), device=device)
    z, kl = fastvae.sample_and_kl(*inputs, seed=1, num_samples=2, reduction="none")
    _, log_q, log_p = fastvae.sample_and_log_prob(*inputs, seed=1, num_samples=2)
    outputs = (z, kl, log_q, log_p)
    odd = (
        torch.randn(5, 4, 3, 2, device=device).permute(3, 2, 1, 0),
        torch.randn(4, 1, 5, device=device).permute(1, 0, 2).expand(3, 4, 5),
        torch.ones((), device=device).expand(2, 3),
        torch.randn(3, 2, device=device).t(),
    )
    got = torch.autograd.grad(outputs, inputs, odd, retain_graph=True)
    expected = torch.autograd.grad(outputs, inputs, [grad.contiguous() for grad in odd])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (3,), (0, 3), (1, 2), (2, 3)], ids=str)
def test_outputs_that_are_not_used_cost_no_gradient(backend, device, chosen):
    """The gradient of a loss of some outputs is that of one which weighs the others with 0."""
    inputs = leaves((4, 5), (4, 5), (5,), (4, 5), device=device)
    z, kl = fastvae.sample_and_kl(*inputs, seed=1, num_samples=2)
    same_z, log_q, log_p = fastvae.sample_and_log_prob(*inputs, seed=1, num_samples=2)
    outputs = (z, kl, log_q, log_p)
    weights = [torch.randn_like(output) for output in outputs]
    others = [torch.zeros_like(weight) if i not in chosen else weight for i, weight in enumerate(weights)]
    got = torch.autograd.grad(
        [outputs[i] for i in chosen], inputs, [weights[i] for i in chosen], retain_graph=True, materialize_grads=True
    )
    expected = torch.autograd.grad((same_z * 0 + z, *outputs[1:]), inputs, others)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_graph_can_be_gone_through_twice(backend, device):
    inputs = leaves((4, 5), (4, 5), (5,), (5,), device=device)
    z, kl = fastvae.sample_and_kl(*inputs, num_samples=2)
    first = torch.autograd.grad((z.sum(), kl.sum()), inputs, retain_graph=True)
    second = torch.autograd.grad((z.sum(), kl.sum()), inputs)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_only_some_inputs_may_want_gradients(backend, device):
    inputs = leaves((4, 5), (4, 5), (5,), (5,), device=device)
    everything = torch.autograd.grad(fastvae.gaussian_kl(*inputs).sum(), inputs)
    for index in range(4):
        alone = [t if i == index else t.detach() for i, t in enumerate(inputs)]
        (grad,) = torch.autograd.grad(fastvae.gaussian_kl(*alone).sum(), alone[index])
        torch.testing.assert_close(grad, everything[index], rtol=1e-6, atol=1e-6)


def test_an_empty_batch_gives_empty_results(backend, device):
    for shape in [(0,), (0, 5), (0, 3, 2)]:
        mu, logvar = (torch.zeros(shape, device=device, requires_grad=True) for _ in range(2))
        prior = [torch.zeros(shape[1:], device=device, requires_grad=True) for _ in range(2)]
        z, kl = fastvae.sample_and_kl(mu, logvar, *prior, num_samples=2)
        assert z.shape == (2, *shape)
        assert kl.shape == (0,)
        grads = torch.autograd.grad((z.sum(), kl.sum()), (mu, logvar, *prior))
        for grad, tensor in zip(grads, (mu, logvar, *prior), strict=True):
            assert torch.equal(grad, torch.zeros_like(tensor))
        _, log_q, log_p = fastvae.sample_and_log_prob(mu, logvar, num_samples=2)
        assert log_q.shape == log_p.shape == (2, 0)


def test_second_derivatives_are_those_of_the_formula(backend, device):
    inputs = leaves((3, 4), (3, 4), (4,), (4,), device=device)
    (first,) = torch.autograd.grad(fastvae.gaussian_kl(*inputs).sum(), inputs[1], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs[1])
    expected = 0.5 * torch.exp(inputs[1] - inputs[3])
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize(
    ("scale", "value", "information"), [("logvar", 0.0, 0.5), ("logstd", 0.0, 2.0), ("std", 1.0, 2.0)]
)
def test_where_both_are_equal_the_second_derivative_is_the_fisher_information(
    backend, device, scale, value, information
):
    mu, raw, prior_mu, prior_raw = (
        torch.full((2, 3), of, device=device, requires_grad=True) for of in (0.5, value, 0.5, value)
    )
    kl = fastvae.gaussian_kl(mu, raw, prior_mu, prior_raw, scale=scale)
    (first,) = torch.autograd.grad(kl.sum(), raw, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), raw)
    torch.testing.assert_close(second, torch.full_like(raw, information))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads):
    inputs = leaves((301, 67), (301, 67), (67,), (1,))

    def compute():
        z, kl, each = fastvae.sample_and_kl(*inputs, seed=1, num_samples=3, per_coordinate=True)
        _, log_q, log_p = fastvae.sample_and_log_prob(*inputs, seed=1, num_samples=3)
        loss = z.sum() + kl.sum() + (log_q * log_p).sum()
        return z, kl, each, log_q, log_p, *torch.autograd.grad(loss, inputs)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = compute()
        torch.set_num_threads(before + 1 if before == threads else before)
        expected = compute()
    finally:
        torch.set_num_threads(before)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_samples", [None, 2])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_gradient_of_z_is_right_where_std_is_0(backend, device, num_samples, with_prior):
    """The KL has an infinite derivative there, which must not meet the 0 of a KL that has no part in the loss."""
    mu = torch.zeros(1, 2, device=device)
    std = torch.zeros(1, 2, device=device, requires_grad=True)
    raw = torch.full((1, 2), -120.0, device=device, requires_grad=True)
    eps = fastvae.noise(0, (1, 2), device=device)
    if num_samples:
        eps = eps + fastvae.noise(0, (1, 2), draw=1, device=device)

    def z_of(given, scale):
        arguments = {"seed": 0, "num_samples": num_samples, "scale": scale}
        if with_prior:
            return fastvae.sample_and_kl(mu, given, 0.0, 1.0, **arguments)[0]
        return fastvae.reparameterize(mu, given, **arguments)

    z_of(std, "std").sum().backward()
    torch.testing.assert_close(std.grad, eps, rtol=1e-5, atol=1e-5)
    z_of(raw, "softplus").sum().backward()
    assert torch.equal(raw.grad, torch.zeros_like(raw))
