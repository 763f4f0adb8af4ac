"""The benchmark reports: numbers as they are written, tables, the README's markers, pictures, and the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastvae
from bench import compare, kernel_alone, records, report, summary, tables
from bench.cases import LIKELIHOOD_SUITE, OPS, SUITE
from bench.head import HEADS

ROOT = Path(__file__).parents[2]
MACHINE = {
    "cpu": "Some CPU",
    "cores": 4,
    "threads": 2,
    "backend": "cpu",
    "instruction_set": "avx2",
    "versions": {"fastvae": "1.2", "torch": "3.4"},
    "date": "2001-02-03",
    "left_out": {"diffusers": "ModuleNotFoundError"},
}


def row(contender: str, speed: float, *, shape="4096x256", direction="both", op="sample_and_kl", **others) -> dict:
    """A row of an eager that takes 12 ms."""
    case = {"op": op, "shape": shape, "dtype": "float32", "direction": direction, "contender": contender}
    return case | {"seconds": 0.012 / speed, "speed_against_eager": speed} | others


def suite(*rows: dict) -> dict:
    return {"machine": MACHINE, "rows": list(rows)}


SMALL_SUITE = suite(
    row("eager", 1.0, saved_bytes=12_600_000, peak_bytes=33_554_432),
    row("fastvae", 4.0, saved_bytes=8, peak_bytes=12_582_912),
    row("eager", 1.0, shape="65536x256", saved_bytes=201_000_000, peak_bytes=528_000_000),
    row("fastvae", 12.0, shape="65536x256", saved_bytes=8, peak_bytes=3 * 2**26),
    row("diffusers", 0.8, shape="16x4x64x64", op="sample_and_kl_packed", other_load=0.3),
    row("fastvae", 2.0, direction="forward"),
    row("eager", 1.0, shape="100x50", op="iwae_50", saved_bytes=5_040_000),
    row("fastvae", 8.0, shape="100x50", op="iwae_50", saved_bytes=8),
)


def write(path, content) -> str:
    """Text as it is, or sections as results.json has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else records.dump(content))
    return str(path)


def test_numbers_have_three_digits_and_a_unit():
    assert [tables.duration(s) for s in (8.53e-5, 9.996e-4, 1.5749e-3, 0.0999, 0.0404, 0.4041, 12.0)] == [
        *("85.3 us", "1.00 ms", "1.57 ms", "99.9 ms", "40.4 ms", "0.404 s", "12.0 s"),
    ]
    assert tables.duration(123e-6) == "123 us"
    assert [tables.size(n) for n in (8, 999, 5120, 12_582_912, 2_013_265_920)] == [
        *("8 B", "999 B", "5.12 kB", "12.6 MB", "2.01 GB"),
    ]
    assert [tables.times(x) for x in (12.3, 9.96, 4.55, 1.0, 0.384, 0.00712)] == [
        *("x12", "x10", "x4.5", "x1.0", "x0.38", "x0.0071"),
    ]


def test_the_readme_has_the_numbers_of_the_results():
    """python -m bench report --readme README.md writes them anew."""
    results, readme = records.load(ROOT / "bench/results/results.json"), (ROOT / "README.md").read_text()
    assert report.replace_between_markers(readme, report.summary_report(results)) == readme
    assert len(readme.splitlines()) <= 90


def test_the_readme_s_plot_has_the_numbers_of_the_results():
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    results = records.load(ROOT / "bench/results/results.json")
    shown = image.open(ROOT / "bench/results/summary.png").text["Description"]
    assert shown == summary.description(results)
    assert shown.count("; ") > 5


