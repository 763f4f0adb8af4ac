"""The benchmarks of latents: wrong results are refused, what is timed and counted as memory, the commands."""

from __future__ import annotations

import functools
import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvae
from bench import agreement, cases, contenders, eager, machine, measure, memory
from bench.agreement import Disagreement
from bench.cases import LATENTS, LIKELIHOODS, OPS, SUITE, Case
from bench.timing import Plan

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUICK = ("eager", "fastvae", "fastvae reference", "torch.distributions")

pytestmark = pytest.mark.usefixtures("without_compiler")


def names_of(case: Case) -> list[str]:
    return contenders.contender_names(case, CPU)


@pytest.mark.parametrize("op", LATENTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(6, 10), (3, 2, 4, 5)])
def test_contenders_agree_in_every_op(op, dtype, shape):
    case = Case(op, shape, dtype)
    tensors = case.tensors(CPU)
    functions = {name: contenders.make(case, name, CPU) for name in names_of(case)}
    assert "eager" in functions
    assert "fastvae" in functions
    agreement.refuse_disagreement(case, functions, tensors)


def slightly_wrong(function, part):
    """``function`` with one part of its result off by a thousandth of a standard deviation or nat."""

    def wrong(*arguments):
        outputs = function(*arguments)
        if not isinstance(outputs, tuple):
            return outputs + 1e-3
        return tuple(output + 1e-3 if index == part else output for index, output in enumerate(outputs))

    return wrong


@pytest.mark.parametrize(
    ("op", "output"), [(op, output) for op in LATENTS for output in OPS[op].outputs if output != OPS[op].drawn]
)
@pytest.mark.parametrize("name", ["eager", "fastvae"])
def test_a_wrong_result_is_refused_before_anything_is_timed(op, output, name, monkeypatch):
    right, part = contenders.make, OPS[op].outputs.index(output)
    monkeypatch.setattr(contenders, "make", lambda case, who, device: (
        slightly_wrong(right(case, who, device), part) if who == name else right(case, who, device)
    ))  # fmt: skip
    monkeypatch.setattr(measure, "interleaved_seconds", lambda *_a, **_k: pytest.fail("it was timed"))
    with pytest.raises(Disagreement, match=rf"^{op} 6x10 float32, {name}: {output}(\[[0, ]+\])? is"):
        measure.measure(Case(op, (6, 10), "float32"), ["eager", "fastvae"], CPU)


@pytest.mark.parametrize(("op", "wrong"), [(op, wrong) for op in LATENTS if op != "noise" for wrong in OPS[op].inputs])
def test_a_wrong_gradient_of_any_input_is_refused(op, wrong):
    case = Case(op, (6, 10), "float32")
    right = contenders.make(case, "torch.distributions", CPU)

    def steeper(*arguments):
        first, *others = cases.as_tuple(right(*arguments))
        given = case.by_input(arguments)[wrong]
        return first + 1e-3 * (given - given.detach()).sum(), *others  # the same value, another gradient

    with pytest.raises(Disagreement, match=rf"^{op} 6x10 float32, torch.distributions: grad_{wrong}\["):
        agreement.refuse_disagreement(case, {"torch.distributions": steeper}, case.tensors(CPU))


@pytest.mark.parametrize("op", [op for op in OPS if OPS[op].drawn])
def test_fastvae_is_held_to_the_noise_stream(op):
    case = Case(op, (6, 10), "float32")
    other_noise = contenders.make(case, "eager", CPU)
    with pytest.raises(Disagreement, match=rf"^{op} 6x10 float32, fastvae: noise\[0, 0(, 0)?\] is"):
        agreement.refuse_disagreement(case, {"fastvae": other_noise}, case.tensors(CPU))
    agreement.refuse_disagreement(case, {"torch.distributions": other_noise}, case.tensors(CPU))


def test_fastvae_is_held_to_the_order_of_the_samples():
    case = Case("iwae_50", (6, 10), "float32")
    right = contenders.make(case, "fastvae", CPU)
    with pytest.raises(Disagreement, match=r"fastvae: noise\[0, 0, 0\] is"):
        agreement.refuse_disagreement(
            case, {"fastvae": lambda *inputs: tuple(output.flip(0) for output in right(*inputs))}, case.tensors(CPU)
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda eps: eps[:1].expand(eps.shape), "two samples have the same noise"),
        (lambda eps: 1.1 * eps, "the noise has mean .* and variance 1.2"),
        (lambda eps: 0.2 + eps, "the noise has mean 0.2"),
        (lambda eps: torch.linspace(-1.72, 1.72, eps.numel()).view(eps.shape), "a second call draws the same z"),
    ],
)
def test_noise_that_is_not_random_is_refused(wrong, message, monkeypatch):
    right = torch.randn
    case = Case("iwae_50", (6, 10), "float32")
    tensors = case.tensors(CPU)
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: wrong(right(*shape, **options)))
    with pytest.raises(Disagreement, match=f"^iwae_50 6x10 float32, eager: {message}"):
        agreement.refuse_disagreement(case, {"eager": contenders.make(case, "eager", CPU)}, tensors)


