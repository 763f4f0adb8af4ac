"""The check before every measurement: each contender is compared with float64 formulas.

A contender runs as it is timed. Its outputs and the gradients of all inputs are compared with `bench.formulas` for the
noise that it drew, which follows from z. fastvae's noise must be the stream of the seed that it drew; that of others
must look standard normal; each call and sample must draw anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

import fastvae

from .cases import OPS, Case, Function, Op, Tensors, as_tuple
from .contenders import fastvae_backends, next_seed
from .formulas import formulas, mean_and_sigma

# Allowed error, relative to the values: what plain PyTorch needs, which rounds after every step.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

# Rows are compared in blocks of so many elements, as float64 copies of large tensors would not fit in memory.
BLOCK_ELEMENTS = 2**22

# The contract of the noise stream: how far the normals of two backends may be apart, and how many of them how far.
FAR, FARTHEST, SHARE_OF_FAR = 1e-5, 2e-4, 1e-4


class Disagreement(RuntimeError):
    """A contender computes something else than the op."""


def refuse_disagreement(case: Case, functions: Mapping[str, Function], tensors: Tensors) -> None:
    """Raise Disagreement, naming the case and the contender, unless all compute the op. Torch's generator is kept.

    On a GPU all rows are compared; on a CPU, where that takes minutes, the first BLOCK_ELEMENTS of large tensors.
    """
    ours = fastvae_backends(next(iter(tensors.inputs.values())).device)
    tolerance = TOLERANCE[case.torch_dtype]
    with torch.random.fork_rng():
        for name, function in functions.items():
            try:
                allowed = tolerance * (OPS[case.op].eager_error if name in ("eager", "torch.compile") else 1)
                _check(case, function, tensors, allowed, follows_stream=name in ours)
            except Disagreement as error:
                raise Disagreement(f"{case}, {name}: {error}") from None


def _check(case: Case, function: Function, tensors: Tensors, tolerance: float, follows_stream: bool) -> None:
    op = OPS[case.op]
    arguments = case.arguments(tensors)
    torch.manual_seed(0)
    seed = next_seed(arguments[0].device)
    torch.manual_seed(0)
    outputs = as_tuple(function(*arguments))
    for name, output in zip(op.outputs, outputs, strict=True):
        if output.shape != case.output_shape(name):
            raise Disagreement(f"{name} has shape {tuple(output.shape)}, expected {case.output_shape(name)}")
    incoming = case.incoming(tensors, outputs)
    results = {name: output.detach() for name, output in zip(op.outputs, outputs, strict=True)}
    if "both" in case.directions:
        wanted = [argument for argument in arguments if argument.requires_grad]
        gradients = case.by_input(torch.autograd.grad(outputs, wanted, incoming))
        results |= {f"grad_{name}": gradient for name, gradient in gradients.items()}
    for rows in _blocks(case, whole=arguments[0].is_cuda):
        inputs, given, found = (
            {name: tensor[rows] if tensor.dim() else tensor for name, tensor in group.items()}
            for group in (tensors.inputs, dict(zip(op.outputs, incoming, strict=True)), results)
        )
        _check_rows(op, inputs, given, found, tolerance, seed if follows_stream else None, rows.start or 0)
    if op.drawn is not None and torch.equal(as_tuple(function(*arguments))[0], outputs[0]):
        raise Disagreement(f"a second call draws the same {op.drawn}")


def _blocks(case: Case, whole: bool) -> Iterator[slice]:
    if not OPS[case.op].by_row:
        yield slice(None)
        return
    size = max(1, BLOCK_ELEMENTS // math.prod(case.shape[1:]))
    for first in range(0, case.shape[0] if whole else 1, size):
        yield slice(first, first + size)


def _check_rows(
    op: Op,
    inputs: Mapping[str, Tensor],
    incoming: Mapping[str, Tensor],
    results: Mapping[str, Tensor],
    tolerance: float,
    seed: Tensor | None,
    first: int,
) -> None:
    """Compare the results of some rows, outputs and gradients. ``seed``: of the noise stream, None for any noise."""
    wide = {name: tensor.double().requires_grad_(name in op.differentiable) for name, tensor in inputs.items()}
    eps = None
    if op.drawn is not None:
        mean, sigma = (tensor.detach() for tensor in mean_and_sigma(op, wide))
        eps = (results[op.drawn].double() - mean) / sigma
        if seed is None:
            _check_normal(op, eps, tolerance)
        else:
            _check_stream(op, eps, seed, tolerance * (eps.abs() + mean.abs() / sigma), first)
    exact = formulas(op, wide, eps)
    for name in op.outputs:
        _compare(name, results[name], exact[name].detach(), tolerance, first)
    if op.directions != ("forward",):
        weights = [incoming[name].double() for name in exact]
        right = torch.autograd.grad(list(exact.values()), [wide[name] for name in op.differentiable], weights)
        for name, expected in zip(op.differentiable, right, strict=True):
            _compare(f"grad_{name}", results[f"grad_{name}"], expected, tolerance, first)


def _check_stream(op: Op, eps: Tensor, seed: Tensor, rounding: Tensor, first: int) -> None:
    """Compare the noise with the stream of the seed in float64."""
    shape = eps.shape if op.num_samples is None else eps.shape[1:]
    with fastvae.use_backend("reference"):
        numbers = range(op.num_samples or 1)
        draws = [fastvae.noise(seed, shape, row_offset=first, draw=k, dtype=torch.float64) for k in numbers]
    stream = torch.stack(draws).view(eps.shape)
    error = (eps - stream).abs() - rounding
    wrong = ~(error <= FAR)
    if wrong.sum() <= math.ceil(SHARE_OF_FAR * wrong.numel()):
        wrong = ~(error <= FARTHEST)
    _refuse_any("noise", wrong, eps, stream, first)


def _check_normal(op: Op, eps: Tensor, tolerance: float) -> None:
    if op.num_samples is not None and torch.equal(eps[0], eps[1]):
        raise Disagreement("two samples have the same noise")
    mean, variance = eps.mean().item(), eps.square().mean().item()
    # Six standard errors, and what rounding z adds.
    of_mean, of_variance = 6 / math.sqrt(eps.numel()) + tolerance, 6 * math.sqrt(2 / eps.numel()) + tolerance
    if not (abs(mean) < of_mean and abs(variance - 1) < of_variance):
        raise Disagreement(f"the noise has mean {mean:.4g} and variance {variance:.4g}, not 0 and 1")


def _compare(name: str, got: Tensor, exact: Tensor, tolerance: float, first: int) -> None:
    # Where terms cancel, the result has the error of the terms, which are a few times the usual size of the sums.
    allowed = tolerance * (exact.abs() + 4 * exact.square().mean().sqrt())
    # Comparisons with NaN are false: a NaN must not pass.
    _refuse_any(name, ~((got.double() - exact).abs() <= allowed), got, exact, first)


def _refuse_any(name: str, wrong: Tensor, got: Tensor, expected: Tensor, first: int) -> None:
    if wrong.any():
        index = wrong.nonzero()[0].tolist()
        came, right = got[tuple(index)].item(), expected[tuple(index)].item()
        if first:
            index[0] += first
        count = int(wrong.sum())
        raise Disagreement(f"{name}{index or ''} is {came:.6g}, expected {right:.6g}; {count} such values")
