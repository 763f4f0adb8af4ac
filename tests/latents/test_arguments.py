"""Bad input: an error that names the argument, what came and what was expected, before anything is computed."""

from __future__ import annotations

import pytest
import torch

import fastvae
from fastvae import ops

MU = torch.zeros(4, 2)


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
    """No bad call may get as far as an op."""

    def computed(*args):
        raise AssertionError("an op ran although its arguments were bad")

    for name in ("latent", "noise"):
        monkeypatch.setattr(ops, name, computed)


POSTERIORS = [
    ((MU, torch.zeros(4, 3)), ValueError, r"logvar has shape \(4, 3\), mu has \(4, 2\)"),
    ((MU, torch.zeros(3, 2)), ValueError, r"logvar has shape \(3, 2\), mu has \(4, 2\)"),
    ((MU.long(), MU), TypeError, "mu is int64, expected one of float32, bfloat16, float16, float64"),
    ((MU, MU.int()), TypeError, "logvar is int32, expected one of"),
    ((MU.to(torch.complex64), MU), TypeError, "mu is complex64"),
    ((MU, MU.double()), TypeError, "logvar is float64, mu is float32; expected the same dtype"),
    ((MU.bfloat16(), MU.half()), TypeError, "logvar is float16, mu is bfloat16"),
    ((MU, MU.to("meta")), ValueError, "logvar is on meta, mu is on cpu; expected the same device"),
    ((torch.tensor(1.0), MU), ValueError, r"mu is 0-d, expected shape \(batch, \*event\)"),
    ((MU, torch.tensor(1.0)), ValueError, "logvar is 0-d"),
    ((MU.to_sparse(), MU), TypeError, "mu is a torch.sparse_coo tensor, expected a dense one"),
    ((MU, torch.nested.nested_tensor([MU, MU])), TypeError, "logvar is a nested tensor, expected a dense one"),
    (([0.0, 1.0], MU), TypeError, "mu is a list, expected a torch.Tensor"),
    ((MU, 0.0), TypeError, "logvar is a float, expected a torch.Tensor"),
    ((MU, None), TypeError, "logvar is a NoneType, expected a torch.Tensor"),
]


@pytest.mark.parametrize("function", [fastvae.sample_and_kl, fastvae.reparameterize, fastvae.gaussian_kl])
@pytest.mark.parametrize(("posterior", "error", "message"), POSTERIORS)
def test_a_bad_posterior_is_named(function, posterior, error, message):
    with pytest.raises(error, match=message):
        function(*posterior)


@pytest.mark.parametrize("function", [fastvae.sample_and_kl, fastvae.gaussian_kl])
@pytest.mark.parametrize("reduction", ["mean", "", None, 1])
def test_an_unknown_reduction_is_named(function, reduction):
    with pytest.raises(
        ValueError, match=rf"reduction is {reduction!r}, expected one of 'none', 'sample', 'sum', 'batchmean'"
    ):
        function(MU, MU, reduction=reduction)


def sampling(**arguments):
    return (
        lambda: fastvae.sample_and_kl(MU, MU, **arguments),
        lambda: fastvae.reparameterize(MU, MU, **arguments),
    )


SEEDS = [
    (1.5, TypeError, "seed is a float, expected an int or a one-element int64 tensor"),
    (True, TypeError, "seed is a bool"),
    ("1", TypeError, "seed is a str"),
    (2**64, ValueError, r"seed is 18446744073709551616, expected 64 bits"),
    (-(2**63) - 1, ValueError, "seed is -9223372036854775809, expected 64 bits"),
    (torch.tensor([1, 2]), TypeError, r"seed is a tensor of int64, shape \(2,\); expected one int64 element"),
    (torch.tensor([1.0]), TypeError, r"seed is a tensor of float32, shape \(1,\); expected one int64 element"),
    (torch.tensor([1], dtype=torch.int32), TypeError, "seed is a tensor of int32"),
    (torch.empty(1, dtype=torch.int64, device="meta"), ValueError, "seed is on meta, expected it on cpu"),
]


@pytest.mark.parametrize(("seed", "error", "message"), SEEDS)
def test_a_bad_seed_is_named(seed, error, message):
    for call in (*sampling(seed=seed), lambda: fastvae.noise(seed, (2, 3), device="cpu")):
        with pytest.raises(error, match=message):
            call()


