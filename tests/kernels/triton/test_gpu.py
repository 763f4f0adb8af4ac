"""What only a GPU can show: captured graphs, waits, kernels as a profiler counts them, memory, sizes, other devices.

Without one every test here is skipped, with the reason. The op suite itself runs on a GPU wherever there is one.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import fastvae
from fastvae.kernels.backend import implementation
from tests import formulas
from tests.conftest import skip_without_triton
from tests.gpu_marker import WITHOUT_GPU

REDUCTIONS = ("none", "sample", "sum", "batchmean")
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def gpu():
    """The current GPU, with every op on the Triton backend."""
    if not torch.cuda.is_available():
        pytest.skip(WITHOUT_GPU)
    skip_without_triton()
    with fastvae.use_backend("triton"):
        yield torch.device("cuda", torch.cuda.current_device())


def leaves(device, *shape, dtype=torch.float32):
    """mu and logvar, which want gradients, and a gradient of z."""
    mu, logvar, grad_z = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
    return mu.requires_grad_(), logvar.requires_grad_(), grad_z


def step(mu, logvar, grad_z, **arguments):
    """The main op, forward and backward: z, kl and both gradients."""
    z, kl = fastvae.sample_and_kl(mu, logvar, **arguments)
    return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), (grad_z, torch.ones_like(kl)))


def need_memory(byte_count: int) -> None:
    torch.cuda.empty_cache()
    free, _total = torch.cuda.mem_get_info()
    if free < 1.1 * byte_count:
        pytest.skip(f"{byte_count / 1e9:.0f} GB of GPU memory are needed, {free / 1e9:.0f} GB are free")


def float64_noise(seed, shape, row_offset=0):
    with fastvae.use_backend("reference"):
        return fastvae.noise(seed, shape, row_offset=row_offset, dtype=torch.float64)


def test_tensors_on_a_gpu_go_to_triton_by_themselves(gpu):
    for dtype in HALF_AND_SINGLE:
        assert implementation("auto", torch.device("cuda"), dtype).__name__ == "fastvae.kernels.triton"
    assert implementation("auto", torch.device("cuda"), torch.float64).__name__ == "fastvae.kernels.reference"


# ---- CUDA graphs


def captured(run, *generators):
    """``run`` as a CUDA graph, and what it returned: the tensors that every replay writes."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled and loaded before the capture
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


def replayed(graph, outputs):
    graph.replay()
    return [output.detach().clone() for output in outputs]


def test_a_captured_step_draws_new_noise_at_every_replay_ruled_by_manual_seed(gpu):
    tensors = leaves(gpu, 33, 20)
    graph, outputs = captured(lambda: step(*tensors))
    runs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        runs.append((replayed(graph, outputs), replayed(graph, outputs)))
    assert not torch.equal(runs[0][0][0], runs[0][1][0])
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    assert_close(runs[0][0], runs[1][0], rtol=0, atol=0)
    assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)
    torch.manual_seed(7)
    assert_close(step(*tensors), runs[0][0], rtol=0, atol=0)


def test_a_captured_draw_follows_the_generator_that_was_given(gpu):
    tensors = leaves(gpu, 33, 20)
    generator = torch.Generator(device=gpu)
    graph, outputs = captured(lambda: step(*tensors, generator=generator), generator)
    generator.manual_seed(5)
    first, second = replayed(graph, outputs), replayed(graph, outputs)
    generator.manual_seed(5)
    assert_close(replayed(graph, outputs), first, rtol=0, atol=0)
    assert not torch.equal(first[0], second[0])
    assert_close(step(*tensors, generator=torch.Generator(device=gpu).manual_seed(5)), first, rtol=0, atol=0)


