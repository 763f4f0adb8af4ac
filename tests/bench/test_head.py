"""python -m bench head: contenders that compute the same, rows, and their table."""

from __future__ import annotations

import pytest
import torch

from bench import head, tables
from bench.agreement import Disagreement
from bench.timing import Plan

KINDS = sorted({one.kind for one in head.HEADS.values()})


@pytest.mark.parametrize("kind", KINDS)
def test_contenders_that_differ_are_refused(kind):
    small = head.Head(kind, 4, 3, 6)
    steps = head.steps_of(small)
    assert list(steps) == list(head.CONTENDERS)
    head._refuse_disagreement(small, steps)
    wrong = steps | {"fastvae": lambda: _doubled(steps["fastvae"]())}
    with pytest.raises(Disagreement, match="fastvae differs from eager by"):
        head._refuse_disagreement(small, wrong)


def _doubled(result):
    return 2 * result if isinstance(result, torch.Tensor) else [2 * one for one in result]


def test_a_row_has_times_and_peaks(monkeypatch):
    monkeypatch.setattr(head, "plan", lambda *_a, **_k: Plan(1, 1, 0))
    monkeypatch.setattr(head, "peak_bytes", lambda one, name: {"eager": 4_000_000}.get(name, 1_000_000))
    monkeypatch.setattr(head, "keep_freed_memory", lambda: None)
    row = head.measure_head(head.Head("bernoulli", 4, 3, 6))
    assert row["shape"] == "4 x 3 -> 6"
    assert set(row["seconds"]) == set(head.CONTENDERS)
    row |= {"seconds": {"eager": 0.04, "fused likelihood": 0.02, "fastvae": 0.01}, "other_load": 0}
    assert tables.table({"rows": [row]}, tables.HEAD).splitlines()[-1] == (
        "| bernoulli | 4 x 3 -> 6 | 40.0 ms, 4 MB | 20.0 ms, x2.0, 1 MB | 10.0 ms, x4.0, 1 MB |"
    )
