"""The environment variables that fastvae, or what it runs on, reads: for ``fastvae info`` and docs/switches.md.

python -m fastvae.switches prints the table of that page.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["SWITCHES", "Switch", "lines", "table"]


class Switch(NamedTuple):
    """An environment variable."""

    name: str
    values: str
    meaning: str
    reader: str = "fastvae"  # or the library that reads it
    when: str = "at import"


SWITCHES = (
    Switch(
        "FASTVAE_BACKEND",
        "triton, cpu or reference",
        "backend of every op, as `fastvae.use_backend`; an error where it cannot serve a call. Not set: the best one",
    ),
    Switch(
        "FASTVAE_CPU_ISA",
        "x86-64-v4, x86-64-v3 or aarch64",
        "instruction set of the CPU kernels. Not set: the widest one that the processor has. "
        "One that it lacks: no CPU kernels",
        when="at the first use of the CPU kernels",
    ),
    Switch(
        "OMP_NUM_THREADS",
        "a number",
        "threads of PyTorch's ops and of fastvae's CPU kernels, which share a pool; later: `torch.set_num_threads`. "
        "fastvae's results do not depend on it",
        "PyTorch",
    ),
    Switch(
        "TRITON_INTERPRET",
        "1",
        "the GPU kernels run in Triton's interpreter, on CPU tensors and slowly: for tests and debugging, with "
        "`FASTVAE_BACKEND=triton`",
        "Triton",
        "when Triton is imported",
    ),
    Switch(
        "TRITON_CACHE_DIR",
        "a folder",
        "where compiled GPU kernels are kept. Not set: ~/.triton/cache",
        "Triton",
        "when a kernel is compiled",
    ),
    Switch(
        "CC",
        "a command",
        "the C compiler: for the CPU kernels at installation, and on a GPU for Triton's launcher. Not set: the one "
        "that Python was built with; Triton looks for gcc and clang",
        "setuptools at installation, and by Triton",
        "at a GPU's first kernel",
    ),
    Switch(
        "LOCAL_RANK",
        "a number",
        "index of the process on its machine, set by torchrun and Lightning: `fastvae train` names it in errors, and "
        "only process 0 checks the output folder",
        when="during `fastvae train`",
    ),
    Switch(
        "RANK",
        "a number",
        "index of the process among all, set by torchrun; as LOCAL_RANK",
        when="during `fastvae train`",
    ),
    Switch(
        "SLURM_PROCID",
        "a number",
        "index of the process among all, set by Slurm; as LOCAL_RANK",
        when="during `fastvae train`",
    ),
)


def _about(switch: Switch) -> str:
    return f"{switch.values}: {switch.meaning}. Read by {switch.reader} {switch.when}"


def table() -> str:
    """Markdown, a row for each variable."""
    rows = [("variable", "values, and what they mean"), ("---",) * 2]
    rows += [(f"`{switch.name}`", _about(switch)) for switch in SWITCHES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def lines(environment: Mapping[str, str] = os.environ) -> list[str]:
    """For ``fastvae info``: each variable with its value, and below it what it means."""
    text = []
    for switch in SWITCHES:
        value = environment.get(switch.name)
        text.append(f"  {switch.name} {'is not set' if value is None else f'= {value}'}")
        text += textwrap.wrap(_about(switch).replace("`", ""), 100, initial_indent="    ", subsequent_indent="    ")
    return text


if __name__ == "__main__":
    print(table())
