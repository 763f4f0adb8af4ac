"""Likelihoods p(x|z): what a decoder's output says about the data, in plain PyTorch.

Each is a module with the same three methods, where ``parameters`` is the decoder's output and x the data:

    log_prob(parameters, x)                  log p(x|z) of each sample in nats, summed over the event; shape (B,)
    mean(parameters)                         E[x|z], of the shape of x
    sample(parameters, generator=None)       x ~ p(x|z), of the shape of x

Both are (B, *event), row b is sample b. Sums are float32 even for bfloat16 and float16 (float64 stays float64): 784
pixels of a few bits each do not add up in bfloat16. No method reads a value back from the device.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_generator, check_tensor


class Likelihood(Protocol):
    """What `fastvae.nn.VAE` asks of a likelihood; any module with these methods will do."""

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor: ...

    def mean(self, parameters: Tensor) -> Tensor: ...

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


class Bernoulli(nn.Module):
    """Binary pixels: the decoder's output is the logits l, p(x = 1) = sigmoid(l).

        log p(x|z) = sum( x l - log(1 + exp(l)) )

    (Kingma & Welling, arXiv 1312.6114, appendix C.1.) Targets lie in [0, 1]. Grey levels are allowed, as the cross
    entropy that most VAEs are trained with, but then log_prob is not the log of a normalised density. That targets lie
    in [0, 1] is not checked: it would stop the device to look at them.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> Bernoulli().log_prob(torch.zeros(2, 3), torch.ones(2, 3))   # three fair coins: -3 log 2
    tensor([-2.0794, -2.0794])
    """

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats, shape (B,).

        Args:
            parameters: logits, (B, *event); float32, bfloat16, float16 or float64.
            x: targets in [0, 1], of the same shape and on the same device; any of these dtypes.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        dtype = _check_pair(parameters, x)
        # The fused form of x l - log(1 + exp(l)): exact for large logits, where exp(l) overflows.
        return _sum_event(F.binary_cross_entropy_with_logits(parameters.to(dtype), x.to(dtype), reduction="none")).neg()

    def mean(self, parameters: Tensor) -> Tensor:
        """p(x = 1) = sigmoid(logits), in the logits' shape and dtype."""
        check_tensor("parameters", parameters)
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones, in the logits' shape and dtype. Not differentiable; ``generator`` rules the draw."""
        check_tensor("parameters", parameters)
        check_generator(generator, parameters.device)
        # The probabilities in float32: bfloat16 would round one of 0.999 to 1.
        probabilities = torch.sigmoid(parameters.detach().to(_sum_dtype(parameters)))
        return torch.bernoulli(probabilities, generator=generator).to(parameters.dtype)


class Gaussian(nn.Module):
    """Real-valued data: the decoder's output is the mean f, with one variance s^2 for all coordinates.

        log p(x|z) = -1/2 ( |x - f|^2 / s^2 + D log(2 pi s^2) )        D: coordinates of one sample

    (Doersch, arXiv 1606.05908, section 2.) ``logvar`` = log s^2 is a Parameter if ``learned``, else a buffer; like
    every parameter it takes the dtype that the module is cast to, so that bfloat16 keeps 8 bits of it.

    Args:
        variance: s^2 > 0; where learning starts if ``learned``.
        learned: learn log s^2 with the rest of the model.

    Raises:
        TypeError, ValueError: ``variance`` is not a number, or not positive and finite.

    >>> import torch
    >>> from fastvae.likelihoods import Gaussian
    >>> Gaussian(variance=0.5).log_prob(torch.zeros(2, 3), torch.zeros(2, 3))   # -3/2 log(2 pi 0.5)
    tensor([-1.7171, -1.7171])
    """

    logvar: Tensor

    def __init__(self, variance: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        if not isinstance(variance, (int, float)) or isinstance(variance, bool):
            raise TypeError(f"variance is a {type(variance).__name__}, expected a number")
        if not 0 < variance < math.inf:
            raise ValueError(f"variance is {variance}, expected a positive finite number")
        if not isinstance(learned, bool):
            raise TypeError(f"learned is a {type(learned).__name__}, expected a bool")
        self.learned = learned
        logvar = torch.tensor(math.log(variance))
        if learned:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats, shape (B,).

        Args:
            parameters: means f, (B, *event); float32, bfloat16, float16 or float64.
            x: data of the same shape and on the same device; any of these dtypes.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind; the message names it.
        """
        dtype = _check_pair(parameters, x)
        squares = _sum_event((x.to(dtype) - parameters.to(dtype)).square())
        logvar = self.logvar.to(dtype)
        coordinates = math.prod(x.shape[1:])
        return -0.5 * (squares * torch.exp(-logvar) + coordinates * (logvar + math.log(2 * math.pi)))

    def mean(self, parameters: Tensor) -> Tensor:
        """The decoder's output itself."""
        check_tensor("parameters", parameters)
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f + s eps in the means' shape and dtype. Differentiable; ``generator`` rules the draw."""
        check_tensor("parameters", parameters)
        check_generator(generator, parameters.device)
        dtype = _sum_dtype(parameters)
        eps = torch.randn(parameters.shape, generator=generator, dtype=dtype, device=parameters.device)
        return (parameters.to(dtype) + torch.exp(0.5 * self.logvar.to(dtype)) * eps).to(parameters.dtype)

    def extra_repr(self) -> str:
        return f"learned={self.learned}"


def _sum_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _sum_event(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1) if terms.dim() > 1 else terms


def _check_pair(parameters: Tensor, x: Tensor) -> torch.dtype:
    """The dtype to sum in."""
    check_tensor("parameters", parameters)
    check_tensor("x", x)
    if parameters.shape != x.shape:
        # Broadcasting here would hide a transposed image or a lost batch dimension in a plausible number.
        raise ValueError(
            f"x has shape {tuple(x.shape)}, parameters has {tuple(parameters.shape)}; expected the same shape"
        )
    if parameters.device != x.device:
        raise ValueError(f"x is on {x.device}, parameters is on {parameters.device}; expected the same device")
    return _sum_dtype(parameters, x)
