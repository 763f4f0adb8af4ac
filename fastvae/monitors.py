"""Which latents are used: active units, the KL of each latent, posterior collapse, and plots of them.

For measuring a model between or after training steps, without gradients. Functions that return or print Python values
synchronise the device; the others do not. Invalid arguments raise TypeError or ValueError; the message names the
argument.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .checks import check_number, check_tensor, seed_tensor
from .draw_options import Generator, Seed
from .wrapped_models import model_method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ActiveUnits", "Activity", "PosteriorCollapseWarning", "kl_per_latent", "plot_active_units", "plot_kl_per_latent",
    "posterior_collapse",
]  # fmt: skip


class Activity(NamedTuple):
    """How much the posterior mean of each latent varies over the data; tensors of the shape of one z."""

    variance: Tensor
    """Var_x(E_q[z_d]), float64."""
    active: Tensor
    """Whether the variance is above the threshold, bool."""


class ActiveUnits:
    """Counts the latents whose posterior mean depends on x: Var_x(E_q[z_d]) > 0.01 (Burda et al., arXiv 1509.00519).

    A running variance (Chan, Golub & LeVeque, 1983) in float64, updated without synchronising the device.

    Args:
        threshold: a latent is active if its variance is above it; 0 or more.

    >>> import torch
    >>> from fastvae.monitors import ActiveUnits
    >>> units = ActiveUnits()
    >>> for mu in torch.tensor([[[-1.0, 0.5], [1.0, 0.5]], [[-2.0, 0.5], [2.0, 0.6]]]):
    ...     units.update(mu)
    >>> units.compute().active
    tensor([ True, False])
    """

    def __init__(self, threshold: float = 0.01) -> None:
        self.threshold = check_number("threshold", threshold, 0.0)
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None  # sum over the data of (E_q[z] - mean)^2

    def update(self, mu: Tensor) -> None:
        """Add the posterior means of a batch, (B, *latent_shape)."""
        check_tensor("mu", mu)
        if len(mu) == 0:
            return
        self._check_shape("mu", mu.shape[1:])
        mu = mu.detach().double()
        mean = mu.mean(0)
        self._merge(len(mu), mean, (mu - mean).square().sum(0))

    def merge(self, other: ActiveUnits) -> None:
        """Add the data of another ActiveUnits: of another process, or of another part of the data."""
        if not isinstance(other, ActiveUnits):
            raise TypeError(f"other is a {type(other).__name__}, expected ActiveUnits")
        if other._mean is not None and other._squares is not None:
            self._check_shape("other", other._mean.shape)
            self._merge(other.count, other._mean, other._squares)

    def compute(self) -> Activity:
        """The (unbiased) variance over the data so far, and whether it is above the threshold.

        Raises:
            RuntimeError: fewer than two samples have been seen.
        """
        if self._squares is None or self.count < 2:
            raise RuntimeError(f"{self.count} samples have been seen, expected 2 or more for a variance")
        variance = self._squares / (self.count - 1)
        return Activity(variance, variance > self.threshold)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = count, mean, squares
            return
        total = self.count + count
        difference = mean.to(self._mean.device) - self._mean
        self._squares = (
            self._squares + squares.to(self._mean.device) + difference.square() * (self.count * count / total)
        )
        self._mean = self._mean + difference * (count / total)
        self.count = total

    def _check_shape(self, name: str, shape: torch.Size) -> None:
        if self._mean is not None and shape != self._mean.shape:
            raise ValueError(
                f"{name} has latents of shape {tuple(shape)}, expected {tuple(self._mean.shape)} as before"
            )


@torch.no_grad()
def kl_per_latent(
    model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], *, seed: Seed = None, generator: Generator = None
) -> tuple[Tensor, ...]:
    """The KL of each latent in nats, averaged over the data; for each level of latents one tensor of its z's shape.

    Args:
        model: with the method ``terms`` of `fastvae.nn.VAE`, and priors whose KL has a closed form.
        batches: tensors x (B, *event), or pairs (x, condition) for a conditional model. For an unconditional model and
            a loader with labels, pass ``(x for x, _ in loader)``.
        seed, generator: as for `fastvae.sample_and_kl`; rows are numbered in the order of the data. The KL depends on
            them only in hierarchical models.

    Raises:
        TypeError, ValueError: an argument is invalid, there are no data, or a prior has no closed form.

    >>> import torch
    >>> from fastvae.likelihoods import Bernoulli
    >>> from fastvae.monitors import kl_per_latent, posterior_collapse
    >>> from fastvae.nn import VAE, MLPDecoder, MLPEncoder
    >>> vae = VAE(MLPEncoder(784, 400, 20), MLPDecoder(20, 400, 784), Bernoulli())
    >>> (kl,) = kl_per_latent(vae, [torch.rand(8, 784).round(), torch.rand(4, 784).round()])
    >>> kl.shape
    torch.Size([20])
    """
    terms = model_method(model, "terms")
    rows = 0
    sums: list[Tensor] = []
    seeded: Tensor | None = None
    for batch in batches:
        if not isinstance(batch, (Tensor, tuple, list)):
            raise TypeError(f"batches yielded a {type(batch).__name__}, expected tensors x or pairs (x, condition)")
        x, *rest = (batch,) if isinstance(batch, Tensor) else batch
        if len(rest) > 1:
            raise ValueError(f"batches yielded {1 + len(rest)} values at once, expected x or the pair (x, condition)")
        if seeded is None:
            seeded = seed_tensor(seed, generator, x.device)
        condition = {"condition": rest[0]} if rest else {}
        of_levels = terms(x, seed=seeded, row_offset=rows, per_coordinate=True, **condition).kl_per_latent
        if of_levels is None or any(level is None for level in of_levels):
            raise ValueError("model has a prior without a closed form of the KL, expected one with it")
        of_batch = [level.double() * len(x) for level in of_levels]
        sums = [one + other for one, other in zip(sums, of_batch, strict=True)] if sums else of_batch
        rows += len(x)
    if not rows:
        raise ValueError("batches yielded no data, expected one sample or more")
    return tuple((level / rows).float() for level in sums)


class PosteriorCollapseWarning(UserWarning):
    """Some latents do not depend on x: their posterior equals the prior."""


def posterior_collapse(kl_per_latent: Tensor | Sequence[Tensor], threshold: float = 0.01) -> list[tuple[int, ...]]:
    """The latents whose KL, averaged over the data, is below a threshold or NaN; warns if there are any.

    (Bowman et al., arXiv 1511.06349; He et al., arXiv 1901.05534.) Synchronises the device.

    Args:
        kl_per_latent: in nats, of the shape of one z; or one such tensor for each level of latents, as `kl_per_latent`
            returns them.
        threshold: in nats, 0 or more.

    Returns:
        Indices (level, *index of the latent); the level of a single tensor is 0.

    Warns:
        PosteriorCollapseWarning: the number of collapsed latents, and the first few of them; also how many are NaN.

    >>> import torch, warnings
    >>> from fastvae.monitors import posterior_collapse
    >>> with warnings.catch_warnings(record=True):
    ...     posterior_collapse(torch.tensor([1.2, 0.001, 0.8]))
    [(0, 1)]
    """
    threshold = check_number("threshold", threshold, 0.0)
    levels = _levels(kl_per_latent)
    collapsed = [
        (number, *index) for number, level in enumerate(levels) for index in (~(level >= threshold)).nonzero().tolist()
    ]
    if collapsed:
        total = sum(level.numel() for level in levels)
        invalid = sum(int(level.isnan().sum()) for level in levels)
        shown = ", ".join(map(str, collapsed[:_SHOWN])) + (", ..." if len(collapsed) > _SHOWN else "")
        warnings.warn(
            f"posterior collapse: the KL of {len(collapsed)} of {total} latents is below {threshold:g} nats"
            f"{f' or NaN ({invalid} are NaN)' if invalid else ''}; (level, *index): {shown}",
            PosteriorCollapseWarning,
            stacklevel=2,
        )
    return collapsed


_SHOWN = 8


def plot_kl_per_latent(kl_per_latent: Tensor | Sequence[Tensor], threshold: float = 0.01) -> Figure:
    """The KL of each latent as bars, largest first, one panel for each level of latents.

    Args:
        kl_per_latent, threshold: as for `posterior_collapse`; latents below the threshold are grey.

    Returns:
        A matplotlib Figure: ``figure.savefig("kl.png")``, or ``writer.add_figure("kl", figure)`` in TensorBoard.

    Raises:
        ImportError: matplotlib is not installed.

    >>> import torch
    >>> from fastvae.monitors import plot_kl_per_latent
    >>> len(plot_kl_per_latent([torch.tensor([1.2, 0.001]), torch.tensor([0.5])]).axes)
    2
    """
    levels = _levels(kl_per_latent)
    titles = ["KL per latent"] if len(levels) == 1 else [f"KL per latent, level {i}" for i in range(len(levels))]
    return _bars(levels, check_number("threshold", threshold, 0.0), titles, "nats")


def plot_active_units(activity: Activity, threshold: float = 0.01) -> Figure:
    """Var_x(E_q[z_d]) of each latent as bars, largest first, inactive ones grey; otherwise as `plot_kl_per_latent`.

    Args:
        activity: the result of `ActiveUnits.compute`.
        threshold: the one of that ActiveUnits.

    >>> import torch
    >>> from fastvae.monitors import ActiveUnits, plot_active_units
    >>> units = ActiveUnits()
    >>> units.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    >>> plot_active_units(units.compute()).axes[0].get_title()
    '1 of 2 latents are active'
    """
    if not isinstance(activity, Activity):
        raise TypeError(f"activity is a {type(activity).__name__}, expected the result of ActiveUnits.compute")
    title = f"{int(activity.active.sum())} of {activity.active.numel()} latents are active"
    threshold = check_number("threshold", threshold, 0.0)
    return _bars([activity.variance], threshold, [title], "variance of the posterior mean over the data")


def _bars(levels: Sequence[Tensor], threshold: float, titles: Sequence[str], label: str) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(4.8, 2.8 * len(levels)), layout="constrained")  # legible at 400 pixels, on a phone
    panels = figure.subplots(len(levels), 1, squeeze=False)[:, 0]
    for axis, level, title in zip(panels, levels, titles, strict=True):
        values = level.detach().double().flatten().sort(descending=True).values.tolist()
        colors = [_ABOVE if value > threshold else _BELOW for value in values]
        axis.bar(range(len(values)), values, color=colors, width=0.9)
        axis.axhline(threshold, color="black", linewidth=0.8, linestyle="--", label=f"{threshold:g}")
        axis.set_title(title)
        axis.set_xlabel("latents, largest first")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel(label)
        axis.legend(frameon=False, title="threshold")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


_ABOVE, _BELOW = "#4c72b0", "#b0b0b0"


def _levels(kl_per_latent: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    if not isinstance(kl_per_latent, (Tensor, tuple, list)):
        raise TypeError(f"kl_per_latent is a {type(kl_per_latent).__name__}, expected a tensor, or one for each level")
    levels = [kl_per_latent] if isinstance(kl_per_latent, Tensor) else list(kl_per_latent)
    for level in levels:
        if not isinstance(level, Tensor):
            raise TypeError(f"kl_per_latent holds a {type(level).__name__}, expected tensors, one for each level")
    if not levels:
        raise ValueError("kl_per_latent is empty, expected one tensor or more")
    return levels
