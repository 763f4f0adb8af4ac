"""The GPU benchmark, as far as a machine without one goes: byte counts, rows, files, and the whole loop on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

import fastvae
from bench import __main__ as runner
from bench import agreement, contenders, eager, gpu, records
from bench.agreement import Disagreement, refuse_disagreement
from bench.cases import Case
from fastvae.files import whole_file
from tests.gpu_marker import WITHOUT_GPU

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MACHINE = {"device": "Some GPU 80GB", "versions": {"torch": "2"}, "triton": "3", "date": "2001-02-03"}


def latent(batch: int, size: int, dtype: str = "float32") -> Case:
    return Case("sample_and_kl", (batch, size), dtype)


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

    def seconds(self, runs):
        return {name: float(run() is None) + 0.5 for name, run in runs.items()}

    def graph(self, run):
        outputs = [output.detach() for output in run()]

        def replay() -> None:
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value.detach())

        return replay, outputs

    def clock(self) -> float:
        self.now += 0.25
        return self.now


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """Compiling takes seconds: torch.compile is eager PyTorch here."""
    right = contenders.make
    monkeypatch.setattr(
        contenders, "make", lambda case, name, device: right(case, "eager" if "compile" in name else name, device)
    )


@pytest.fixture
def small_copy(monkeypatch):
    monkeypatch.setattr(gpu, "LARGE_COPY_BYTES", 2_000_000)
    # A C++ compiler for each of the functions would take longer than all else; what is compiled is not looked at.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def measured(cases, meter=None):
    return list(gpu.measure_all(cases, meter or ScriptedMeter(), rounds=2))


# ---- what is counted


def test_the_bytes_are_three_arrays_forward_five_backward_and_a_number_a_row():
    case = latent(100, 20, "bfloat16")
    assert case.moved_bytes("forward") == 3 * 100 * 20 * 2 + 4 * 100
    assert case.moved_bytes("backward") == 5 * 100 * 20 * 2 + 4 * 100
    assert case.moved_bytes("both") == case.moved_bytes("forward") + case.moved_bytes("backward")
    assert latent(100, 20).moved_bytes("forward") == 3 * 100 * 20 * 4 + 4 * 100


def test_the_bytes_of_other_ops_are_those_of_their_inputs_and_outputs():
    shared = Case("negative_binomial", (100, 20))  # x and mean; theta, one for each of 20 genes; a number a row
    assert shared.moved_bytes("forward") == 4 * (2 * 2000 + 20 + 100)
    assert shared.moved_bytes("backward") == 4 * (3 * 2000 + 2 * 20 + 100)
    assert Case("noise", (100, 20)).moved_bytes("forward") == 4 * 2000


def test_a_rate_is_in_gigabytes_a_second():
    assert gpu.gb_s(3 * 10**9, 1000.0) == pytest.approx(3.0)


def test_a_copy_reads_and_writes_the_bytes_asked_for():
    job = gpu.copy_job(1000, torch.device("cpu"))
    target = job.run(job.prepare())
    assert target.nbytes == 500
    assert (target == 1).all()


def test_a_median_ignores_the_warm_up_and_takes_turns():
    class Recorder(ScriptedMeter):
        def milliseconds(self, job):
            order.append(job.run(None))
            return {0: 99.0, 1: 99.0, 2: 99.0}.get((len(order) - 1) // 2, float(len(order)))

    order: list[str] = []
    todo = {name: gpu.Job(lambda _, name=name: name) for name in "ab"}
    assert gpu.medians(todo, Recorder(), rounds=3) == {"a": 9.0, "b": 10.0}
    assert "".join(order) == "ab" * 6


class Queue:
    """Stands for torch.cuda: a device that is done with so many flushes before the host has queued the next thing."""

    def __init__(self, monkeypatch, *keeps_up_with: int) -> None:
        """``keeps_up_with``: for each try; the last one stays."""
        self.flushes, self.needed, self.tried = 0, list(keeps_up_with), []
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        self.meter = object.__new__(gpu.GpuMeter)
        self.meter._flushed = self

    def sum(self) -> None:
        self.flushes += 1

    def record(self) -> None:
        pass

    def query(self) -> bool:
        done = self.flushes <= (self.needed.pop(0) if len(self.needed) > 1 else self.needed[0])
        self.tried.append(self.flushes)
        self.flushes = 0
        return done

    def elapsed_time(self, other) -> float:
        return 1.5


def test_a_time_counts_only_if_the_device_had_to_wait_for_nothing(monkeypatch):
    queue = Queue(monkeypatch, 20)
    runs: list[int] = []
    assert queue.meter.milliseconds(gpu.Job(runs.append, prepare=lambda: 7)) == 1.5
    assert runs == [7, 7, 7, 7]
    assert queue.tried == [4, 8, 16, 32]
    with pytest.raises(RuntimeError, match="something waits for results"):
        Queue(monkeypatch, 10**6).meter.milliseconds(gpu.Job(lambda _: None))


def test_one_delay_of_the_host_does_not_slow_down_later_calls(monkeypatch):
    queue = Queue(monkeypatch, 20, 20, 20, 0)
    for _ in range(2):
        queue.meter.milliseconds(gpu.Job(lambda _: None))
    assert queue.tried == [4, 8, 16, 32, 4]


def test_the_cache_is_flushed_by_reading(monkeypatch):
    """A flush that writes leaves dirty lines in the cache, which are written back during the timed run."""
    queue = Queue(monkeypatch, 0)
    queue.meter._flushed = torch.zeros(8)
    reads: list[int] = []
    monkeypatch.setattr(queue, "query", lambda: bool(reads.append(1)))
    queue.meter.milliseconds(gpu.Job(lambda _: None))
    assert queue.meter._flushed._version == 0, "in-place writes count versions"


# ---- the loop


def test_the_whole_loop_runs_and_gives_a_row_for_every_direction_and_contender(small_copy):
    rows = measured([latent(64, 10), latent(32, 33, "bfloat16")])
    assert len(rows) == 2 * 3 * 3
    row = next(row for row in rows if row["direction"] == "backward" and row["contender"] == "fastvae")
    assert (row["dtype"], row["batch"], row["latent"]) == ("float32", 64, 10)
    assert row["milliseconds"] == 2.0
    assert row["gb_s"] == pytest.approx((5 * 640 * 4 + 4 * 64) / 2.0 / 1e6)
    assert row["share_of_copy"] == pytest.approx((5 * 640 * 4 + 4 * 64) / 2_000_000)
    assert row["share_of_equal_copy"] == row["speed_against_eager"] == 1.0
    assert row["peak_bytes"] == 1000
    assert row["call_milliseconds"] is None
    forward = next(row for row in rows if row["direction"] == "forward")
    assert forward["call_milliseconds"] == pytest.approx(1e3 * 0.25 / 10)


def test_a_size_without_room_is_left_out_and_said(small_copy, capsys):
    rows = measured([latent(2000, 2000), latent(8, 8)], ScriptedMeter(free=10_000_000))
    assert {row["batch"] for row in rows} == {8}
    assert "sample_and_kl 2000x2000 float32: left out" in capsys.readouterr().out.splitlines()[1]


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
    (wrong_scale, "noise|grad_logvar"),
    (no_noise, "noise|grad_logvar"),
    (half_the_kl, "kl"),
    (no_gradient_of_the_kl, "grad_mu"),
    (not_a_number, "z|noise"),
    (always_the_same_draw, "same z"),
]


@pytest.mark.parametrize(("op", "what"), WRONG, ids=[op.__name__ for op, _ in WRONG])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_contender_is_named_with_what_is_wrong(op, what, dtype):
    case = latent(128, 50, dtype)
    with pytest.raises(Disagreement, match=f"^{case}, rival: .*({what})"):
        refuse_disagreement(case, {"eager": eager.sample_and_kl, "rival": op}, case.tensors(CPU))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 100), (1000, 1), (300, 130)], ids=str)
def test_right_contenders_pass_in_blocks_of_rows_too(monkeypatch, shape, dtype):
    in_blocks(monkeypatch, 1000)
    case = latent(*shape, dtype)
    refuse_disagreement(case, {"fastvae": fastvae.sample_and_kl, "eager": eager.sample_and_kl}, case.tensors(CPU))


def test_noise_slightly_off_the_stream_is_found():
    def shifted(mu, logvar):
        z, kl = fastvae.sample_and_kl(mu, logvar)
        return z + 1e-3 * torch.exp(0.5 * logvar.detach()), kl

    case = latent(16, 16)
    with pytest.raises(Disagreement, match="fastvae: noise"):
        refuse_disagreement(case, {"fastvae": shifted}, case.tensors(CPU))


def test_a_wrong_row_of_any_block_is_found(monkeypatch):
    in_blocks(monkeypatch, 50)
    case = latent(40, 10)

    def wrong_last_row(mu, logvar):
        z, kl = fastvae.sample_and_kl(mu, logvar)
        return z, kl + (torch.arange(40) == 39)

    with pytest.raises(Disagreement, match=r"fastvae: kl\[39\] is"):
        refuse_disagreement(case, {"fastvae": wrong_last_row}, case.tensors(CPU))


def in_blocks(monkeypatch, elements: int) -> None:
    """All blocks of so many elements, as on a GPU."""
    monkeypatch.setattr(agreement, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(agreement, "_blocks", lambda case, whole, right=agreement._blocks: right(case, True))


def give_a_wrong_kl(monkeypatch, name: str) -> None:
    right = contenders.make

    def make(case, who, device):
        return half_the_kl if who == name and case.op == "sample_and_kl" else right(case, who, device)

    monkeypatch.setattr(contenders, "make", make)


def test_nothing_is_timed_after_a_wrong_result(monkeypatch, small_copy):
    give_a_wrong_kl(monkeypatch, "torch.compile")
    meter = ScriptedMeter()
    with pytest.raises(Disagreement, match=r"64x10 float32, torch\.compile: kl"):
        next(gpu.measure_all([latent(64, 10)], meter, 2))
    assert meter.runs == 3 + 2  # of the device copy alone


@pytest.fixture
def on_the_cpu(monkeypatch, small_copy):
    """The command finds a GPU, which is the CPU."""
    monkeypatch.setattr(gpu, "why_not_here", lambda: "")
    monkeypatch.setattr(gpu, "GpuMeter", ScriptedMeter)
    monkeypatch.setattr(gpu, "describe_machine", lambda device: MACHINE)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(gpu, "TRAINING_BATCHES", (4,))
    monkeypatch.setattr(gpu, "GRAPHS", ((8, 4),))
    monkeypatch.setattr(gpu, "LIKELIHOODS", {"bernoulli": (8, 4)})
    monkeypatch.setattr(fastvae, "use_backend", lambda name, use=fastvae.use_backend: use("reference"))


def test_a_wrong_result_ends_its_table_and_the_program_has_status_1(monkeypatch, tmp_path, on_the_cpu):
    give_a_wrong_kl(monkeypatch, "torch.compile")
    assert runner.main(["gpu", "--rounds", "2", "--batch", "8", "--latent", "4", "--results", str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    latents, *others = path.read_text().split("\n## ")[1:]
    assert "This table ends here, a result is wrong: sample_and_kl 8x4 float32, torch.compile: kl" in latents
    assert not any("ends here" in table for table in others)
    assert all("| fastvae" in table for table in others)


# ---- files


def test_the_program_writes_its_rows_tables_and_two_plots(tmp_path, capsys, on_the_cpu):
    pytest.importorskip("matplotlib")
    options = ["--rounds", "2", "--batch", "8,16", "--latent", "4,8", "--results", str(tmp_path / "new" / "folder")]
    assert gpu.main(options) == 0
    folder = tmp_path / "new" / "folder"
    stem = "gpu_some_gpu_80gb"
    assert sorted(path.name for path in folder.iterdir()) == [
        "gpu-some-gpu-80gb.md",
        f"{stem}_gb_s.png",
        f"{stem}_speed_against_eager.png",
        "results.json",
    ]
    section = records.load(folder / records.FILE)[stem]
    assert section["machine"]["device"] == "Some GPU 80GB"
    rows = section["rows"]
    sizes = [(dtype, batch, size) for dtype in ("float32", "bfloat16") for batch in (8, 16) for size in (4, 8)]
    assert [(row["dtype"], row["batch"], row["latent"]) for row in rows[::9]] == sizes
    assert len(rows) == 9 * len(sizes)
    assert rows[0]["milliseconds"] == 2
    said, written = capsys.readouterr().out, (folder / "gpu-some-gpu-80gb.md").read_text()
    for text in (said, written):
        assert "| sample_and_kl 8x4 float32 | forward | fastvae | 2.00 ms | " in text
        assert "| 4 | fastvae, CUDA graphs | 0.500 s | x1.00 | 1 kB |" in text
        assert "| sample_and_kl 8x4 float32 | fastvae, CUDA graph | 1.50 s | x0.33 |" in text
        assert "| bernoulli 8x4 float32 | backward | fastvae | 2.00 ms |" in text
    assert f"wrote {stem} to {folder / records.FILE}" in said


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


# ---- the command line


@pytest.mark.parametrize("options", [["--batch", "0"], ["--latent", "4,x"], ["--dtype", "float64"], ["--batch", ""]])
def test_a_wrong_option_is_named(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        gpu.main(options)
    assert exit_.value.code == 2
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_a_gpu_that_triton_does_not_serve_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fastvae, "backends", lambda: {"triton": {"chosen_for": [], "reason": "ImportError: no triton"}})
    assert gpu.why_not_here() == "the Triton backend does not serve the GPU: ImportError: no triton"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which this would measure for minutes")
def test_without_a_gpu_the_program_says_so_in_one_line_and_exits_with_2(tmp_path, run_python):
    program = f"import sys\nfrom bench.__main__ import main\nsys.exit(main(['gpu', '--results', {str(tmp_path)!r}]))"
    result = run_python(program)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"bench gpu: nothing was measured: {WITHOUT_GPU}\n"
    assert list(tmp_path.iterdir()) == []
