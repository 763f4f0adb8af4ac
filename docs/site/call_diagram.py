"""Draws docs/pictures/call.svg, the way of a call of `fastvae.sample_and_kl`: python docs/site/call_diagram.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parents[1] / "pictures" / "call.svg"
WIDTH, GAP, LINE = 440, 22, 17
PYTHON, TORCH, MACHINE = "#e8eefc", "#fdf1dc", "#e6f4e6"


class Box(NamedTuple):
    name: str
    file: str
    about: tuple[str, ...]
    color: str = PYTHON

    @property
    def height(self) -> int:
        return LINE * (2 + len(self.about)) + 12


ROWS = (
    (
        Box(
            "fastvae.sample_and_kl(mu, logvar, ...)",
            "fastvae/functional.py",
            ("checks the tensors; alike ones at a glance",),
        ),
    ),
    (
        Box(
            "described_latent(options)",
            "fastvae/latent_options.py",
            ("keywords -> LatentSpec, LatentScalars; remembered",),
        ),
    ),
    (Box("seed_tensor", "fastvae/checks.py", ("8 bytes from torch's generator, on the device",)),),
    (Box("run_latent -> Latent.apply", "fastvae/autograd.py", ("saves mu, logvar and the seed for backward",)),),
    (
        Box("the kernels directly", "fastvae/fast_path.py", ("plain tensors,", "nothing observes")),
        Box("ops.fastvae.latent", "fastvae/ops.py", ("compilers, tracers,", "modes, subclasses"), TORCH),
    ),
    (Box("implementation", "kernels/backend.py", ("the best backend for device and dtype, or as asked",)),),
    (
        Box(
            "cpu",
            "kernels/cpu/",
            ("__init__.py: structs", "run.h: tiles, threads", "standard_prior.h", "AVX, NEON"),
            MACHINE,
        ),
        Box("triton", "kernels/triton/", ("latent_launch.py", "latent_forward_", "kernel.py", "PTX, AMDGCN"), MACHINE),
        Box(
            "reference",
            "kernels/reference/",
            ("latents.py", "philox.py", "PyTorch's operators", "float64, too"),
            MACHINE,
        ),
    ),
    (Box("z and KL", "", ("Philox, Box-Muller, z and KL in one pass over memory",), MACHINE),),
)


def drawn() -> str:
    """The picture as SVG."""
    top, shapes = GAP / 2, []
    middles: list[float] = []
    for row in ROWS:
        height = max(box.height for box in row) - (LINE if not row[0].file else 0)
        width = (WIDTH - GAP / 2 * (len(row) + 1)) / len(row)
        lefts = [GAP / 2 + i * (width + GAP / 2) for i in range(len(row))]
        here = [left + width / 2 for left in lefts]
        for start in middles:
            for end in here:
                if len(middles) == 1 or len(here) == 1:
                    shapes.append(f'<path d="M{start:g} {top - GAP:g}L{end:g} {top - 2:g}" marker-end="url(#arrow)"/>')
        for left, box in zip(lefts, row, strict=True):
            shapes += _box(box, left, top, width, height)
        middles, top = here, top + height + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - GAP / 2:g}" width="{WIDTH}" role="img">'
        "<title>The way of a call of fastvae.sample_and_kl</title>"
        "<style>text{font:13px sans-serif;fill:#222;text-anchor:middle}.name{font-weight:bold}"
        ".file{font-family:monospace;font-size:12px;fill:#555}path{stroke:#666;stroke-width:1.4}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs><rect width="100%" height="100%" fill="white" rx="6"/>'
    )
    return "\n".join([head, *shapes, "</svg>\n"])


def _box(box: Box, left: float, top: float, width: float, height: float) -> Iterator[str]:
    place = f'x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"'
    yield f'<rect {place} rx="5" fill="{box.color}" stroke="#999"/>'
    texts = [("name", box.name), ("file", box.file), *(("about", line) for line in box.about)]
    for i, (kind, text) in enumerate((kind, text) for kind, text in texts if text):
        yield f'<text class="{kind}" x="{left + width / 2:g}" y="{top + LINE * (i + 1) + 3:g}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn())
