"""The table of tested versions: reports are counted, rows replaced, and the command says what a library broke."""

from __future__ import annotations

import subprocess

import pytest

from tests.versions import __main__ as command
from tests.versions.environments import ENVIRONMENTS, Environment, Missing, find_python, make
from tests.versions.table import Results, add_row, broken_libraries, read_results, read_rows, row_of

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.test_files" name="test_one"/>
<testcase classname="tests.test_files" name="test_two"><skipped/></testcase>
<testcase classname="tests.clients.test_scvi" name="test_three[nb]"><failure/></testcase>
<testcase classname="tests.clients.test_pyro_patch" name="test_four"><error/></testcase>
</testsuite></testsuites>"""
PROBED = {"python": "3.12.1", "versions": {"torch": "2.11.0", "numpy": "2.5.5", "scvi-tools": "1.5"}, "machine": "one"}


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    return path


def test_reports_of_several_parts_are_counted_together(report):
    results = read_results([report, report])
    assert results[:3] == (2, 4, 2)
    assert broken_libraries(results) == {"scvi-tools": 2, "pyro-ppl": 2}


def test_a_row_of_the_same_versions_gives_way(tmp_path):
    path = tmp_path / "versions.md"
    newer = PROBED | {"versions": PROBED["versions"] | {"torch": "2.13.0"}}
    for probed, results in (
        (newer, Results(7, 0, 1, ())),
        (PROBED, Results(5, 1, 1, ("x::y",))),
        (PROBED, Results(6, 0, 1, ())),
    ):
        add_row(path, row_of("suite", probed, results, ()))
    assert [(row[2], row[6], row[7]) for row in read_rows(path.read_text())] == [
        ("2.11.0", "6", "0"),
        ("2.13.0", "7", "0"),
    ]
    add_row(path, row_of("clients", PROBED, Results(2, 0, 0, ()), ("scvi-tools", "pyro-ppl")))
    assert [row[5] for row in read_rows(path.read_text())] == ["scvi-tools 1.5", "none", "none"]


def test_the_command_tells_which_library_broke_its_patch(report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "probe", lambda python: PROBED)
    arguments = ["--python=python", "--clients", f"--reports={report}", f"--output={tmp_path / 'versions.md'}"]
    assert command.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "1 passed, 2 failed, 1 skipped" in shown
    assert "scvi-tools 1.5 breaks its patch: 1 tests fail" in shown
    assert "tests.clients.test_scvi::test_three[nb]" in shown
    assert len(read_rows((tmp_path / "versions.md").read_text())) == 1


def test_an_environment_that_cannot_be_made_is_said_and_no_row(tmp_path, monkeypatch, capsys):
    with pytest.raises(Missing, match=r"python9\.9 is not installed"):
        find_python("9.9")
    monkeypatch.setattr(command, "make", lambda *_, **__: make(Environment("none", "9.9", ())))
    monkeypatch.setattr("tests.versions.environments.FOLDER", tmp_path)
    assert command.main(["oldest", f"--output={tmp_path / 'versions.md'}"]) == 1
    assert "left out: oldest: python9.9 is not installed" in capsys.readouterr().out
    assert not (tmp_path / "versions.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["x"], "NAME is 'x', expected one of oldest"), (["--clients"], "go with --python")]
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_the_newest_clients_are_installed_without_constraints_and_upgraded(tmp_path, monkeypatch):
    ran: list[list[str]] = []

    def run(words, **_):
        ran.append([str(word) for word in words])
        return subprocess.CompletedProcess(words, 0, b"")

    monkeypatch.setattr("tests.versions.environments.subprocess.run", run)
    monkeypatch.setattr("tests.versions.environments.shutil.which", lambda name: name)
    monkeypatch.setattr("tests.versions.environments.FOLDER", tmp_path)
    (newest,) = [one for one in ENVIRONMENTS if one.name == "clients-newest"]
    make(newest, ("https://packages.test",), upgrade=True)
    install = ran[-1]
    assert "--upgrade" in install
    assert "-c" not in install
    assert {"diffusers", "scvi-tools", "https://packages.test", ".[clients,test]"} <= set(install)
