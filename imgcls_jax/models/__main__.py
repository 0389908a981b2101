"""Lists the models: parameters, multiply-accumulates at the native size, published accuracy and where it is published.

python -m imgcls_jax.models [PATTERN...] [--markdown]        for example: python -m imgcls_jax.models 'resnet*' 'vit_*'
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from absl import flags

from imgcls_jax import cli
from imgcls_jax.types import UserError, nearest

HEADINGS = ("name", "parameters", "GMACs", "size", "top-1", "published in", "equal to")
ALIGNED_RIGHT = ("parameters", "GMACs", "size", "top-1")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("markdown", False, "print a Markdown table, as README.md has it", flag_values=values)
    patterns = cli.parse(values, ["models", *argv]) or ["*"]
    from imgcls_jax.models import MODELS

    names = [name for name in MODELS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        raise UserError(f"No model is called {' or '.join(patterns)}{nearest(patterns[0], MODELS)}.")
    widths = [max(len(h), *(len(name) for name in names)) if h == "name" else max(len(h), 12) for h in HEADINGS]
    if values.markdown:
        print("| " + " | ".join(HEADINGS) + " |")
        print("| " + " | ".join("---:" if h in ALIGNED_RIGHT else "---" for h in HEADINGS) + " |")
    else:
        print(_padded(HEADINGS, widths))
    for name in names:
        cells = row(name)
        print("| " + " | ".join(cells) + " |" if values.markdown else _padded(cells, widths), flush=True)
    return 0


def row(name: str) -> tuple[str, ...]:
    """The cells of one model, as HEADINGS has them."""
    from imgcls_jax.models import build, cost, variant

    v = variant(name)
    size = v.preprocessing.image_size
    parameters, macs = cost.count(build(name, num_classes=v.num_classes), (size, size, v.channels))
    top1 = "" if v.top1 is None else f"{100 * v.top1:.2f}"
    return name, f"{parameters:,}", f"{macs / 1e9:.3g}", str(size), top1, v.source, v.reference


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(HEADINGS, cells, widths, strict=True)
    return "  ".join(c.rjust(w) if h in ALIGNED_RIGHT else c.ljust(w) for h, c, w in pairs).rstrip()


if __name__ == "__main__":
    cli.program(main)
