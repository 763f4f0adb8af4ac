"""The ops under torch.func, forward-mode differentiation and torch.jit.trace.

While `torch.func.grad` (value_and_grad, vjp) is the only transform, the kernels compute values and first derivatives.
Under all others an op is its formula in plain PyTorch, whose operators have every rule that is needed. Only the noise
is an operator of fastvae then, and has a rule for vmap: with ``randomness="different"`` each example draws a seed, with
"same" all share one, and each seed draws what it would have drawn alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
Formula = Callable[[Tensors, Tensors], Tensors]
LatentBackward = Callable[..., Tensors]  # `fastvae.autograd.backward_of_latent`


def transformed_latent(inputs: LatentInputs, run: LatentRun, backward: LatentBackward) -> tuple[Tensor | None, ...]:
    """As `fastvae.autograd.run_latent`; kernels compute gradients by ``backward``."""
    if only_grad_is_active():
        outputs = _Kernel.apply(_Latent(run, backward), *inputs)
    else:
        spec = run.spec
        wanted = (spec.sample, spec.kernel_reduction is not None, spec.kl_mean, spec.log_probs, spec.log_probs)
        outputs = latent_formula(inputs, run, [want or None for want in wanted])
    return outputs[:2] if outputs[2] is None and outputs[3] is None else outputs


def transformed_likelihood(x: Tensor, parameters: tuple[Tensor, ...], run: LikelihoodRun) -> Tensor:
    """log p(x|z), reduced."""
    if only_grad_is_active():
        return _Kernel.apply(_Likelihood(run), x, *parameters)[0]
    return likelihood_formula(x, parameters, run.spec, run.bounds)


class _Call(Protocol):
    """A computation by kernels."""

    def values(self, tensors: Tensors) -> Tensors: ...

    def formula(self, tensors: Tensors, grads: Tensors) -> Tensors:
        """The same values in plain PyTorch, where their gradient is not None."""
        ...

    def gradients(self, grads: Tensors, tensors: Tensors, wants: Sequence[bool]) -> Tensors:
        """Of ``tensors``, differentiable in turn."""
        return _vjp(self.formula, tensors, wants, grads)


class _Kernel(Function):
    """A `_Call` as torch.func.grad takes it."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(call.values(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.call.gradients(grads, ctx.saved_tensors, ctx.needs_input_grad[1:])


@dataclass(frozen=True)
class _Latent(_Call):
    """The five outputs, from the five inputs."""

    run: LatentRun
    backward: LatentBackward

    def values(self, tensors: Tensors) -> Tensors:
        return ops.latent(latent_inputs(tensors), self.run)

    def formula(self, tensors: Tensors, grads: Tensors) -> Tensors:
        return latent_formula(latent_inputs(tensors), self.run, grads)

    def gradients(self, grads: Tensors, tensors: Tensors, wants: Sequence[bool]) -> Tensors:
        if only_grad_is_active():
            return _Kernel.apply(_LatentGradients(self, tuple(wants)), *grads, *tensors)
        return super().gradients(grads, tensors, wants)


@dataclass(frozen=True)
class _LatentGradients(_Call):
    """Those of the inputs, from the five gradients of the outputs and the inputs."""

    of: _Latent
    wants: tuple[bool, ...]

    def values(self, tensors: Tensors) -> Tensors:
        grads, inputs = latent_outputs(tensors[:5]), latent_inputs(tensors[5:])
        if any_is_batched(grads):  # or, where PyTorch does not tell, may be
            return self.formula(tensors, ())
        wants_prior = inputs[2] is not None and any(self.wants[2:4])
        found = self.of.backward(grads, inputs, self.of.run, wants_prior)
        # The gradient of z may be that of mu: autograd wants a view of what is returned as it came.
        return *[one.view_as(one) if one is not None and one is grads.z else one for one in found], None

    def formula(self, tensors: Tensors, grads: Tensors) -> Tensors:
        return _vjp(self.of.formula, tensors[5:], self.wants, tensors[:5])


@dataclass(frozen=True)
class _Likelihood(_Call):
    """log p, from x and the parameters."""

    run: LikelihoodRun

    def values(self, tensors: Any) -> Tensors:
        x, *parameters = tensors
        return (ops.likelihood(x, tuple(parameters), self.run),)

    def formula(self, tensors: Any, grads: Tensors) -> Tensors:
        return (likelihood_formula(tensors[0], tensors[1:], self.run.spec, self.run.bounds),)

    def gradients(self, grads: Tensors, tensors: Tensors, wants: Sequence[bool]) -> Tensors:
        if only_grad_is_active() and not wants[0]:
            return _Kernel.apply(_LikelihoodGradients(self, tuple(wants)), *grads, *tensors)
        return super().gradients(grads, tensors, wants)


@dataclass(frozen=True)
class _LikelihoodGradients(_Call):
    """Those of the parameters, from the gradient of log p, x and the parameters."""

    of: _Likelihood
    wants: tuple[bool, ...]

    def values(self, tensors: Any) -> Tensors:
        grad, x, *parameters = tensors
        return None, *ops.likelihood_backward(grad, x, tuple(parameters), self.of.run, self.wants[1:])

    def formula(self, tensors: Tensors, grads: Tensors) -> Tensors:
        return _vjp(self.of.formula, tensors[1:], self.wants, tensors[:1])


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
