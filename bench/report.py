"""Tables and plots of what was measured: results.md and pictures beside the JSON, and the short tables of the README.

python -m bench.report [--results bench/results] [--readme README.md]

With --readme, what stands between the lines <!-- bench --> and <!-- /bench --> of that file is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvae.files import whole_file

from . import tables

START, END = "<!-- bench -->", "<!-- /bench -->"

HOW = """Made by `make bench`. Each contender was timed in turns with eager PyTorch, in one process, after all results
had been compared. Times are medians over rounds, one call ahead of each not counted; x4.5 is 4.5 times as fast as eager
PyTorch, the median of the ratios within a round. *backward* is the gradients alone, on a retained graph; *both* is a
forward and a backward pass. fastvae ran on the backend that it chooses by itself, *fastvae reference* is its plain
PyTorch. *Packed*: mu and logvar are the halves of one tensor. All inputs want gradients, the prior's too."""

HOW_BUSY = "?: something else took more than a tenth of the processors meanwhile, and the time tells little."

HOW_MEMORY = """Bytes kept for backward beyond the inputs. Peak: of memory during forward and backward in a process of
its own, beyond the inputs and incoming gradients; in brackets that and the inputs, in units of the least that any
implementation holds: the inputs, z and the two gradients. Good to a quarter of a megabyte."""

HOW_TRAINING = """The 784-400-20 VAE of examples/digits.py with Adam: a whole training step with the fused latent op and
likelihood and with plain ones, and how much of it the latent op is, forward and backward, timed by itself in turns with
whole steps."""

HOW_LIKELIHOODS = """Log-likelihoods in float32 with the gradients of all parameters: forward and backward, the time of
an element of x. Counts have a share of zeros and one theta for each gene; mixture: ten logistics, three channels. Kept
for backward: beyond x and the parameters."""

HOW_CLIENTS = """Made by `make bench-clients`: steps of other libraries under `fastvae.patch` and as they are, in
float32: forward, backward and, where there is a model, Adam. Under torch's noise both gave the same first steps."""

HOW_KERNEL = """The CPU kernels in float32, outputs allocated beforehand, and a copy by PyTorch of as many bytes as the
kernel reads and writes."""

HOW_SCALING = """sample_and_kl, forward and backward, float32, 100 coordinates a row. The copy moves as many bytes as
the step has to read and write, in memory that is there already."""


def machine_line(machine: Mapping[str, Any]) -> str:
    """One line: the processor, what runs on it, versions, date."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['threads']} threads on {machine['cpu']} with {machine['cores']} cores, backend {machine['backend']} "
        f"({machine['instruction_set']}); {versions}; {machine['date']}."
    )


def full_report(results: Mapping[str, Any]) -> str:
    """results.md, of the JSON files by name."""
    suite = results["suite"]
    machine = suite["machine_info"]
    parts = ["# Benchmarks", machine_line(machine), HOW, HOW_BUSY]
    if machine["left_out"]:
        parts.append("Not on this machine: " + ", ".join(f"{k} ({v})" for k, v in machine["left_out"].items()) + ".")
    parts += ["![Speed against eager by shape](suite.png)", tables.full(suite)]
    parts += ["## Memory", HOW_MEMORY, tables.memory(suite)]
    if "likelihoods" in results:
        parts += ["## Likelihoods", HOW_LIKELIHOODS, tables.likelihoods(results["likelihoods"])]
    if "training" in results:
        parts += ["## Training step", HOW_TRAINING, tables.training(results["training"])]
    if "clients" in results:
        parts += ["## Other libraries", HOW_CLIENTS, tables.clients(results["clients"])]
    if "kernel_alone" in results:
        parts += ["## The kernels alone", HOW_KERNEL, tables.kernel_alone(results["kernel_alone"])]
    if "scaling" in results:
        parts += ["## Time per element", HOW_SCALING, "![Time per element](scaling.png)"]
        parts += [tables.scaling(results["scaling"])]
    return "\n\n".join(parts) + "\n"


def summary_report(results: Mapping[str, Any]) -> str:
    """What the README shows, of the JSON files by name."""
    suite = results["suite"]
    first, second = tables.summary(suite), tables.more_ops(suite)
    third = tables.short_likelihoods(results["likelihoods"]) if "likelihoods" in results else ""
    fourth = tables.clients(results["clients"]) if "clients" in results else ""
    lines = [
        "x: times as fast as eager PyTorch, timed in turns. Kept for backward: beyond the inputs. Memory in the first",
        f"table is that at {tables.SUMMARY[-1].shape_name}: its peak in units of the inputs, z and their gradients, "
        "which nothing does without. The last",
        "table is made by `make bench-clients`, the others by",
        f"`make bench` ([all results](bench/results/results.md)): {machine_line(suite['machine_info'])}",
    ]
    shown = [table for table in (first, second, third, fourth) if table]
    busy = [HOW_BUSY] if any(" ?" in table for table in shown) else []
    return "\n\n".join([*shown, "\n".join([*lines, *busy])])


def replace_between_markers(text: str, block: str) -> str:
    """Raises ValueError unless each marker is there once, in order."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in before or END in after:
        raise ValueError(f"expected one {START} and after it one {END}")
    return f"{before}{START}\n{block}\n{END}{after}"


def load(folder: Path) -> dict[str, Any]:
    """The JSON files of the folder that are reported, by name; raises ValueError without a suite.json."""
    names = ("suite", "likelihoods", "clients", "training", "kernel_alone", "scaling")
    paths = {name: folder / f"{name}.json" for name in names}
    if not paths["suite"].is_file():
        raise ValueError(f"--results is {folder}, expected a folder with suite.json, which `make bench` writes")
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def write(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="folder of the JSON files")
    parser.add_argument("--readme", type=Path, help="file whose short tables are replaced")
    options = parser.parse_args(arguments)
    try:
        results = load(options.results)
        readme = None
        if options.readme is not None:
            if not options.readme.is_file():
                raise ValueError(f"--readme is {options.readme}, expected a file")
            try:
                readme = replace_between_markers(options.readme.read_text(), summary_report(results))
            except ValueError as error:
                raise ValueError(f"--readme is {options.readme}: {error}") from None
    except ValueError as error:
        parser.error(str(error))

    write(options.results / "results.md", full_report(results))
    if readme is not None:
        write(options.readme, readme)
    try:
        from . import plots
    except ImportError as error:
        print(f"no plots: {error}")
        return 0
    plots.save_suite(results["suite"], options.results / "suite.png")
    if "scaling" in results:
        plots.save_scaling(results["scaling"], options.results / "scaling.png")
    print(f"wrote the plots to {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
