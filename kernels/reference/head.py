"""Heads (`fastvae.kernels.head_spec` has the formulas) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..head_spec import HeadResults, HeadSpec
from ..layout import likelihood_dtype, repeat_rows
from ..likelihood_spec import MIXTURE, Bounds
from . import mixture
from .functions import softplus
from .likelihoods import derivatives, log_prob_elementwise
from .sums import event_sum, sum_to_size


def head(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    library: Tensor | None,
    grad: Tensor | None,
    spec: HeadSpec,
    bounds: Bounds,
    wants: tuple[bool, ...],
) -> HeadResults:
    """As `fastvae.kernels` says."""
    x = repeat_rows(x, len(parameters[0]))
    compute = likelihood_dtype(x, *parameters)
    outputs = tuple([one.to(compute) for one in parameters])
    values = activated(outputs, library, spec)
    log_prob = event_sum(log_prob_elementwise(x, values, spec.likelihood, bounds))
    if not any(wants):
        return HeadResults(log_prob)
    of_rows = torch.ones_like(log_prob) if grad is None else grad.to(compute)
    each = of_rows.view(-1, *[1] * (x.dim() - 1))
    if spec.kind == MIXTURE:
        y = mixture.levels(x, compute)
        of_pixels = each[:, 0].expand_as(y[:, 0])
        slopes: tuple[Tensor, ...] = (mixture.gradient(of_pixels, y, values[0], spec.components, bounds.low),)
    else:
        found = derivatives(x.to(compute), values, spec.likelihood, bounds)
        slopes = tuple([torch.where(inside, each * one, 0.0) for one, inside in found])
    given: list[Tensor | None] = []
    of_library = None
    for slope, value, raw, parameter, activation, wanted in zip(
        slopes, values, outputs, parameters, spec.activations, wants, strict=True
    ):
        given.append(sum_to_size(slope, parameter.shape) if activation == "given" and wanted else None)
        if activation == "softmax":
            assert library is not None
            by_log_mean = slope if spec.kind == "poisson" else slope * value
            total = event_sum(by_log_mean)
            parameter.copy_(by_log_mean - torch.softmax(raw, 1) * total.unsqueeze(1))
            of_library = total / library
        elif activation != "given":
            by = {"exp": value, "softplus": torch.sigmoid(raw)}.get(activation)
            parameter.copy_(slope if by is None else slope * by)
    return HeadResults(log_prob, tuple(given), of_library)


def activated(outputs: tuple[Tensor, ...], library: Tensor | None, spec: HeadSpec) -> tuple[Tensor, ...]:
    """The likelihood's parameters from outputs (rows, ...) of layers; autograd can differentiate it."""
    return tuple([_activated(one, library, how, spec.kind) for one, how in zip(outputs, spec.activations, strict=True)])


def _activated(output: Tensor, library: Tensor | None, activation: str, kind: str) -> Tensor:
    if activation == "exp":
        return torch.exp(output)
    if activation == "softplus":
        return softplus(output)
    if activation != "softmax":
        return output
    assert library is not None
    log_mean = torch.log_softmax(output, 1) + torch.log(library.to(output.dtype)).unsqueeze(1)
    return log_mean if kind == "poisson" else torch.exp(log_mean)
