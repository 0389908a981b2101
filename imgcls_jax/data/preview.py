"""Writes one picture of the first training batch as the model sees it, beside the records as they are stored:

    python -m imgcls_jax.data.preview --config=configs/vit.py[:DATA] [--workdir=W] [--config.KEY=VALUE ...]

The picture is W/preview.png: pairs of a record and what augmentation makes of it, with the labels (mixed ones as
shares), and how many records each class has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imgcls_jax import atomic, cli
from imgcls_jax.data import decode
from imgcls_jax.data.sources import Source
from imgcls_jax.types import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from imgcls_jax.build import Run

PAIRS = 24
COLUMNS = 4  # pairs beside each other
NAMED_CLASSES = 40  # with more, the histogram has no room for names


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    config, workdir = cli.train_flags(argv, __doc__ or "")

    from imgcls_jax import platform

    platform.initialize()
    from imgcls_jax import build

    path = workdir / "preview.png"
    write(build.build(config), path)
    print(f"Wrote {path}.")
    return 0


@dataclasses.dataclass(frozen=True)
class Pair:
    """A record and what augmentation makes of it.

    Attributes:
      stored: uint8 [H,W,C], as `stored` gives it.
      stored_text: its classes, a line each.
      shown: float 0..1 [H,W,C], as the model sees it but for the normalisation.
      shown_text: the classes of its target, with their shares where mixed.
    """

    stored: np.ndarray
    stored_text: str
    shown: np.ndarray
    shown_text: str


def pairs(run: Run, count: int) -> list[Pair]:
    """The first `count` of the training batch of step 0, or all if it has fewer.

    Raises:
      UserError: for a data set that is not there or a record that cannot be read.
    """
    from imgcls_jax import build

    batches = build.train_batches(run, 0)
    try:
        batch = next(batches)
    finally:
        batches.close()
    images, targets = run.augment_step({k: batch[k] for k in ("image", "label", "mask")}, 0)
    shown = np.clip(np.asarray(images[:count]), 0, 1)
    source, _ = build.open_train(run.config, run.open_split)
    return [
        Pair(
            stored(source, int(batch["index"][i])),
            label_text(stored_target(batch["label"][i], run.spec), run.spec),
            shown[i],
            label_text(np.asarray(targets[i]), run.spec),
        )
        for i in range(len(shown))
    ]


def write(run: Run, path: Path) -> None:
    """Draws the batch of step 0 of a run into a PNG file.

    Raises:
      UserError: for a data set that is not there or a record that cannot be read.
    """
    # Imported here: nothing else of a run needs it.
    from matplotlib.figure import Figure

    from imgcls_jax import build

    drawn = pairs(run, PAIRS)
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.1 * rows + 3.2), dpi=110, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.1 * rows, 3.0), squeeze=False)[:, 0]
    figure.suptitle(
        _no_mathematics(f"{run.spec.name} {run.config.data.train_split}: stored | as the model sees it at step 0")
    )
    axes = top.subplots(rows, 2 * COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, pair in enumerate(drawn):
        _show(axes.flat[2 * i], pair.stored, pair.stored_text)
        _show(axes.flat[2 * i + 1], pair.shown, pair.shown_text)
    source, _ = build.open_train(run.config, run.open_split)
    _histogram(bottom, source.labels(), run.spec)
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def stored(source: Source, index: int, least: tuple[int, int] | None = None) -> np.ndarray:
    """A record's image as it is stored, uint8 [H,W,C]; a black pixel if it cannot be read.

    With `least`, (height, width), a large JPEG is reduced while it is decoded, which is quicker: `decode.decode`.
    """
    try:
        image = source[index]["image"]
        return decode.decode(image, 3, least=least) if isinstance(image, bytes) else image
    except (decode.BadRecordError, OSError):
        return np.zeros((1, 1, 3), np.uint8)


def stored_target(label: np.ndarray, spec: Spec) -> np.ndarray:
    """A batch's label, class number or [K], as [K] float."""
    return np.asarray(label, float) if np.ndim(label) else np.eye(spec.num_classes)[int(label)]


def label_text(target: np.ndarray, spec: Spec) -> str:
    """The classes of target [K], largest share first, a line each: "cat", or "0.62 cat" and "0.38 dog" where mixed."""
    order = np.argsort(-target, kind="stable")
    present = [k for k in order if target[k] > 0.005]
    if not present:
        return "(none)"
    names = [_short(spec.class_names[k]) for k in present]
    if all(target[k] > 0.995 for k in present):
        return "\n".join(names)
    return "\n".join(f"{target[k]:.2f} {name}" for k, name in zip(present, names, strict=True))


def _short(name: str, length: int = 18) -> str:
    name = name.encode(errors="replace").decode().replace("\n", " ")
    return name if len(name) <= length else name[: length - 1] + "…"


def _no_mathematics(text: str) -> str:
    """For Matplotlib, to which a text between dollars is a formula."""
    return text.replace("$", r"\$")


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    """An image, uint8 or 0..1 float [H,W,C], with a line above."""
    axis.imshow(
        image.squeeze(-1) if image.shape[-1] == 1 else image,
        cmap="gray",
        vmin=0,
        vmax=255 if image.dtype == np.uint8 else 1,
    )
    axis.set_title(_no_mathematics(title), fontsize=7, wrap=True)


def _histogram(figure: SubFigure, labels: np.ndarray, spec: Spec) -> None:
    """Records by class."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=spec.num_classes)
    axis = figure.subplots()
    axis.bar(np.arange(len(counts)), counts, color="tab:blue")
    axis.set_ylabel("records")
    axis.set_title(
        f"{len(labels):,} records, {spec.num_classes} classes: {int(counts.min()):,} to {int(counts.max()):,} a class",
        fontsize=9,
    )
    if len(counts) <= NAMED_CLASSES:
        names = [_no_mathematics(_short(name)) for name in spec.class_names]
        axis.set_xticks(np.arange(len(counts)), names, rotation=45, ha="right", fontsize=7)
    else:
        axis.set_xlabel("class number")


if __name__ == "__main__":
    cli.program(main)
