"""A latent op of any shape against plain PyTorch and the peers, on the spot; `make bench` measures the whole suite.

python -m bench.latent [SHAPE ...] [--op OP] [--dtype DTYPE] [--contenders NAMES] [--device cpu]

A shape is that of mu, such as 4096x256 or 16x4x64x64; those of the suite if none is given. The ops are those of
`bench.cases.OPS`: --op gaussian_kl_two is the KL of two Gaussians, --op iwae_50 the samples and log probabilities of an
IWAE. The peers are timed where --contenders names them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from .cases import DIRECTIONS, DTYPES, OPS, SUITE, Case, parse_device, parse_shape
from .contenders import contender_names
from .gpu_checks import Disagreement
from .measure import Measurement, measure
from .tables import mark

PEERS = ("torch.distributions", "torch.compile", "diffusers")


def describe(measurement: Measurement) -> str:
    lines = [f"{measurement.case}: {OPS[measurement.case.op].about}"]
    for direction in DIRECTIONS:
        for name in [name for timed, name in measurement.timings if timed == direction]:
            timing = measurement.timings[direction, name]
            line = f"  {direction:<8} {name:<19} {1e3 * timing.median:10.3f} ms   x{timing.speed_against_eager:<6.2f}"
            if direction == "both":
                line += f" {measurement.saved_bytes[name]:>14,} bytes saved for backward"
            lines.append(f"{line.rstrip()}{mark(timing.elsewhere)}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.latent", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="of mu, such as 16x4x64x64; the suite's if left out")
    parser.add_argument("--op", choices=list(OPS), default="sample_and_kl")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--contenders", help="names, separated by commas; fastvae's if left out")
    parser.add_argument("--device", type=parse_device, default=torch.device("cpu"))
    options = parser.parse_args(arguments)
    try:
        shapes = [parse_shape(shape) for shape in options.shapes]
    except ValueError as error:
        parser.error(str(error))
    shapes = shapes or list(dict.fromkeys(case.shape for case in SUITE if case.op == options.op))
    options.cases = [Case(options.op, shape, options.dtype) for shape in shapes]
    known = list(dict.fromkeys(name for case in options.cases for name in contender_names(case, options.device)))
    ours = [name for name in known if name not in PEERS]
    options.names = ours if options.contenders is None else ["eager", *options.contenders.split(",")]
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"--contenders has {', '.join(map(repr, sorted(unknown)))}, expected some of {', '.join(known)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a contender was wrong."""
    options = parse(arguments)
    threads = torch.get_num_threads()
    print(f"{options.device}, {threads} threads, medians of rounds in turns; x: times as fast as eager; ?: busy")
    for case in options.cases:
        names = [name for name in contender_names(case, options.device) if name in options.names]
        try:
            print(describe(measure(case, names, options.device)))
        except Disagreement as error:
            print(f"bench.latent: nothing was timed, a result is wrong: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
