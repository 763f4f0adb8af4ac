"""`VAEModule`: a LightningModule of a model of `fastvae.nn`, its objective, its optimizer and its noise."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed
from torch import Tensor

from ..checks import check_flag, check_number
from ..functional import noise
from ..likelihoods import MissingAsNaN
from ..monitors import ActiveUnits
from ..nn import ConditionalVAE
from ..nn.model import LatentVariableModel
from ..objectives import ELBO, IWAE, ObjectiveOutput, iwae_bound
from ..size_checks import check_count
from .augment import mirrored, moved, turned
from .batches import Batch, derived_seed
from .errors import TrainingError
from .lightning import LightningModule, logs_now
from .optimizer import LEAST_LOG_SCALE, LearningRateFactor, learned_scale, parameter_groups, steps_of_run

__all__ = ["SCHEDULES", "VAEModule", "check_seed"]

Schedule = Literal["cosine", "constant"]
SCHEDULES = get_args(Schedule)


class VAEModule(LightningModule):
    """A VAE for Lightning's Trainer.

    Args:
        model: one of `fastvae.nn`.
        objective: `fastvae.objectives.ELBO` or `IWAE`, or a function that is called like them; the ELBO if None. Its
            schedules are called with the number of the batch.
        learning_rate: of Adam.
        schedule: "cosine", down to zero over the whole run, or "constant". Where the length of the run is not known (a
            loader without length and no ``max_steps``, or ``max_epochs=-1``), both are constant.
        warmup_steps: the learning rate rises linearly during so many first steps.
        binarize: x are grey levels in [0, 1], probabilities of a white pixel: draw black or white from them, anew each
            time in training, the same each time in validation.
        flip: mirror each image (C, H, W) left to right with probability 1/2 in training.
        rotate: turn each image, which has to be square, by 0, 90, 180 or 270 degrees in training, drawn anew each time.
        shift: move each image (C, H, W) in training by up to so many pixels up or down and left or right, drawn
            anew each time; the border pixels are repeated.
        seed: of all random numbers, from 0 to 2^64 - 1.

    Batches come from `VAEDataModule`, or from any loader of tensors x (B, *event) or pairs (x, label); the label is the
    condition of a `ConditionalVAE` and is ignored otherwise. Row b of the global batch, that of all processes together,
    uses row b of the noise: a run is the same on any number of devices up to rounding. With loaders of your own this
    holds if rank 0 gets the first rows of the global batch, rank 1 the next ones, and so on.

    Logged: ``train_elbo``, ``val_elbo``, ``val_reconstruction`` and ``val_kl`` (nats, means over the data),
    ``active_units``; under IWAE also ``train_iwae`` and ``val_iwae``. ``monitor`` names the one that checkpoints are
    compared by.

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
        schedule: Schedule = "cosine",
        warmup_steps: int = 0,
        binarize: bool = False,
        flip: bool = False,
        rotate: bool = False,
        shift: int = 0,
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
        self.warmup_steps = check_count("warmup_steps", warmup_steps, 0)
        self.binarize = check_flag("binarize", binarize)
        self.flip = check_flag("flip", flip)
        self.rotate = check_flag("rotate", rotate)
        self.shift = check_count("shift", shift, 0)
        self.seed = int(check_seed(seed))
        self._takes_step = "step" in inspect.signature(objective).parameters
        self._trained: Tensor | None = None  # sums over this epoch: bound, rows
        self._validated: Tensor | None = None  # sums over the held-out data: ELBO, reconstruction, KL, IWAE, rows
        self._units: list[ActiveUnits] = []
        self._kl_per_latent: list[Tensor | None] = []
        self._finite: Tensor | None = None
        self._factor: torch.optim.lr_scheduler.LambdaLR | None = None  # of the learning rate
        self.kl_per_latent: tuple[Tensor, ...] | None = None
        """Of the held-out data in nats, one tensor a level, after each validation; None without a closed form."""

    @property
    def bound_name(self) -> str:
        return "iwae" if isinstance(self.objective, IWAE) else "elbo"

    @property
    def monitor(self) -> str:
        """The validation metric that is to become as large as possible."""
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
                "free bits over the batch use the rows of one process only, so the loss would depend on their number:"
                ' free_bits_over="sample", or one process'
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self._as_batch(batch)
        number = self.trainer.fit_loop.total_batch_idx
        x = self._augmented(self._pixels(batch, derived_seed(self.seed, "ink", number)), batch, number)
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
        groups = parameter_groups(self.model, self.learning_rate)
        # Lightning refuses to clip the gradients of a fused optimizer under mixed precision.
        fused = not self.trainer.gradient_clip_val or "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.Adam(groups, lr=self.learning_rate, fused=fused)
        # The cosine ends at zero: the last epochs average out the noise of the draws, worth several nats.
        steps = steps_of_run(self.trainer) if self.schedule == "cosine" else None
        if steps is None and not self.warmup_steps:
            return optimizer
        # A function of the step alone, with no state to restore: a resumed run of another length follows its own curve.
        self._factor = torch.optim.lr_scheduler.LambdaLR(optimizer, LearningRateFactor(self.warmup_steps, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._factor, "interval": "step"}}

    def on_train_start(self) -> None:
        """Use the learning rate that was given, also where a checkpoint has restored another one."""
        if type(self).configure_optimizers is not VAEModule.configure_optimizers:
            return
        groups = self.trainer.optimizers[0].param_groups
        factor = 1.0
        if self._factor is not None:
            self._factor.base_lrs = [group["rate"] * self.learning_rate for group in groups]
            factor = self._factor.lr_lambdas[0](self._factor.last_epoch)
        for group in groups:
            group["lr"] = group["rate"] * self.learning_rate * factor

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        scale = learned_scale(self.model)
        if scale is not None:
            with torch.no_grad():
                scale.clamp_(min=LEAST_LOG_SCALE)

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
        """Add these rows to the monitors of the latents."""
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

    # Trainer.test measures the same as a validation

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def _merge_levels(self, rows: float) -> None:
        """The monitors of all processes merged; the same result on each process."""
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
                raise self._not_finite(f"the weight {name}")
        if self._trained is not None:
            checkpoint["fastvae_trained"] = self._sum_over_processes(self._trained).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = checkpoint.get("fastvae_trained")
        if trained is not None:
            self._trained = trained * (self.global_rank == 0)

    # Shared helpers

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
        """Keyword arguments of the model's methods beside x: ``condition``, or none."""
        if not isinstance(self.model, ConditionalVAE):
            return {}
        if batch.condition is None:
            raise TrainingError("the data have no labels, which a conditional model needs: train a model without")
        return {"condition": batch.condition}

    def held_out_pixels(self, batch: Batch) -> Tensor:
        """x as validation uses it: the same black and white pixels each time under ``binarize``."""
        return self._pixels(batch, derived_seed(self.seed, "held-out ink"))

    def _pixels(self, batch: Batch, seed: int) -> Tensor:
        """x, or under ``binarize`` zeros and ones drawn with x as the probability of 1."""
        if not self.binarize:
            return batch.x
        x = batch.x
        uniform = torch.special.ndtr(noise(seed, x.shape, row_offset=batch.first_row, device=x.device))
        drawn = (uniform < x).to(x.dtype)
        # NaN stands for a missing value, and no number is smaller than it.
        return torch.where(torch.isnan(x), x, drawn) if isinstance(self.model.likelihood, MissingAsNaN) else drawn

    def _augmented(self, x: Tensor, batch: Batch, number: int) -> Tensor:
        """x, mirrored, turned and moved at random as the options say."""
        if self.flip:
            x = mirrored(x, *self._uniform("flip", batch, number, 1))
        if self.rotate:
            x = turned(x, *self._uniform("rotate", batch, number, 1))
        if self.shift:
            down, right = self._uniform("shift", batch, number, 2)
            x = moved(x, down, right, self.shift)
        return x

    def _uniform(self, purpose: str, batch: Batch, number: int, count: int) -> tuple[Tensor, ...]:
        """``count`` tensors (b,) of numbers between 0 and 1 for the rows of a batch."""
        seed = derived_seed(self.seed, purpose, number)
        normal = noise(seed, (len(batch.x), count), row_offset=batch.first_row, device=batch.x.device)
        return torch.special.ndtr(normal).unbind(1)

    def _batch_mean(self, batch: Batch, values: Tensor) -> Tensor:
        """The mean over the rows of the whole batch, on every process; with its gradient."""
        total = values[: batch.counted].sum() if batch.counted else 0.0 * values.sum()
        if self.trainer.world_size > 1:
            total = _SumOverProcesses.apply(total)
        return total / batch.batch_rows

    def _added(self, sums: Tensor | None, columns: Sequence[Tensor]) -> Tensor:
        """The running sums plus the sum of each column; the last entry counts rows."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        rows = torch.tensor(float(len(columns[0])), dtype=dtype, device=self.device)
        added = torch.stack([*(column.detach().to(dtype).sum() for column in columns), rows])
        return added if sums is None else sums.to(self.device) + added

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def _check_finite(self) -> None:
        if self._finite is not None and not bool(self._finite):
            raise self._not_finite("the loss")

    def _not_finite(self, what: str) -> TrainingError:
        hint = "Try a lower --learning-rate, and check that the data suit the likelihood."
        if self.trainer.precision == "16-true":
            hint = "In float16 small gradients and Adam's epsilon are 0: --precision bf16-true, or 16-mixed on a GPU."
        return TrainingError(f"{what} is no longer a finite number; the last checkpoint is from before.\n{hint}")


class _SumOverProcesses(torch.autograd.Function):
    """All-reduced sum. Backward all-reduces the gradient too: DDP averages weight gradients over the processes, which
    cancels the factor, so that the result is the gradient of one copy of the sum."""

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
