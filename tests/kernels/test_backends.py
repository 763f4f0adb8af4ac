"""Which backend serves what: the automatic choice, the asked-for one, and the errors when it cannot be had."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import fastvae
from fastvae.kernels import backend


def test_cpu_tensors_go_to_the_cpu_kernels_and_float64_to_the_reference():
    chosen = {name: entry["chosen_for"] for name, entry in fastvae.backends().items()}
    assert "cpu float64" in chosen["reference"]
    assert {"cpu float32", "cpu bfloat16", "cpu float16"} <= set(chosen["cpu"])


def test_a_device_of_another_maker_goes_to_the_reference():
    assert backend.implementation("auto", torch.device("xpu"), torch.float32).__name__ == "fastvae.kernels.reference"


def test_backends_says_why_one_is_missing(run_python):
    code = "import fastvae; print(fastvae.backends()['triton'])"
    assert "no GPU that PyTorch can use" in run_python(code).stdout or torch.cuda.is_available()


def test_use_backend_is_undone_after_errors_and_nests():
    def fail():
        with fastvae.use_backend("reference"):
            raise KeyError

    before = backend.requested
    with fastvae.use_backend("cpu"):
        with pytest.raises(KeyError):
            fail()
        assert backend.requested == "cpu"
    assert backend.requested == before


def test_use_backend_reports_what_is_chosen_within_it():
    with fastvae.use_backend("reference"):
        assert "cpu float32" in fastvae.backends()["reference"]["chosen_for"]


def test_float64_on_a_named_backend_is_refused_with_the_reason():
    mu = torch.zeros(2, 3, dtype=torch.float64)
    with (
        fastvae.use_backend("cpu"),
        pytest.raises(RuntimeError, match=r"backend 'cpu' cannot serve this call.*not float64.*'reference'"),
    ):
        fastvae.gaussian_kl(mu, mu)


def test_a_device_that_a_named_backend_does_not_serve_is_refused():
    mu = torch.zeros(2, 3, device="meta")
    with fastvae.use_backend("cpu"):
        assert fastvae.gaussian_kl(mu, mu).device.type == "meta"  # shape inference needs no kernel
    with pytest.raises(
        RuntimeError, match="backend 'cpu' cannot serve this call: it serves cpu tensors, not cuda tensors"
    ):
        backend.implementation("cpu", torch.device("cuda"), torch.float32)


def test_backward_runs_where_forward_ran(monkeypatch):
    from fastvae.kernels import reference

    calls = []
    backward = reference.latent_backward
    monkeypatch.setattr(reference, "latent_backward", lambda *arguments: calls.append(1) or backward(*arguments))
    mu = torch.zeros(2, 3, requires_grad=True)
    with fastvae.use_backend("reference"):
        kl = fastvae.gaussian_kl(mu, mu)
    kl.sum().backward()
    assert calls == [1]


def test_the_environment_variable_chooses_the_backend(run_python):
    code = "import fastvae; print(fastvae.backends()['reference']['chosen_for'])"
    assert "cpu float32" in run_python(code, FASTVAE_BACKEND="reference").stdout


def test_a_wrong_environment_variable_is_named_at_the_first_call_not_at_import(run_python):
    code = "import fastvae, torch; print('imported'); fastvae.gaussian_kl(torch.zeros(1, 1), torch.zeros(1, 1))"
    result = run_python(code, FASTVAE_BACKEND="gpu")
    assert "imported" in result.stdout
    assert "FASTVAE_BACKEND is 'gpu', expected one of 'triton', 'cpu', 'reference'" in result.stderr


def test_a_backend_that_this_machine_lacks_is_an_error_that_says_why(run_python):
    code = "import fastvae\nwith fastvae.use_backend('triton'): pass"
    result = run_python(code)
    if torch.cuda.is_available():
        assert result.returncode == 0
    else:
        assert "RuntimeError: backend 'triton' is not available on this machine: there is no GPU" in result.stderr


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {0!r} or name == {0!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import torch, fastvae
"""


