"""Tables and plots of results.json: results.md, suite.png, scaling.png and summary.png beside it; the README's table.

python -m bench report [--results bench/results] [--readme README.md]

With --readme, the text between the lines <!-- bench --> and <!-- /bench --> of that file is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import summary, tables
from .records import FILE, command_line, load, write

START, END = "<!-- bench -->", "<!-- /bench -->"

HOW = """Made by `make bench`. Each contender was timed in turns with eager PyTorch, in one process, after all results
had been compared. Times are medians over rounds, the first call of each not counted; x4.5 is 4.5 times as fast as eager
PyTorch, the median of the ratios within a round. *backward* is the gradients alone, on a retained graph; *both* is a
forward and a backward pass. *fastvae* is the default backend, *fastvae reference* its plain PyTorch. *Packed*: mu and
logvar are the halves of one tensor. Gradients of all inputs are computed, the prior's too."""

HOW_BUSY = "?: other processes took more than a tenth of the processors' time meanwhile, so the time is not reliable."

HOW_MEMORY = """Bytes kept for backward beyond the inputs. Peak: of memory during forward and backward in a process of
its own, beyond the inputs and incoming gradients; in brackets that and the inputs, in units of the least possible: the
inputs, z and the two gradients. Good to a quarter of a megabyte."""

HOW_TRAINING = """The 784-400-20 VAE of examples/digits.py with Adam: a whole training step with the fused latent op and
likelihood and with plain ones, and the latent op's share of it, forward and backward, timed by itself in turns with
whole steps."""

HOW_LIKELIHOODS = """Log-likelihoods in float32 with the gradients of all parameters: forward and backward, the time of
an element of x. Counts have a share of zeros and one theta for each gene; mixture: ten logistics, three channels. Kept
for backward: beyond x and the parameters."""

HOW_HEAD = """The decoder's last linear layers and the likelihood, forward and backward, in float32: in plain PyTorch,
with the likelihood fused, and in one op. Time, times as fast as eager, and the peak of memory beyond the inputs, the
gradients included. Counts: zero-inflated, 87% zeros, the mean a softmax times the library size. iwae: a training step
with 50 draws. Alone: the matrix products of fastvae's step, and its kernel. The step cannot be shorter than both."""

HOW_CLIENTS = """Made by `make bench-clients`: steps of other libraries under `fastvae.patch` and without, in float32:
forward, backward and, where there is a model, Adam; calls of scvi-tools' models as a whole, with their peak of memory
beyond the model and the data. Under torch's noise both gave the same first steps. Without the model: the same epoch
with the module's outputs replayed, which leaves the loader, Lightning and the metrics, as long under any patch."""

HOW_KERNEL = """The CPU kernels in float32, outputs allocated beforehand, and a copy by PyTorch of as many bytes as the
kernel reads and writes."""

HOW_SCALING = """sample_and_kl, forward and backward, float32, 100 coordinates a row. The copy moves as many bytes as
the step has to read and write, in memory allocated beforehand."""


def machine_line(machine: Mapping[str, Any]) -> str:
    """One line: the processor, what runs on it, versions, date."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['threads']} threads on {machine['cpu']} with {machine['cores']} cores, backend {machine['backend']} "
        f"({machine['instruction_set']}); {versions}; {machine['date']}."
    )


# Section -> title, how it was measured, and the columns of its table.
_SECTIONS = {
    "training": ("Training step", HOW_TRAINING, tables.TRAINING),
    "head": ("Last layer and likelihood in one op", HOW_HEAD, tables.HEAD),
    "clients": ("Other libraries", HOW_CLIENTS, tables.CLIENTS),
    "kernel_alone": ("The kernels alone", HOW_KERNEL, tables.KERNEL_ALONE),
    "scaling": ("Time per element", f"{HOW_SCALING}\n\n![Time per element](scaling.png)", tables.SCALING),
}


def full_report(results: Mapping[str, Any]) -> str:
    """results.md, of the sections by name."""
    suite = results["cpu"]
    machine = suite["machine"]
    parts = ["# Benchmarks", machine_line(machine), HOW, HOW_BUSY]
    if machine["left_out"]:
        parts.append("Not on this machine: " + ", ".join(f"{k} ({v})" for k, v in machine["left_out"].items()) + ".")
    parts += ["![Speed against eager by shape](suite.png)", tables.full(suite)]
    parts += ["## Memory", HOW_MEMORY, tables.memory(suite)]
    if "likelihoods" in results:
        parts += ["## Likelihoods", HOW_LIKELIHOODS, tables.likelihoods(results["likelihoods"])]
    for name, (title, how, columns) in _SECTIONS.items():
        if name in results:
            parts += [f"## {title}", how, tables.table(results[name], columns)]
    return "\n\n".join(parts) + "\n"


def summary_report(results: Mapping[str, Any]) -> str:
    """What the README shows, of the sections by name."""
    machine = results["cpu"]["machine"]
    shown = summary.table(results)
    lines = [
        "Medians of times taken in turns, after the results had been compared; without: plain PyTorch, or scvi-tools",
        f"as it is. Made by `make bench` and `make bench-clients`: {machine_line(machine)}",
    ]
    busy = [HOW_BUSY] if " ?" in shown else []
    return "\n\n".join([shown, "\n".join([*lines, *busy])])


def replace_between_markers(text: str, block: str) -> str:
    """Raises ValueError unless each marker is there once, in order."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in before or END in after:
        raise ValueError(f"expected one {START} and after it one {END}")
    return f"{before}{START}\n{block}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("report", __doc__, results=False)
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help=f"folder of {FILE}")
    parser.add_argument("--readme", type=Path, help="file whose table is replaced")
    options = parser.parse_args(arguments)
    try:
        results = load(options.results / FILE)
        if "cpu" not in results:
            raise ValueError(f"{options.results / FILE} has no section cpu, which `make bench` writes")
    except ValueError as error:
        parser.error(str(error))
    if options.readme is not None:
        try:
            readme = replace_between_markers(options.readme.read_text(), summary_report(results))
        except (OSError, ValueError) as error:
            parser.error(f"--readme is {options.readme}: {error}")
        write(options.readme, readme)
    write(options.results / "results.md", full_report(results))
    try:
        from . import plots
    except ImportError as error:
        print(f"no plots: {error}")
        return
    plots.save_suite(results["cpu"], options.results / "suite.png")
    plots.save_summary(results, options.results / "summary.png")
    if "scaling" in results:
        plots.save_scaling(results["scaling"], options.results / "scaling.png")
    print(f"wrote the plots to {options.results}")
