"""Latent ops against plain PyTorch and its peers: the suite, or any shapes of one op.

python -m bench cpu [SHAPE ...] [--op OP] [--dtype DTYPE] [--contenders NAMES] [--device cpu] [--results FOLDER]

Without a shape or an op, the whole suite (`bench.cases.SUITE`) is measured, with all contenders. A shape is that of mu,
such as 4096x256 or 16x4x64x64; those of the suite if --op alone is given. Of one op, fastvae is measured against eager
PyTorch; the peers are where --contenders names them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch

from . import contenders
from .cases import DTYPES, LATENTS, SUITE, Case, parse_shape
from .contenders import contender_names
from .machine import describe_machine
from .measure import measure
from .memory import peak_bytes
from .records import Timing, command_line, save, show, some_of
from .tables import TIMED

PEERS = ("torch.distributions", "torch.compile", "diffusers")

# Memory is proportional to the size of the elements: one dtype is enough.
PEAKS_OF = {(op, "float32") for op in ("sample_and_kl", "sample_and_kl_packed")}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("cpu", __doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", type=parse_shape, help="of mu; the suite's if left out")
    parser.add_argument("--op", choices=list(LATENTS), help="sample_and_kl for shapes if left out")
    parser.add_argument("--dtype", choices=DTYPES, help="float32 if left out")
    parser.add_argument("--contenders", help="names, separated by commas")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda by host time")
    options = parser.parse_args(arguments)
    options.device = torch.device(options.device)
    whole = not (options.shapes or options.op or options.dtype or options.contenders)
    if options.results is not None and (not whole or options.device.type != "cpu"):
        parser.error("--results is for the whole suite on the CPU, expected no option beside it")
    op = options.op or "sample_and_kl"
    shapes = options.shapes or list(dict.fromkeys(case.shape for case in SUITE if case.op == op))
    options.cases = list(SUITE) if whole else [Case(op, shape, options.dtype or "float32") for shape in shapes]
    known = list(dict.fromkeys(name for case in options.cases for name in contender_names(case, options.device)))
    options.names = known if whole else [name for name in known if name not in PEERS]
    if options.contenders is not None:
        try:
            options.names = ["eager", *some_of(known)(options.contenders)]
        except argparse.ArgumentTypeError as error:
            parser.error(f"--contenders is {error}")
    return options


def measured(options: argparse.Namespace) -> Iterator[Timing]:
    for case in options.cases:
        names = [name for name in contender_names(case, options.device) if name in options.names]
        with_peaks = options.results is not None and (case.op, case.dtype) in PEAKS_OF
        for timing in measure(case, names, options.device):
            peak = peak_bytes(case, timing.contender) if with_peaks and timing.direction == "both" else None
            yield timing._replace(peak_bytes=peak)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    threads = torch.get_num_threads()
    print(f"{options.device}, {threads} threads, medians of rounds in turns; x: times as fast as eager; ?: busy\n")
    timings = show(measured(options), TIMED)
    left_out = {name: why for name in ("torch.compile", "diffusers") if (why := contenders.missing(name))}
    machine = describe_machine(options.device) | {"left_out": left_out}
    save(options.results, "cpu", (timing.row() for timing in timings), machine)
