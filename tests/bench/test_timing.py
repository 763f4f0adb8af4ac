"""The stopwatch, with a clock of its own: whom it calls, in which order, and what it makes of the times."""

from __future__ import annotations

import os

import pytest
import torch

from bench import eager
from bench.timing import OtherLoad, Plan, interleaved_medians, interleaved_seconds, plan, speed_against


class Bench:
    """Contenders that take the seconds they are told to, on a clock that only they move."""

    def __init__(self, **seconds: list[float]) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.contenders = {name: self._contender(name, list(values)) for name, values in seconds.items()}

    def _contender(self, name: str, seconds: list[float]):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds[self.calls.count(name) - 1]

        return run

    def clock(self) -> float:
        return self.now


def test_medians_ignore_the_outlier_and_the_warm_up():
    bench = Bench(slow=[100.0, 3.0, 3.0, 50.0], fast=[100.0, 1.0, 9.0, 1.0])
    assert interleaved_medians(bench.contenders, rounds=3, warmup=1, clock=bench.clock) == {"slow": 3.0, "fast": 1.0}


def test_contenders_take_turns_and_each_goes_first():
    bench = Bench(a=[1.0] * 9, b=[1.0] * 9, c=[1.0] * 9)
    interleaved_medians(bench.contenders, rounds=3, warmup=0, clock=bench.clock)
    assert "".join(bench.calls) == "abcbcacab"


def test_a_time_is_that_of_one_call():
    bench = Bench(only=[2.0] * 20)
    assert interleaved_medians(bench.contenders, rounds=4, calls=5, warmup=0, clock=bench.clock) == {"only": 2.0}
    assert len(bench.calls) == 20


def test_nobody_to_time_is_no_time():
    assert interleaved_medians({}) == {}


def test_rounds_must_be_positive():
    with pytest.raises(ValueError, match="rounds is 0"):
        interleaved_medians({}, rounds=0)


def test_seconds_come_round_by_round():
    bench = Bench(only=[5.0, 3.0, 1.0, 2.0])
    assert interleaved_seconds(bench.contenders, rounds=3, warmup=1, clock=bench.clock) == {"only": [3.0, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("seconds", "planned"),
    [
        (2**-13, Plan(rounds=100, calls=33, warmup=3, ahead=1)),  # four milliseconds to a timing
        (0.03, Plan(rounds=12, calls=1, warmup=3, ahead=1)),  # as many rounds as fit
        (0.5, Plan(rounds=5, calls=1, warmup=0, ahead=1)),  # five where they are not too long
        (2.0, Plan(rounds=3, calls=1, warmup=0, ahead=1)),  # three in any case
    ],
)
def test_the_plan_fits_the_budget(seconds, planned):
    bench = Bench(a=[9.0, *[seconds] * 3], b=[9.0, *[seconds] * 3])
    assert plan(bench.contenders, 1.5, clock=bench.clock) == planned
    assert len(bench.calls) == 4


def test_the_plan_of_nobody_is_a_plan():
    assert plan({}, 1.0) == Plan(rounds=3, calls=1, warmup=0)


def test_calls_ahead_are_made_and_not_counted():
    bench = Bench(a=[50.0, 1.0, 50.0, 2.0], b=[70.0, 3.0, 70.0, 4.0])
    seconds = interleaved_seconds(bench.contenders, rounds=2, warmup=0, ahead=1, clock=bench.clock)
    assert seconds == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert "".join(bench.calls) == "aabbbbaa"


def test_speed_is_compared_within_a_round():
    # The machine is ten times as slow for half of the rounds: the ratio stays; that of the medians is 0.2.
    seconds = {"eager": [2.0, 2.0, 20.0, 20.0, 2.0], "fast": [1.0, 1.0, 10.0, 10.0, 10.0]}
    assert speed_against(seconds, "fast") == 2.0
    assert speed_against(seconds, "eager") == 1.0
    assert speed_against(seconds, "eager", baseline="fast") == 0.5


def test_what_others_take_is_neither_idle_nor_our_own(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 900 10 0 0 0 0 0\ncpu0 1 2 3\n")
    others = OtherLoad(stat)
    stat.write_text("cpu  120000 0 20050 100000 50010 0 0 10000 7 7\n")
    # Of 298,950 ticks 149,950 are busy; the few seconds of this process are small beside that.
    assert others.share() == pytest.approx(0.5, abs=0.01)
    assert OtherLoad(tmp_path / "none").share() is None
    assert OtherLoad(stat).share() is None  # no time has passed


def test_our_own_work_is_not_elsewhere(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu  0 0 0 0 0 0 0 0\n")
    others = OtherLoad(stat)
    tick, own = os.sysconf("SC_CLK_TCK"), os.times()
    monkeypatch.setattr(os, "times", lambda: type("Times", (), {"user": own.user + 3, "system": own.system + 1}))
    stat.write_text(f"cpu  {5 * tick} 0 0 {5 * tick} 0 0 0 0\n")
    assert others.share() == pytest.approx(0.1, abs=0.02)


def test_the_eager_reference_is_the_textbook_kl_of_its_own_draw():
    mu, logvar = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    posterior = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.manual_seed(1)
    z, kl = eager.sample_and_kl(mu, logvar)
    torch.manual_seed(1)
    torch.testing.assert_close(z, mu + torch.exp(0.5 * logvar) * torch.randn(6, 2, 3))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, prior).sum((1, 2)))
