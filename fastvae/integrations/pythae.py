"""pythae under `fastvae.patch`: ``_sample_gauss`` and, where that is faster, ``loss_function``.

    sampling    in all of VAE, BetaVAE, DisentangledBetaVAE, BetaTCVAE, FactorVAE, INFOVAE_MMD, MSSSIM_VAE, VAMP,
                VAEGAN, Adversarial_AE, IWAE, MIWAE, PIWAE, CIWAE, VAE_IAF, VAE_LinNF, HVAE and RHVAE
    fused KL    in the losses of VAE, BetaVAE and DisentangledBetaVAE
    draws       in the losses of IWAE, MIWAE, PIWAE and CIWAE: the data are read in place, not copied for each draw, and
                log q - log p is one sum. This is plain PyTorch: no op of fastvae prices a draw that is there already.

Not replaced: the squared error, for which PyTorch's own ops are faster at batches of small images, and the binary one,
which pythae takes of probabilities, not of logits; losses that are mostly something else (a discriminator, a kernel, a
flow, pseudo-inputs, pairs of the batch, a structural similarity), where a KL of some microseconds does not show; models
that do not sample with ``_sample_gauss`` (AE, WAE_MMD, RAE_GP, RAE_L2, SVAE, PoincareVAE, VQVAE).

Draws of fewer than 4096 numbers come from torch's generator, ``noise="torch"`` or not: it is the faster one there.
A subclass that has a method of its own keeps it. Anything but float32 goes through pythae's own code, mixed precision
too, and so do `torch.compile` and torch.func.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import seed_tensor
from ..functional import gaussian_kl, noise
from .patching import setting_of
from .replacements import Replacements
from .served import is_served

FEWEST_DRAWN = 4096

# Those that define _sample_gauss, the same in each. HVAE inherits VAE's.
SAMPLING = (
    "VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "FactorVAE", "INFOVAE_MMD", "MSSSIM_VAE", "VAMP", "VAEGAN",
    "Adversarial_AE", "IWAE", "MIWAE", "PIWAE", "CIWAE", "VAE_IAF", "VAE_LinNF", "RHVAE",
)  # fmt: skip


def install(replacements: Replacements) -> None:
    from pythae import models

    for name in SAMPLING:
        owner = getattr(models, name)
        replacements.attribute(owner, "_sample_gauss", _sampling(owner._sample_gauss))
    for name, loss in LOSSES.items():
        owner = getattr(models, name)
        replacements.attribute(owner, "loss_function", _with_fallback(loss, owner.loss_function))


def _sampling(original: Callable[..., Any]) -> Callable[..., Any]:
    def _sample_gauss(self: Any, mu: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """z = mu + std eps, and eps, each of mu's shape."""
        setting = setting_of("pythae")
        if setting is None or setting.noise == "torch" or std.numel() < FEWEST_DRAWN or not _fit(mu, std):
            return original(self, mu, std)
        eps = noise(seed_tensor(None, None, std.device), std.shape, dtype=std.dtype)
        return torch.addcmul(mu, eps, std), eps

    return _sample_gauss