def test_the_summary_compares_ops_layers_and_steps():
    counts = {"op": "zero_inflated", "shape": "1024x4000", "zeros": 0.9}
    head = {"kind": "zero_inflated", "shape": "2048 x 128 -> 20000", "other_load": 0.5}
    head["seconds"] = {"eager": 0.5, "fused likelihood": 0.4, "fastvae": 0.1}
    step = {"case": "scVI step, zero-inflated negative binomial, 128 x 2000", "other_load": 0.0}
    step["seconds"] = {"unpatched": 0.02, "patched": 0.01}
    results = {
        "cpu": SMALL_SUITE,
        "likelihoods": suite(row("eager", 1.0, **counts), row("fastvae", 8.0, **counts)),
        "head": suite(head),
        "clients": suite(step),
    }
    assert summary.table(results).splitlines() == [
        "| forward and backward, float32 | without | fastvae | speed |",
        "| --- | --- | --- | --- |",
        "| z and KL, 65536x256 | 12.0 ms | 1.00 ms | x12 |",
        "| zero-inflated log p, 1024x4000 | 12.0 ms | 1.50 ms | x8.0 |",
        "| wide head, counts, 2048 x 128 -> 20000 | 0.500 s | 0.100 s | x5.0 ? |",
        "| scVI step, 128 cells x 2000 genes | 20.0 ms | 10.0 ms | x2.0 |",
    ]


def test_the_summary_is_of_what_is_measured():
    """Six numbers in the README's table, all of cases that the commands have."""
    assert sum(summary.TABLE in number.shown for number in summary.NUMBERS) == 6
    sections = {"cpu": SUITE, "likelihoods": LIKELIHOOD_SUITE}
    for number in summary.NUMBERS:
        if number.section in sections:
            rows = [
                row(name, 2.0, op=case.op, shape=case.shape_name, zeros=case.zeros) | {"dtype": case.dtype}
                for case in sections[number.section]
                for name in ("eager", "fastvae")
            ]
            assert number.find(suite(*rows)) is not None, number.label
    assert "2048 x 128 -> 20000" in {head.shape_name for head in HEADS.values() if head.kind == "zero_inflated"}


def test_an_op_is_described_without_breaking_a_table():
    assert all("|" not in op.about for op in OPS.values())


def test_the_full_tables_have_every_benchmark():
    text = tables.full(SMALL_SUITE)
    assert "## sample_and_kl: z and its KL to N(0, I)\n\n| shape | dtype | direction | fastvae | eager |\n" in text
    assert "\n| 4096x256 | float32 | both | 3.00 ms, x4.0 | 12.0 ms, x1.0 |\n" in text
    assert "\n| 4096x256 | float32 | forward | 6.00 ms, x2.0 |  |\n" in text
    assert (
        "## sample_and_kl_packed: z and its KL to N(0, I), packed\n\n| shape | dtype | direction | diffusers |\n"
        in text
    )
    assert tables.memory(SMALL_SUITE).splitlines()[:3:2] == [
        "| case | fastvae | eager |",
        "| sample_and_kl 4096x256 float32 | 8 B, peak 12.6 MB (x1.0) | 12.6 MB, peak 33.6 MB (x2.0) |",
    ]


def test_what_stands_between_the_markers_is_replaced():
    text = "above\n<!-- bench -->\nold\n<!-- /bench -->\nbelow\n"
    assert report.replace_between_markers(text, "new") == "above\n<!-- bench -->\nnew\n<!-- /bench -->\nbelow\n"


@pytest.mark.parametrize(
    "text",
    [
        *("", "<!-- bench -->", "<!-- /bench -->", "<!-- /bench --><!-- bench -->"),
        *("<!-- bench --><!-- bench --><!-- /bench -->", "<!-- bench --><!-- /bench --><!-- /bench -->"),
        "<!-- /bench --><!-- bench --><!-- /bench -->",
    ],
)
def test_markers_that_are_not_a_pair_are_refused(text):
    with pytest.raises(ValueError, match="expected one <!-- bench --> and after it one <!-- /bench -->"):
        report.replace_between_markers(text, "new")


