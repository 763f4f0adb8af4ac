"""The fused log-likelihoods against the same formulas in plain PyTorch: forward and backward together, and memory.

python -m bench likelihoods [NAME ...] [--results FOLDER]

Counts are drawn with a share of zeros, as in gene expression matrices; theta is one for each gene, and the gradients of
all parameters are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .cases import LIKELIHOOD_SUITE, LIKELIHOODS
from .contenders import contender_names
from .measure import measure
from .records import named, save, show
from .tables import TIMED


def main(arguments: Sequence[str] | None = None) -> None:
    options, device = named("likelihoods", __doc__, "NAME", LIKELIHOODS, arguments), torch.device("cpu")
    cases = [case for case in LIKELIHOOD_SUITE if case.op in options.names]
    # Eager frees hundreds of megabytes of temporaries: of the calls after it, the third is as in a loop.
    measured = (
        timing
        for case in cases
        for timing in measure(case, contender_names(case, device), device, budget=3.0, directions=["both"], ahead=2)
    )
    timings = show(measured, TIMED)
    save(options.results, "likelihoods", (timing.row() for timing in timings))
