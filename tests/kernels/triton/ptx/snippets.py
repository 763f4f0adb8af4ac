"""A few lines of PTX, run by a block of threads on arrays with an element a thread."""

from __future__ import annotations

from typing import Any

import numpy as np

from .floats import Accuracy
from .machine import launch
from .memory import Memory
from .parse import parse


def compute(body: str, *inputs: Any, result: str = "u4", accuracy: str = "exact", blocks: int = 1) -> np.ndarray:
    """Run ``body``, which finds its thread's element of the inputs in %a, %b, ... and leaves its result in %out.

    %p, %q are predicates; %h0-3, %r0-7 and %rd0-3 registers of 16, 32 and 64 bits; %inputs and %outputs the addresses
    of the first input and of the output, %slot that of the thread's own element of the output. 1 KiB is shared.
    """
    arrays = [np.atleast_1d(array) for array in inputs]
    threads = max([len(array) for array in arrays], default=32)
    arrays = [np.ascontiguousarray(np.broadcast_to(array, threads)) for array in arrays]
    memory, addresses = Memory(), []
    for array in arrays:
        addresses.append(memory.allocate(array.nbytes))
        memory.put(memory.view(addresses[-1], (threads,), (1,), array.itemsize), array)
    size = np.dtype(result).itemsize
    addresses.append(memory.allocate(size * threads * blocks))
    outputs = memory.view(addresses[-1], (threads * blocks,), (1,), size)
    memory.expect(outputs)
    kernel = parse(_module(body, [array.itemsize for array in arrays], size))
    launch(kernel, (blocks,), threads, 1024, addresses, memory, Accuracy(accuracy))
    return memory.get(outputs, np.dtype(result))


def _module(body: str, sizes: list[int], size: int) -> str:
    names = "abcdefg"[: len(sizes)]
    parameters = ", ".join(f".param .u64 in_{name}" for name in names) + (", " if names else "") + ".param .u64 out"
    loads = "\n".join(
        f"ld.param.u64 %address, [in_{name}]; mad.wide.u32 %address, %thread, {bytes_each}, %address;\n"
        f".reg .b{8 * bytes_each} %{name}; ld.global.b{8 * bytes_each} %{name}, [%address];"
        for name, bytes_each in zip(names, sizes, strict=True)
    )
    return f"""
.extern .shared .align 16 .b8 global_smem[];
.visible .entry snippet({parameters})
{{
.reg .pred %p, %q; .reg .b16 %h<4>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
.reg .b32 %thread, %block, %size; .reg .b64 %address, %inputs, %outputs, %slot; .reg .b{8 * size} %out;
mov.u32 %thread, %tid.x;
{"ld.param.u64 %inputs, [in_a];" if names else ""}
ld.param.u64 %outputs, [out];
mov.u32 %block, %ctaid.x;
mov.u32 %size, %ntid.x;
mad.lo.s32 %block, %block, %size, %thread;
mad.wide.u32 %slot, %block, {size}, %outputs;
{loads}
{body}
st.global.b{8 * size} [%slot], %out;
ret;
}}
"""
