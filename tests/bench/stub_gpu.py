"""`python -m tests.bench.stub_gpu`: `python -m bench gpu` on a machine without a GPU, for the test of that command.

Everything but the device: kernels are compiled and launched by the stub driver, with CPU tensors in place of a GPU's.
As nothing computes them there, results come from the reference backend, for the checks to compare. Times mean nothing.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench import gpu, gpu_meter, host
from bench.timing import interleaved_medians

COMPUTING = ("noise", "latent_forward", "latent_backward", "likelihood_forward", "likelihood_backward", "head")


class StubMeter(gpu_meter.GpuMeter):
    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def milliseconds(self, job: gpu_meter.Job) -> float:
        prepared = job.prepare()
        begin = time.perf_counter()
        job.run(prepared)
        return 1e3 * (time.perf_counter() - begin)

    def peak_bytes(self, job: gpu_meter.Job) -> int:
        job.run(job.prepare())
        return 0

    def free_bytes(self) -> int:
        return 2**31

    def seconds(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        return interleaved_medians(runs, rounds=1, warmup=0, clock=self.clock)

    def graph(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        outputs = [output.detach() for output in run()]

        def replay() -> None:
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value.detach())

        return replay, outputs


def launched_and_computed(launch: Callable[..., Any], compute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(launch)
    def run(*arguments: Any) -> Any:
        launch(*arguments)
        return compute(*arguments)

    return run


def main() -> int:
    torch.set_num_threads(1)
    driver = host.install()
    from fastvae.kernels import reference, triton

    for name in COMPUTING:
        setattr(triton, name, launched_and_computed(getattr(triton, name), getattr(reference, name)))
    torch.compile = lambda function, **_: function  # type: ignore[assignment]  # seconds for each shape
    gpu.BATCHES, gpu.LATENTS, gpu.TRAINING_BATCHES, gpu.GRAPHS = (16,), (8,), (16,), ((16, 8),)
    gpu.LIKELIHOODS = dict.fromkeys(gpu.LIKELIHOODS, (4, 3, 4, 5))
    gpu.LARGE_COPY_BYTES = 2_000_000
    gpu.GpuMeter = StubMeter  # type: ignore[misc]
    gpu.why_not_here = lambda: ""
    gpu.describe_machine = lambda device, right=gpu.describe_machine: right(device) | {"device": "Stub", "triton": "-"}
    status = gpu.main(sys.argv[1:])
    print(f"{driver.launches} launches of {driver.kernels} kernels")
    return status


if __name__ == "__main__":
    sys.exit(main())