def test_noise_needs_a_seed():
    with pytest.raises(TypeError, match="seed is None, expected an int or a one-element int64 tensor"):
        fastvae.noise(None, (2, 3))


def test_seed_and_generator_exclude_each_other():
    for call in sampling(seed=1, generator=torch.Generator()):
        with pytest.raises(ValueError, match="seed and generator were both given"):
            call()


def test_a_generator_of_the_wrong_kind_is_named():
    for call in sampling(generator=3):
        with pytest.raises(TypeError, match=r"generator is a int, expected a torch.Generator"):
            call()
    meta = torch.zeros(4, 2, device="meta")
    with pytest.raises(ValueError, match="generator is on cpu, expected it on meta"):
        fastvae.reparameterize(meta, meta, generator=torch.Generator())


@pytest.mark.parametrize(
    ("row_offset", "error", "message"),
    [
        (-1, ValueError, "row_offset is -1, expected 0 or more"),
        (1.0, TypeError, "row_offset is a float, expected an int"),
        (True, TypeError, "row_offset is a bool, expected an int"),
        (None, TypeError, "row_offset is a NoneType, expected an int"),
        (2**63, ValueError, r"row_offset is 9223372036854775808, expected less than 2\*\*63"),
    ],
)
def test_a_bad_row_offset_is_named(row_offset, error, message):
    for call in (*sampling(row_offset=row_offset), lambda: fastvae.noise(0, (2, 3), row_offset=row_offset)):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((), ValueError, r"shape is \(\), expected \(batch, \*event\)"),
        ((2, -1), ValueError, r"shape is \(2, -1\), expected \(batch, \*event\) of sizes 0 or more"),
        ((2, 1.5), TypeError, r"shape is \(2, 1.5\), expected a sequence of ints"),
        (5, TypeError, "shape is 5, expected a sequence of ints"),
        ((True, 2), TypeError, r"shape is \(True, 2\), expected a sequence of ints"),
    ],
)
def test_a_bad_noise_shape_is_named(shape, error, message):
    with pytest.raises(error, match=message):
        fastvae.noise(0, shape)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, "float32"])
def test_a_bad_noise_dtype_is_named(dtype):
    with pytest.raises(TypeError, match=r"dtype is .*, expected one of float32, bfloat16, float16, float64"):
        fastvae.noise(0, (2, 3), dtype=dtype)


def test_an_unknown_backend_is_named():
    with (
        pytest.raises(ValueError, match="backend is 'cuda', expected one of 'triton', 'cpu', 'reference'"),
        fastvae.use_backend("cuda"),
    ):
        pass


def test_under_autocast_mu_and_logvar_are_promoted(monkeypatch):
    monkeypatch.undo()
    mu, logvar = torch.randn(4, 2).bfloat16().requires_grad_(), torch.randn(4, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, kl = fastvae.sample_and_kl(mu, logvar, seed=1)
    expected = fastvae.sample_and_kl(mu.float(), logvar, seed=1)
    assert torch.equal(z, expected[0])
    assert torch.equal(kl, expected[1])
    kl.sum().backward()
    assert mu.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": True}, "temperature is a bool, expected a number"),
        ({"temperature": torch.ones(2)}, "temperature is a Tensor, expected a number"),
        ({"beta": torch.tensor(1.0)}, "beta is a Tensor, expected a number"),
        ({"beta": 1 + 0j}, "beta is a complex, expected a number"),
        ({"free_bits": False}, "free_bits is a bool, expected a number"),
        ({"check": "no"}, "check is a str, expected a bool"),
        ({"per_coordinate": "no"}, "per_coordinate is a str, expected a bool"),
        ({"clamp": (torch.tensor(-1.0), torch.tensor(1.0))}, "clamp is .*, expected a pair of numbers"),
        ({"temprature": 1.0}, "unexpected keyword argument 'temprature'"),
    ],
)
def test_values_that_equal_a_default_are_checked_too(arguments, message):
    with pytest.raises(TypeError, match=message):
        fastvae.sample_and_kl(MU, MU, **arguments)


def test_sizes_beyond_64_bits_are_named():
    with pytest.raises(ValueError, match=r"shape is .*, expected fewer than"):
        fastvae.noise(0, (2**62, 2**62))
    with pytest.raises(ValueError, match=r"num_samples is 18446744073709551616, expected less than 2\*\*32"):
        fastvae.sample_and_kl(MU, MU, num_samples=2**64)
