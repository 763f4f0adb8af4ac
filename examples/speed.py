"""How fast the fused latent op is against plain PyTorch: alone, and inside a whole training step of the digits demo.

Both sides are first shown to compute the same thing. Times are medians, taken in turns (`bench.timing`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

import fastvae
from bench import eager
from bench.timing import interleaved_medians
from fastvae.nn import VAE, VAEOutput

LatentOp = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class EagerVAE(VAE):
    """The same VAE with its latent op in plain PyTorch."""

    def forward(
        self,
        x: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> VAEOutput:
        mu, logvar = self.encode(x)
        z, kl = eager.sample_and_kl(mu, logvar)
        return VAEOutput(z, mu, logvar, kl, self.decoder(z))


def check_agreement(batch: int, latent: int, seed: int = 0) -> None:
    """Raise unless the fused op and plain PyTorch, given the same eps, agree in z, KL and both gradients."""
    packed, grad_z = _latents(batch, latent, seed)
    eps = fastvae.noise(seed, (batch, latent))

    def plain(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return mu + torch.exp(0.5 * logvar) * eps, eager.sample_and_kl(mu, logvar)[1]

    def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return fastvae.sample_and_kl(mu, logvar, seed=seed)

    with torch.random.fork_rng(devices=[]):
        for came, expected in zip(_step(fused, packed, grad_z), _step(plain, packed, grad_z), strict=True):
            torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)


def latent_op_times(batch: int, latent: int, *, rounds: int = 40) -> dict[str, float]:
    """Seconds of the latent op, forward and backward, on (batch, latent): {"eager": ..., "fastvae": ...}."""
    packed, grad_z = _latents(batch, latent, seed=0)
    calls = 20 if batch * latent < 100_000 else 1
    with torch.random.fork_rng(devices=[]):
        return interleaved_medians(
            {
                "eager": lambda: _step(eager.sample_and_kl, packed, grad_z),
                "fastvae": lambda: _step(fastvae.sample_and_kl, packed, grad_z),
            },
            rounds=rounds,
            calls=calls,
        )


def training_step_times(vae: VAE, x: Tensor, *, rounds: int = 40) -> dict[str, float]:
    """Seconds of a whole training step of copies of ``vae`` on x: {"eager": ..., "fastvae": ...}."""
    fused = copy.deepcopy(vae)
    plain = copy.deepcopy(EagerVAE(vae.encoder, vae.decoder, vae.likelihood))
    with torch.random.fork_rng(devices=[]):
        return interleaved_medians(
            {"eager": _training_step(plain, x), "fastvae": _training_step(fused, x)}, rounds=rounds, calls=5
        )


def _latents(batch: int, latent: int, seed: int) -> tuple[Tensor, Tensor]:
    """What an encoder's last layer gives, mu and logvar side by side, and a gradient of z."""
    generator = torch.Generator().manual_seed(seed)
    packed = 0.5 * torch.randn(batch, 2 * latent, generator=generator)
    return packed.requires_grad_(), torch.randn(batch, latent, generator=generator)


def _step(op: LatentOp, packed: Tensor, grad_z: Tensor) -> tuple[Tensor, ...]:
    mu, logvar = packed.chunk(2, dim=1)
    z, kl = op(mu, logvar)
    return z, kl, *torch.autograd.grad((z, kl), (mu, logvar), (grad_z, torch.ones_like(kl)))


def _training_step(vae: VAE, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (-vae.elbo(x).elbo.mean()).backward()
        optimizer.step()

    return step
