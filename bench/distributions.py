"""The latent ops with torch.distributions: Normal.rsample, Normal.log_prob and kl_divergence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from .cases import Function, Op


def latent(op: Op) -> Function:
    """The op on mu and logvar, of which packed moments are the halves, and a prior's, N(0, I) if there is none."""
    options = op.options
    draws = () if op.num_samples is None else (op.num_samples,)

    def run(mu: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        mu, logvar, *prior = (*mu.chunk(2, dim=1), *others) if op.packed else (mu, *others)
        softplus = options.get("scale") == "softplus"
        sigma = F.softplus(logvar) + options["floor"] if softplus else torch.exp(0.5 * logvar)
        q = Normal(mu, sigma)
        p = Normal(prior[0], torch.exp(0.5 * prior[1])) if prior else Normal(torch.zeros_like(mu), torch.ones_like(mu))
        outputs = []
        if "z" in op.outputs:
            outputs.append(z := q.rsample(draws))
        if "log_q" in op.outputs:
            outputs += [q.log_prob(z).flatten(2).sum(-1), p.log_prob(z).flatten(2).sum(-1)]
        if "kl" in op.outputs:
            kl = kl_divergence(q, p)
            free_bits = "free_bits" in options
            outputs.append(kl.mean(0).clamp(min=options["free_bits"]).sum() if free_bits else kl.flatten(1).sum(1))
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run
