"""The stopwatch, with a clock of its own: whom it calls, in which order, and what it makes of the times."""

from __future__ import annotations

import pytest
import torch

from bench import eager
from bench.timing import interleaved_medians


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


def test_the_eager_reference_is_the_textbook_kl_of_its_own_draw():
    mu, logvar = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    posterior = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.manual_seed(1)
    z, kl = eager.sample_and_kl(mu, logvar)
    torch.manual_seed(1)
    torch.testing.assert_close(z, mu + torch.exp(0.5 * logvar) * torch.randn(6, 2, 3))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, prior).sum((1, 2)))
