"""Lightning, or a message that says how to get it."""

from __future__ import annotations

try:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
except ImportError as error:
    raise ImportError(f'training needs Lightning ({error}): pip install "fastvae-kernels[train]"') from error

__all__ = ["Callback", "LightningDataModule", "LightningModule", "Trainer", "logs_now"]


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning writes its log after this batch."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # which its logger connector sets
    return (trainer.fit_loop.total_batch_idx + 1) % every == 0
