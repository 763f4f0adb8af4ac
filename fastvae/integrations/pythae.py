"""pythae under `fastvae.patch`: ``_sample_gauss`` and, where a fused one is faster, ``loss_function``.

    sampling    in all of VAE, BetaVAE, DisentangledBetaVAE, BetaTCVAE, FactorVAE, INFOVAE_MMD, MSSSIM_VAE, VAMP,
                VAEGAN, Adversarial_AE, IWAE, MIWAE, PIWAE, CIWAE, VAE_IAF, VAE_LinNF, HVAE and RHVAE
    fused KL    in the losses of VAE, BetaVAE and DisentangledBetaVAE
    draws       in the losses of IWAE, MIWAE, PIWAE and CIWAE: the data are read in place instead of copied for each
                draw, and log q - log p is one sum. Plain PyTorch: fastvae has no op for the density of a given draw.

Not replaced: the squared error, which PyTorch computes faster for batches of small images; the binary cross entropy,
which pythae takes of probabilities instead of logits; losses dominated by something else than the KL (a discriminator,
an MMD kernel, a flow, pseudo-inputs, pairs of the batch, structural similarity); models that do not sample with
``_sample_gauss`` (AE, WAE_MMD, RAE_GP, RAE_L2, SVAE, PoincareVAE, VQVAE); methods that a subclass overrides.

Draws of fewer than 4096 numbers come from torch's generator, whatever ``noise`` says: it is faster there. pythae's own
code runs for other dtypes than float32, under autocast, `torch.compile` and torch.func.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import seed_tensor
from ..functional import gaussian_kl, noise
from .monkeypatch import MonkeyPatch
from .patching import setting_of
from .support import are_supported

__all__ = ["MANY_DRAWS", "ONE_DRAW", "SAMPLING", "install"]

MIN_FUSED_DRAW = 4096  # numbers in one draw; below it, torch's generator is faster

# The models that define _sample_gauss, all in the same way. HVAE inherits VAE's.
SAMPLING = (
    "VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "FactorVAE", "INFOVAE_MMD", "MSSSIM_VAE", "VAMP", "VAEGAN",
    "Adversarial_AE", "IWAE", "MIWAE", "PIWAE", "CIWAE", "VAE_IAF", "VAE_LinNF", "RHVAE",
)  # fmt: skip


def install(monkeypatch: MonkeyPatch) -> None:
    from pythae import models

    for name in SAMPLING:
        owner = getattr(models, name)
        monkeypatch.setattr(owner, "_sample_gauss", _sampling(owner._sample_gauss))
    for name in (*ONE_DRAW, *MANY_DRAWS):
        owner = getattr(models, name)
        monkeypatch.setattr(owner, "loss_function", _loss_function(name, owner.loss_function))


def _sampling(original: Callable[..., Any]) -> Callable[..., Any]:
    def _sample_gauss(self: Any, mu: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """z = mu + std eps, and eps, each of mu's shape."""
        setting = setting_of("pythae")
        if setting is None or setting.noise == "torch" or std.numel() < MIN_FUSED_DRAW or not _is_supported(mu, std):
            return original(self, mu, std)
        eps = noise(seed_tensor(None, None, std.device), std.shape, dtype=std.dtype)
        return torch.addcmul(mu, eps, std), eps

    return _sample_gauss


