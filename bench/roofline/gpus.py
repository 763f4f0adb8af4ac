"""Data sheets of GPUs: instruction rates a multiprocessor and clock, occupancy limits, clocks and bandwidths."""

from __future__ import annotations

import math
from typing import NamedTuple


class Architecture(NamedTuple):
    """A compute capability: lanes of each pipe a clock and multiprocessor, and the limits of occupancy.

    Rates: "Throughput of Native Arithmetic Instructions" in NVIDIA's CUDA C++ programming guide (from 13.0 on in the
    best-practices guide); docs/roofline.md says how far they could be checked. Limits: "Technical Specifications per
    Compute Capability" in the programming guide.
    """

    rates: dict[str, int]
    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    shared_reserved: int = 1024  # bytes that the system reserves in each block

    def occupancy(self, registers: int, shared: int, num_warps: int) -> int:
        """Resident warps of a multiprocessor. Registers are allocated to warps in units of 256."""
        by_registers = self.registers // (math.ceil(registers * 32 / 256) * 256) // num_warps
        by_shared = self.shared_bytes // (math.ceil(shared / 128) * 128 + self.shared_reserved)
        return num_warps * min(self.warps // num_warps, self.blocks, by_registers, by_shared)


_RATES = {"issue": 128, "imul": 64, "alu": 64, "sfu": 16, "lsu": 32}

# 8.0 has one FMA pipe of 64 lanes, which also multiplies integers; 8.6 and later have a second one, for floats alone.
ARCHITECTURES = {
    "sm_80": Architecture(_RATES | {"fma": 64}, warps=64, blocks=32, shared_bytes=164 * 1024),
    "sm_89": Architecture(_RATES | {"fma": 128}, warps=48, blocks=24, shared_bytes=100 * 1024),
    "sm_90": Architecture(_RATES | {"fma": 128}, warps=64, blocks=32, shared_bytes=228 * 1024),
    "sm_100": Architecture(_RATES | {"fma": 128}, warps=64, blocks=32, shared_bytes=228 * 1024),
}


class Chip(NamedTuple):
    target: str
    multiprocessors: int
    clock: float  # Hz, boost
    bandwidth: float  # bytes a second, peak
    source: str

    def budget(self, bytes_an_element: float, lanes_a_clock: float = 128) -> float:
        """Issue slots of a pipe in the time in which memory moves one element at peak bandwidth."""
        elements_a_second = self.bandwidth / bytes_an_element
        return self.multiprocessors * self.clock * lanes_a_clock / elements_a_second


CHIPS = {
    "A100 40GB": Chip("sm_80", 108, 1.410e9, 1.555e12, "NVIDIA A100 data sheet; GA100 white paper (SMs, boost clock)"),
    "A100 80GB": Chip("sm_80", 108, 1.410e9, 2.039e12, "NVIDIA A100 80GB SXM data sheet; GA100 white paper"),
    "L4": Chip("sm_89", 58, 2.040e9, 0.300e12, "NVIDIA L4 product brief PB-11316"),
    "RTX 4090": Chip("sm_89", 128, 2.520e9, 1.008e12, "NVIDIA Ada GPU architecture white paper, RTX 4090"),
    # SXM cards report up to 1.98 GHz.
    "H100": Chip("sm_90", 132, 1.755e9, 3.350e12, "NVIDIA H100 SXM data sheet; boost clock of the PCIe card"),
    "H200": Chip("sm_90", 132, 1.755e9, 4.800e12, "NVIDIA H200 SXM data sheet; the clock as for the H100"),
    # OpenXLA has up to 1.965 GHz.
    "B200": Chip("sm_100", 148, 1.900e9, 8.000e12, "NVIDIA HGX B200 data sheet; OpenXLA's b200.txtpb (SMs, clock)"),
}
