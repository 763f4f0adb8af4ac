"""How strided tensors become rows of an (outer, inner) event, and which of them must be copied for it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae.kernels.layout import NeedsCopies, rows_view


def elements_through(view, index, tensor):
    """A tensor, seen as number ``index`` of the view, read element by element through the address rule."""
    row, outer, inner = view.strides[index]
    memory = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    event = view.outer * view.inner
    values = [
        memory[tensor.storage_offset() + b * row + (d // view.inner) * outer + (d % view.inner) * inner].item()
        for b in range(view.rows)
        for d in range(event)
    ]
    return torch.tensor(values)


def numbered(*shape):
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


IN_PLACE = {
    "contiguous": (numbered(2, 3, 4),),
    "halves along the channels": numbered(2, 6, 2, 2).chunk(2, 1),
    "channels_last": (numbered(2, 3, 2, 4).to(memory_format=torch.channels_last),),
    "halves in channels_last": numbered(2, 6, 2, 3).to(memory_format=torch.channels_last).chunk(2, 1),
    "contiguous beside channels_last": (
        numbered(2, 3, 2, 4),
        numbered(2, 3, 2, 4).to(memory_format=torch.channels_last),
    ),
    "video in channels_last_3d": (numbered(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),),
    "expanded everywhere": (numbered(1).expand(2, 3, 4), numbered(2, 3, 4)),
    "one value a channel": (numbered(2, 3, 1, 1).expand(2, 3, 2, 2), numbered(2, 3, 2, 2)),
    "halves of the last dim": numbered(3, 2, 8).chunk(2, -1),
    "transposed": (numbered(4, 3).t(),),
    "rank 1 with gaps": (numbered(10)[::3],),
    "dims of size 1": (numbered(3, 1, 2, 1),),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_common_layouts_are_read_in_place(name):
    tensors = IN_PLACE[name]
    view = rows_view(*tensors, None)
    assert view.strides[-1] == (0, 0, 0)
    for index, tensor in enumerate(tensors):
        assert torch.equal(elements_through(view, index, tensor), tensor.flatten())


def test_three_uneven_dims_need_a_copy():
    with pytest.raises(NeedsCopies):
        rows_view(numbered(2, 3, 4, 5).permute(0, 3, 2, 1))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5).flatmap(
        lambda shape: st.tuples(st.just(shape), st.lists(st.permutations(range(len(shape))), min_size=1, max_size=3))
    ),
    st.booleans(),
)
def test_the_address_rule_reads_every_tensor_in_logical_order(shape_and_orders, halve):
    shape, orders = shape_and_orders
    tensors = []
    for order in orders:
        stored = [shape[dim] for dim in order]
        stored[-1] *= 2 if halve else 1
        tensor = numbered(*stored)[..., : shape[order[-1]]]
        tensors.append(tensor.permute([order.index(dim) for dim in range(len(shape))]))
    try:
        view = rows_view(*tensors)
    except NeedsCopies:
        tensors = [tensor.contiguous() for tensor in tensors]
        view = rows_view(*tensors)
    assert view.rows == shape[0]
    for index, tensor in enumerate(tensors):
        assert torch.equal(elements_through(view, index, tensor), tensor.flatten())
