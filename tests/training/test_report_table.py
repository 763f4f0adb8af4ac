"""The report's table of epochs: which rows are shown, and numbers that are none."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from fastvae.training.report import ROWS, write_report


class Rows(HTMLParser):
    """The cells of each row, and whether the row is marked as the best."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[bool, list[str]]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") == "best", []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][1][-1] += data


@pytest.fixture
def table(tmp_path):
    def write(history):
        write_report(
            tmp_path / "report.html", title="t", summary={}, settings={}, pictures=[], history=history, commands=[]
        )
        return Rows((tmp_path / "report.html").read_text(encoding="utf-8")).rows[1:-1]

    return write


def test_the_first_the_best_and_the_last_epoch_are_always_shown(table):
    history = [{"epoch": epoch, "val_elbo": -abs(epoch - 63.0)} for epoch in range(1, 101)]
    rows = table(history)
    epochs = [int(cells[0]) for _, cells in rows]
    assert {1, 63, 100} <= set(epochs)
    assert epochs == sorted(set(epochs))
    assert ROWS - 4 <= len(epochs) <= ROWS
    assert [cells[0] for best, cells in rows if best] == ["63"]


def test_a_column_has_decimals_everywhere_or_nowhere(table):
    rows = table([{"epoch": 1, "step": 12, "val_elbo": -9401.0}, {"epoch": 2, "step": 24, "val_elbo": -9311.75}])
    assert [cells for _, cells in rows] == [["1", "12", "-9,401.00"], ["2", "24", "-9,311.75"]]


def test_under_iwae_the_best_epoch_is_that_of_the_bound_that_was_trained_on(table):
    history = [
        {"epoch": 1, "val_elbo": -1.0, "val_iwae": -9.0},
        {"epoch": 2, "val_elbo": -2.0, "val_iwae": -8.0},
        {"epoch": 3, "val_elbo": -3.0, "val_iwae": math.nan},
    ]
    assert [cells[0] for best, cells in table(history) if best] == ["2"]


@pytest.mark.parametrize("epochs", [1, 2, ROWS])
def test_few_epochs_are_all_shown(table, epochs):
    assert len(table([{"epoch": epoch} for epoch in range(1, epochs + 1)])) == epochs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_has_a_report_that_says_so(table, value):
    rows = table([{"epoch": 1, "val_elbo": -9.5}, {"epoch": 2, "val_elbo": value}])
    assert [cells for _, cells in rows] == [["1", "-9.50"], ["2", str(value)]]
    assert [best for best, _ in rows] == [True, False]


def test_no_epoch_is_the_best_where_none_was_measured(table):
    rows = table([{"epoch": 1, "train_elbo": -9.5}, {"epoch": 2, "train_elbo": -9.0, "val_elbo": math.nan}])
    assert not any(best for best, _ in rows)
