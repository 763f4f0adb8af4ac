"""The benchmarks of fastvae: python -m bench COMMAND [OPTION ...]; COMMAND --help tells its options.

Each command compares all results before it times anything, and exits with 1 without writing where one is wrong.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .agreement import Disagreement

# Command -> module with main(arguments) -> exit status, None for 0; imported when the command runs; and what it does.
COMMANDS = {
    "cpu": ("bench.cpu", "latent ops against PyTorch and its peers: the whole suite, or one op in any shape"),
    "likelihoods": ("bench.likelihoods", "log-likelihoods against PyTorch"),
    "head": ("bench.head", "the decoder's last layer and the likelihood in one op, against PyTorch"),
    "training": ("bench.training", "a training step of a VAE"),
    "scaling": ("bench.scaling", "time per element from 100 to 100,000,000 elements"),
    "kernel_alone": ("bench.kernel_alone", "the CPU kernels against a copy of as many bytes"),
    "gpu": ("bench.gpu", "the latent op on a GPU: time, bandwidth, memory"),
    "host": ("bench.host", "host time of an op on a GPU, with a stub driver: no GPU is needed"),
    "roofline": ("bench.roofline.analysis", "instructions of the compiled GPU kernels, without a GPU"),
    "clients": ("bench.clients.measure", "training steps of other libraries under fastvae.patch"),
    "report": ("bench.report", "results.json as Markdown tables and plots"),
    "compare": ("bench.compare", "two results.json side by side; fails where fastvae got slower"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command; 1 where a contender's result is wrong, 2 where there is no such command."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
        for name, (_, about) in COMMANDS.items():
            print(f"  {name:<13} {about}")
        return 0
    if command not in COMMANDS:
        print(f"COMMAND is {command!r}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[command][0]).main(rest) or 0
    except Disagreement as error:
        print(f"bench {command}: nothing was written, a result is wrong: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
