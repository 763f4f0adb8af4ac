"""The GPU benchmark, as far as a machine without one goes: byte counts, rows, files, and the whole loop on the CPU."""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvae
from bench import eager, gpu
from bench.gpu_checks import Disagreement, check, make_tensors
from fastvae.files import whole_file
from tests.gpu_marker import WITHOUT_GPU

ROOT = Path(__file__).parents[2]
MACHINE = dict.fromkeys(gpu.COLUMNS[:8], "?") | {"device": "Some GPU 80GB", "date": "2001-02-03T04:05:06+00:00"}


class ScriptedMeter:
    """On the CPU: every job runs, and takes as long as it is told to."""

    def __init__(self, milliseconds: float = 2.0, free: int = 2**40) -> None:
        self.device = torch.device("cpu")
        self.answer, self.free, self.runs, self.now = milliseconds, free, 0, 0.0

    def milliseconds(self, job: gpu.Job) -> float:
        job.run(job.prepare())
        self.runs += 1
        return self.answer

    def peak_bytes(self, job: gpu.Job) -> int:
        job.run(job.prepare())
        return 1000

    def free_bytes(self) -> int:
        return self.free

    def clock(self) -> float:
        self.now += 0.25
        return self.now


def contenders():
    return {"fastvae": fastvae.sample_and_kl, "eager": eager.sample_and_kl, "compile": eager.sample_and_kl}


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setattr(gpu, "LARGE_COPY_BYTES", 2_000_000)


def measured(cases, meter=None, ops=contenders):
    said: list[str] = []
    rows = gpu.measure_all(cases, meter or ScriptedMeter(), rounds=2, contenders=ops, say=said.append)
    return rows, said


# ---- what is counted


def test_the_bytes_are_three_arrays_forward_five_backward_and_a_number_a_row():
    case = gpu.Case("bfloat16", 100, 20)
    assert gpu.moved_bytes(case, "forward") == 3 * 100 * 20 * 2 + 4 * 100
    assert gpu.moved_bytes(case, "backward") == 5 * 100 * 20 * 2 + 4 * 100
    assert gpu.moved_bytes(case, "both") == gpu.moved_bytes(case, "forward") + gpu.moved_bytes(case, "backward")
    assert gpu.moved_bytes(case._replace(dtype="float32"), "forward") == 3 * 100 * 20 * 4 + 4 * 100


def test_a_rate_is_in_gigabytes_a_second():
    assert gpu.gb_s(3 * 10**9, 1000.0) == pytest.approx(3.0)


def test_a_copy_reads_and_writes_the_bytes_asked_for():
    job = gpu.copy_job(1000, torch.device("cpu"))
    target = job.run(job.prepare())
    assert target.nbytes == 500
    assert (target == 1).all()


def test_the_sweep_has_every_size_in_every_dtype():
    assert gpu.sweep(["float32", "bfloat16"], [1, 2], [3]) == [
        ("float32", 1, 3),
        ("float32", 2, 3),
        ("bfloat16", 1, 3),
        ("bfloat16", 2, 3),
    ]


