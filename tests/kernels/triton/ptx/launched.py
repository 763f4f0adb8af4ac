"""A dumped launch, executed on made-up inputs, and what should come out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import fastvae
from fastvae.kernels import reference
from fastvae.kernels.latent_spec import LatentInputs, LatentOutputs
from tests import formulas

from .cases import OPS, Case, latent_of
from .floats import Accuracy, from_bfloat16, to_bfloat16
from .machine import launch
from .memory import Memory
from .parse import Kernel, parse

ROOT = Path(__file__).parents[4]
OUTPUTS = ("eps", "z", "kl", "kl_columns", "log_q", "log_p")
OUTPUTS += ("grad_mu", "grad_scale", "grad_prior_mu", "grad_prior_scale")
# Parameters that Triton adds at the end, at most: scratch memory, which our kernels have no use for.
SCRATCH_PARAMETERS = 2


class Executed(NamedTuple):
    case: Case
    inputs: dict[str, np.ndarray]  # values that the kernel found in memory, as float64
    outputs: dict[str, np.ndarray]  # in float32, whatever the dtype
    seed: int


def dump(cases: list[tuple[str, Case]], folder: Path) -> dict[tuple[str, Case], dict[str, Any]]:
    """The launches of the cases, compiled for the target before each; by two processes if there are many and no other
    tests run beside these."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    processes = 2 if len(cases) > 20 and "PYTEST_XDIST_WORKER" not in os.environ else 1
    started = []
    for part in range(processes):
        place = folder / str(part)
        place.mkdir()
        (place / "cases.json").write_text(json.dumps(cases[part::processes]))
        command = [sys.executable, "-m", "tests.kernels.triton.ptx.dump", str(place)]
        started.append(
            subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    found = {}
    for part, process in enumerate(started):
        output, _ = process.communicate()
        assert process.returncode == 0, output.decode()
        launches = json.loads((folder / str(part) / "launches.json").read_text())
        found.update(zip(cases[part::processes], launches, strict=True))
    return found


def execute(
    description: dict[str, Any],
    accuracy: Accuracy | None = None,
    ptx: str | None = None,
    kernel: Kernel | None = None,
    fixed: dict[str, float] | None = None,
) -> Executed:
    """Run a described launch, or other PTX in its place; ``fixed`` sets inputs to one value everywhere."""
    fields = description["case"]
    case = Case(*fields)._replace(shape=tuple(fields[3]))
    random = np.random.default_rng(zlib.crc32(str(case).encode()))
    seed = int(random.integers(-(2**63), 2**63))
    memory = Memory()
    bases = [memory.allocate(storage["bytes"], storage["past_alignment"]) for storage in description["storages"]]
    inputs, outputs, arguments = {}, {}, []
    for argument in description["arguments"]:
        if "value" in argument:
            arguments.append(word_of(argument["value"]))
            continue
        name, dtype, shape = argument["name"], argument["dtype"], tuple(argument["shape"])
        size = getattr(torch, dtype).itemsize
        address = bases[argument["storage"]] + argument["offset"] * size
        arguments.append(address)
        positions = memory.view(address, shape, tuple(argument["strides"]), size)
        if name in OUTPUTS:
            memory.expect(positions)
            outputs[name] = (positions, dtype)
            continue
        if name == "seed":
            memory.put(positions, np.full(shape, seed))
            continue
        values = random.standard_normal(shape) if fixed is None or name not in fixed else np.full(shape, fixed[name])
        if name in ("scale", "prior_scale") and (fixed is None or case.op not in OPS):
            values = scale_values(values, case, random)
        memory.put(positions, to_dtype(values, dtype))
        inputs[name] = from_dtype(memory.get(positions, np.uint16 if size == 2 else np.float32)).astype(np.float64)
    if kernel is None:
        kernel = parse(Path(description["ptx"]).read_text() if ptx is None else ptx)
    added = len(kernel.parameters) - len(arguments)
    assert 0 <= added <= SCRATCH_PARAMETERS
    arguments += [0] * added
    threads, shared = description["threads"], description["shared_bytes"]
    launch(kernel, tuple(description["grid"]), threads, shared, arguments, memory, accuracy or Accuracy())
    written = {
        name: from_dtype(memory.get(positions, np.uint16 if dtype == "bfloat16" else np.float32))
        for name, (positions, dtype) in outputs.items()
    }
    return Executed(case, inputs, written, seed)


def word_of(value: float) -> int:
    """An argument as the machine takes it: a float32 by its bits."""
    return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else value


def scale_values(values: np.ndarray, case: Case, random: np.random.Generator) -> np.ndarray:
    """Scales around that of a standard normal, whatever they are scales of."""
    if case.op in OPS:
        return np.where(random.random(values.shape) < 0.1, values * 1e-3, 1.5 * values - 0.5)
    return np.exp(0.3 * values) if latent_of(case.op).spec.scale in ("std", "var") else 0.5 * values


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    single = np.ascontiguousarray(values, np.float32)
    return to_bfloat16(single) if dtype == "bfloat16" else single


def from_dtype(values: np.ndarray) -> np.ndarray:
    return from_bfloat16(np.ascontiguousarray(values)) if values.dtype == np.uint16 else values


def noise(executed: Executed) -> np.ndarray:
    """eps in float64, from the reference."""
    case = executed.case
    with fastvae.use_backend("reference"):
        eps = fastvae.noise(executed.seed, case.shape, row_offset=case.row_offset, dtype=torch.float64)
    return eps.numpy()


class Right(NamedTuple):
    """An output in float64, how it moves with eps, and the size of the terms that it is a sum of."""

    value: np.ndarray
    per_eps: np.ndarray
    size: np.ndarray


def right_answers(executed: Executed) -> dict[str, Right]:
    """What each output should be, by the formulas and autograd in float64."""
    case, eps = executed.case, noise(executed)
    if case.op == "noise":
        return {"eps": Right(eps, np.ones_like(eps), np.zeros_like(eps))}
    if case.op not in OPS:
        return latent_answers(executed)
    given = {name: torch.from_numpy(values) for name, values in executed.inputs.items()}
    logvar = given["scale"].requires_grad_()
    mu = given.get("mu", torch.zeros_like(logvar)).requires_grad_()
    z, kl = formulas.sample_and_kl(mu, logvar, torch.from_numpy(eps), case.reduction)
    m, lv = mu.detach().numpy(), logvar.detach().numpy()
    std, variance = np.exp(lv / 2), np.exp(lv)
    kl_size = torch.from_numpy(m**2 + variance + 1 + np.abs(lv))
    if not case.op.endswith("_backward"):
        per_row = case.reduction != "none"
        value = formulas.sample_and_kl(mu, logvar, torch.from_numpy(eps), "sample" if per_row else "none")[1]
        size = formulas.reduce(kl_size, "sample" if per_row else "none").numpy()
        found = {
            "z": Right(z.detach().numpy(), std, np.abs(m) + std * np.abs(eps)),
            "kl": Right(value.detach().numpy(), np.zeros_like(size), size),
        }
        return {name: found[name] for name in executed.outputs}
    grad_z = given.get("grad_z", torch.zeros_like(z))
    grad_kl = given.get("grad_kl", torch.zeros_like(kl)).reshape(kl.shape)
    grad_mu, grad_scale = torch.autograd.grad([z, kl], [mu, logvar], [grad_z, grad_kl])
    per_kl = np.abs(grad_kl.numpy()) / (len(m) if case.reduction == "batchmean" else 1)
    per_kl = per_kl.reshape(-1, *[1] * (m.ndim - 1)) if case.reduction == "sample" else per_kl
    from_z = np.abs(grad_z.numpy())
    found = {
        "grad_mu": Right(grad_mu.numpy(), np.zeros_like(m), from_z + per_kl * np.abs(m)),
        "grad_scale": Right(
            grad_scale.numpy(), from_z * std / 2, from_z * std * np.abs(eps) / 2 + per_kl * (variance + 1) / 2
        ),
    }
    return {name: found[name] for name in executed.outputs}


def assert_right(executed: Executed) -> None:
    """Every output is within what the contract allows.

    Normals: 1e-5 in all but one in ten thousand, 2e-4 in every one, and what follows from them. Beside that, float32
    arithmetic: 1e-6 of the terms that are summed up. bfloat16: the correct rounding of a value in that interval.
    """
    assert executed.outputs
    for name, right in right_answers(executed).items():
        got = finished(executed, name)
        if name == "kl":
            assert (got >= 0).all(), "a KL is negative"
        assert got.shape == right.value.shape
        bfloat16 = executed.case.dtype == "bfloat16" and got.dtype == np.float32 and name != "kl"
        usual = np.count_nonzero(~_within(got, right, 1e-5, bfloat16))
        assert usual <= -(-got.size // 10000), f"{name}: {usual} of {got.size} are off: {_worst(got, right)}"
        assert _within(got, right, 2e-4, bfloat16).all(), f"{name}: {_worst(got, right)}"


def finished(executed: Executed, name: str) -> np.ndarray:
    """An output, or, of one that consists of the sums of each program, in float64 what they add up to."""
    got, case = executed.outputs[name], executed.case
    if name == "kl" and case.reduction != "none":
        return got.reshape(len(got), -1).astype(np.float64).sum(1)
    if name in ("log_q", "log_p"):
        got = got.astype(np.float64)
        if got.ndim == 3:  # of rows of several tiles
            got = got.sum(2) if latent_of(case.op).scalars.num_samples else got.sum(2)[0]
        return got
    if name == "kl_columns":
        return got.astype(np.float64).sum(0) / case.shape[0]
    if name.startswith("grad_prior") and latent_of(case.op).prior != "full":
        columns = got.astype(np.float64).sum(0).flatten()
        return columns.sum(keepdims=True) if latent_of(case.op).prior == "one" else columns
    return got


def latent_answers(executed: Executed) -> dict[str, Right]:
    """What the outputs of other latents should be, by the reference in float64; good to 2e-5 of the largest."""
    case, given = executed.case, executed.inputs
    spec, scalars, prior = latent_of(case.op)
    spec, scalars = spec._replace(reduction=case.reduction), scalars._replace(row_offset=case.row_offset)
    tensors = {name: torch.from_numpy(values) for name, values in given.items()}
    parameters = [tensors.get(name) for name in ("mu", "scale", "prior_mu", "prior_scale")]
    inputs = LatentInputs(*parameters, torch.tensor([executed.seed]))
    found: dict[str, torch.Tensor | None]
    if not case.op.endswith("_backward"):
        if case.reduction != "none":
            spec = spec._replace(reduction="sample")
        z, kl, mean, log_q, log_p = reference.latent_forward(inputs, spec, scalars)
        found = {
            "z": z,
            "kl": kl,
            "kl_columns": None if mean is None else mean.flatten(),
            "log_q": log_q,
            "log_p": log_p,
        }
    else:
        grads = LatentOutputs(*[tensors.get(f"grad_{name}") for name in LatentOutputs._fields])
        grad_mu, grad_scale, *of_prior = reference.latent_backward(grads, inputs, spec, scalars, prior is not None)
        of_prior = [one if one is None or prior == "full" else one.flatten() for one in of_prior]
        found = {"grad_mu": grad_mu, "grad_scale": grad_scale, "grad_prior_mu": of_prior[0]}
        found["grad_prior_scale"] = of_prior[1]
    answers = {}
    for name in executed.outputs:
        value = found[name].numpy()
        answers[name] = Right(value, np.zeros_like(value), np.full_like(value, 20 * (1 + np.abs(value).max())))
    return answers


def _within(got: np.ndarray, right: Right, eps_error: float, bfloat16: bool) -> np.ndarray:
    allowed = eps_error * right.per_eps + 1e-6 * right.size
    low, high = right.value - allowed, right.value + allowed
    if bfloat16:
        low, high = (from_dtype(to_dtype(bound, "bfloat16")) for bound in (low, high))
    return (got >= low) & (got <= high)


def _worst(got: np.ndarray, right: Right) -> str:
    at = np.abs(got - right.value).argmax()
    return f"got {got.flat[at]}, expected {right.value.flat[at]}"
