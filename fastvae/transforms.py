"""The ops under torch.func, forward-mode differentiation and torch.jit.trace.

While `torch.func.grad` (value_and_grad, vjp) is the only transform, the kernels compute values and first derivatives.
Under all others an op is its formula in plain PyTorch, whose operators have every rule that is needed. Only the noise
is an operator of fastvae then, and has a rule for vmap: with ``randomness="different"`` each example draws a seed, with
"same" all share one, and each seed draws what it would have drawn alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import ops
from .double_backward import latent_formula, likelihood_formula
from .kernels.latent_spec import LatentInputs, latent_inputs, latent_outputs
from .ops import LatentRun, LikelihoodRun
from .torch_internals import any_is_batched, only_grad_is_active

__all__ = ["transformed_latent", "transformed_likelihood"]

Tensors = Sequence[Tensor | None]
Formula = Callable[[Tensors, Sequence[object]], Tensors]
LatentBackward = Callable[..., Tensors]  # `fastvae.autograd.backward_of_latent`


def transformed_latent(inputs: LatentInputs, run: LatentRun, backward: LatentBackward) -> tuple[Tensor | None, ...]:
    """As `fastvae.autograd.run_latent`; kernels compute gradients by ``backward``."""

    def formula(tensors: Tensors, wanted: Sequence[object]) -> Tensors:
        return latent_formula(latent_inputs(tensors), run, wanted)

    def gradients(grads: Tensors, tensors: Tensors, wants: Sequence[bool]) -> Tensors:
        of_outputs, own = latent_outputs(grads), latent_inputs(tensors)
        if any_is_batched(grads):  # or, where PyTorch does not tell, may be
            return _vjp(formula, tensors, wants, grads)
        wants_prior = own.prior_mu is not None and any(wants[2:4])
        found = backward(of_outputs, own, run, wants_prior)
        # The gradient of z may be that of mu: autograd wants a view of what is returned as it came.
        return *[one.view_as(one) if one is not None and one is of_outputs.z else one for one in found], None

    if only_grad_is_active():
        kernels = _Kernels(lambda tensors: ops.latent(latent_inputs(tensors), run), formula, gradients)
        outputs = _Differentiated.apply(kernels, *inputs)
    else:
        spec = run.spec
        wanted = (spec.sample, spec.kernel_reduction is not None, spec.kl_mean, spec.log_probs, spec.log_probs)
        outputs = formula(inputs, [want or None for want in wanted])
    return outputs[:2] if outputs[2] is None and outputs[3] is None else outputs


def transformed_likelihood(x: Tensor, parameters: tuple[Tensor, ...], run: LikelihoodRun) -> Tensor:
    """log p(x|z), reduced."""

    def formula(tensors: Any, wanted: Sequence[object]) -> Tensors:
        return (likelihood_formula(tensors[0], tensors[1:], run.spec, run.bounds),)

    def gradients(grads: Any, tensors: Any, wants: Sequence[bool]) -> Tensors:
        if wants[0]:  # kernels have no gradient of x
            return _vjp(formula, tensors, wants, grads)
        x, *parameters = tensors
        return None, *ops.likelihood_backward(grads[0], x, tuple(parameters), run, tuple(wants[1:]))

    if not only_grad_is_active():
        return likelihood_formula(x, parameters, run.spec, run.bounds)
    kernels = _Kernels(lambda tensors: (ops.likelihood(tensors[0], tuple(tensors[1:]), run),), formula, gradients)
    return _Differentiated.apply(kernels, x, *parameters)[0]


class _Kernels(NamedTuple):
    """A computation by kernels: what `_Differentiated` needs of it."""

    values: Callable[[Any], Tensors]
    formula: Formula
    """The same values of the tensors in plain PyTorch; those may be left out for which the second has None."""
    gradients: Callable[[Tensors, Tensors, Sequence[bool]], Tensors] | None = None
    """From the gradients of the values, the tensors, and which of these want one; by kernels, if there are any."""


class _Differentiated(Function):
    """The values of `_Kernels`, as torch.func.grad takes them."""

    @staticmethod
    def forward(kernels: _Kernels, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(kernels.values(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.kernels, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _, formula, gradients = ctx.kernels
        tensors, wants, count = ctx.saved_tensors, ctx.needs_input_grad[1:], len(grads)
        if gradients is None or not only_grad_is_active():
            return None, *_vjp(formula, tensors, wants, grads)
        first_derivatives = _Kernels(
            lambda given: gradients(given[:count], given[count:], wants),
            lambda given, wanted: _vjp(formula, given[count:], wants, given[:count]),
        )
        return None, *_Differentiated.apply(first_derivatives, *grads, *tensors)


def _vjp(formula: Formula, tensors: Tensors, wants: Sequence[bool], grads: Tensors) -> list[Tensor | None]:
    """The gradients of the tensors that are wanted.

    By torch.func: autograd does not see tensors through a transform that has ended, as that of a vjp that is batched.
    """
    given: list[Tensor] = []  # the gradients of outputs that are there

    def of_wanted(*own: Tensor) -> list[Tensor]:
        remaining = iter(own)
        outputs = formula([next(remaining) if want else one for one, want in zip(tensors, wants, strict=True)], grads)
        kept = [(one, grad) for one, grad in zip(outputs, grads, strict=True) if one is not None and grad is not None]
        given.extend(grad for _, grad in kept)
        return [one for one, _ in kept]

    wanted = [one for one, want in zip(tensors, wants, strict=True) if want]
    outputs, backward = torch.func.vjp(of_wanted, *wanted)  # type: ignore[misc]
    found = iter(backward([grad.to(output.dtype) for output, grad in zip(outputs, given, strict=True)]))
    return [next(found) if want else None for want in wants]
