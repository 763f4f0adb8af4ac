"""`linear_log_prob`: log p(x|z) from a decoder's last hidden units, its last linear layers and the likelihood fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks import check_clamp, check_tensor
from ..fast_path import are_direct
from ..head_chunks import HeadInputs, bytes_of_outputs
from ..head_op import HeadFunction, HeadRun, head_formula
from ..kernels import backend as selected
from ..kernels.head_spec import ACTIVATIONS, DENSITIES, Activation, Density, HeadSpec, rows_of_chunk
from ..kernels.layout import likelihood_dtype
from ..kernels.likelihood_spec import COUNTS, KINDS, MIXTURE, NO_BOUNDS, Bounds, channels_of_mixture
from ..size_checks import check_count
from ..torch_internals import fast_apply, has_saved_tensor_hooks, is_compiling, needs_formula
from ..trunk import Trunk
from ..weighed_head import WeighedHeadFunction
from .functional import INTEGERS, LOWEST_LOG_SCALE

__all__ = ["REDUCTIONS", "Linear", "Reduction", "linear_log_prob"]

_apply_head = fast_apply(HeadFunction)

Reduction = Literal["sample", "sum", "batchmean"]
REDUCTIONS = get_args(Reduction)


class Linear(NamedTuple):
    """A linear layer that gives one parameter of a likelihood, before its activation."""

    weight: Tensor
    """(outputs, H), one output for each coordinate of an event; of a mixture, for each channel of each pixel. Of a 1x1
    convolution (channels, C, 1, 1), and so for other numbers of spatial dimensions."""
    bias: Tensor | None = None
    """(outputs,)."""
    activation: Activation = "identity"
    """"identity", "exp", "softplus", or of the mean of counts "softmax": times ``library``."""


class _Options(TypedDict):
    library: Tensor | None
    clamp: Sequence[float] | None
    components: int


def linear_log_prob(
    density: Density,
    hidden: Tensor,
    parameters: Sequence[Linear | Tensor],
    x: Tensor,
    *,
    library: Tensor | None = None,
    clamp: Sequence[float] | None = None,
    components: int = 10,
    reduction: Reduction = "sample",
    log_ratio: Tensor | None = None,
) -> Tensor:
    """log p(x|z) of a likelihood whose parameters are linear in the decoder's last hidden units, fused with the layers.

    Equal to the likelihood's own function of ``F.linear(hidden, weight, bias)``, without ever holding these outputs as
    a whole: rows are done in chunks that stay in the cache. What is saved for backward is of the size of the inputs.

    Args:
        density: the name of a function of `fastvae.likelihoods` without its ``_log_prob``, such as "bernoulli"; all
            but "scaled_bernoulli".
        hidden: (B, H), or (K, B, H) for K draws; float32, bfloat16, float16 or float64. Under autocast, layers are
            computed in its dtype, as by ``F.linear``. For 1x1 convolutions (B, C, height, width), or (K, B, C, height,
            width), where x is (B, channels, height, width).
        parameters: what the function of that density takes before x, in its order: a `Linear`, or a tensor that the
            batch shares, of the event's shape or of one element.
        x: the data, (B, *event); gets no gradient.
        library: (B,), or (K, B) if each draw has its own: the library size of each row, positive; for "softmax"
            alone. A Poisson density's "softmax" is its rate.
        clamp: (low, high) of logvar or logscale, as for `gaussian_log_prob`.
        components: of a mixture.
        reduction: "sample", (B,) or (K, B); or the scalars "sum" and "batchmean", of one draw.
        log_ratio: (K, B), log p(z) - log q(z|x) of draws that an importance-weighted bound follows, as of
            `fastvae.objectives.IWAE`. It changes no result: on the CPU, gradients are then computed with log p, for
            the importance weights. Gets no gradient.

    Gradients for hidden, layers, shared tensors and library are computed with log p where the gradient of all rows can
    be expected to be the same: under "sum" and "batchmean", and on the CPU under "sample" without draws or with
    ``log_ratio`` (found out in backward: where rows have other gradients, it computes the outputs again). Second
    derivatives are computed in plain PyTorch, with all outputs at once.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> import torch
    >>> from fastvae.likelihoods import Linear, linear_log_prob
    >>> hidden, weight = torch.zeros(2, 8), torch.zeros(3, 8)
    >>> linear_log_prob("bernoulli", hidden, [Linear(weight)], torch.ones(2, 3))   # three fair coins: -3 log 2
    tensor([-2.0794, -2.0794])
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(map(repr, REDUCTIONS))}")
    spec, bounds, tensors = _checked(
        density, hidden, parameters, x, {"library": library, "clamp": clamp, "components": components}
    )
    draws = hidden.dim() > _dims_of_hidden(parameters)
    if draws and reduction != "sample":
        raise ValueError(f"reduction is {reduction!r} with several draws, expected 'sample'")
    if log_ratio is not None and (log_ratio.shape != hidden.shape[:2] or not draws):
        raise ValueError(
            f"log_ratio has shape {tuple(log_ratio.shape)}, hidden has {tuple(hidden.shape)}; expected (K, B)"
        )
    rows = tensors[0]
    differentiated = _is_differentiated(tensors)
    # float16 would lose the small gradients that a loss scale, which comes later, is there for.
    ahead = rows.dtype != torch.float16 and (reduction != "sample" or (rows.device.type == "cpu" and not draws))
    run = HeadRun(spec, bounds, selected.requested, differentiated and ahead, are_direct(*tensors))
    if needs_formula():
        log_prob = head_formula(tensors, run)
    elif differentiated and log_ratio is not None and (size := _rows_to_weigh(log_ratio, tensors, run)):
        log_prob = WeighedHeadFunction.apply(run, (), size, log_ratio.detach(), *tensors)
    else:
        apply = _apply_head if run.direct else HeadFunction.apply
        log_prob = apply(run, *tensors)
    if draws:
        return log_prob.unflatten(0, hidden.shape[:2])
    if reduction == "sample":
        return log_prob
    return log_prob.sum() if reduction == "sum" else log_prob.sum() / len(x)