def _with_fallback(loss: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def loss_function(
        self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor, *rest: Any, **keywords: Any
    ) -> tuple[Tensor, ...]:
        fits = setting_of("pythae") and _fit(mu, log_var) and recon_x.dtype == x.dtype == z.dtype == mu.dtype
        chosen = loss if fits else original
        return chosen(self, recon_x, x, mu, log_var, z, *rest, **keywords)

    return loss_function


def _fit(mu: Tensor, scale: Tensor) -> bool:
    return (
        mu.shape == scale.shape
        and mu.dtype == scale.dtype == torch.float32
        and mu.dim() > 1
        and mu.numel() > 0
        and mu.device == scale.device
        and is_served(mu)
    )


# The losses give what pythae's give: the loss of the batch, or its two, and the means of its parts.


def loss_of_vae(self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    recon, kl = _error_of_one_draw(self, recon_x, x), _kl(mu, log_var)
    return (recon + kl).mean(dim=0), recon.mean(dim=0), kl.mean(dim=0)


def loss_of_beta_vae(
    self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
) -> tuple[Tensor, ...]:
    recon, kl = _error_of_one_draw(self, recon_x, x), _kl(mu, log_var)
    return (recon + self.beta * kl).mean(dim=0), recon.mean(dim=0), kl.mean(dim=0)


def loss_of_disentangled_beta_vae(
    self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor, epoch: int
) -> tuple[Tensor, ...]:
    recon, kl = _error_of_one_draw(self, recon_x, x), _kl(mu, log_var)
    capacity = self.C * min(epoch / (self.warmup_epoch + 1), 1)
    return (recon + self.beta * (kl - capacity).abs()).mean(dim=0), recon.mean(dim=0), kl.mean(dim=0)


def loss_of_iwae(self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    recon, kl = _error_of_draws(self, recon_x, x), _log_q_minus_log_p(z, mu, log_var)
    return _importance_weighted(-(recon + kl)).mean(), recon.mean(), kl.mean()


def loss_of_ciwae(self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    recon, kl = _error_of_draws(self, recon_x, x), _log_q_minus_log_p(z, mu, log_var)
    of_vae, of_iwae = (recon + kl).mean(dim=-1), _importance_weighted(-(recon + kl))
    return (self.beta * of_vae + (1 - self.beta) * of_iwae).mean(dim=0), recon.mean(dim=0), kl.mean(dim=0)


def loss_of_miwae(self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    recon, kl = _error_of_draws(self, recon_x, x), _log_q_minus_log_p(z, mu, log_var)
    of_miwae = _importance_weighted(-(recon + kl)).mean(dim=-1)
    return of_miwae.mean(dim=0), recon.mean(dim=0), kl.mean(dim=0)


def loss_of_piwae(self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    recon, kl = _error_of_draws(self, recon_x, x), _log_q_minus_log_p(z, mu, log_var)
    log_w = -(recon + kl)
    of_miwae, of_iwae = _importance_weighted(log_w).mean(dim=-1), _importance_weighted(log_w.flatten(1))
    return of_miwae.mean(dim=0), of_iwae.mean(dim=0), recon.mean(dim=0), kl.mean(dim=0)


LOSSES: dict[str, Callable[..., Any]] = {
    "VAE": loss_of_vae,
    "BetaVAE": loss_of_beta_vae,
    "DisentangledBetaVAE": loss_of_disentangled_beta_vae,
    "IWAE": loss_of_iwae,
    "CIWAE": loss_of_ciwae,
    "MIWAE": loss_of_miwae,
    "PIWAE": loss_of_piwae,
}


def _kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, exp(log_var)) || N(0, I)), summed over the last dimension alone, as pythae does it."""
    kl = gaussian_kl(mu.flatten(0, -2), log_var.flatten(0, -2))
    assert isinstance(kl, Tensor)  # no KL per coordinate was asked for
    return kl.reshape(mu.shape[:-1])


def _error_of_one_draw(model: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z) up to a constant, (B,)."""
    return _error(model, recon_x.reshape(len(x), -1), x.reshape(len(x), -1))


def _error_of_draws(model: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    """The same of (B, K, N) reconstructions, or of (B, M, K, N) for M estimates of the gradient: (B, K), (B, M, K)."""
    draws = (1,) * (recon_x.dim() - 2)
    return _error(model, recon_x, x.reshape(len(x), *draws, -1).expand_as(recon_x))


def _error(model: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    if model.model_config.reconstruction_loss == "mse":
        return 0.5 * F.mse_loss(recon_x, x, reduction="none").sum(dim=-1)
    return F.binary_cross_entropy(recon_x, x, reduction="none").sum(dim=-1)


def _log_q_minus_log_p(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mu, exp(log_var)) - log N(z; 0, I), of each draw."""
    return 0.5 * (z.square() - log_var - (z - mu).square() * torch.exp(-log_var)).sum(dim=-1)


def _importance_weighted(log_w: Tensor) -> Tensor:
    """-sum_k w_k log w_k with normalised, constant weights (Burda et al., arXiv 1509.00519, equation 14).

    They are normalised over dimension 1, as pythae does it, which are M's estimates where there are M.
    """
    return -(torch.softmax(log_w.detach(), 1) * log_w).sum(dim=1)
