"""The Triton kernels compile for every GPU they are meant for, with the launch shapes that would be used.

In a process of its own: Triton decides between interpreting and compiling when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# For one target each op and shape in one of the dtypes, by turns; everything is for the slow tests.
BY_TURNS = "--by-turns"
TARGETS = (
    pytest.param(("sm_90", BY_TURNS), id="sm_90, dtypes by turns"),
    *(
        pytest.param((target,), marks=pytest.mark.slow, id=target)
        for target in ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942")
    ),
)

# Arrays of the size of z that an op reads or writes, and rows that all of its rows share.
ARRAYS = {
    "noise": 1,
    "sample_and_kl": 3,
    "reparameterize": 3,
    "gaussian_kl": 2,
    "sample_and_kl_backward": 5,
    "reparameterize_backward": 3,
    "gaussian_kl_backward": 4,
    "gaussian_kl_two": 4,
    "gaussian_kl_shared_prior": 4,
    "sample_and_kl_prior": 5,
    "sample_and_kl_shared_prior": 5,
    "sample_and_kl_std": 3,
    "sample_and_kl_softplus": 3,
    "sample_and_kl_soft_clamp": 3,
    "gaussian_kl_two_backward": 8,
    "gaussian_kl_shared_prior_backward": 6,
    "sample_and_kl_prior_backward": 9,
    "sample_and_kl_shared_prior_backward": 7,
    "sample_and_kl_std_backward": 5,
    "sample_and_kl_softplus_backward": 5,
    "sample_and_kl_soft_clamp_backward": 5,
    "bernoulli": 2,
    "gaussian": 3,
    "negative_binomial": 3,
    "scaled_bernoulli": 3,
    "bernoulli_backward": 3,
    "gaussian_backward": 5,
    "negative_binomial_backward": 4,
    "scaled_bernoulli_backward": 4,
    "head_bernoulli": 3,
    "head_negative_binomial": 5,
}
PLAIN, DRAWN, LIKELIHOODS, HEADS = 7, 2, 8, 2
OTHERS = len(ARRAYS) - PLAIN - LIKELIHOODS - HEADS


@pytest.fixture(scope="module", params=TARGETS)
def arguments(request) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module")
def compiled(arguments) -> list[dict]:
    """All ops for one target, which take half a minute to compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compile_all", *arguments],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_op_compiles_to_a_binary(compiled, arguments):
    dtypes = 1 if BY_TURNS in arguments else 2
    assert len(compiled) == dtypes * (4 * PLAIN - 1 + 2 * OTHERS + 2 * DRAWN + 2 + 3 * LIKELIHOODS + 2 * HEADS)
    assert {entry["dtype"] for entry in compiled} == {"float32", "bfloat16"}
    assert all(entry["binary_bytes"] > 1000 for entry in compiled)


def test_nothing_is_spilled_to_local_memory(compiled):
    assert [entry for entry in compiled if entry["local_memory"]] == []


def test_long_aligned_rows_are_read_and_written_16_bytes_at_a_time(compiled):
    for entry in compiled:
        if entry["target"].startswith("sm_") and entry["shape"] in ("512x4096", "64x65536"):
            assert entry["wide_accesses"] >= ARRAYS[entry["op"]], entry
