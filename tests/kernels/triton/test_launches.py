"""Kernel launches: how many, on which device, how the work is shared out, and that no value is waited for."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import fastvae
from fastvae.checks import seed_tensor
from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs, LatentScalars, LatentSpec
from fastvae.kernels.triton import latent_backward, latent_forward, launch, noise
from fastvae.kernels.triton.latent_backward_kernel import latent_backward_kernel
from fastvae.kernels.triton.latent_forward_kernel import latent_forward_kernel
from fastvae.kernels.triton.launch import Work, tiling_of
from fastvae.kernels.triton.noise import noise_kernel
from tests.conftest import backend_device, without_triton

pytestmark = pytest.mark.skipif(bool(without_triton()), reason=without_triton())
ROOT = Path(__file__).parents[3]
REDUCTIONS = ("none", "sample", "sum", "batchmean")

# One row, rows of every remainder, short rows, an event that ends within a group, rows split over programs.
SHAPES = [(1, 1), (7, 1), (5, 3), (33, 20), (130, 33), (1, 2051), (9, 1024), (2, 9001)]


@pytest.fixture
def launches(monkeypatch):
    """The launches that were started, in order; each still runs."""
    yield from record_launches(monkeypatch, launch.Template.start)


@pytest.fixture
def counted_launches(monkeypatch):
    """As ``launches``, for tests that look at no output: in the interpreter, which is slow, none of them runs."""
    interpreted = "TRITON_INTERPRET" in os.environ
    yield from record_launches(monkeypatch, (lambda *arguments: None) if interpreted else launch.Template.start)


def record_launches(monkeypatch, start):
    started: list[launch.Launch] = []

    def recorded(self, pointers, numbers):
        started.append(self.launch(pointers, numbers))
        start(self, pointers, numbers)

    monkeypatch.setattr(launch.Template, "start", recorded)
    launch.forget()
    with fastvae.use_backend("triton"):
        yield started
    launch.forget()


def leaves(*shape, dtype=torch.float32):
    return [torch.randn(shape).to(backend_device("triton"), dtype).requires_grad_() for _ in range(2)]


def ops(reduction):
    return {
        "sample_and_kl": lambda mu, logvar: fastvae.sample_and_kl(mu, logvar, reduction=reduction),
        "reparameterize": lambda mu, logvar: (fastvae.reparameterize(mu, logvar),),
        "gaussian_kl": lambda mu, logvar: (fastvae.gaussian_kl(mu, logvar, reduction=reduction),),
    }


@pytest.mark.parametrize("shape", [(6, 10), (2, 1100)], ids=["short rows", "split rows"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("op", ["sample_and_kl", "reparameterize", "gaussian_kl"])
def test_every_op_is_one_kernel_forward_and_one_backward(counted_launches, op, reduction, shape):
    launches = counted_launches
    assert (tiling_of(Work(*shape, torch.float32)).grid[1] > 1) is (shape == (2, 1100))
    mu, logvar = leaves(*shape)
    outputs = ops(reduction)[op](mu, logvar)
    assert [one.kernel for one in launches] == [latent_forward_kernel]
    torch.autograd.grad(outputs, (mu, logvar), [torch.ones_like(output) for output in outputs])
    assert [one.kernel for one in launches] == [latent_forward_kernel, latent_backward_kernel]


@pytest.mark.parametrize("used", ["z", "kl"])
def test_using_one_output_alone_is_one_kernel_backward(launches, used):
    mu, logvar = leaves(6, 10)
    outputs = dict(zip(("z", "kl"), fastvae.sample_and_kl(mu, logvar), strict=True))
    torch.autograd.grad(outputs[used].sum(), (mu, logvar))
    assert [one.kernel for one in launches] == [latent_forward_kernel, latent_backward_kernel]


def test_columns_counted_in_64_bits_give_the_same_bits(launches, monkeypatch):
    """What events past 2^30 take, forced on small ones."""
    mu, logvar = leaves(2, 1030)
    narrow = fastvae.sample_and_kl(mu, logvar, seed=1)
    narrow_grads = torch.autograd.grad(narrow[0].sum() + narrow[1].sum(), (mu, logvar))
    monkeypatch.setattr(launch, "WIDE_EVENT", 1)
    launch.forget()
    wide = fastvae.sample_and_kl(mu, logvar, seed=1)
    wide_grads = torch.autograd.grad(wide[0].sum() + wide[1].sum(), (mu, logvar))
    assert [one.constants["TILES"].wide for one in launches] == [False, False, True, True]
    for one, other in zip((*narrow, *narrow_grads), (*wide, *wide_grads), strict=True):
        assert torch.equal(one, other)


def test_noise_is_one_kernel(launches):
    fastvae.noise(0, (5, 7), device=backend_device("triton"))
    assert [one.kernel for one in launches] == [noise_kernel]


def test_packed_and_expanded_tensors_take_one_kernel_each_way_too(launches):
    moments = torch.randn(3, 8, 2, 3, device=backend_device("triton"), requires_grad=True)
    for packed in (moments, moments.to(memory_format=torch.channels_last)):
        z, kl = fastvae.sample_and_kl(*packed.chunk(2, 1))
        torch.autograd.grad(z.sum() + kl.sum(), moments)
    assert len(launches) == 4


class Kernel:
    """Stands for a kernel: remembers the grid and the arguments that it was started with."""

    def __init__(self, log: list) -> None:
        self.log = log

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.log.append((grid, arguments, constants))


@pytest.mark.parametrize(("device", "guarded"), [("cuda:1", ["cuda:1"]), ("cuda:0", ["cuda:0"]), ("cpu", [])])
def test_a_kernel_is_started_with_the_tensors_gpu_as_the_current_one(monkeypatch, device, guarded):
    log: list = []

    class Guard:
        def __init__(self, device):
            self.device = str(device)

        def __enter__(self):
            log.append(f"enter {self.device}")

        def __exit__(self, *error):
            log.append(f"leave {self.device}")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    launch.Launch(Kernel(log), (2, 3), (4, 5), {"ROWS": 1}, num_warps=8).run(torch.device(device))
    started = ((2, 3), (4, 5), {"ROWS": 1, "num_warps": 8})
    assert log == [*(f"enter {one}" for one in guarded), started, *(f"leave {one}" for one in guarded)]


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors of a GPU that is not there, without values; launches are recorded with their device and not run."""
    started: list[tuple[launch.Launch, torch.device]] = []
    monkeypatch.setattr(
        launch.Template,
        "start",
        lambda self, pointers, numbers: started.append((self.launch(pointers, numbers), self.device)),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        yield started
    launch.ptx_level_of.cache_clear()  # it has met a GPU that is not there
    launch.forget()


@pytest.mark.parametrize("reduction", [*REDUCTIONS, None])
@pytest.mark.parametrize("shape", [(6, 10), (8, 300_000), (4, 3, 8, 8)], ids=str)
def test_launching_looks_at_no_value_and_names_the_tensors_device(fake_gpu, shape, reduction):
    """The tensors have no values: whatever asked for one (item, tolist, equal, nonzero, a bool) would raise."""
    device = torch.device("cuda", torch.cuda.device_count() - 1 if torch.cuda.is_available() else 1)
    mu, logvar, grad_z = (torch.empty(shape, device=device) for _ in range(3))
    seed = seed_tensor(None, None, device)
    assert seed.device == device
    spec, scalars = LatentSpec(reduction=reduction), LatentScalars()
    z, kl, *_ = latent_forward(LatentInputs(mu, logvar, seed=seed), spec, scalars)
    inputs = LatentInputs(mu if reduction else None, logvar, seed=seed)
    latent_backward(LatentOutputs(grad_z, kl), inputs, spec, scalars, False)
    noise(seed, shape, 0, torch.float32, 0)
    assert [one for _, one in fake_gpu] == [device] * 3
    assert z.device == device
    assert kl is None or kl.device == device
    with pytest.raises(DataDependentOutputException):
        z.sum().item()


works = st.builds(
    Work,
    st.integers(1, 2**31 - 1),
    st.integers(1, 300) | st.integers(1, 2**31 - 1) | st.integers(0, 40).map(lambda power: 3 * 2 ** min(power, 29)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    tile_elements=st.sampled_from([256, 1024, 2048]),
    draws=st.sampled_from([1, 50]),
    shares_draws=st.booleans(),
    shares_row=st.booleans(),
    reduce_rows=st.booleans(),
    channel=st.none(),
)


@given(work=works)
def test_every_coordinate_is_in_exactly_one_tile_of_one_program(work):
    """Programs stand one after another on both axes: together they reach the end, and the last one begins before it."""
    tiling = tiling_of(work)
    tile, share = tiling.tile, tiling.tiles_a_program
    assert (tiling.tiles_a_row - 1) * tile.columns < work.event <= tiling.tiles_a_row * tile.columns
    if work.reduce_rows:
        ways = (tiling.grid[0], tile.columns, work.event), (tiling.grid[1], tile.rows * share, work.rows)
    else:
        ways = (tiling.grid[0], tile.rows, work.rows), (tiling.grid[1], tile.columns * share, work.event)
    for programs, each, size in ways:
        assert (programs - 1) * each < size <= programs * each
    assert tile.mask_rows or work.rows % tile.rows == 0


# The gradient of a prior that the batch shares, of an event with more tiles than a grid's second axis has programs.
@example(work=Work(2, 2**26, torch.float32, 1024, shares_row=True, reduce_rows=True))
@given(work=works)
def test_grids_and_tiles_are_what_a_gpu_accepts(work):
    if work.rows * work.event > 2**40:  # terabytes
        work = work._replace(event=max(1, 2**40 // work.rows))
    channels = [channel for channel in (1, 2, 16) if work.event % channel == 0]
    for channel in (None, *(work.event // channel for channel in channels)):
        if channel is not None:
            shape = torch.Size((work.rows, work.event // channel, channel))
            if launch.channel_to_sum(shape, work) is None:
                continue
        tiling = tiling_of(work._replace(channel=channel))
        rows, columns, *_ = tiling.tile
        assert 1 <= tiling.grid[0] < 2**31
        assert 1 <= tiling.grid[1] <= 65535
        assert rows & (rows - 1) == 0
        assert columns & (columns - 1) == 0
        assert columns % tiling.vec == 0 or channel is not None
        assert rows * columns <= max(work.tile_elements, 2 * launch.columns_loaded_at_once(work.dtype))


def test_channels_of_an_event_too_long_for_the_second_axis_of_a_grid_are_summed_after_the_kernel():
    """A prior that the batch shares makes tiles narrow, and so the programs of a row many."""
    shape = torch.Size((1, 2, 2**24 + 1024))
    work = Work(1, 2 * shape[2], torch.float32, 1024, shares_row=True)
    assert launch.channel_to_sum(shape, work) is None
    assert launch.channel_to_sum(shape, work._replace(shares_row=False)) == shape[2]


@given(
    event=st.integers(1, 5000) | st.integers(0, 16).map(lambda power: 2**power),
    rows=st.lists(st.integers(1, 2**21), min_size=20, max_size=60),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shares_row=st.booleans(),
)
def test_batches_of_all_sizes_take_two_kernels(event, rows, dtype, shares_row):
    kernels = set()
    for count in (*rows, 1, 2, 2**20):
        tiling = tiling_of(Work(count, event, dtype, shares_row=shares_row))
        kernels.add((tiling.tile[:2], tiling.tile.mask_rows, tiling.unroll, tiling.tiles_a_row == 1))
    assert len(kernels) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_coordinate_is_counted_once(launches, shape, dtype):
    """Each costs exactly 1/2 nat at mu = 1, logvar = 0, and any sum of these is exact."""
    mu = torch.ones(shape, dtype=dtype, device=backend_device("triton"))
    kl = fastvae.gaussian_kl(mu, torch.zeros_like(mu))
    assert kl.tolist() == [shape[1] / 2] * shape[0]


def test_the_shares_depend_on_shape_and_dtype_alone(launches):
    def started(moments, **arguments):
        launches.clear()
        z, kl = fastvae.sample_and_kl(*moments.chunk(2, 1), **arguments)
        torch.autograd.grad(z.sum() + kl.sum(), moments)
        tiles = [one.constants["TILES"] for one in launches]
        return [(one.grid, tile.rows, tile.columns) for one, tile in zip(launches, tiles, strict=True)], z, kl

    moments = torch.randn(2, 4, 24, 24, device=backend_device("triton"), requires_grad=True)
    first, z, kl = started(moments, seed=1, row_offset=3)
    for other in (moments.detach().to(memory_format=torch.channels_last), torch.cat(moments.detach().chunk(2, 1), 1)):
        shares, other_z, other_kl = started(other.requires_grad_(), seed=1, row_offset=3)
        assert shares == first
        assert torch.equal(other_z, z)
        assert torch.equal(other_kl, kl)
    assert started(moments, seed=2)[0] == first


def test_rows_further_apart_than_32_bits_are_found():
    """In a process of its own, which a wrong address ends. Of the gigabytes asked for only the rows are touched."""
    program = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch, fastvae

stride = 2**31 + 8
store = torch.empty(stride + 16, dtype=torch.bfloat16)
mu = store.as_strided((2, 16), (stride, 1))
mu.copy_(torch.tensor([[1.0], [3.0]]).expand(2, 16))
with fastvae.use_backend("triton"):
    print(fastvae.gaussian_kl(mu, torch.zeros(2, 16, dtype=torch.bfloat16)).tolist())
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr[-500:]}"
    assert result.stdout.strip() == str([16 / 2, 16 * 9 / 2])


COMPILE = """
import json
import torch
from bench.roofline.compiled import OPS, compile_for, op_launch, shape_and_layout

def compiled(op, shape, like=None):
    return compile_for(op_launch(op, shape, torch.float32, like), "sm_90").asm["ttir"]

shapes = [shape_and_layout(name) for name in ("4096x16", "512x4096", "16x4x64x64 channels_last halves")]
code = {"usual": {op: [compiled(op, *shape) for shape in shapes] for op in OPS}}
with torch.device("meta"):
    code["wide"] = {op: [compiled(op, (1, 2**31 + 8)), compiled(op, (2, 2**30 + 8))] for op in OPS}
print(json.dumps(code))
"""


@pytest.fixture(scope="module")
def intermediate_code():
    """Of every op for a GPU: for usual shapes, and for rows of more than 2^30 coordinates."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("shapes", ["usual", "wide"])
def test_offsets_of_elements_are_64_bits_wide_before_they_are_multiplied(intermediate_code, shapes):
    for code in itertools.chain(*intermediate_code[shapes].values()):
        # What is widened, or moves a pointer, after a product of 32 bits may have wrapped by then.
        products = set(re.findall(r"(%\w+) = arith\.muli .* : (?:tensor<\w+x)?i32>?", code))
        used = set(re.findall(r"arith\.extsi (%\w+)", code)) | set(re.findall(r"tt\.addptr %\w+, (%\w+)", code))
        assert used
        assert not products & used


@pytest.mark.parametrize(("shapes", "width"), [("usual", "i32"), ("wide", "i64")])
def test_columns_are_counted_in_64_bits_only_where_32_do_not_do(intermediate_code, shapes, width):
    # The others have loops over draws, or over tiles of rows, as well or instead.
    others = "iwae|(shared_prior|binomial|scaled_bernoulli)_backward"
    ops = [op for op in intermediate_code[shapes] if not re.search(others, op)]
    assert len(ops) > 15
    for code in itertools.chain(*(intermediate_code[shapes][op] for op in ops)):
        assert set(re.findall(r"scf\.for .* : (i\d+) {", code)) == {width}
