"""The formulas that every contender of an op must agree with, for given noise, differentiable by autograd.

    z = mu + sigma eps      kl = 1/2 sum((mu - mu_p)^2 exp(-lv_p) + expm1(d) - d), d = lv - lv_p, lv = log sigma^2
    log_q = -1/2 sum(eps^2 + lv + log 2 pi)     log_p = -1/2 sum((z - mu_p)^2 exp(-lv_p) + lv_p + log 2 pi)

Inputs are float64, and so are the results. A likelihood's formula is that of `bench.eager_likelihoods`, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Op
from .eager_likelihoods import per_sample


def mean_and_sigma(op: Op, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of z, or of eps."""
    if op.drawn == "eps":
        return torch.zeros_like(inputs["mu"]), torch.ones_like(inputs["mu"])
    if op.options.get("scale") == "softplus":
        return inputs["mu"], F.softplus(inputs["logvar"]) + op.options["floor"]
    return inputs["mu"], torch.exp(0.5 * inputs["logvar"])


def formulas(op: Op, inputs: Mapping[str, Tensor], eps: Tensor | None) -> dict[str, Tensor]:
    """The outputs of the op by name. ``eps``: the noise of all samples, None if the op draws none."""
    if "x" in inputs:
        return {"log_prob": per_sample(op)(*inputs.values())}
    mu, sigma = mean_and_sigma(op, inputs)
    logvar, event = 2 * torch.log(sigma), tuple(range(1 - mu.dim(), 0))
    prior_mu, prior_logvar = (inputs.get(name, torch.zeros_like(mu[0])) for name in ("prior_mu", "prior_logvar"))
    inverse, difference = torch.exp(-prior_logvar), logvar - prior_logvar
    kl = 0.5 * ((mu - prior_mu).square() * inverse + torch.expm1(difference) - difference)
    if "free_bits" in op.options:
        found = {"kl": kl.mean(0).clamp_min(op.options["free_bits"]).sum()}
    else:
        found = {"kl": kl.sum(event)}
    if eps is not None and op.drawn is not None:
        found[op.drawn] = z = mu + sigma * eps
        log_2_pi = math.log(2 * math.pi)
        found["log_q"] = -0.5 * (eps.square() + logvar + log_2_pi).sum(event)
        found["log_p"] = -0.5 * ((z - prior_mu).square() * inverse + prior_logvar + log_2_pi).sum(event)
    return {name: found[name] for name in op.outputs}