def test_a_captured_step_reads_its_seed_and_its_inputs_at_every_replay(gpu):
    mu, logvar, grad_z = leaves(gpu, 3, 5000)
    seed = torch.tensor([1], device=gpu)
    graph, outputs = captured(lambda: step(mu, logvar, grad_z, seed=seed))
    for value in (1, 2**62 + 3, -9):
        seed.fill_(value)
        mu.data.normal_()
        assert_close(replayed(graph, outputs), step(mu, logvar, grad_z, seed=value), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torch_compile_gives_the_same_values_and_draws_anew(gpu, mode):
    mu, logvar, grad_z = leaves(gpu, 64, 20)

    def run(mu, logvar, grad_z, seed=None):
        z, kl = fastvae.sample_and_kl(mu, logvar, seed=seed)
        return (z * grad_z).sum() + kl.sum()

    compiled = torch.compile(run, mode=mode, fullgraph=True)
    seed = torch.tensor([3], device=gpu)
    expected = torch.autograd.grad(run(mu, logvar, grad_z, seed), (mu, logvar))
    for _ in range(4):  # the first calls warm up, later ones replay a graph
        torch.compiler.cudagraph_mark_step_begin()
        got = torch.autograd.grad(compiled(mu, logvar, grad_z, seed), (mu, logvar))
        torch.testing.assert_close(got, expected)
    draws = set()
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        draws.add(compiled(mu, logvar, grad_z).item())
    assert len(draws) == 5


# ---- waits, kernels, memory


@contextlib.contextmanager
def waiting_is_an_error():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(33, 20), (3, 5000)], ids=str)
def test_no_call_waits_for_the_device(gpu, shape, reduction):
    mu, logvar, grad_z = leaves(gpu, *shape)
    seeds = [None, 5, torch.tensor([5], device=gpu)]

    def run():
        for seed in seeds:
            step(mu, logvar, grad_z, seed=seed, reduction=reduction)
            torch.autograd.grad(fastvae.reparameterize(mu, logvar, seed=seed), (mu, logvar), grad_z)
        kl = fastvae.gaussian_kl(mu, logvar, reduction=reduction)
        torch.autograd.grad(kl, (mu, logvar), torch.ones_like(kl))
        fastvae.noise(5, shape, device=gpu)

    run()  # compiles
    with waiting_is_an_error():
        run()
        with pytest.raises(RuntimeError, match="synchroniz"):
            mu.sum().item()