def _loss_function(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def loss_function(
        self: Any, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """The loss of the batch (PIWAE: both), then the mean reconstruction error and KL, in pythae's shapes."""
        same_dtype = recon_x.dtype == x.dtype == z.dtype == mu.dtype
        if not (setting_of("pythae") and same_dtype and _is_supported(mu, log_var)):
            return original(self, recon_x, x, mu, log_var, z, *args, **kwargs)
        if name in ONE_DRAW:
            error, kl = _error(self, recon_x.reshape(len(x), -1), x), _kl(mu, log_var)
            losses = ONE_DRAW[name](self, error, kl, *args, **kwargs)
        else:
            error, kl = _error(self, recon_x, x), _log_q_minus_log_p(z, mu, log_var)
            losses = MANY_DRAWS[name](self, error, kl, *args, **kwargs)
        dims = tuple(range(error.dim())) if name == "IWAE" else (0,)
        return *losses, error.mean(dims), kl.mean(dims)

    return loss_function


def _is_supported(mu: Tensor, scale: Tensor) -> bool:
    return mu.dtype == torch.float32 and mu.dim() > 1 and are_supported(mu, scale)


# The losses of each model: functions of the model, the reconstruction error and the KL of each sample (of each draw in
# the importance-weighted models), and what else loss_function is called with. One loss, or two in PIWAE.

Loss = Callable[..., tuple[Tensor, ...]]


def _disentangled_beta_vae(model: Any, error: Tensor, kl: Tensor, epoch: int) -> tuple[Tensor, ...]:
    capacity = model.C * min(epoch / (model.warmup_epoch + 1), 1)
    return ((error + model.beta * (kl - capacity).abs()).mean(0),)


def _ciwae(model: Any, error: Tensor, kl: Tensor) -> tuple[Tensor, ...]:
    vae, iwae = (error + kl).mean(dim=-1), _importance_weighted(-(error + kl))
    return ((model.beta * vae + (1 - model.beta) * iwae).mean(),)


def _piwae(model: Any, error: Tensor, kl: Tensor) -> tuple[Tensor, ...]:
    log_w = -(error + kl)
    return _importance_weighted(log_w).mean(dim=-1).mean(), _importance_weighted(log_w.flatten(1)).mean()


ONE_DRAW: dict[str, Loss] = {
    "VAE": lambda model, error, kl: ((error + kl).mean(0),),
    "BetaVAE": lambda model, error, kl: ((error + model.beta * kl).mean(0),),
    "DisentangledBetaVAE": _disentangled_beta_vae,
}
MANY_DRAWS: dict[str, Loss] = {
    "IWAE": lambda model, error, kl: (_importance_weighted(-(error + kl)).mean(),),
    "CIWAE": _ciwae,
    "MIWAE": lambda model, error, kl: (_importance_weighted(-(error + kl)).mean(dim=-1).mean(),),
    "PIWAE": _piwae,
}


def _kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, exp(log_var)) || N(0, I)), summed over the last dimension alone, as pythae does it."""
    kl = gaussian_kl(mu.flatten(0, -2), log_var.flatten(0, -2))
    assert isinstance(kl, Tensor)  # per_coordinate is False
    return kl.reshape(mu.shape[:-1])


def _error(model: Any, recon_x: Tensor, x: Tensor) -> Tensor:
    """-log p(x|z) up to a constant, summed over the last dimension of the reconstructions.

    Reconstructions are (B, N); (B, K, N) for K draws; (B, M, K, N) for M gradient estimates of K draws each.
    """
    draws = (1,) * (recon_x.dim() - 2)
    x = x.reshape(len(x), *draws, -1).expand_as(recon_x)
    if model.model_config.reconstruction_loss == "mse":
        return 0.5 * F.mse_loss(recon_x, x, reduction="none").sum(dim=-1)
    return F.binary_cross_entropy(recon_x, x, reduction="none").sum(dim=-1)


def _log_q_minus_log_p(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mu, exp(log_var)) - log N(z; 0, I) of each draw."""
    return 0.5 * (z.square() - log_var - (z - mu).square() * torch.exp(-log_var)).sum(dim=-1)


def _importance_weighted(log_w: Tensor) -> Tensor:
    """-sum_k w_k log w_k with normalised, detached weights (Burda et al., arXiv 1509.00519, equation 14).

    Normalised over dimension 1, as in pythae: the K draws, or the M estimates where there are M.
    """
    return -(torch.softmax(log_w.detach(), 1) * log_w).sum(dim=1)
