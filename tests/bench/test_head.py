"""python -m bench head: contenders that compute the same, rows, and their table."""

from __future__ import annotations

import types

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
    assert set(row["seconds"]) == {*head.CONTENDERS, "products alone", "kernel alone"}
    row |= {
        "seconds": {"eager": 0.04, "fused likelihood": 0.02, "fastvae": 0.01, "products alone": 0.005},
        "other_load": 0,
    }
    assert tables.table({"rows": [row]}, tables.HEAD).splitlines()[-1] == (
        "| bernoulli | 4 x 3 -> 6 | 40.0 ms, 4 MB | 20.0 ms, x2.0, 1 MB | 10.0 ms, x4.0, 1 MB | 5.00 ms |  |"
    )


@pytest.mark.parametrize("rows", [5, 400])
def test_the_parts_of_counts_run_in_the_chunks_of_the_step(rows, monkeypatch):
    kernels, called = head.implementation("auto", torch.device("cpu"), torch.float32), []
    spy = types.SimpleNamespace(head=lambda x, *others: called.append(len(x)) or kernels.head(x, *others))
    monkeypatch.setattr(head, "implementation", lambda *_: spy)
    monkeypatch.setattr(head, "rows_of_chunk", lambda rows, *_: -(-rows // 2))
    for part in head.parts_of(head.Head("zero_inflated", rows, 3, 6)).values():
        part()
    assert called == [-(-rows // 2), rows // 2]
