"""Which launches are executed: every op in both dtypes, over shapes and layouts that compile or run differently."""

from __future__ import annotations

from typing import NamedTuple

from fastvae.kernels.latent_spec import LatentScalars, LatentSpec


class Latent(NamedTuple):
    """What a latent op is. Backward it wants all gradients that it can have."""

    spec: LatentSpec = LatentSpec()
    scalars: LatentScalars = LatentScalars()
    prior: str | None = None  # "full", "shared" or "one"


PLAIN = {
    "sample_and_kl": Latent(),
    "reparameterize": Latent(LatentSpec(reduction=None)),
    "gaussian_kl": Latent(LatentSpec(sample=False)),
}
OPS = ("noise", *PLAIN, *(f"{name}_backward" for name in PLAIN))
OTHERS = {
    "full prior": Latent(LatentSpec(log_probs=True), prior="full"),
    "shared prior": Latent(LatentSpec(per_coordinate=True), prior="shared"),
    "one prior": Latent(LatentSpec(log_probs=True), LatentScalars(num_samples=2), "one"),
    "std": Latent(LatentSpec("std"), LatentScalars(temperature=0.5)),
    "std with prior": Latent(LatentSpec("std"), prior="shared"),
    "var with prior": Latent(LatentSpec("var"), prior="full"),
    "softplus": Latent(LatentSpec("softplus"), LatentScalars(floor=0.01)),
    "free bits": Latent(
        LatentSpec("logstd", free_bits="coordinate", per_coordinate=True), LatentScalars(free_bits=0.2)
    ),
    "hard clamp": Latent(LatentSpec(clamp="hard"), LatentScalars(low=-0.4, high=0.3), "one"),
    "soft clamp": Latent(LatentSpec(clamp="soft", log_probs=True), LatentScalars(num_samples=3, high=1.5)),
    "residual": Latent(LatentSpec("logstd", "soft", True), LatentScalars(high=2.0, temperature=1.5), "shared"),
}
LATENTS = PLAIN | OTHERS
LATENT_OPS = (*OTHERS, *(f"{name}_backward" for name in OTHERS))


def latent_of(op: str) -> Latent:
    return LATENTS[op.removesuffix("_backward")]


DTYPES = ("float32", "bfloat16")
TARGETS = ("sm_80", "sm_90", "sm_100")


class Case(NamedTuple):
    """One call of an op. ``layout`` is of its inputs; ``large``: shared out as if there were work for many GPUs."""

    op: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    reduction: str = "sample"
    row_offset: int = 0
    large: bool = False

    def __str__(self) -> str:
        parts = [self.op, self.dtype, "x".join(map(str, self.shape))]
        parts += [self.layout] * (self.layout != "contiguous") + [self.reduction] * (self.reduction != "sample")
        parts += [f"rows from {self.row_offset}"] * (self.row_offset != 0) + ["large"] * self.large
        return ", ".join(parts)


# Layout, shape, and whether it is shared out as a large tensor is: in whole tiles, a program a row.
LAYOUTS = (
    ("contiguous", (7, 10), False),
    ("contiguous", (2, 1030), False),
    ("contiguous", (8, 64), False),
    ("contiguous", (130, 3), False),
    ("halves", (2, 4, 4, 4), False),  # of a packed tensor, channels_last
    ("contiguous", (1, 9000), True),  # several tiles a program, the last one in part
    ("contiguous", (1, 5000), False),  # several programs a row
    ("contiguous", (2, 1024), False),
    ("contiguous", (2, 6144), True),  # several whole tiles a program
    ("contiguous", (700, 3), True),
    ("contiguous", (3, 33), False),
    ("contiguous", (5, 1), False),
    ("halves", (3, 32), False),
    ("halves", (3, 4, 16, 16), True),
    ("unaligned", (2, 64), False),
    ("transposed", (2, 4, 6), False),
    ("expanded", (4, 24), False),  # the gradients, of stride 0
)