def test_a_median_ignores_the_warm_up_and_takes_turns():
    class Recorder(ScriptedMeter):
        def milliseconds(self, job):
            order.append(job.run(None))
            return {0: 99.0, 1: 99.0, 2: 99.0}.get((len(order) - 1) // 2, float(len(order)))

    order: list[str] = []
    todo = {name: gpu.Job(lambda: None, lambda _, name=name: name) for name in "ab"}
    assert gpu.medians(todo, Recorder(), rounds=3) == {"a": 9.0, "b": 10.0}
    assert "".join(order) == "ab" * 6


class Queue:
    """Stands for torch.cuda: a device that is done with so many flushes before the host has queued the next thing."""

    def __init__(self, monkeypatch, keeps_up_with: int) -> None:
        self.flushes, self.keeps_up_with = 0, keeps_up_with
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        self.meter = object.__new__(gpu.GpuMeter)
        self.meter._flushed, self.meter._flushes = self, 4

    def zero_(self) -> None:
        self.flushes += 1

    def record(self) -> None:
        pass

    def query(self) -> bool:
        done, self.flushes = self.flushes <= self.keeps_up_with, 0
        return done

    def elapsed_time(self, other) -> float:
        return 1.5


def test_a_time_counts_only_if_the_device_had_to_wait_for_nothing(monkeypatch):
    queue = Queue(monkeypatch, keeps_up_with=20)
    runs: list[int] = []
    assert queue.meter.milliseconds(gpu.Job(lambda: 7, runs.append)) == 1.5
    assert runs == [7, 7, 7, 7]  # after 4, 8, 16 and 32 flushes
    with pytest.raises(RuntimeError, match="something waits for results"):
        Queue(monkeypatch, keeps_up_with=10**6).meter.milliseconds(gpu.Job(lambda: None, lambda _: None))


# ---- the loop


def test_the_whole_loop_runs_and_gives_a_row_for_every_direction_and_contender(small_copy):
    rows, said = measured([gpu.Case("float32", 64, 10), gpu.Case("bfloat16", 32, 33)])
    assert len(rows) == 2 * 3 * 3
    assert len(said) == 1 + len(rows)
    row = next(row for row in rows if row["direction"] == "backward" and row["contender"] == "fastvae")
    assert (row["dtype"], row["batch"], row["latent"]) == ("float32", 64, 10)
    assert row["milliseconds"] == 2.0
    assert row["gb_s"] == pytest.approx((5 * 640 * 4 + 4 * 64) / 2.0 / 1e6)
    assert row["share_of_copy"] == pytest.approx((5 * 640 * 4 + 4 * 64) / 2_000_000)
    assert row["share_of_equal_copy"] == row["speed_against_eager"] == 1.0
    assert row["peak_bytes"] == 1000
    assert row["call_milliseconds"] == ""
    forward = next(row for row in rows if row["direction"] == "forward")
    assert forward["call_milliseconds"] == pytest.approx(1e3 * 0.25 / 10)


def test_the_loop_runs_with_a_compiled_contender(small_copy):
    def ops():
        return contenders() | {"compile": torch.compile(eager.sample_and_kl, fullgraph=True, backend="aot_eager")}

    assert len(measured([gpu.Case("float32", 64, 10)], ops=ops)[0]) == 9


def test_a_size_without_room_is_left_out_and_said(small_copy):
    meter = ScriptedMeter(free=10_000_000)
    rows, said = measured([gpu.Case("float32", 2000, 2000), gpu.Case("float32", 8, 8)], meter)
    assert {row["batch"] for row in rows} == {8}
    assert "2000 x 2000 float32: left out" in said[1]


# ---- no time of a wrong result


def wrong_scale(mu, logvar):
    return mu + torch.exp(logvar) * torch.randn_like(mu), eager.sample_and_kl(mu, logvar)[1]


def no_noise(mu, logvar):
    return mu + 0 * logvar, eager.sample_and_kl(mu, logvar)[1]


def half_the_kl(mu, logvar):
    z, kl = eager.sample_and_kl(mu, logvar)
    return z, 0.5 * kl


def no_gradient_of_the_kl(mu, logvar):
    z, kl = eager.sample_and_kl(mu, logvar)
    return z, kl.detach() + 0 * z.sum()


def not_a_number(mu, logvar):
    z, kl = eager.sample_and_kl(mu, logvar)
    return z * torch.where(torch.arange(z.shape[1]) == 3, float("nan"), 1.0), kl


def always_the_same_draw(mu, logvar):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)).to(mu)
    return mu + torch.exp(0.5 * logvar) * eps, eager.sample_and_kl(mu, logvar)[1]


WRONG = [
    (wrong_scale, "noise in z|grad_logvar"),
    (no_noise, "noise in z|grad_logvar"),
    (half_the_kl, "kl"),
    (no_gradient_of_the_kl, "grad_mu"),
    (not_a_number, "grad|noise"),
    (always_the_same_draw, "same z"),
]


@pytest.mark.parametrize(("op", "what"), WRONG, ids=[op.__name__ for op, _ in WRONG])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_contender_is_named_with_what_is_wrong(op, what, dtype):
    tensors = make_tensors(128, 50, dtype, torch.device("cpu"))
    with pytest.raises(Disagreement, match=f"^rival: .*({what})"):
        check({"eager": eager.sample_and_kl, "rival": op}, tensors)


def test_fastvae_must_use_its_own_noise_stream():
    tensors = make_tensors(128, 50, torch.float32, torch.device("cpu"))
    with pytest.raises(Disagreement, match=r"^fastvae: z\["):
        check({"fastvae": eager.sample_and_kl}, tensors)