def test_the_report_writes_tables_pictures_and_the_readme(tmp_path):
    pytest.importorskip("matplotlib", reason="the bench extra is not installed")
    seconds = {"eager": 0.004, "fastvae": 0.001, "copy": 0.0005}
    point = {"elements": 1_000_000, "seconds": seconds, "other_load": 0.5}
    step = {"eager": 0.02, "fastvae": 0.016}
    batch = {"batch": 128, "step_seconds": step, "latent_share": {"eager": 0.25, "fastvae": 0.0625}, "other_load": 0}
    kernel = {"shape": "4096x256", "direction": "forward", "seconds": 0.0003, "copy_seconds": 0.0002}
    sections = {"cpu": SMALL_SUITE, "scaling": suite(point), "training": suite(batch), "kernel_alone": suite(kernel)}
    write(tmp_path / "results.json", sections)
    readme = tmp_path / "README.md"
    write(readme, "# fastvae\n<!-- bench -->\n<!-- /bench -->\n")

    report.main(["--results", str(tmp_path), "--readme", str(readme)])
    results = (tmp_path / "results.md").read_text()
    assert "2 threads on Some CPU with 4 cores, backend cpu (avx2); fastvae 1.2, torch 3.4; 2001-02-03." in results
    assert "Not on this machine: diffusers (ModuleNotFoundError)." in results
    assert "| 1,000,000 ? | 4 | 1 | 0.5 | x4.0 |" in results
    assert "| 128 | 20.0 ms | 16.0 ms | x1.250 | 25.0% | 6.2% |" in results
    assert "| 4096x256 | forward | 300 us | 200 us | 1.50 |" in results
    assert f"\n{summary.table(sections)}\n\n" in readme.read_text()
    for picture in ("suite.png", "scaling.png", "summary.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_report_of_nothing_says_what_is_missing(tmp_path, capsys):
    path, readme = tmp_path / "results.json", tmp_path / "README.md"

    def refused(*options: str) -> str:
        with pytest.raises(SystemExit):
            report.main(["--results", str(tmp_path), *options])
        return capsys.readouterr().err

    assert f"{path}: there is no such file" in refused()
    write(path, {"training": suite()})
    assert f"{path} has no section cpu, which `make bench` writes" in refused()
    write(path, {"cpu": SMALL_SUITE})
    assert f"--readme is {readme}: " in refused("--readme", str(readme))
    write(readme, "no markers")
    assert f"--readme is {readme}: expected one <!-- bench -->" in refused("--readme", str(readme))
    assert readme.read_text() == "no markers"
    assert not (tmp_path / "results.md").exists()


@pytest.fixture
def compared(tmp_path):
    """The status of comparing two results of latents."""

    def run(before: dict | str, after: dict | str, *options: str) -> int:
        contents = [of if isinstance(of, str) else {"cpu": of} for of in (before, after)]
        names = ("before.json", "after.json")
        paths = [write(tmp_path / name, content) for name, content in zip(names, contents, strict=True)]
        return compare.main([*paths, *options])

    return run


@pytest.mark.parametrize(("speed", "status"), [(4.0, 0), (8.0, 0), (3.1, 0), (3.05, 1), (1.0, 1)])
def test_fastvae_may_get_slower_by_the_threshold(compared, capsys, speed, status):
    after = suite(row("eager", 1.0), row("fastvae", speed))
    assert compared(SMALL_SUITE, after) == status
    out = capsys.readouterr().out
    assert f"\n{status} of 1 measurements of fastvae got slower by more than x1.3 in the ratio to eager PyTorch" in out
    verdict = "slower" if status else ""
    assert f"| sample_and_kl 4096x256 float32 both | x4.0 | x{speed:.1f} | x{4 / speed:.2f} | {verdict} |" in out


def test_the_threshold_is_an_option(compared):
    after = suite(row("fastvae", 3.5))
    assert compared(SMALL_SUITE, after, "--threshold", "1.1") == 1
    assert compared(SMALL_SUITE, after, "--threshold", "1.2") == 0


def test_a_slower_machine_is_a_slowdown_in_time_and_none_in_the_ratio(compared):
    slower = json.loads(json.dumps(SMALL_SUITE))
    for entry in slower["rows"]:
        entry["seconds"] *= 2
    assert compared(SMALL_SUITE, slower) == 0
    assert compared(SMALL_SUITE, slower, "--by", "time") == 1
    assert compared(slower, SMALL_SUITE, "--by", "time") == 0


def test_a_slower_peer_is_none_of_our_business(compared):
    before = suite(row("fastvae", 4.0), row("torch.compile", 1.0), row("diffusers", 1.0))
    after = suite(row("fastvae", 4.0), row("torch.compile", 0.5))
    assert compared(before, after) == 0


def test_a_slowdown_on_a_busy_machine_is_shown_and_not_judged(compared, capsys):
    quiet = row("fastvae", 4.0, direction="forward", other_load=0.01)
    before, after = row("fastvae", 4.0, other_load=0.4), row("fastvae", 2.0)
    assert compared(suite(before, quiet), suite(after, quiet)) == 0
    out = capsys.readouterr().out
    assert "0 of 1 measurements" in out
    assert "both | x4.0 | x2.0 | x2.00 | busy: not judged |" in out
    with pytest.raises(SystemExit):
        compared(suite(before), suite(after))
    assert "the machine was busy with something else in all of fastvae's measurements" in capsys.readouterr().err


def test_the_worst_slowdown_comes_first():
    directions = ("forward", "both")
    before = {"cpu": suite(*(row("fastvae", 4.0, direction=direction) for direction in directions))}
    after = {"cpu": suite(row("fastvae", 3.0, direction="forward"), row("fastvae", 1.0))}
    assert [change["slowdown"] for change in compare.changes(before, after, "ratio")] == [4.0, pytest.approx(4 / 3)]


@pytest.mark.parametrize(
    ("before", "after", "options", "message"),
    [
        ("{", SMALL_SUITE, (), "before.json: expected JSON that `python -m bench cpu --results` wrote"),
        (SMALL_SUITE, "[1]", (), "after.json: expected JSON"),
        (SMALL_SUITE, '{"cpu": 1}', (), "after.json: expected JSON"),
        (SMALL_SUITE, suite(row("eager", 1.0)), (), "the two files have no measurement of fastvae in common"),
        (SMALL_SUITE, SMALL_SUITE, ("--threshold", "0.9"), "--threshold is 0.9, expected 1 or more"),
        (SMALL_SUITE, SMALL_SUITE, ("--threshold", "nan"), "--threshold is nan, expected 1 or more"),
        (SMALL_SUITE, SMALL_SUITE, ("--by", "luck"), "argument --by: invalid choice: 'luck'"),
    ],
)
def test_what_cannot_be_compared_is_named(compared, capsys, before, after, options, message):
    with pytest.raises(SystemExit) as raised:
        compared(before, after, *options)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "no.json"), str(tmp_path / "none.json")])
    assert f"{tmp_path / 'no.json'}: there is no such file" in capsys.readouterr().err