def trunk_log_prob(
    density: Density,
    trunk: Trunk,
    parameters: Sequence[Linear | Tensor],
    x: Tensor,
    log_ratio: Tensor,
    **options: Unpack[_Options],
) -> Tensor | None:
    """`linear_log_prob`, (K B,), of hidden units that are computed in the same chunks: rows of x with all their draws.

    None where all rows are one chunk, or where something may depend on all hidden units being computed at once.
    """
    h, of_trunk = trunk.inputs, trunk.tensors()
    if not (are_direct(h, *of_trunk) and trunk.treats_rows_alone()) or torch.is_autocast_enabled(h.device.type):
        return None
    if has_saved_tensor_hooks(True):  # they are for what is kept until backward
        return None
    hidden = h.new_empty(1).expand(*log_ratio.shape, trunk.out_features())  # of their shape, without memory
    spec, bounds, (_, *others) = _checked(density, hidden, parameters, x, options)
    tensors = (h, *others, *of_trunk)
    if not (_is_differentiated(tensors) and are_direct(*tensors)):
        return None
    run = HeadRun(spec, bounds, selected.requested, ahead=True, direct=True)
    size = _rows_to_weigh(log_ratio, (h, *others), run, trunk.widths())
    if size in (0, len(x)):
        return None
    return WeighedHeadFunction.apply(run, trunk.layers, size, log_ratio.detach(), *tensors)


