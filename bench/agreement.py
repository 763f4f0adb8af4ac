"""No time without a right result: contenders are compared with the formulas before any of them is timed.

A contender is run as it is timed, and its outputs and the gradients of all that it takes are compared with float64
formulas (`bench.formulas`) for the noise that it drew, which z tells. The noise of fastvae must be the stream of the
seed that it drew; that of others must look standard normal, and be another one for every sample. Of large tensors,
which are computed whole, the first rows are compared: float64 takes its time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

import fastvae
from fastvae.arguments import seed_tensor

from .cases import OPS, Case, Function, Op, Tensors, as_tuple
from .contenders import fastvae_backends
from .formulas import formulas, mean_and_sigma
from .gpu_checks import TOLERANCE, Disagreement

COMPARED_ELEMENTS = 2**22

# The contract of the noise stream: how far the normals of two backends may be apart, and how many of them how far.
FAR, FARTHEST, SHARE_OF_FAR = 1e-5, 2e-4, 1e-4


def refuse_disagreement(case: Case, functions: Mapping[str, Function], tensors: Tensors) -> None:
    """Raise Disagreement, naming the case and the contender, unless all compute the same. Torch's generator is kept."""
    ours = fastvae_backends(tensors.inputs["mu"].device)
    with torch.random.fork_rng():
        for name, function in functions.items():
            try:
                _check(case, function, tensors, follows_stream=name in ours)
            except Disagreement as error:
                raise Disagreement(f"{case}, {name}: {error}") from None


def _check(case: Case, function: Function, tensors: Tensors, follows_stream: bool) -> None:
    op, tolerance = OPS[case.op], TOLERANCE[getattr(torch, case.dtype)]
    arguments = case.arguments(tensors)
    torch.manual_seed(0)
    seed = seed_tensor(None, None, arguments[0].device)
    torch.manual_seed(0)
    outputs = as_tuple(function(*arguments))
    for name, output in zip(op.outputs, outputs, strict=True):
        if output.shape != case.output_shape(name):
            raise Disagreement(f"{name} has shape {tuple(output.shape)}, expected {case.output_shape(name)}")

    rows = slice(max(1, COMPARED_ELEMENTS // math.prod(case.shape[1:])) if op.by_row else None)
    inputs = {name: tensor[rows].double().requires_grad_() for name, tensor in tensors.inputs.items()}
    came = {name: _first(rows, output.detach()) for name, output in zip(op.outputs, outputs, strict=True)}
    eps = None
    if op.drawn is not None:
        mean, sigma = (tensor.detach() for tensor in mean_and_sigma(op, inputs))
        eps = (came[op.drawn].double() - mean) / sigma
        rounding = tolerance * (eps.abs() + mean.abs() / sigma)
        if follows_stream:
            _check_stream(op, eps, seed, rounding)
        else:
            _check_normal(op, eps, tolerance)
    exact = formulas(op, inputs, eps)
    for name, output in came.items():
        _compare(name, output, exact[name].detach(), tolerance)

    if "both" in case.directions:
        incoming = case.incoming(tensors, outputs)
        found = case.by_input(torch.autograd.grad(outputs, arguments, incoming))
        incoming_first = [_first(rows, gradient).double() for gradient in incoming]
        right = torch.autograd.grad(list(exact.values()), list(inputs.values()), incoming_first)
        for (name, gradient), expected in zip(found.items(), right, strict=True):
            _compare(f"grad_{name}", gradient[rows], expected, tolerance)

    if op.drawn is not None and torch.equal(as_tuple(function(*arguments))[0], outputs[0]):
        raise Disagreement(f"a second call draws the same {op.drawn}")


def _first(rows: slice, tensor: Tensor) -> Tensor:
    return tensor[rows] if tensor.dim() else tensor


def _check_stream(op: Op, eps: Tensor, seed: Tensor, rounding: Tensor) -> None:
    """The noise that came, against the stream of the seed in float64."""
    shape = eps.shape if op.num_samples is None else eps.shape[1:]
    with fastvae.use_backend("reference"):
        draws = [fastvae.noise(seed, shape, draw=k, dtype=torch.float64) for k in range(op.num_samples or 1)]
    stream = draws[0] if op.num_samples is None else torch.stack(draws)
    error = (eps - stream).abs() - rounding
    wrong = ~(error <= FAR)
    if wrong.sum() <= math.ceil(SHARE_OF_FAR * wrong.numel()):
        wrong = ~(error <= FARTHEST)
    _refuse_any("noise", wrong, eps, stream)


def _check_normal(op: Op, eps: Tensor, tolerance: float) -> None:
    if op.num_samples is not None and torch.equal(eps[0], eps[1]):
        raise Disagreement("two samples have the same noise")
    mean, variance = eps.mean().item(), eps.square().mean().item()
    # Six standard errors, and what rounding z adds.
    of_mean, of_variance = 6 / math.sqrt(eps.numel()) + tolerance, 6 * math.sqrt(2 / eps.numel()) + tolerance
    if not (abs(mean) < of_mean and abs(variance - 1) < of_variance):
        raise Disagreement(f"the noise has mean {mean:.4g} and variance {variance:.4g}, not 0 and 1")


def _compare(name: str, got: Tensor, exact: Tensor, tolerance: float) -> None:
    # Where terms cancel, what is left has the error of the terms, a few times the usual size of the sums.
    allowed = tolerance * (exact.abs() + 4 * exact.square().mean().sqrt())
    # A NaN is neither less nor more than what is allowed: it must not pass.
    _refuse_any(name, ~((got.double() - exact).abs() <= allowed), got, exact)


def _refuse_any(name: str, wrong: Tensor, got: Tensor, expected: Tensor) -> None:
    if wrong.any():
        index = wrong.nonzero()[0].tolist()
        came, right = got[tuple(index)].item(), expected[tuple(index)].item()
        count = int(wrong.sum())
        raise Disagreement(f"{name}{index or ''} is {came:.6g}, expected {right:.6g}; {count} such values")