def kernels_of(run):
    """Names of the kernels that a run starts, after one that compiles them."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    on_device = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in on_device if not name.startswith(("Memcpy", "Memset")) and "Sync" not in name]


@pytest.fixture
def profiler_that_sees(gpu):
    ones = torch.ones(10, device=gpu)
    if len(kernels_of(lambda: ones + ones)) != 1:
        pytest.skip("torch.profiler sees no kernels on this machine")


@pytest.mark.parametrize("reduction", ["none", "sample"])
def test_a_step_is_one_kernel_forward_and_one_backward(gpu, profiler_that_sees, reduction):
    mu, logvar, grad_z = leaves(gpu, 33, 20)
    seed = torch.tensor([5], device=gpu)
    outputs = fastvae.sample_and_kl(mu, logvar, seed=seed, reduction=reduction)
    grads = (grad_z, torch.ones_like(outputs[1]))

    def forward(seed=seed):
        return fastvae.sample_and_kl(mu, logvar, seed=seed, reduction=reduction)

    def backward():
        return torch.autograd.grad(outputs, (mu, logvar), grads, retain_graph=True)

    assert kernels_of(forward) == ["latent_forward_kernel"]
    assert kernels_of(backward) == ["latent_backward_kernel"]
    for drawn_or_put_there in (None, 5):
        names = kernels_of(lambda seed=drawn_or_put_there: forward(seed))
        assert len(names) == 2
        assert names[-1] == "latent_forward_kernel"


@pytest.mark.parametrize("reduction", ["sample", "sum", "batchmean"])
def test_split_rows_and_sums_over_the_batch_are_finished_by_small_kernels(gpu, profiler_that_sees, reduction):
    mu, logvar, _grad_z = leaves(gpu, 3, 50_000)
    names = kernels_of(lambda: fastvae.gaussian_kl(mu, logvar, reduction=reduction))
    assert names[0] == "latent_forward_kernel"
    assert names.count("latent_forward_kernel") == 1
    assert len(names) <= 3


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_a_step_takes_the_memory_of_its_outputs_and_gradients_and_no_more(gpu, dtype):
    rows, event = 4096, 1024
    mu, logvar, grad_z = leaves(gpu, rows, event, dtype=dtype)
    grad_kl = torch.ones(rows, device=gpu)

    def run():
        z, kl = fastvae.sample_and_kl(mu, logvar)
        return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl))

    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    array = rows * event * dtype.itemsize
    assert len(kept) == 4
    # z and two gradients; the KL, the seed and the allocator's rounding are the rest.
    assert torch.cuda.max_memory_allocated() - before <= 3 * array + 4 * rows + 4096


def test_between_forward_and_backward_only_the_outputs_are_held(gpu):
    rows, event = 4096, 1024
    mu, logvar, _grad_z = leaves(gpu, rows, event)
    before = torch.cuda.memory_allocated()
    z, kl = fastvae.sample_and_kl(mu, logvar)
    held = torch.cuda.memory_allocated() - before
    assert held <= z.nbytes + kl.nbytes + 4096


# ---- values


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_a_large_step_is_as_right_as_eager(gpu, dtype):
    shape, seed = (4096, 256), 12
    mu, logvar, grad_z = leaves(gpu, *shape, dtype=dtype)
    z, kl, grad_mu, grad_logvar = (output.detach().cpu() for output in step(mu, logvar, grad_z, seed=seed))
    eps = float64_noise(seed, shape)

    def plain(formula, dtype):
        inputs = [tensor.detach().cpu().to(dtype).requires_grad_() for tensor in (mu, logvar)]
        outputs = formula(*inputs, eps.to(dtype))
        grads = (grad_z.cpu().to(dtype), torch.ones_like(outputs[1]))
        return *(output.detach() for output in outputs), *torch.autograd.grad(outputs, inputs, grads)

    exact, eager = plain(formulas.sample_and_kl, torch.float64), plain(formulas.eager, dtype)
    floors = [{torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]] * 4
    floors[1] = 1e-6  # the KL is float32 whatever the inputs are
    for got, *others, floor in zip((z, kl, grad_mu, grad_logvar), exact, eager, floors, strict=True):
        formulas.assert_no_worse_than_eager(got, *others, floor)


def test_a_million_normals_are_the_cpus_to_the_contract(gpu):
    shape = (1000, 1000)
    error = (fastvae.noise(11, shape, device=gpu).cpu().double() - float64_noise(11, shape)).abs()
    assert error.max() <= 2e-4
    assert (error > 1e-5).double().mean() <= 1e-4


@pytest.mark.parametrize("reduction", ["sample", "batchmean"])
@pytest.mark.parametrize("shape", [(4096, 64), (3, 100_003)], ids=str)
def test_the_same_call_gives_the_same_bits_beside_other_work_too(gpu, shape, reduction):
    tensors = leaves(gpu, *shape)
    first = step(*tensors, seed=3, reduction=reduction)
    busy, aside = torch.randn(2048, 2048, device=gpu), torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(aside):
            busy @ busy
        assert_close(step(*tensors, seed=3, reduction=reduction), first, rtol=0, atol=0)
    torch.cuda.synchronize()


def test_a_generator_on_the_gpu_rules_the_draw_and_one_on_the_cpu_is_refused(gpu):
    mu, logvar, _grad_z = leaves(gpu, 5, 7)
    before = torch.cuda.get_rng_state()
    draws = [
        fastvae.reparameterize(mu, logvar, generator=torch.Generator(device=gpu).manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with pytest.raises(ValueError, match="generator is on cpu"):
        fastvae.reparameterize(mu, logvar, generator=torch.Generator())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_replays_the_draw(gpu, use_reentrant):
    mu, logvar, _grad_z = leaves(gpu, 5, 7)
    drawn = []

    def block(mu, logvar):
        drawn.append(fastvae.reparameterize(mu, logvar))
        return drawn[-1].square().sum()

    checkpoint(block, mu, logvar, use_reentrant=use_reentrant).backward()
    assert torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(mu.grad, 2 * drawn[0].detach())


# ---- other devices, other streams, large sizes


def test_tensors_on_another_gpu_than_the_current_one_are_served_there(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one GPU")
    other = torch.device("cuda", (gpu.index + 1) % torch.cuda.device_count())
    tensors = leaves(gpu, 33, 20)
    there = [tensor.detach().to(other).requires_grad_(tensor.requires_grad) for tensor in tensors]
    outputs = step(*there, seed=5)
    assert all(output.device == other for output in outputs)
    assert torch.cuda.current_device() == gpu.index
    torch.testing.assert_close([o.cpu() for o in outputs], [o.cpu() for o in step(*tensors, seed=5)])
    assert step(*there)[0].device == other


def test_kernels_run_on_the_current_stream(gpu):
    """What was queued before on that stream is seen: a copy that starts late, behind long work."""
    mu, logvar, grad_z = leaves(gpu, 256, 256)
    expected = step(torch.full_like(mu, 2.0).requires_grad_(), logvar, grad_z, seed=1)
    busy, aside = torch.randn(4096, 4096, device=gpu), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(aside):
        for _ in range(20):
            busy @ busy
        mu.data.fill_(2.0)
        outputs = step(mu, logvar, grad_z, seed=1)
    aside.synchronize()
    assert_close(outputs, expected, rtol=0, atol=0)


def test_more_than_2_to_the_31_elements_are_right_up_to_the_last(gpu):
    rows, event, tail = 2**16 + 3, 2**15, 4
    assert rows * event > 2**31
    need_memory(6 * rows * event * 2)
    mu, logvar = (torch.empty(rows, event, dtype=torch.bfloat16, device=gpu) for _ in range(2))
    for tensor in (mu, logvar):
        tensor[:-tail].zero_()
        tensor[-tail:] = torch.randn(tail, event)
    grad_z = torch.ones((), dtype=torch.bfloat16, device=gpu).expand(rows, event)
    whole = step(mu.requires_grad_(), logvar.requires_grad_(), grad_z, seed=9)
    last = [tensor.detach()[-tail:].clone().requires_grad_() for tensor in (mu, logvar)]
    alone = step(*last, grad_z[-tail:], seed=9, row_offset=rows - tail)
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one[-tail:], other)
    assert_close([whole[0][:tail]], [fastvae.noise(9, (tail, event), device=gpu, dtype=torch.bfloat16)], rtol=0, atol=0)


def test_rows_further_apart_than_32_bits_are_found(gpu):
    row_stride = 2**31 + 8
    need_memory(2 * row_stride)
    store = torch.empty(row_stride + 16, dtype=torch.bfloat16, device=gpu)
    mu = store.as_strided((2, 16), (row_stride, 1))
    mu.copy_(torch.tensor([[1.0], [3.0]]).expand(2, 16))
    assert fastvae.gaussian_kl(mu, torch.zeros(2, 16, dtype=torch.bfloat16, device=gpu)).tolist() == [8.0, 72.0]


def test_a_row_of_more_than_2_to_the_31_coordinates_is_right_up_to_the_last(gpu):
    event, tail = 2**31 + 8, 4096
    one = torch.ones((), dtype=torch.bfloat16, device=gpu)
    kl = fastvae.gaussian_kl(one.expand(1, event), torch.zeros_like(one).expand(1, event))
    assert kl.item() == pytest.approx(event / 2, rel=1e-6)
    need_memory(2 * event)
    here = fastvae.noise(9, (1, event), device=gpu, dtype=torch.bfloat16)[0, -tail:].cpu()
    with fastvae.use_backend("cpu"):
        expected = fastvae.noise(9, (1, event), dtype=torch.bfloat16)[0, -tail:]
    torch.testing.assert_close(here, expected, rtol=2.0**-7, atol=2e-4)