@pytest.mark.parametrize(
    ("op", "changed"),
    [
        ("sample_and_kl_softplus", {"floor": 0.0}),
        ("sample_and_kl_softplus", {"scale": "logstd", "floor": 0.0}),
        ("sample_and_kl_free_bits", {"free_bits": 0.0}),
        ("sample_and_kl_free_bits", {"free_bits_over": "sample"}),
        ("sample_and_kl_free_bits", {"beta": 0.99}),
        ("iwae_50", {"prior_mu": 0.1, "prior_logvar": 0.0}),
        ("gaussian_kl_two", {"residual": True}),
    ],
)
def test_another_option_is_refused(op, changed):
    case = Case(op, (6, 10), "float32")
    function = functools.partial(getattr(fastvae, OPS[op].function), **{**OPS[op].options, **changed})
    with pytest.raises(Disagreement, match=f"^{op} 6x10 float32, fastvae:"):
        agreement.refuse_disagreement(case, {"fastvae": function}, case.tensors(CPU))


def test_some_coordinates_are_below_the_free_bits_and_some_above():
    case = next(case for case in SUITE if case.op == "sample_and_kl_free_bits")
    kl = fastvae.gaussian_kl(*case.tensors(CPU).inputs.values(), reduction="none").mean(0)
    assert (kl[::2] > 2 * cases.FREE_BITS).all()
    assert (kl[1::2] < cases.FREE_BITS / 2).all()


def test_a_result_of_the_wrong_shape_is_refused():
    case = Case("gaussian_kl", (6, 10), "float32")
    with pytest.raises(Disagreement, match=r"eager: kl has shape \(6, 1\), expected \(6,\)"):
        agreement.refuse_disagreement(
            case, {"eager": lambda mu, logvar: eager.gaussian_kl(mu, logvar)[:, None]}, case.tensors(CPU)
        )


def test_the_first_rows_of_large_tensors_are_compared_and_the_whole_is_computed(monkeypatch):
    monkeypatch.setattr(agreement, "BLOCK_ELEMENTS", 20)
    case, sizes = Case("sample_and_kl", (6, 10), "float32"), []

    def contender(mu, logvar):
        sizes.append(mu.shape)
        z, kl = fastvae.sample_and_kl(mu, logvar)
        return z, kl + torch.tensor([0, 0, 1, 1, 1, 1])

    agreement.refuse_disagreement(case, {"fastvae": contender}, case.tensors(CPU))
    assert set(sizes) == {(6, 10)}
    monkeypatch.setattr(agreement, "BLOCK_ELEMENTS", 30)
    with pytest.raises(Disagreement, match=r"kl\[2\] is"):
        agreement.refuse_disagreement(case, {"fastvae": contender}, case.tensors(CPU))


def test_a_measurement_has_every_direction_and_contender_and_keeps_the_generator():
    case = Case("sample_and_kl_packed", (4, 6), "float32")
    state = torch.get_rng_state()
    result = measure.measure(case, names_of(case), CPU, timed=Plan(rounds=3, calls=2, warmup=0))
    assert torch.equal(torch.get_rng_state(), state)
    found = {(timing.direction, timing.contender): timing for timing in result}
    assert set(found) == {(direction, name) for direction in cases.DIRECTIONS for name in names_of(case)}
    assert len(found) == len(result)
    assert {timing.rounds for timing in result} == {3}
    assert found["both", "eager"].speed_against_eager == 1
    assert {direction for (direction, _), timing in found.items() if timing.saved_bytes is not None} == {"both"}
    noise = measure.measure(Case("noise", (4, 6), "float32"), ["eager", "fastvae"], CPU, timed=Plan(1, 1, 0))
    assert {(timing.direction, timing.saved_bytes) for timing in noise} == {("forward", None)}


