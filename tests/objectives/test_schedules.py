"""Schedules: their values where they turn, that they are plain values, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest

from fastvae.schedules import constant, cyclical, linear_warmup


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.3), {0: 0.3, 10**9: 0.3}),
        (linear_warmup(10), {0: 0.0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 1.0, 11: 1.0, 10**9: 1.0}),
        (linear_warmup(4, start=2.0, end=-2.0), {0: 2.0, 1: 1.0, 2: 0.0, 4: -2.0, 5: -2.0}),
        (linear_warmup(0, end=0.7), {0: 0.7, 1: 0.7}),
        (linear_warmup(1), {0: 0.0, 1: 1.0}),
        (cyclical(10), {0: 0.0, 1: 0.2, 4: 0.8, 5: 1.0, 9: 1.0, 10: 0.0, 11: 0.2, 15: 1.0, 10**9 + 1: 0.2}),
        (cyclical(100, ratio=1.0), {0: 0.0, 50: 0.5, 99: 0.99, 100: 0.0}),
        (cyclical(8, ratio=0.25, start=1.0, end=5.0), {0: 1.0, 1: 3.0, 2: 5.0, 7: 5.0, 8: 1.0}),
        (cyclical(1), {0: 0.0, 1: 0.0}),
    ],
)
def test_values_where_schedules_turn(schedule, values):
    assert {step: schedule(step) for step in values} == pytest.approx(values)
    assert all(isinstance(schedule(step), float) for step in values)


@pytest.mark.parametrize("schedule", [constant(0.3), linear_warmup(10, 0.5), cyclical(10, 0.2, 0.1, 0.9)])
def test_schedules_are_plain_values(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(schedule) == schedule
    assert eval(repr(schedule)) == schedule
    with pytest.raises(AttributeError):
        schedule.end = 2.0


def test_integers_are_numbers_too():
    assert constant(2)(0) == 2.0
    assert linear_warmup(4, start=0, end=2)(1) == 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: constant("1"), TypeError, "value is a str, expected a number"),
        (lambda: constant(float("nan")), ValueError, "value is nan, expected a finite number"),
        (lambda: linear_warmup(-1), ValueError, "steps is -1, expected 0 or more"),
        (lambda: linear_warmup(10.5), TypeError, "steps is a float, expected an int"),
        (lambda: linear_warmup(10, start=None), TypeError, "start is a NoneType"),
        (lambda: linear_warmup(10, end=float("inf")), ValueError, "end is inf"),
        (lambda: cyclical(0), ValueError, "period is 0, expected 1 or more"),
        (lambda: cyclical(10, ratio=0.0), ValueError, "ratio is 0.0, expected more than 0 and at most 1"),
        (lambda: cyclical(10, ratio=1.5), ValueError, "ratio is 1.5, expected more than 0 and at most 1"),
        (lambda: constant(1.0)(-1), ValueError, "step is -1, expected a finite number of 0 or more"),
        (lambda: linear_warmup(10)(-1), ValueError, "step is -1, expected"),
        (lambda: cyclical(10)(None), TypeError, "step is a NoneType, expected a number"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
