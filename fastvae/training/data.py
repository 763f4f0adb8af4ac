"""`VAEDataModule`: the data of ``--data`` as a LightningDataModule; subclass it for other data."""

from __future__ import annotations

from typing import Any

from ..checks import check_flag
from ..size_checks import check_count
from .batches import BatchLoader, PartSampler
from .datasets import DataOptions, Source, download_source, load_source
from .errors import TrainingError
from .lightning import LightningDataModule
from .module import check_seed
from .samples import Samples

__all__ = ["VAEDataModule"]


class VAEDataModule(LightningDataModule):
    """Batches for `VAEModule`, the same on any number of devices, from data in memory or on disk.

    Args:
        data: what to read, as ``fastvae train --data`` takes it (`fastvae.training.datasets`).
        batch_size: rows of one step, of all devices together.
        conditional: give the labels too, which the data must have.
        workers: processes that read ahead; 0 reads in the training process, which is as fast for data in memory.
        seed: of the order of the data, from 0 to 2^64 - 1.
        options: how to read the data, by the names of `fastvae.training.datasets.DataOptions`: ``held_out``,
            ``image_size``, ``counts``, ``layout`` and others.

    Subclasses override ``load``, which gives a `Source`; all else works on what it gives. The place in the data is
    counted in whole epochs: a Trainer with ``limit_train_batches`` or ``overfit_batches`` is not for it.

    Raises:
        fastvae.training.TrainingError: from ``setup``: the data cannot be read, have no labels, or have fewer rows
            than a batch.
        TypeError, ValueError: an argument is of the wrong kind; the message names it.

    >>> import numpy as np
    >>> from fastvae.training import Samples, Source, VAEDataModule
    >>> class Noise(VAEDataModule):
    ...     def load(self):
    ...         x = np.random.default_rng(0).random((80, 16), dtype=np.float32)
    ...         return Source(Samples(x[:60]), Samples(x[60:]), None)
    >>> data = Noise(batch_size=25)
    >>> data.setup()
    >>> [tuple(batch.x.shape) for batch in data.train_dataloader()]
    [(25, 16), (25, 16), (10, 16)]
    """

    def __init__(
        self,
        data: str = "mnist5k",
        *,
        batch_size: int = 100,
        conditional: bool = False,
        workers: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.data = data
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.conditional = check_flag("conditional", conditional)
        self.options = DataOptions(**options)
        self.workers = check_count("workers", workers, 0)
        self.seed = check_seed(seed)
        self.source: Source | None = None
        self._batches = 0  # done when the run was saved

    def load(self) -> Source:
        """The data; called once in every process."""
        return load_source(self.data, self.options)

    def prepare_data(self) -> None:
        download_source(self.data, self.options.root)

    def setup(self, stage: str | None = None) -> None:
        if self.source is not None:
            return
        source = self.load()
        rows = len(source.train)
        if rows < self.batch_size and stage in (None, "fit"):
            raise TrainingError(
                f"{self.data} has {rows} samples to train on, fewer than a batch of {self.batch_size}:"
                f" --batch-size {rows} or less"
            )
        if self.conditional and (source.train.given is None or source.held_out.given is None):
            raise TrainingError(
                f"{self.data} has no labels, which a conditional model needs: a folder with one subfolder a label, an"
                " .npz file with an array named labels, --condition COLUMN of an .h5ad file, or --model vae"
            )
        self.source = source

    def train_dataloader(self) -> BatchLoader:
        return self._loader(self._loaded().train, self.seed)

    def val_dataloader(self) -> BatchLoader:
        return self._loader(self._loaded().held_out, None)

    test_dataloader = val_dataloader

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._position()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches = state_dict["batches"]

    def _position(self) -> int:
        """Batches done so far. Workers ask before Lightning has restored its own count from the checkpoint."""
        if self.trainer is None:
            return self._batches
        counted: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return max(self._batches, counted)

    def _loaded(self) -> Source:
        self.setup()
        assert self.source is not None
        return self.source

    def _loader(self, samples: Samples, order_seed: int | None) -> BatchLoader:
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

        in_training = trainer is not None and order_seed is not None
        sampler = PartSampler(
            len(samples), self.batch_size, seed=order_seed, rank=rank, world_size=world_size,
            position=self._position if in_training else None,
        )  # fmt: skip
        return BatchLoader(samples, sampler, conditional=self.conditional, workers=self.workers)
