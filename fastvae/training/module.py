"""`VAEModule`: a model of `fastvae.nn` with its objective, its optimiser and its noise, as Lightning takes it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from ..checks import check_flag, check_number
from ..functional import noise
from ..monitors import ActiveUnits
from ..nn import ConditionalVAE
from ..nn.model import LatentVariableModel
from ..objectives import ELBO, IWAE, ObjectiveOutput, iwae_bound
from .batches import Batch, derived_seed
from .errors import TrainingError
from .lightning import LightningModule, logs_now

SCHEDULES = ("cosine", "constant")


class VAEModule(LightningModule):
    """A VAE for Lightning's Trainer.

    Args:
        model: one of `fastvae.nn`.
        objective: `fastvae.objectives.ELBO` or `IWAE`, or a function that is called like them; the ELBO if None. Its
            schedules are called with the number of the batch.
        learning_rate: of Adam.
        schedule: "cosine", down to zero over the whole run, or "constant".
        binarize: x are grey levels in [0, 1], the probabilities of ink: draw ink or paper from them, anew each time in
            training, once and for all when validating.
        seed: of all that is drawn, from 0 to 2^64 - 1.

    It takes batches from `VAEDataModule`; from any other loader tensors x (B, *event) or pairs (x, label), whose label
    is the condition of a `ConditionalVAE` and not looked at otherwise. Row b of the batch that all processes have
    together draws row b of the noise, so that a run is the same on any number of devices up to rounding; with
    other loaders than ours that is so when they give rank 0 the first rows, rank 1 the next, and so on.

    Logged: ``train_elbo``, ``val_elbo``, ``val_reconstruction`` and ``val_kl`` (nats, means over the data),
    ``active_units``; under IWAE ``train_iwae`` and ``val_iwae`` too. ``monitor`` is the one to judge checkpoints by.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the message names it.
        fastvae.training.TrainingError: the loss or a weight is no longer finite; before anything is saved.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> from fastvae.training import VAEModule
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> module = VAEModule(vae, learning_rate=1e-3)
    >>> module.monitor
    'val_elbo'
    """

    def __init__(
        self,
        model: LatentVariableModel,
        objective: Callable[..., ObjectiveOutput] | None = None,
        *,
        learning_rate: float = 2e-3,
        schedule: str = "cosine",
        binarize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(model, LatentVariableModel):
            raise TypeError(f"model is a {type(model).__name__}, expected a model of fastvae.nn")
        objective = ELBO() if objective is None else objective
        if not callable(objective):
            raise TypeError(f"objective is a {type(objective).__name__}, expected ELBO, IWAE or a function like them")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(map(repr, SCHEDULES))}")
        if check_number("learning_rate", learning_rate, 0.0) == 0.0:
            raise ValueError("learning_rate is 0, expected a positive number")
        self.model = model
        self.objective = objective
        self.learning_rate = float(learning_rate)
        self.schedule = schedule
        self.binarize = check_flag("binarize", binarize)
        self.seed = int(check_seed(seed))
        self._takes_step = "step" in inspect.signature(objective).parameters
        self._trained: Tensor | None = None  # sums over this epoch: bound, rows
        self._validated: Tensor | None = None  # sums over the held-out data: ELBO, reconstruction, KL, IWAE, rows
        self._units: list[ActiveUnits] = []
        self._kl_per_latent: list[Tensor | None] = []
        self._finite: Tensor | None = None
        self._cosine: torch.optim.lr_scheduler.LambdaLR | None = None
        self.kl_per_latent: tuple[Tensor, ...] | None = None
        """Of the held-out data in nats, one tensor a level, after each validation; None without a closed form."""

    @property
    def bound_name(self) -> str:
        return "iwae" if isinstance(self.objective, IWAE) else "elbo"

    @property
    def monitor(self) -> str:
        """The metric of a validation to be raised."""
        return f"val_{self.bound_name}"

    def forward(self, x: Tensor, **options: Any) -> Any:
        return self.model(x, **options)

    # Training

    def on_fit_start(self) -> None:
        over_batch = (
            isinstance(self.objective, ELBO) and self.objective.free_bits and self.objective.free_bits_over == "batch"
        )
        if over_batch and self.trainer.world_size > 1:
            raise TrainingError(
                "free bits over the batch see the rows of one process only, and would depend on their number:"
                ' free_bits_over="sample", or one process'
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self._as_batch(batch)
        number = self.trainer.fit_loop.total_batch_idx
        x = self._pixels(batch, derived_seed(self.seed, "ink", number))
        step: dict[str, Any] = {"step": number} if self._takes_step else {}
        came = self.objective(
            self.model, x, seed=derived_seed(self.seed, "draw", number), row_offset=batch.first_row,
            batch_mean=functools.partial(self._batch_mean, batch), **self.condition_of(batch), **step,
        )  # fmt: skip
        loss = came.loss
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite
        bound = came.bound.detach()
        self._trained = self._added(self._trained, [bound[: batch.counted]])
        if logs_now(self.trainer):
            self._check_finite()
            shown = {self.bound_name: bound.mean()}
            if came.reconstruction is not None and came.kl is not None:
                shown |= {"reconstruction": came.reconstruction.detach().mean(), "kl": came.kl}
            self.log_dict(shown, prog_bar=True, batch_size=1)
        return loss

    def on_train_epoch_end(self) -> None:
        self._check_finite()
        assert self._trained is not None
        bound, rows = self._sum_over_processes(self._trained).tolist()
        self.log(f"train_{self.bound_name}", bound / rows, sync_dist=True)
        self._trained = None

    def configure_optimizers(self) -> Any:
        # Clipping looks at gradients between backward and the step, where the fused one has not yet unscaled them.
        fused = self.trainer.gradient_clip_val is None
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate, fused=fused)
        if self.schedule == "constant":
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        # Down to zero along a cosine: the last epochs average out the noise of the draws, worth several nats. A
        # function of the step alone, of which a checkpoint holds nothing: a longer run goes on along its own.
        self._cosine = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._cosine, "interval": "step"}}

    def on_train_start(self) -> None:
        """The learning rate is what it is set to, also where a checkpoint has brought back another one."""
        if type(self).configure_optimizers is not VAEModule.configure_optimizers:
            return
        rate = self.learning_rate
        if self._cosine is not None:
            self._cosine.base_lrs = [rate]
            rate *= self._cosine.lr_lambdas[0](self._cosine.last_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    # Validation

    def on_validation_epoch_start(self) -> None:
        self._validated = None
        self._units, self._kl_per_latent = [], []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = self._as_batch(batch)
        if not batch.counted:
            return
        x = self.held_out_pixels(batch)
        options = {"seed": derived_seed(self.seed, "held-out draw"), "row_offset": batch.first_row}
        options |= self.condition_of(batch)
        terms = self.model.terms(x, reduction="sample", per_coordinate=True, **options)
        values = [terms.reconstruction - terms.kl, terms.reconstruction, terms.kl]
        values.append(self._importance_weighted(x, options) if isinstance(self.objective, IWAE) else values[0])
        self._validated = self._added(self._validated, values)
        self._watch(x, batch, terms.kl_per_latent)

    def _importance_weighted(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        assert isinstance(self.objective, IWAE)
        return iwae_bound(self.model.log_weights(x, self.objective.num_samples, **options).log_weights)

    def _watch(self, x: Tensor, batch: Batch, kl_per_latent: Sequence[Tensor | None]) -> None:
        """Take in what the latents of these rows do."""
        came = self.model.encode(x, **self.condition_of(batch))
        levels = [came] if isinstance(came[0], Tensor) else list(came)
        if not self._units:
            self._units = [ActiveUnits() for _ in levels]
            self._kl_per_latent = [
                None if kl is None else torch.zeros(kl.shape, dtype=torch.float64) for kl in kl_per_latent
            ]
        for units, level in zip(self._units, levels, strict=True):
            units.update(level.mu.float().cpu())
        for total, kl in zip(self._kl_per_latent, kl_per_latent, strict=True):
            if total is not None and kl is not None:
                total += kl.double().cpu() * len(x)

    def on_validation_epoch_end(self) -> None:
        if self._validated is None:  # this process had no rows
            self._validated = self._added(None, [torch.zeros(0, device=self.device)] * 4)
        elbo, reconstruction, kl, bound, rows = self._sum_over_processes(self._validated).tolist()
        if rows == 0:
            return
        metrics = {"val_elbo": elbo / rows, "val_reconstruction": reconstruction / rows, "val_kl": kl / rows}
        metrics[self.monitor] = bound / rows
        self.log_dict(metrics, sync_dist=True)
        self._merge_levels(rows)
        if rows > 1:
            active = sum(int(units.compute().active.sum()) for units in self._units)
            self.log("active_units", float(active), prog_bar=True, sync_dist=True)

    # A test is a validation by another name

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def _merge_levels(self, rows: float) -> None:
        """What all processes have seen of the latents, the same on each."""
        if self.trainer.world_size > 1:
            everyones: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyones, (self._units, self._kl_per_latent))
            (self._units, self._kl_per_latent), *others = [one for one in everyones if one[0]]
            for units_of_levels, kls in others:
                for ours, theirs in zip(self._units, units_of_levels, strict=True):
                    ours.merge(theirs)
                for total, kl in zip(self._kl_per_latent, kls, strict=True):
                    if total is not None:
                        total += kl
        levels = [None if kl is None else (kl / rows).float() for kl in self._kl_per_latent]
        known = tuple(level for level in levels if level is not None)
        self.kl_per_latent = known if known and len(known) == len(levels) else None

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite()
        for name, weight in self.model.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                raise _not_finite(f"the weight {name}")
        if self._trained is not None:
            checkpoint["fastvae_trained"] = self._sum_over_processes(self._trained).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = checkpoint.get("fastvae_trained")
        if trained is not None:
            self._trained = trained * (self.global_rank == 0)

    # What all of these use

    def _as_batch(self, batch: Any) -> Batch:
        if isinstance(batch, Batch):
            return batch
        x, label, *_ = (batch, None) if isinstance(batch, Tensor) else (*batch, None)
        counts = [len(x)]
        if self.trainer.world_size > 1:
            gathered = self.all_gather(torch.tensor(len(x), device=x.device))
            assert isinstance(gathered, Tensor)
            counts = gathered.tolist()
        first = sum(counts[: self.global_rank])
        return Batch(x, label, first, sum(counts), len(x))

    def condition_of(self, batch: Batch) -> dict[str, Any]:
        """What the model's methods are given beside x: ``condition``, or nothing."""
        if not isinstance(self.model, ConditionalVAE):
            return {}
        if batch.condition is None:
            raise TrainingError("the data have no labels, which a conditional model needs: train a model without")
        return {"condition": batch.condition}

    def held_out_pixels(self, batch: Batch) -> Tensor:
        """The x of a validation, the same each time."""
        return self._pixels(batch, derived_seed(self.seed, "held-out ink"))

    def _pixels(self, batch: Batch, seed: int) -> Tensor:
        """What the model is shown: ink or paper, drawn with the grey level as the probability of ink."""
        if not self.binarize:
            return batch.x
        x = batch.x
        uniform = torch.special.ndtr(noise(seed, x.shape, row_offset=batch.first_row, device=x.device))
        return (uniform < x).to(x.dtype)

    def _batch_mean(self, batch: Batch, values: Tensor) -> Tensor:
        """The mean over the rows of the whole batch, on every process; with its gradient."""
        total = values[: batch.counted].sum() if batch.counted else 0.0 * values.sum()
        if self.trainer.world_size > 1:
            total = _SumOverProcesses.apply(total)
        return total / batch.batch_rows

    def _added(self, sums: Tensor | None, columns: Sequence[Tensor]) -> Tensor:
        """The sums with those of these columns, and with their length at the end."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        rows = torch.tensor(float(len(columns[0])), dtype=dtype, device=self.device)
        added = torch.stack([*(column.detach().to(dtype).sum() for column in columns), rows])
        return added if sums is None else sums.to(self.device) + added

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def _check_finite(self) -> None:
        if self._finite is not None and not bool(self._finite):
            raise _not_finite("the loss")


class _SumOverProcesses(torch.autograd.Function):
    """The same sum on every process. Backward sums what reaches each one's copy of it, and as gradients of weights are
    averaged over the processes afterwards, the two together are the gradient of one copy."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        torch.distributed.all_reduce(total)
        return total


def check_seed(seed: int) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed is a {type(seed).__name__}, expected an int")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, expected from 0 to 2**64 - 1")
    return seed


def _not_finite(what: str) -> TrainingError:
    return TrainingError(
        f"{what} is no longer a finite number; the last checkpoint is from before.\n"
        "Try a lower --learning-rate, or --trainer.gradient_clip_val 1; and see that the data suit the likelihood."
    )