def test_without_triton_everything_else_works(run_python):
    code = HIDE.format("triton") + "print(fastvae.backends()['triton']['reason']); "
    code += (
        "mu = torch.zeros(2, 3, requires_grad=True); fastvae.sample_and_kl(mu, mu)[1].sum().backward(); print(mu.grad)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "No module named 'triton'" in result.stdout


def test_without_the_extension_the_reference_serves_and_backends_says_so(run_python):
    code = HIDE.format("fastvae.kernels.cpu._kernels")
    code += "report = fastvae.backends(); print(report['cpu']['reason'], report['reference']['chosen_for']); "
    code += (
        "mu = torch.zeros(2, 3, requires_grad=True); fastvae.sample_and_kl(mu, mu)[1].sum().backward(); print(mu.grad)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "extension was not built" in result.stdout
    assert "cpu float32" in result.stdout


def test_an_install_without_the_extension_is_not_called_a_circular_import(tmp_path, run_python):
    root = Path(__file__).parents[2]
    hidden = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(root / "fastvae", tmp_path / "fastvae", ignore=hidden)
    shutil.copytree(root / "kernels", tmp_path / "fastvae" / "kernels", ignore=hidden)
    code = """
import sys
sys.path.insert(0, path)
import fastvae
print(fastvae.__file__, fastvae.backends()["cpu"]["reason"])
"""
    result = run_python(f"path = {str(tmp_path)!r}\n{code}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))
    assert "Install a C compiler" in result.stdout
    assert "circular" not in result.stdout


def test_import_loads_no_backend_and_starts_nothing(run_python):
    code = """
import sys, torch
before = set(sys.modules)
import fastvae
new = set(sys.modules) - before
heavy = sorted(n for n in new if n.partition('.')[0] in ('triton', 'numpy', 'matplotlib', 'scipy', 'lightning')
               or n.startswith(('torch._inductor', 'torch._dynamo', 'fastvae.kernels.cpu', 'fastvae.kernels.triton')))
print(heavy, torch.cuda.is_initialized())
"""
    result = run_python(code)
    assert result.stdout.strip() == "[] False", result.stdout + result.stderr


def test_every_instruction_set_gives_the_contracts_noise(run_python):
    """Those that this processor has; each in its own process, because the choice is made at load."""
    from fastvae.kernels.cpu import _kernels

    names = {"x86-64-v4": ("x86-64-v4", "x86-64-v3"), "x86-64-v3": ("x86-64-v3",)}.get(
        _kernels.instruction_set(), (_kernels.instruction_set(),)
    )
    code = """
import torch, fastvae
from fastvae.kernels.cpu import _kernels
mu, logvar = (fastvae.noise(s, (37, 19), dtype=torch.float64) for s in (1, 2))
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
    m, v = (t.to(dtype).requires_grad_() for t in (mu, logvar))
    z, kl = fastvae.sample_and_kl(m, v, seed=3)
    m64, v64 = (t.detach().double().requires_grad_() for t in (m, v))
    z64, kl64 = fastvae.sample_and_kl(m64, v64, seed=3)
    got = torch.autograd.grad(z.float().square().sum() + kl.sum(), (m, v))
    exact = torch.autograd.grad(z64.square().sum() + kl64.sum(), (m64, v64))
    for one, other in ((z, z64), (kl, kl64), *zip(got, exact)):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
print(_kernels.instruction_set())
"""
    for name in names:
        result = run_python(code, FASTVAE_CPU_ISA=name)
        assert result.stdout.strip() == name, result.stderr


def test_a_processor_with_no_known_instruction_set_uses_the_reference(run_python):
    code = "import fastvae; print(fastvae.backends()['cpu']['reason']); print(fastvae.noise(0, (1, 2)))"
    result = run_python(code, FASTVAE_CPU_ISA="none of these")
    assert "FASTVAE_CPU_ISA is 'none of these', expected x86-64-v4" in result.stdout
    assert result.returncode == 0, result.stderr


def test_the_cpu_kernels_run_in_the_thread_pool_of_torch():
    from fastvae.kernels.cpu import _kernels

    if torch.backends.openmp.is_available():
        assert _kernels.threaded()


def test_a_gpu_without_its_kernels_is_warned_of_once(monkeypatch):
    monkeypatch.setitem(backend._unavailable, "triton", "no C compiler")
    backend._warn_of_slow_gpu.cache_clear()
    with pytest.warns(RuntimeWarning, match="reference backend on this GPU.*no C compiler"):
        assert backend._resolve("auto", "cuda", torch.float32) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend._resolve("auto", "cuda", torch.bfloat16) == "reference"
    backend._warn_of_slow_gpu.cache_clear()


def test_an_interpreter_that_fails_under_this_numpy_says_so(monkeypatch):
    from fastvae.kernels import triton

    def fail(*arguments):
        raise TypeError("only 0-dimensional arrays can be converted")

    monkeypatch.setattr(triton, "INTERPRETED", True)
    monkeypatch.setattr(triton, "noise", fail)
    reason = triton.unavailable.__wrapped__()
    assert re.fullmatch(r"the interpreter of Triton \S+ fails with NumPy \S+: TypeError: only 0-dimensional .*", reason)
