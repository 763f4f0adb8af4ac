"""The noise stream: Philox words bit for bit, normals to the contract, statistics, what it does not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import fastvae
from fastvae.checks import seed_tensor
from fastvae.kernels.reference import philox as reference_philox
from tests.conftest import BACKENDS, backend_device, interpreter_truncates

# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def reference_words(counter: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    columns = tuple(column.clone().unsqueeze(1) for column in counter.unbind(1))
    even, odd = reference_philox.philox4x32(columns, key)
    return torch.cat([even[0], odd[0], even[1], odd[1]], 1)


def cpu_words(counter: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    from fastvae.kernels.cpu import _kernels

    words = torch.full_like(counter, -1)
    seed = int.from_bytes(key[0].to_bytes(4, "little") + key[1].to_bytes(4, "little"), "little", signed=True)
    _kernels.words(counter.data_ptr(), len(counter), seed, words.data_ptr())
    return words


def triton_words(counter: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    from .philox_kernel import words_kernel

    counter = counter.to(backend_device("triton"))
    words = torch.full_like(counter, -1)
    words_kernel[(1,)](counter, words, torch.tensor(key, device=counter.device), len(counter), BLOCK=256)
    return words.cpu()


WORDS = {"reference": reference_words, "cpu": cpu_words, "triton": triton_words}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(name, counter, key, words):
    assert WORDS[name](torch.tensor([counter]), key).tolist() == [list(words)]


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_words_are_the_same_bit_for_bit_on_every_backend(name):
    counter = torch.randint(0, 2**32, (203, 4))
    key = (0x12345678, 0xFEDCBA98)
    assert torch.equal(WORDS[name](counter, key), reference_words(counter, key))


def float64_noise(seed, shape, row_offset=0, draw=0):
    with fastvae.use_backend("reference"):
        return fastvae.noise(seed, shape, row_offset=row_offset, draw=draw, dtype=torch.float64)


def formula_noise(seed: int, rows: list[int], event: int, draw: int = 0) -> torch.Tensor:
    """The stream as the contract words it, one coordinate at a time in Python's own arithmetic."""
    out = []
    for row in rows:
        for d in range(event):
            counter = torch.tensor([[d // 4, row % 2**32, row // 2**32, draw]])
            words = reference_words(counter, (seed % 2**32, seed // 2**32))[0].tolist()
            even, odd = words[2 * (d % 4 // 2) : 2 * (d % 4 // 2) + 2]
            radius = math.sqrt(-2.0 * math.log((even + 0.5) * 2.0**-32))
            angle = 2.0 * math.pi * odd * 2.0**-32
            out.append(radius * (math.cos(angle) if d % 2 == 0 else math.sin(angle)))
    return torch.tensor(out, dtype=torch.float64).view(len(rows), event)


@pytest.mark.parametrize(("seed", "first_row"), [(0, 0), (2**64 - 1, 2**32 - 1), (0x0123456789ABCDEF, 2**40 + 5)])
def test_the_reference_follows_the_contract_word_for_word(seed, first_row):
    expected = formula_noise(seed, [first_row, first_row + 1], 10)
    torch.testing.assert_close(float64_noise(seed, (2, 10), first_row), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("draw", [1, 49, 2**32 - 1])
def test_a_draw_is_the_last_word_of_the_counter(backend, device, draw):
    expected = formula_noise(3, [5, 6], 6, draw)
    torch.testing.assert_close(float64_noise(3, (2, 6), 5, draw), expected, rtol=0, atol=1e-13)
    for shape in ((2, 6), (2, 1100)):
        eps = fastvae.noise(3, shape, row_offset=5, draw=draw, device=device).cpu().double()
        torch.testing.assert_close(eps, float64_noise(3, shape, 5, draw), rtol=0, atol=1e-5)


# Rank 1, short rows batched in a register, rows of every remainder, one long row, rows past the block of the reference.
SHAPES = [(5,), (6, 1), (33, 2), (7, 10), (3, 31), (3, 33), (2, 100), (4, 1024), (2, 1025), (3, 2, 5, 7), (1, 9001)]


@pytest.mark.parametrize("row_offset", [0, 2**32 - 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normals_agree_with_float64(backend, device, shape, row_offset):
    eps = fastvae.noise(0xDEADBEEF12345678, shape, row_offset=row_offset, device=device)
    assert eps.shape == shape
    assert eps.dtype == torch.float32
    error = (eps.cpu().double() - float64_noise(0xDEADBEEF12345678, shape, row_offset)).abs()
    assert error.max() <= 2e-4
    assert (error > 1e-5).sum() <= math.ceil(1e-4 * error.numel())


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_normals_meet_the_contract_on_a_million_draws(name):
    with fastvae.use_backend(name):
        eps = fastvae.noise(11, (1000, 1000))
    error = (eps.double() - float64_noise(11, (1000, 1000))).abs()
    assert error.max() <= 2e-4
    assert (error > 1e-5).double().mean() <= 1e-4


@pytest.mark.parametrize("word", [0, 1, 2**31, 3037000499, 3037000500, 2**32 - 1, 2**32 - 2, 2**32 - 129, 2**32 - 1000])
def test_the_radius_is_right_where_u_is_nearly_0_or_1(word):
    """Through the Triton functions, which share their arithmetic with the C ones; float32 alone would lose 1 - u."""
    from .philox_kernel import box_muller_kernel

    words = torch.tensor([word, 0]).to(backend_device("triton"))
    out = torch.full((2,), float("nan"), device=words.device)
    box_muller_kernel[(1,)](words, out)
    exact = math.sqrt(-2.0 * math.log((word + 0.5) * 2.0**-32)) if word < 2**31 else None
    if exact is None:
        exact = math.sqrt(-2.0 * math.log1p(-(2**32 - word - 0.5) * 2.0**-32))
    assert out[0].item() == pytest.approx(exact, rel=1e-6)
    assert out[1].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_noise_is_float32_noise_rounded(backend, device, dtype):
    for shape in [(7, 10), (2, 1029)]:
        single = fastvae.noise(3, shape, device=device)
        half = fastvae.noise(3, shape, device=device, dtype=dtype)
        if interpreter_truncates(backend, dtype):
            assert ((half.float() - single).abs() <= 2.0**-7 * single.abs()).all()
        else:
            assert torch.equal(half, single.to(dtype))


def test_noise_ignores_how_the_batch_is_split(backend, device):
    whole = fastvae.noise(5, (13, 37), device=device)
    parts = [
        fastvae.noise(5, (stop - start, 37), row_offset=start, device=device)
        for start, stop in ((0, 1), (1, 6), (6, 6), (6, 13))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_noise_depends_on_the_flattened_event_only(backend, device):
    assert torch.equal(
        fastvae.noise(5, (3, 4, 2, 5), device=device).flatten(1), fastvae.noise(5, (3, 40), device=device)
    )


def test_a_longer_event_begins_like_a_shorter_one(backend, device):
    assert torch.equal(fastvae.noise(5, (3, 1100), device=device)[:, :10], fastvae.noise(5, (3, 10), device=device))


def test_seeds_that_differ_in_any_bit_give_other_noise(backend, device):
    streams = [fastvae.noise(1 << bit, (2, 8), device=device) for bit in (0, 31, 32, 63)]
    for i, first in enumerate(streams):
        for second in streams[i + 1 :]:
            assert not torch.equal(first, second)


@pytest.mark.parametrize(("seed", "same"), [(2**64 - 1, -1), (2**63, -(2**63))])
def test_a_seed_is_64_bits_whatever_its_sign(backend, device, seed, same):
    assert torch.equal(fastvae.noise(seed, (2, 3), device=device), fastvae.noise(same, (2, 3), device=device))


def test_a_seed_tensor_is_the_same_as_its_number(backend, device):
    seed = torch.tensor([42], device=device)
    assert torch.equal(fastvae.noise(seed, (2, 3)), fastvae.noise(42, (2, 3), device=device))
    assert torch.equal(fastvae.noise(seed[0], (2, 3)), fastvae.noise(42, (2, 3), device=device))


def test_integers_of_numpy_are_integers(backend, device):
    expected = fastvae.noise(42, (2, 3), row_offset=5, device=device)
    got = fastvae.noise(np.uint64(42), (np.int64(2), 3), row_offset=np.int32(5), device=device)
    assert torch.equal(got, expected)


def test_empty_shapes_give_empty_noise(backend, device):
    for shape in [(0,), (0, 5), (5, 0), (2, 0, 3)]:
        assert fastvae.noise(0, shape, device=device).shape == shape


@pytest.mark.parametrize("name", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
def test_ten_million_draws_are_standard_normal(name):
    """A fixed seed: these either hold or do not. Bounds are five standard errors, or a p-value of one in a thousand."""
    rows, event = 2500, 4000
    count = rows * event
    with fastvae.use_backend(name):
        eps = fastvae.noise(2024, (rows, event)).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((eps**power).mean().item() - moment) < 5 * math.sqrt(variance / count)
    for tail in (2.0, 3.0, 4.0, 5.0):
        expected = count * 2 * stats.norm.sf(tail)
        assert abs((eps.abs() > tail).sum().item() - expected) < 5 * math.sqrt(expected)
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    # Neighbours in a quad, neighbours in a row and neighbours in a column do not know of each other.
    for first, second in (
        (eps[:, 0::4], eps[:, 1::4]),
        (eps[:, 0::4], eps[:, 2::4]),
        (eps[:, 3:-1:4], eps[:, 4::4]),
        (eps[:-1], eps[1:]),
    ):
        pairs = first.numel()
        assert abs((first * second).sum().item()) < 5 * math.sqrt(pairs)
        assert abs(((first**2 - 1) * (second**2 - 1)).sum().item()) < 5 * math.sqrt(4 * pairs)


def test_the_seed_is_drawn_as_randint_draws_it():
    torch.manual_seed(3)
    seeds = [seed_tensor(None, None, torch.device("cpu")) for _ in range(3)]
    state = torch.get_rng_state()
    torch.manual_seed(3)
    assert seeds == [torch.randint(-(2**63), 2**63 - 1, (1,)) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({seed.data_ptr() for seed in seeds}) == 3
