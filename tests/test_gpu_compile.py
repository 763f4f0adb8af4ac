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

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942")

# Arrays of the size of z that an op reads or writes.
ARRAYS = {
    "noise": 1,
    "sample_and_kl": 3,
    "reparameterize": 3,
    "gaussian_kl": 2,
    "sample_and_kl_backward": 5,
    "reparameterize_backward": 3,
    "gaussian_kl_backward": 4,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # compiled now, not found compiled
    result = subprocess.run(
        [sys.executable, "-m", "bench.compiled", *TARGETS],
        env=environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_every_op_compiles_to_a_binary(compiled, target):
    ours = [entry for entry in compiled if entry["target"] == target]
    assert len(ours) == 2 * (7 + 7 + 6 + 7)
    assert all(entry["binary_bytes"] > 1000 for entry in ours)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled_to_local_memory(compiled, target):
    assert [entry for entry in compiled if entry["target"] == target and entry["local_memory"]] == []


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("sm_")])
def test_long_aligned_rows_are_read_and_written_16_bytes_at_a_time(compiled, target):
    for entry in compiled:
        if entry["target"] == target and entry["shape"] in ("512x4096", "64x65536"):
            assert entry["wide_accesses"] >= ARRAYS[entry["op"]], entry