def test_a_broken_noise_stream_is_found_even_if_z_uses_it(monkeypatch):
    noise = fastvae.noise

    def shifted(*arguments, dtype=torch.float32, **others):
        return noise(*arguments, dtype=dtype, **others) + (1e-3 if dtype == torch.float32 else 0)

    monkeypatch.setattr(fastvae, "noise", shifted)
    tensors = make_tensors(16, 16, torch.float32, torch.device("cpu"))
    with pytest.raises(Disagreement, match="fastvae: the noise of rows from 0 on"):
        check({"fastvae": fastvae.sample_and_kl}, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 100), (1000, 1), (300, 130)], ids=str)
def test_right_contenders_pass_in_blocks_of_rows_too(monkeypatch, shape, dtype):
    monkeypatch.setattr("bench.gpu_checks.BLOCK_ELEMENTS", 1000)
    check(contenders(), make_tensors(*shape, dtype, torch.device("cpu")))


def test_nothing_is_timed_after_a_wrong_result(small_copy):
    meter = ScriptedMeter()
    said: list[str] = []
    with pytest.raises(Disagreement, match="64 x 10 float32: compile: kl"):
        gpu.measure_all(
            [gpu.Case("float32", 64, 10)], meter, 2, lambda: contenders() | {"compile": half_the_kl}, said.append
        )
    assert meter.runs == 3 + 2  # of the device copy alone
    assert len(said) == 1


def test_a_wrong_result_ends_the_program_with_status_1_and_no_file(monkeypatch, tmp_path, capsys, small_copy):
    monkeypatch.setattr(gpu, "why_not_here", lambda: "")
    monkeypatch.setattr(gpu, "GpuMeter", ScriptedMeter)
    monkeypatch.setattr(gpu, "describe_machine", lambda device: MACHINE)
    monkeypatch.setattr(gpu, "measure_all", lambda *arguments: (_ for _ in ()).throw(Disagreement("fastvae: z")))
    assert gpu.main(["--output", str(tmp_path)]) == 1
    assert "nothing was written, a result is wrong: fastvae: z" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- files


def test_the_program_writes_a_csv_file_and_two_plots(monkeypatch, tmp_path, capsys, small_copy):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(gpu, "why_not_here", lambda: "")
    monkeypatch.setattr(gpu, "GpuMeter", ScriptedMeter)
    monkeypatch.setattr(gpu, "describe_machine", lambda device: MACHINE)
    monkeypatch.setattr(gpu, "QUICK_ROUNDS", 2)
    monkeypatch.setattr(gpu, "measure_all", lambda *a, all=gpu.measure_all: all(*a, contenders=contenders))
    monkeypatch.setattr(fastvae, "use_backend", lambda name, use=fastvae.use_backend: use("reference"))
    options = ["--quick", "--batch", "8,16", "--latent", "4,8", "--output", str(tmp_path / "new" / "folder")]
    assert gpu.main(options) == 0
    folder = tmp_path / "new" / "folder"
    stem = "gpu_some_gpu_80gb"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{stem}.csv",
        f"{stem}_gb_s.png",
        f"{stem}_speed_against_eager.png",
    ]
    with (folder / f"{stem}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 9
    assert tuple(rows[0]) == gpu.COLUMNS
    assert rows[0]["device"] == "Some GPU 80GB"
    assert rows[0]["milliseconds"] == "2"
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert f"wrote {folder / stem}.csv" in capsys.readouterr().out


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("before")

    def fail():
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "before"
    with whole_file(path) as unfinished:
        unfinished.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_the_date_is_utc_in_iso_format():
    assert datetime.datetime.fromisoformat(gpu.now()).utcoffset() == datetime.timedelta(0)


# ---- the command line


@pytest.mark.parametrize("options", [["--batch", "0"], ["--latent", "4,x"], ["--dtype", "float64"], ["--batch", ""]])
def test_a_wrong_option_is_named(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        gpu.main(options)
    assert exit_.value.code == 2
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_quick_means_fewer_sizes_unless_they_are_named():
    assert gpu.parse(["--quick"]).batch == gpu.QUICK["batch"]
    assert gpu.parse(["--quick", "--batch", "3,5"]).batch == (3, 5)
    assert gpu.parse([]).latent == gpu.LATENTS


def test_a_gpu_that_triton_does_not_serve_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fastvae, "backends", lambda: {"triton": {"chosen_for": [], "reason": "ImportError: no triton"}})
    assert gpu.why_not_here() == "the Triton backend does not serve the GPU: ImportError: no triton"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which this would measure for minutes")
def test_without_a_gpu_the_program_says_so_in_one_line_and_exits_with_2(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"bench.gpu: none of the 40 cases was measured: {WITHOUT_GPU}\n"
    assert list(tmp_path.iterdir()) == []