@pytest.mark.parametrize("op", [op for op in LATENTS if op != "noise"])
def test_every_op_is_timed_with_the_gradients_of_all_that_goes_in(op):
    case = Case(op, (4, 6), "float32")
    names = ["eager", "fastvae"]
    result = measure.measure(case, names, CPU, timed=Plan(1, 1, 0))
    timed = {(timing.direction, timing.contender) for timing in result}
    assert timed == {(direction, name) for direction in cases.DIRECTIONS for name in names}
    step = measure.make_step(case, "fastvae", case.tensors(CPU))
    found = case.by_input(step.both())
    assert list(found) == list(OPS[op].inputs)
    for name, tensor in case.tensors(CPU).inputs.items():
        assert found[name].shape == tensor.shape
        assert found[name].count_nonzero() > 0


def test_the_gradients_that_are_timed_are_those_of_what_the_op_takes():
    case = Case("sample_and_kl_packed", (3, 2, 4, 5), "bfloat16")
    step = measure.make_step(case, "fastvae", case.tensors(CPU))
    (gradient,) = step.both()
    assert gradient.shape == step.arguments[0].shape == (3, 4, 4, 5)
    again = step.backward()
    torch.testing.assert_close(again(), again(), rtol=0, atol=0)


def test_saved_bytes_are_those_beyond_the_inputs():
    case = Case("sample_and_kl", (128, 256), "float32")
    tensors = case.tensors(CPU)
    saved = {name: measure.make_step(case, name, tensors).saved_bytes() for name in ("eager", "fastvae")}
    # std, eps and exp(logvar); and the seed.
    assert saved == {"eager": 3 * case.array_bytes, "fastvae": 8}


def test_an_iwae_keeps_at_most_a_tenth_of_what_eager_keeps():
    case = next(case for case in SUITE if case.op == "iwae_50")
    tensors = case.tensors(CPU)
    saved = {name: measure.make_step(case, name, tensors).saved_bytes() for name in ("eager", "fastvae")}
    assert saved["fastvae"] == 8, "the seed"
    assert 10 * saved["fastvae"] <= saved["eager"]
    assert saved["eager"] >= cases.SAMPLES * case.array_bytes, "the noise of all samples, at least"


@pytest.mark.parametrize(
    ("op", "kept"), [("gaussian_kl_two", 0), ("gaussian_kl_shared_prior", 0), ("sample_and_kl_packed_prior", 8)]
)
def test_priors_are_inputs_and_nothing_is_kept_beside_them(op, kept):
    case = Case(op, (8, 6), "float32")
    step = measure.make_step(case, "fastvae", case.tensors(CPU))
    assert step.saved_bytes() == kept


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_counts_what_is_alive_at_the_same_time():
    array = 4 * 2**20
    script = (
        "import ctypes, torch\n"
        "from bench.memory import peak_beyond\n"
        "ctypes.CDLL(None).mallopt(-3, 2**16)\n"
        "def step():\n"
        f"    kept = torch.ones({array})\n"
        f"    for _ in range(3): torch.ones(2 * {array})\n"
        "    return kept\n"
        "print(peak_beyond(step))\n"
    )
    came = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(came.stdout) == pytest.approx(3 * 4 * array, rel=0.05)


def test_the_least_peak_is_one():
    case = Case("sample_and_kl", (4096, 256), "float32")
    assert memory.peak_over_minimum(case, 3 * case.array_bytes) == 1
    assert memory.peak_bytes(Case("sample_and_kl", (128, 10), "float32"), "eager") is None


def test_a_result_tells_the_machine_and_not_whose_it_is(tmp_path):
    described = machine.describe_machine(CPU)
    assert described["threads"] == torch.get_num_threads()
    assert described["backend"] == contenders.chosen_backend(CPU)
    assert described["versions"]["torch"] == torch.__version__
    text = json.dumps(described)
    for private in (platform.node(), str(ROOT), str(Path.home()), getpass.getuser()):
        assert f'"{private}"' not in text
        assert len(private) < 6 or private not in text
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: Some CPU\n\ncpu family\t: 1\nmodel\t\t: 3\n")
    assert machine.cpu_model(cpuinfo) == "Some CPU (family 26, model 2)"


def test_the_suite_has_every_op_and_shape_once():
    assert len(set(SUITE)) == len(SUITE)
    assert {case.op for case in SUITE} == set(LATENTS)
    assert len(set(cases.LIKELIHOOD_SUITE)) == len(cases.LIKELIHOOD_SUITE)
    assert {case.op for case in cases.LIKELIHOOD_SUITE} == set(LIKELIHOODS)
    assert {case.shape for case in SUITE if case.op == "sample_and_kl"} == {
        cases.SMALL, cases.MEDIUM, cases.IMAGE, cases.LARGE,
    }  # fmt: skip
