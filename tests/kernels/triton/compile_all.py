"""Compiles every launch that the roofline looks at; prints what was made, as JSON: for `test_compile`.

python -m tests.kernels.triton.compile_all [--by-turns] sm_90 [gfx942 ...]

--by-turns: each op and shape in one of the two dtypes.
"""

from __future__ import annotations

import json
import re
import sys

import torch

from bench.roofline.compiled import SHAPES, SHIPPED, TARGETS, compile_for, is_shipped, op_launch, shape_and_layout


def report(target: str, op: str, shape_name: str, dtype: torch.dtype) -> dict:
    shape, like = shape_and_layout(shape_name)
    kernel = compile_for(op_launch(op, shape, dtype, like), target)
    assembly = kernel.asm["ptx" if TARGETS[target].backend == "cuda" else "amdgcn"]
    return {
        "target": target,
        "op": op,
        "shape": shape_name,
        "dtype": str(dtype).removeprefix("torch."),
        "wide_accesses": len(re.findall(r"(?:ld|st)\.global\.v4\.b32|global_(?:load|store)_\w*x4|b128", assembly)),
        "local_memory": bool(re.search(r"\b(?:ld|st)\.local|scratch_(?:load|store)", assembly)),
        "binary_bytes": len(kernel.asm["cubin" if "cubin" in kernel.asm else "hsaco"]),
    }


def main() -> None:
    by_turns, targets = "--by-turns" in sys.argv, [name for name in sys.argv[1:] if name != "--by-turns"]
    cases = [
        (op, shape_name, dtype)
        for turn, shape_name in enumerate(SHAPES)
        for dtype in (torch.float32, torch.bfloat16)
        for op in SHIPPED
        if is_shipped(op, shape_name) and not (by_turns and (SHIPPED.index(op) + turn + (dtype == torch.float32)) % 2)
    ]
    print(json.dumps([report(target, *case) for target in targets for case in cases], indent=1))


if __name__ == "__main__":
    main()
