"""Heads: a decoder's last layers, which give a likelihood's parameters, or log p(x|z) fused with it.

A decoder that ends in one, and says so by ``takes_score = True``, is called with ``score``, a function of the last
hidden units, these layers and the shape of the output, which gives log p(x|z) from them: so all happens in the forward
of the modules that own the weights, where FSDP has gathered them. Modules around a decoder whose output they change
layer by layer pass on a ``score`` that changes the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_tensor
from ..kernels.head_spec import rows_of_chunk
from ..kernels.likelihood_spec import MIXTURE
from ..likelihoods import Likelihood
from ..likelihoods.base import Parameters, head_terms
from ..likelihoods.head import Linear, linear_log_prob, trunk_log_prob
from ..size_checks import event_shape, positive_size
from ..torch_internals import has_hooks
from ..trunk import Trunk
from . import calls

__all__ = ["LayersToHead", "LikelihoodHead", "Score", "can_fuse", "scorer", "takes_score"]

# Of the hidden units (rows, H), one layer for each parameter, and the shape of a parameter of one sample: (rows,).
Score = Callable[["Tensor | Trunk", Sequence[Linear], tuple[int, ...]], Tensor]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": F.softplus}


class _Head(nn.Module):
    """What both kinds of head share, beside a layer with weight and bias of all parameters, one after the other."""

    weight: Tensor
    bias: Any
    outputs: int
    likelihood: Any

    def _take(self, likelihood: Likelihood | None, outputs: int) -> None:
        if likelihood is not None and not isinstance(likelihood, nn.Module):
            raise TypeError(f"likelihood is a {type(likelihood).__name__}, expected a torch.nn.Module or None")
        self.outputs, self.likelihood = outputs, likelihood

    def _parameters_or_score(
        self, hidden: Tensor | Trunk, x: Tensor | None, score: Score | None, shape: tuple[int, ...]
    ) -> Parameters:
        """``shape``: of a parameter of one sample."""
        if score is None and x is not None:
            if self.likelihood is None:
                name = type(self).__name__
                raise ValueError(f"x was given to a head without likelihood, expected {name}(..., likelihood)")
            score = scorer(self.likelihood, x)
        if score is not None:
            weights = self.weight.chunk(self.outputs)
            biases = [None] * self.outputs if self.bias is None else self.bias.chunk(self.outputs)
            layers = [Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
            return score(hidden, layers, shape)
        whole = _output(Linear(self.weight, self.bias), _computed(hidden))
        parts = whole.chunk(self.outputs, 1 if self.weight.dim() > 2 else -1)
        shaped = parts if self.weight.dim() > 2 else tuple([part.unflatten(-1, shape) for part in parts])
        return shaped if self.outputs > 1 else shaped[0]


class LikelihoodHead(_Head, nn.Linear):
    """The last layer of a decoder: ``head(hidden)`` gives the parameters of p(x|z), ``head(hidden, x)`` log p(x|z).

    log p(x|z) is computed by `fastvae.likelihoods.linear_log_prob`, which never holds the parameters as a whole, where
    the likelihood is one of `fastvae.likelihoods` and nothing is missing; else by the likelihood from the parameters.

    Args:
        in_features: H, the size of the last hidden layer.
        output_shape: shape of each parameter of one sample, an int for a vector.
        likelihood: of ``head(hidden, x)``; None if the model that has the decoder has the likelihood.
        outputs: how many parameters the likelihood takes from the decoder.
        bias: whether layers have one.

    Weight and bias are those of a ``torch.nn.Linear``, of all parameters one after the other.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import LikelihoodHead
    >>> head = LikelihoodHead(400, (1, 28, 28), Bernoulli())
    >>> hidden, x = torch.rand(8, 400), torch.rand(8, 1, 28, 28).round()
    >>> head(hidden).shape, head(hidden, x).shape
    (torch.Size([8, 1, 28, 28]), torch.Size([8]))
    """

    def __init__(
        self,
        in_features: int,
        output_shape: int | Sequence[int],
        likelihood: Likelihood | None = None,
        *,
        outputs: int = 1,
        bias: bool = True,
    ) -> None:
        shape, count = event_shape("output_shape", output_shape), positive_size("outputs", outputs)
        super().__init__(positive_size("in_features", in_features), count * torch.Size(shape).numel(), bias)
        self.output_shape = shape
        self._take(likelihood, count)

    @overload  # type: ignore[override]
    def forward(self, hidden: Tensor, x: None = None, *, score: None = None) -> Parameters: ...

    @overload
    def forward(self, hidden: Tensor, x: Tensor, *, score: Score | None = None) -> Tensor: ...

    @overload
    def forward(self, hidden: Tensor, x: Tensor | None = None, *, score: Score) -> Tensor: ...

    def forward(self, hidden: Tensor, x: Tensor | None = None, *, score: Score | None = None) -> Parameters:
        """The parameters, (B, *output_shape) each, a tuple if there are several; or log p(x|z) in nats, (B,).

        Args:
            hidden: (B, in_features); with x also (K B, in_features), draw after draw, which gives (K B,).
            x: the data, (B, *event).
            score: computes log p(x|z) from the hidden units and the layers, instead of the head's own likelihood.
        """
        check_tensor("hidden", hidden.inputs if isinstance(hidden, Trunk) else hidden)
        return self._parameters_or_score(hidden, x, score, self.output_shape)

    if TYPE_CHECKING:

        @calls.like(forward)
        def __call__(self) -> Any: ...

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.output_shape}, outputs={self.outputs}, bias={self.bias is not None}"


class ConvLikelihoodHead(_Head, nn.Conv2d):
    """A `LikelihoodHead` of images: the last layer of a decoder is a 1x1 convolution.

    Args:
        in_channels: C, of the last hidden layer.
        channels: of each parameter of an image.
        likelihood, outputs, bias: as for `LikelihoodHead`.

    Weight and bias are those of a ``torch.nn.Conv2d``, of all parameters one after the other. A decoder of one's own
    that ends in one has ``takes_score = True`` and passes the keyword ``score`` of its forward, None by default, on to
    the head's: models then compute log p(x|z) fused with it.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import ConvLikelihoodHead
    >>> head = ConvLikelihoodHead(64, 3, Bernoulli())
    >>> hidden, x = torch.rand(8, 64, 16, 16), torch.rand(8, 3, 16, 16).round()
    >>> head(hidden).shape, head(hidden, x).shape
    (torch.Size([8, 3, 16, 16]), torch.Size([8]))
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        likelihood: Likelihood | None = None,
        *,
        outputs: int = 1,
        bias: bool = True,
    ) -> None:
        count = positive_size("outputs", outputs)
        sizes = positive_size("in_channels", in_channels), count * positive_size("channels", channels)
        super().__init__(*sizes, 1, bias=bias)
        self._take(likelihood, count)

    def forward(self, hidden: Tensor, x: Tensor | None = None, *, score: Score | None = None) -> Parameters:  # type: ignore[override]
        """The parameters, (B, channels, H, W) each, a tuple if there are several; or log p(x|z) in nats, (B,).

        Args:
            hidden: (B, in_channels, H, W); with x also (K B, in_channels, H, W), draw after draw, which gives (K B,).
            x, score: as for `LikelihoodHead`.
        """
        check_tensor("hidden", hidden)
        if hidden.dim() != 4:
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected (batch, {self.in_channels}, H, W)")
        return self._parameters_or_score(hidden, x, score, (self.out_channels // self.outputs, *hidden.shape[2:]))

    def extra_repr(self) -> str:
        channels, bias = self.out_channels // self.outputs, self.bias is not None
        return f"{self.in_channels}, {channels}, outputs={self.outputs}, bias={bias}"


class LayersToHead(nn.Sequential):
    """Layers of which the last is a `LikelihoodHead`."""

    def forward(self, h: Tensor, score: Score | None = None) -> Any:
        *layers, head = self
        trunk = Trunk(tuple(layers), h)
        return head(trunk if score is not None and not has_hooks(head) else trunk.hidden(), score=score)


def takes_score(decoder: nn.Module) -> bool:
    """Whether a decoder can be called with ``score``."""
    return bool(getattr(decoder, "takes_score", False))


def can_fuse(likelihood: Likelihood, decoder: nn.Module, x: Tensor) -> bool:
    """Whether log p(x|z) comes fused from the decoder's own forward."""
    return takes_score(decoder) and not x.requires_grad and head_terms(likelihood, x) is not None


def scorer(likelihood: Likelihood, x: Tensor, log_ratio: Tensor | None = None) -> Score:
    """log p(x|z) under ``likelihood``: (B,), or (K B,) for K B rows of hidden units.

    ``log_ratio``: (K, B), as for `fastvae.likelihoods.linear_log_prob`.
    """

    def score(hidden: Tensor | Trunk, layers: Sequence[Linear], shape: tuple[int, ...]) -> Tensor:
        terms = None if x.requires_grad else head_terms(likelihood, x)
        expected = tuple(x.shape[1:]) if terms is None or terms.density != MIXTURE else (shape[0], *x.shape[2:])
        parameters = None if terms is None or shape != expected else terms.given_layers(layers)
        options: dict[str, Any] = {}
        if terms is not None:
            options = {"library": terms.library, "clamp": terms.clamp, "components": terms.components}
            if isinstance(hidden, Trunk) and log_ratio is not None and parameters is not None:
                found = trunk_log_prob(terms.density, hidden, parameters, x, log_ratio, **options)
                if found is not None:
                    return found
        hidden = _computed(hidden)
        draws = len(hidden) // max(len(x), 1)
        given = hidden if draws == 1 else hidden.unflatten(0, (draws, -1))
        weighed = log_ratio is not None and hidden.device.type == "cpu"
        if (
            terms is None
            or parameters is None
            or (draws > 1 and not weighed and terms.library is None and _fits(hidden, layers))
        ):
            takes_draws = draws > 1 and getattr(likelihood, "takes_draws", False)
            parts = [_activated(layer, hidden).reshape(-1, *shape) for layer in layers]
            if takes_draws:
                parts = [part.unflatten(0, (draws, -1)) for part in parts]
            several = x if draws == 1 or takes_draws else x.repeat(draws, *[1] * (x.dim() - 1))
            return likelihood.log_prob(parts[0] if len(parts) == 1 else tuple(parts), several).flatten()
        if draws > 1:
            options["log_ratio"] = log_ratio
        return linear_log_prob(terms.density, given, parameters, x, **options).flatten()

    return score


def _computed(hidden: Tensor | Trunk) -> Tensor:
    return hidden.hidden() if isinstance(hidden, Trunk) else hidden


def _fits(hidden: Tensor, layers: Sequence[Linear]) -> bool:
    """Whether backward is to come, and all outputs are one chunk: to keep them saves computing them again."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and hidden.requires_grad):
        return False
    convolved = hidden.dim() > 2
    bytes_a_row = sum(len(layer.weight) for layer in layers) * hidden[:1, :1].numel() * hidden.element_size()
    return rows_of_chunk(len(hidden), bytes_a_row, hidden.device, convolved=convolved) >= len(hidden)


def _output(layer: Linear, hidden: Tensor) -> Tensor:
    function = F.linear if layer.weight.dim() == 2 else F.conv2d
    return function(hidden, layer.weight, layer.bias)


def _activated(layer: Linear, hidden: Tensor) -> Tensor:
    output = _output(layer, hidden)
    return output if layer.activation == "identity" else _FUNCTIONS[layer.activation](output)
