"""A GPU that does nothing, for Triton: everything of a launch but the device.

`install` compiles stub_driver.c as ``libcuda.so.1`` and makes Triton launch through it: the real `JITFunction`, the
real compiler and the real launcher in C run, with CPU tensors in place of a GPU's. A C compiler is all it needs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("stub_driver.c")


class StubDriver:
    """The library behind Triton's driver, and what it counted."""

    def __init__(self, library: ctypes.CDLL) -> None:
        counters = [ctypes.c_longlong.in_dll(library, f"stub_{name}") for name in ("launches", "modules", "last")]
        self._launches, self._modules, self._last = counters
        self._launch = (ctypes.c_longlong * 5).in_dll(library, "stub_launch")

    @property
    def launches(self) -> int:
        return self._launches.value

    @property
    def kernels(self) -> int:
        """Compiled kernels that were loaded."""
        return self._modules.value

    @property
    def last(self) -> int:
        """Which of these the last launch was of."""
        return self._last.value

    def last_launch(self) -> tuple[int, ...]:
        """Stream, number of programs and first three arguments, of 8 bytes each, of the last launch."""
        return tuple(self._launch)


def compiler() -> str | None:
    """A C compiler of this machine."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """``libcuda.so.1`` in ``folder``."""
    path, cc = folder / "libcuda.so.1", compiler()
    if cc is None:
        raise RuntimeError("there is no C compiler: neither CC, nor gcc, cc or clang on the PATH")
    command = [cc, "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True)
    return path


def install(capability: tuple[int, int] = (9, 0), folder: Path | None = None) -> StubDriver:
    """Make Triton, which must not interpret, launch through the stub in this process, for GPUs of this capability.

    ``folder`` is where the library is built; None makes one, for the rest of the process.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="stub-driver-"))
    path = build(folder)
    # Loaded under its name before Triton asks for that name.
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)

    import torch
    import triton
    from triton.backends.nvidia.driver import CudaDriver

    class Driver(CudaDriver):
        def __init__(self) -> None:
            super().__init__()
            # PyTorch without CUDA has none of these; what they cost it is measured on a GPU.
            self.get_current_device = self._zero
            self.set_current_device = self._zero
            self.get_current_stream = self._zero
            self.get_device_capability = lambda device=None: capability

        @staticmethod
        def _zero(device: Any = None) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    triton.runtime.driver.set_active(Driver())
    return StubDriver(library)
