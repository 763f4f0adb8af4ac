"""Likelihoods: compile what the launch code starts for every kind, and execute the PTX.

python -m tests.kernels.triton.ptx.likelihoods FOLDER TARGET      as `dump`, for the cases of this file; it needs no GPU
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.likelihoods.cases import CASES, COUNTS, draw

from .dump import describe, stop_at_ptx
from .floats import Accuracy, from_bfloat16, to_bfloat16
from .launched import word_of
from .machine import launch
from .memory import Memory
from .parse import parse

ROOT = Path(__file__).parents[4]
DTYPES = ("float32", "bfloat16")
# Of x: rows of no round length, and pixels of three channels.
SHAPE, IMAGES = (3, 70), (2, 3, 5, 5)
LANES = 32  # of an NVIDIA warp


class Inputs(NamedTuple):
    x: Tensor
    parameters: tuple[Tensor, ...]
    grad: Tensor  # of the log p of each coordinate, or pixel


def inputs(name: str, dtype: str) -> Inputs:
    """The same for every call. Counts and pixels are integers, pixels' log p has no channels."""
    case, narrow = CASES[name], getattr(torch, dtype)
    is_mixture = case.spec.components > 0
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        x, parameters = draw(case, IMAGES if is_mixture else SHAPE)
        # A single element stays float32: a comparison of one bfloat16 is compiled to what the interpreter lacks.
        parameters = tuple(given if given.numel() == 1 else given.to(narrow) for given in parameters)
        grad = torch.randn(x[:, 0].shape if is_mixture else x.shape)
    if is_mixture:
        x = (255 * x).round().to(torch.uint8)
    elif case.spec.kind in COUNTS:
        x = x.to(torch.int32)
    return Inputs(x, parameters, grad)


def main() -> None:
    from bench.roofline.compiled import compile_for
    from fastvae.kernels.triton import likelihood_backward, likelihood_forward
    from fastvae.kernels.triton.launch import collected_launches

    stop_at_ptx()
    folder, target = Path(sys.argv[1]), sys.argv[2]
    found = []
    for name, case in CASES.items():
        for dtype in DTYPES:
            x, parameters, grad = inputs(name, dtype)
            wants = (True,) * len(parameters)
            with collected_launches() as launches:
                likelihood_forward(x, parameters, *case.under("none"))
                likelihood_backward(grad, x, parameters, *case.under("none"), wants)
            for direction, started in zip(("forward", "backward"), launches, strict=True):
                kernel = compile_for(started, target)
                assembly = kernel.asm["ptx" if "ptx" in kernel.asm else "amdgcn"]
                entry = {
                    "name": name,
                    "dtype": dtype,
                    "direction": direction,
                    "assembly": assembly,
                    "local_memory": bool(re.search(r"\b(?:ld|st)\.local|scratch_(?:load|store)", assembly)),
                    "intermediate": kernel.asm["ttir"],
                    "threads": LANES * kernel.metadata.num_warps,
                    "shared_bytes": kernel.metadata.shared,
                }
                found.append(entry | describe(started))
    (folder / "launches.json").write_text(json.dumps(found))


def dump(folder: Path, target: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By case, dtype and direction; compiled in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.triton.ptx.likelihoods", str(folder), target]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    launches = json.loads((folder / "launches.json").read_text())
    return {(one["name"], one["dtype"], one["direction"]): one for one in launches}


def execute(description: dict[str, Any], accuracy: Accuracy) -> dict[str, Tensor]:
    """The kernel's outputs, by the names of its arguments."""
    given = inputs(description["name"], description["dtype"])
    names = ("first", "second", "third") if "first" in _names(description) else ("parameter",)
    values = {"x": given.x, "grad": given.grad, **dict(zip(names, given.parameters, strict=False))}
    memory = Memory()
    bases = [memory.allocate(storage["bytes"], storage["past_alignment"]) for storage in description["storages"]]
    arguments, outputs = [], {}
    for argument in description["arguments"]:
        if "value" in argument:
            arguments.append(word_of(argument["value"]))
            continue
        name, shape, strides = argument["name"], tuple(argument["shape"]), tuple(argument["strides"])
        dtype = getattr(torch, argument["dtype"])
        arguments.append(bases[argument["storage"]] + argument["offset"] * dtype.itemsize)
        positions = memory.view(arguments[-1], shape, strides, dtype.itemsize)
        if name in values:
            memory.put(positions, _words(values[name]).reshape(positions.shape[:-1]))
        else:
            memory.expect(positions)
            outputs[name] = (positions, dtype)
    kernel = parse(description["assembly"])
    arguments += [0] * (len(kernel.parameters) - len(arguments))
    grid = tuple(description["grid"])
    launch(kernel, grid, description["threads"], description["shared_bytes"], arguments, memory, accuracy)
    return {name: _values(memory, positions, dtype) for name, (positions, dtype) in outputs.items()}


def _names(description: dict[str, Any]) -> set[str]:
    return {argument["name"] for argument in description["arguments"]}


def _words(values: Tensor) -> np.ndarray:
    return to_bfloat16(values.float().numpy()) if values.dtype == torch.bfloat16 else values.contiguous().numpy()


def _values(memory: Memory, positions: np.ndarray, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return torch.from_numpy(from_bfloat16(memory.get(positions, np.uint16)))
    return torch.from_numpy(np.array(memory.get(positions, np.float32)))


if __name__ == "__main__":
    main()