# Of these one is shared out so that two rows have one row of a shared prior; another in columns of several programs.
LATENT_LAYOUTS = (
    ("contiguous", (7, 10), False),
    ("contiguous", (4, 1024), True),
    ("halves", (2, 4, 4, 4), False),
    ("contiguous", (40, 33), False),
    ("contiguous", (2, 1030), False),
    ("expanded", (4, 24), False),
    ("transposed", (2, 4, 6), False),
)


def _sensible(case: Case) -> bool:
    if case.op == "noise" and case.layout != "contiguous":
        return False
    return case.layout != "expanded" or case.op.endswith("_backward")


def every_case(ops: tuple[str, ...] = OPS, layouts: tuple = LAYOUTS) -> list[Case]:
    """Each op and dtype over ``layouts``, every reduction over ragged rows, row offsets past 2^32."""
    found = [
        Case(op, dtype, layout, shape, large=large)
        for dtype in DTYPES
        for op in ops
        for layout, shape, large in layouts
    ]
    for dtype in DTYPES:
        for op in ops:
            if "kl" in op:
                found += [
                    Case(op, dtype, "contiguous", (7, 10), reduction) for reduction in ("none", "sum", "batchmean")
                ]
                found.append(Case(op, dtype, "contiguous", (1, 10), "batchmean"))  # 1 is a constant to the compiler
            if not op.startswith("gaussian_kl"):
                found.append(Case(op, dtype, "contiguous", (7, 10), row_offset=2**32 - 3))
    return [case for case in found if _sensible(case)]


def latent_cases(layouts: tuple = LATENT_LAYOUTS) -> list[Case]:
    """The family of latents in both dtypes over ``layouts``, and other reductions over ragged rows."""
    found = [
        Case(op, dtype, layout, shape, large=large)
        for dtype in DTYPES
        for op in LATENT_OPS
        for layout, shape, large in layouts
    ]
    found += [
        Case(op, "float32", "contiguous", (7, 10), reduction)
        for op in ("full prior", "full prior_backward", "free bits", "free bits_backward")
        for reduction in ("none", "batchmean")
    ]
    return [case for case in found if _sensible(case)]


# Those with code of their own for a dtype or a target: tiles of one element, sums over the batch, draws.
DIFFERING = ("one prior", "free bits", "soft clamp", "shared prior_backward", "residual_backward")


def default_latent_cases(target: str) -> list[Case]:
    """What every run of the tests executes; the rest is for the slow ones."""
    ragged = latent_cases(LATENT_LAYOUTS[:1])
    if target == "sm_80":
        return []
    if target == "sm_100":
        return [case for case in ragged if case.op in DIFFERING]
    wide = [case for case in latent_cases(LATENT_LAYOUTS[1:2]) if case.large and case.dtype == "float32"]
    return [
        *(case for case in ragged if case.dtype == "float32" or case.op in DIFFERING),
        *(case for case in wide if case.op in ("std with prior", "residual_backward")),
    ]


def default_cases(target: str) -> list[Case]:
    """What every run of the tests executes; the rest is for the slow ones."""
    both = ("sample_and_kl", "sample_and_kl_backward")
    if target == "sm_90":
        return _dtypes_by_turns(list(dict.fromkeys([*every_case(both), *every_case(layouts=LAYOUTS[:6])])))
    few = every_case(layouts=LAYOUTS[:2]) + every_case(both, LAYOUTS[4:6])
    return _dtypes_by_turns(
        [case for case in dict.fromkeys(few) if case.reduction == "sample" and case.row_offset == 0]
    )


def _dtypes_by_turns(cases: list[Case]) -> list[Case]:
    """Each op and layout in one of the dtypes; ragged rows, which are the first layout, in both."""
    layouts = list(dict.fromkeys(case._replace(op="", dtype="") for case in cases))
    chosen = []
    for case in cases:
        turn = layouts.index(case._replace(op="", dtype=""))
        if turn == 0 or (turn + OPS.index(case.op) + DTYPES.index(case.dtype)) % 2 == 0:
            chosen.append(case)
    return chosen