def _is_differentiated(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _rows_to_weigh(
    log_ratio: Tensor, tensors: Sequence[Tensor | None], run: HeadRun, widths: Sequence[int] = ()
) -> int:
    """Rows of x in a chunk of `WeighedHeadFunction`, 0 where it is not used; ``widths``: of the layers of a trunk."""
    inputs = HeadInputs.of(tensors)
    hidden, x, library, _ = inputs
    wide = hidden.dtype in (torch.float32, torch.float64)
    equal = log_ratio.dtype == hidden.dtype == likelihood_dtype(hidden, x)
    at_hand = hidden.device.type == "cpu" and not is_compiling() and hidden.numel() > 0
    if not (wide and equal and at_hand and (library is None or len(library) == len(x))):  # not of each draw
        return 0
    size = bytes_of_outputs(inputs, run.spec) + max([0, *widths]) * hidden.element_size()
    return rows_of_chunk(len(hidden), size, hidden.device, convolved=hidden.dim() == 3, group=len(log_ratio))


def _checked(
    density: str, hidden: Tensor, parameters: Sequence[Linear | Tensor], x: Tensor, options: _Options
) -> tuple[HeadSpec, Bounds, tuple[Any, ...]]:
    """Of arguments that are right: the head, and its tensors as `HeadInputs.of` takes them."""
    library, clamp, components = options["library"], options["clamp"], options["components"]
    spec, bounds = _spec_of(density, parameters, clamp, components), NO_BOUNDS
    if clamp is not None:
        bounds = Bounds(*check_clamp(clamp))
    elif density == MIXTURE:
        bounds = Bounds(low=LOWEST_LOG_SCALE)
    check_tensor("hidden", hidden)
    dims = _dims_of_hidden(parameters)
    _check_data(hidden, x, library, spec, dims)
    layers = _checked_layers(hidden, parameters, x, spec, dims)
    rows = hidden.flatten(0, 1) if hidden.dim() > dims else hidden
    rows = rows.flatten(2) if dims > 2 else rows
    dtype = _autocast_dtype(hidden)
    if dtype is not None:
        rows = rows.to(dtype)
        layers = [
            tensor if tensor is None or spec.activations[i // 2] == "given" else tensor.to(dtype)
            for i, tensor in enumerate(layers)
        ]
    return spec, bounds, (rows, _flat(x, spec), None if library is None else library.flatten(), *layers)


def _spec_of(
    density: str, parameters: Sequence[Linear | Tensor], clamp: Sequence[float] | None, components: int
) -> HeadSpec:
    if density not in DENSITIES:
        raise ValueError(f"density is {density!r}, expected one of {', '.join(map(repr, DENSITIES))}")
    if len(parameters) != KINDS[density].parameters:
        expected = f"{KINDS[density].parameters} for {density!r}"
        raise ValueError(f"parameters has {len(parameters)} items, expected {expected}")
    if density == MIXTURE:
        check_count("components", components, 1)
    activations = []
    for i, one in enumerate(parameters):
        how = one.activation if isinstance(one, Linear) else "given"
        if how not in ACTIVATIONS or (isinstance(one, Linear) and how == "given"):
            expected = ", ".join(map(repr, ACTIVATIONS[:-1]))
            raise ValueError(f"parameters[{i}].activation is {how!r}, expected one of {expected}")
        if how == "softmax" and (i or density not in COUNTS):
            raise ValueError(f"parameters[{i}].activation is 'softmax', expected it of the mean of counts alone")
        if density == MIXTURE and how != "identity":
            raise ValueError(f"parameters[{i}] of a mixture is {how!r}, expected a Linear without activation")
        activations.append(how)
    if activations[0] == "given":
        raise TypeError(f"parameters[0] is a {type(parameters[0]).__name__}, expected a Linear")
    first, *others = activations
    second, third = (*others, None, None)[:2]
    return HeadSpec(density, first, second, third, clamp is not None, components if density == MIXTURE else 0)


def _check_data(hidden: Tensor, x: Tensor, library: Tensor | None, spec: HeadSpec, dims: int) -> None:
    if not isinstance(x, Tensor) or x.dtype not in INTEGERS:
        check_tensor("x", x)
    spatial = x.shape[2:] if dims > 2 else ()
    if (
        hidden.dim() not in (dims, dims + 1)
        or hidden.shape[-dims] != len(x)
        or hidden.shape[2 - dims :][: dims - 2] != spatial
    ):
        one = ", ".join(map(str, (len(x), "H" if dims == 2 else "C", *spatial)))
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected ({one}) or (K, {one})")
    if x.device != hidden.device:
        raise ValueError(f"x is on {x.device}, hidden is on {hidden.device}; expected the same device")
    if x.requires_grad:
        raise ValueError("x requires a gradient, which is not computed here; expected x.detach(), or F.linear")
    if spec.kind == MIXTURE and (x.dim() < 2 or x.shape[1] not in (1, 3)):
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, 1 or 3, *spatial)")
    if (library is not None) != (spec.first == "softmax"):
        given, expected = ("None", "a tensor (B,)") if library is None else ("given", "None")
        raise ValueError(f"library is {given} with the activation {spec.first!r}, expected {expected}")
    if library is not None and library.shape not in (x.shape[:1], hidden.shape[:-1]):
        expected = " or ".join(dict.fromkeys([str((len(x),)), str(tuple(hidden.shape[:-1]))]))
        raise ValueError(f"library has shape {tuple(library.shape)}, expected {expected}")


def _dims_of_hidden(parameters: Sequence[Linear | Tensor]) -> int:
    """How many dimensions hidden has without draws: those of a weight."""
    for i, one in enumerate(parameters):
        if isinstance(one, Linear):
            check_tensor(f"parameters[{i}].weight", one.weight)
    return max(2, *[one.weight.dim() for one in parameters if isinstance(one, Linear)])


def _checked_layers(
    hidden: Tensor, parameters: Sequence[Linear | Tensor], x: Tensor, spec: HeadSpec, dims: int
) -> list[Tensor | None]:
    """Two tensors for each parameter: weight and bias, or what is given and None."""
    event = math.prod(x.shape[1:])
    outputs = event if spec.kind != MIXTURE else event // x.shape[1] * channels_of_mixture(x.shape[1], spec.components)
    outputs //= max(math.prod(hidden.shape[hidden.dim() + 2 - dims :]), 1)
    shape_of_weight = (outputs, hidden.shape[1 - dims], *[1] * (dims - 2))
    layers: list[Tensor | None] = []
    for i, one in enumerate(parameters):
        if not isinstance(one, Linear):
            check_tensor(f"parameters[{i}]", one.reshape(1) if isinstance(one, Tensor) and one.dim() == 0 else one)
            if one.numel() != 1 and one.shape not in (x.shape[1:], (1, *x.shape[1:])):
                expected = f"{tuple(x.shape[1:])}, the event's, or one element"
                raise ValueError(f"parameters[{i}] has shape {tuple(one.shape)}, expected {expected}")
            layers += [one.reshape(-1), None]
            continue
        for name, given, shape in (("weight", one.weight, shape_of_weight), ("bias", one.bias, (outputs,))):
            if given is None:
                continue
            check_tensor(f"parameters[{i}].{name}", given)
            if given.shape != shape:
                raise ValueError(f"parameters[{i}].{name} has shape {tuple(given.shape)}, expected {shape}")
            if given.dtype != hidden.dtype and _autocast_dtype(hidden) is None:
                raise TypeError(f"parameters[{i}].{name} is {given.dtype}, hidden is {hidden.dtype}; expected the same")
        layers += [one.weight.flatten(1), one.bias]
    return layers


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """What ``F.linear`` would compute in under autocast; None without."""
    kind = hidden.device.type
    if hidden.is_meta or not torch.is_autocast_enabled(kind) or hidden.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def _flat(x: Tensor, spec: HeadSpec) -> Tensor:
    """(B, event); of a mixture (B, C, pixels)."""
    if spec.kind == MIXTURE:
        return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
