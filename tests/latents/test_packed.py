"""`sample_and_kl_packed` is `sample_and_kl` of the two halves of one tensor, and its gradient comes in one piece."""

from __future__ import annotations

import pytest
import torch

import fastvae

from .test_autograd import saved_storages


def packed(name, dtype=torch.float32):
    moments, dim = {
        "rows": (torch.randn(5, 14), 1),
        "last dim": (torch.randn(3, 2, 10), -1),
        "image": (torch.randn(3, 8, 5, 4), 1),
        "image in channels_last": (torch.randn(3, 8, 5, 4).to(memory_format=torch.channels_last), 1),
        "image split by height": (torch.randn(3, 4, 6, 5), 2),
        "video": (torch.randn(2, 4, 3, 2, 5), 1),
        "with gaps": (torch.randn(4, 30)[:, ::3], 1),
        "transposed": (torch.randn(8, 4).t(), 1),
        "a row": (torch.randn(1, 6), 1),
        "no rows": (torch.randn(0, 6), 1),
        "no coordinates": (torch.randn(3, 0, 2), 1),
        "rows long enough to stay in place": (torch.randn(5, 2 * 203), 1),
        "long rows": (torch.randn(2, 2 * 1100), 1),
    }[name]
    return moments.to(dtype), dim


LAYOUTS = (
    "rows",
    "last dim",
    "image",
    "image in channels_last",
    "image split by height",
    "video",
    "with gaps",
    "transposed",
    "a row",
    "no rows",
    "no coordinates",
    "long rows",
)


def both_ways(moments, dim, reduction, weights=(1.0, 1.0)):
    """z, KL and the gradient of moments: packed, and by chunk."""
    results = []
    for function in (
        lambda leaf: fastvae.sample_and_kl_packed(leaf, dim=dim, seed=3, reduction=reduction),
        lambda leaf: fastvae.sample_and_kl(*leaf.chunk(2, dim), seed=3, reduction=reduction),
    ):
        leaf = moments.detach().requires_grad_()
        z, kl = function(leaf)
        loss = sum(
            weight * (part * part).float().sum() for weight, part in zip(weights, (z, kl), strict=True) if weight
        )
        results.append((z, kl, torch.autograd.grad(loss, leaf)[0]))
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packed_equals_the_halves_in_value_and_gradient(backend, device, poisoned_memory, layout, dtype):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("float64 is the reference's")
    moments, dim = packed(layout, dtype)
    reductions = ("none", "sample", "sum", "batchmean")
    if backend == "triton":  # the interpreter is slow: layouts and dtypes meet them by turns
        place = LAYOUTS.index(layout) + 2 * (dtype == torch.bfloat16)
        reductions = reductions[place % 4 :][:1]
    for reduction in reductions:
        if reduction == "batchmean" and moments.shape[0] == 0:
            continue
        ours, halves = both_ways(moments.to(device), dim, reduction)
        for name, one, other in zip(("z", "kl", "gradient"), ours, halves, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["z alone", "KL alone"])
@pytest.mark.parametrize("layout", ["rows", "image in channels_last", "transposed"])
def test_a_loss_of_one_output_has_the_same_packed_gradient(backend, device, poisoned_memory, layout, weights):
    moments, dim = packed(layout)
    ours, halves = both_ways(moments.to(device), dim, "sample", weights)
    torch.testing.assert_close(ours[2], halves[2], rtol=0, atol=0)


def test_no_gradient_is_given_where_no_output_is_used(backend, device):
    moments = torch.randn(3, 4, device=device, requires_grad=True)
    z, _kl = fastvae.sample_and_kl_packed(moments)
    (gradient,) = torch.autograd.grad(z.detach().sum() + 0 * moments[0, 0], moments)
    assert torch.equal(gradient, torch.zeros_like(moments))


def test_the_gradient_has_the_memory_layout_of_the_moments(backend, device):
    moments, dim = packed("image in channels_last")
    moments = moments.to(device).requires_grad_()
    z, kl = fastvae.sample_and_kl_packed(moments, dim=dim)
    (z.sum() + kl.sum()).backward()
    assert moments.grad.stride() == moments.stride()


def test_nothing_is_kept_but_the_moments_and_the_seed(backend, device):
    moments = torch.randn(16, 20, device=device, requires_grad=True)
    kept, _outputs = saved_storages(lambda: fastvae.sample_and_kl_packed(moments))
    del kept[moments.untyped_storage().data_ptr()]
    assert sum(kept.values()) == 8


def test_first_and_second_derivatives_pass_finite_differences():
    moments = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def function(leaf):
        return fastvae.sample_and_kl_packed(leaf, seed=1)

    assert torch.autograd.gradcheck(function, moments)
    assert torch.autograd.gradgradcheck(function, moments)


def test_manual_seed_and_generator_rule_the_draw():
    moments = torch.zeros(4, 6)
    torch.manual_seed(5)
    first = fastvae.sample_and_kl_packed(moments)[0]
    assert not torch.equal(first, fastvae.sample_and_kl_packed(moments)[0])
    torch.manual_seed(5)
    assert torch.equal(first, fastvae.sample_and_kl_packed(moments)[0])
    draws = [fastvae.sample_and_kl_packed(moments, generator=torch.Generator().manual_seed(1))[0] for _ in range(2)]
    assert torch.equal(*draws)


def test_rows_of_a_batch_that_is_split_draw_the_same():
    moments = torch.randn(6, 10)
    whole = fastvae.sample_and_kl_packed(moments, seed=2)[0]
    assert torch.equal(whole[4:], fastvae.sample_and_kl_packed(moments[4:], seed=2, row_offset=4)[0])


@pytest.mark.parametrize(
    ("moments", "arguments", "error", "message"),
    [
        (torch.zeros(2, 5), {}, ValueError, r"moments has shape \(2, 5\), expected an even size in dim 1"),
        (torch.zeros(2, 4), {"dim": 0}, ValueError, "dim is 0, expected an event dimension"),
        (torch.zeros(2, 4), {"dim": -2}, ValueError, "dim is -2, expected an event dimension"),
        (torch.zeros(2, 4), {"dim": 2}, ValueError, "dim is 2, expected an event dimension"),
        (torch.zeros(4), {}, ValueError, "dim is 1, expected an event dimension"),
        (torch.zeros(2, 4), {"dim": 1.0}, TypeError, "dim is a float, expected an int"),
        ([1.0], {}, TypeError, "moments is a list"),
        (torch.zeros(2, 4, dtype=torch.int64), {}, TypeError, "moments is int64"),
        (torch.zeros(2, 4), {"reduction": "mean"}, ValueError, "reduction is 'mean'"),
        (torch.zeros(2, 4), {"row_offset": -1}, ValueError, "row_offset is -1"),
        (torch.zeros(2, 4), {"seed": 1.5}, TypeError, "seed is a float"),
    ],
)
def test_bad_arguments_are_named(moments, arguments, error, message):
    with pytest.raises(error, match=message):
        fastvae.sample_and_kl_packed(moments, **arguments)