def test_likelihoods_are_compared_as_latents_are(tmp_path):
    def results(speed: float) -> dict:
        counts = {"op": "poisson", "shape": "6x8", "zeros": 0.9}
        return {"likelihoods": suite(row("fastvae", speed, **counts), row("fastvae", 9.0, **(counts | {"zeros": 0.5})))}

    before, after = (write(tmp_path / f"{speed}.json", results(speed)) for speed in (4.0, 2.0))
    assert compare.main([before, after]) == 1
    assert [change["name"] for change in compare.changes(results(4.0), results(2.0), "ratio")] == [
        *("poisson 6x8 float32, 90% zeros both", "poisson 6x8 float32, 50% zeros both"),
    ]


def test_the_kernels_alone_are_checked_timed_and_written(tmp_path, capsys):
    if not fastvae.backends()["cpu"]["available"]:
        pytest.skip(f"no CPU kernels here: {fastvae.backends()['cpu']['reason']}")
    kernel_alone.main(["8x10", "3x4x5", "--results", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("| 8x10 | ") == said.count("| 3x4x5 | ") == 2
    rows = records.load(tmp_path / "results.json")["kernel_alone"]["rows"]
    assert [(row["shape"], row["direction"]) for row in rows[::3]] == [("8x10", "forward"), ("3x4x5", "backward")]
    assert all(row["seconds"] > 0 and row["copy_seconds"] > 0 for row in rows)


def test_the_kernels_alone_refuse_a_shape_that_is_none(capsys):
    with pytest.raises(SystemExit):
        kernel_alone.main(["ten"])
    assert "shape is 'ten', expected a batch and sizes" in capsys.readouterr().err
