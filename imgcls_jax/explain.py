"""Shows where in an image a model looks: writes a picture for each image, with the heat map laid over it.

python -m imgcls_jax.explain --workdir=W IMAGE... --output=DIR [--method=auto] [--target=CLASS] [--step=N] [--ema]

  gradcam    gradients at the last feature map of a CNN or a mixer, for one class
  rollout    attention of a vision transformer, followed from block to block, whatever the class
  occlusion  how much of a class' probability a grey patch takes away: any model, one evaluation for each place
  auto       rollout for vision transformers; gradcam for the others, but occlusion where their map is a single place
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from imgcls_jax import atomic, cli, saliency
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, PyTree, Spec, UserError, nearest

if TYPE_CHECKING:
    from imgcls_jax.build import Run

USAGE = (
    "Usage: python -m imgcls_jax.explain --workdir=W IMAGE... --output=DIR [--method=auto] [--target=CLASS] "
    "[--step=N] [--ema]."
)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """One image as the model sees it, and where the model looks.

    Attributes:
      image: uint8 [H,W,C].
      heat: [H,W] float32 in 0..1.
      probabilities: [K] float32.
      target: the class that is explained.
    """

    image: np.ndarray
    heat: np.ndarray
    probabilities: np.ndarray
    target: int


def explain(
    run: Run, variables: PyTree, images: np.ndarray, *, method: str = "auto", target: int | None = None
) -> list[Explanation]:
    """Explains images uint8 [B,H,W,C], as the model sees them: `target`, or each one's most probable class.

    Raises:
      ConfigError: for a method that this model does not have.
    """
    from imgcls_jax.augment import device

    d = run.config.data
    method = saliency.choose_method(method, run.model, images.shape[1:])
    inputs = device.normalise(device.to_float(jnp.asarray(images)), d.mean, d.std)
    found = np.asarray(_probabilities(run.model, variables, inputs, run.spec.task))
    targets = found.argmax(-1) if target is None else np.full(len(images), target)
    heats = saliency.heat_maps(method, run.model, variables, inputs, jnp.asarray(targets), task=run.spec.task)
    return [Explanation(*each) for each in zip(images, heats, found, targets.tolist(), strict=True)]


@partial(jax.jit, static_argnums=(0, 3))
def _probabilities(model: nn.Module, variables: PyTree, images: jax.Array, task: str) -> jax.Array:
    return saliency.probabilities(model.apply(variables, images, train=False), task)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_string("output", None, "folder for the pictures", flag_values=values)
    flags.DEFINE_string("method", "auto", " | ".join(saliency.METHODS), flag_values=values)
    flags.DEFINE_string(
        "target", None, "class to explain, name or number; each image's most probable by default", flag_values=values
    )
    flags.DEFINE_integer("step", None, "checkpoint to explain; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "explain the averaged weights", flag_values=values)
    files = cli.parse(values, ["explain", *argv])
    if not files or values.workdir is None or values.output is None:
        raise ConfigError(USAGE)
    workdir = Path(values.workdir)
    config = config_lib.read(workdir / "config.json")

    from imgcls_jax import build, platform, workdirs

    platform.initialize()
    run = build.build(config)
    target = None if values.target is None else class_number(values.target, run.spec)
    method = saliency.choose_method(values.method, run.model, build.image_shape(config))
    if method == "rollout" and target is not None:
        raise ConfigError(
            "--target has no part in attention rollout, which is the same for every class: add --method=occlusion."
        )
    _, variables = workdirs.restore_variables(run.abstract_state, workdir, values.step, ema=values.ema)
    return write_all(run, variables, files, Path(values.output), method=method, target=target)


def class_number(text: str, spec: Spec) -> int:
    """The class that a user names, or gives the number of. Raises ConfigError if there is none."""
    if text in spec.class_names:
        return spec.class_names.index(text)
    if text.isdecimal() and int(text) < spec.num_classes:
        return int(text)
    raise ConfigError(
        f"--target='{text}' is no class of {spec.name}{nearest(text, spec.class_names)}: give a name or a number from "
        f"0 to {spec.num_classes - 1}."
    )


def write_all(
    run: Run, variables: PyTree, files: Sequence[str], output: Path, *, method: str, target: int | None
) -> int:
    """Writes a picture of each image file into a folder, and a line about each to standard output. Returns 0.

    Raises:
      UserError: at the end, if some files could not be read; the others' pictures are there.
    """
    output.mkdir(parents=True, exist_ok=True)
    bad: list[UserError] = []
    names = picture_names(files)
    for image, name in zip(read_images(run, files), names, strict=True):
        if isinstance(image, UserError):
            bad.append(image)
            continue
        (found,) = explain(run, variables, image[None], method=method, target=target)
        write_picture(found, run.spec, method, output / name)
        print(f"{output / name}: {caption(found, run.spec)}")
    if bad:
        more = f" (and {len(bad) - 1} more of {len(files)})" if len(bad) > 1 else ""
        raise UserError(f"Cannot read {bad[0]}{more}; the other images are explained.")
    return 0


def picture_names(files: Sequence[str]) -> list[str]:
    """Names of the pictures: the images' own without folders; those that are there already get a number."""
    names: list[str] = []
    for file in files:
        stem, number = Path(file).stem, 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png") in names:
            number += 1
        names.append(name)
    return names


def read_images(run: Run, files: Sequence[str]) -> Iterator[np.ndarray | UserError]:
    """Each file as the model sees it, uint8 [H,W,C], made as `predict` makes it; or why it cannot be."""
    from imgcls_jax import build
    from imgcls_jax.data import decode
    from imgcls_jax.data.files import unlabelled

    source = unlabelled(files, run.spec)
    for i in range(len(files)):
        try:
            yield build.read_image(run, source, i)
        except decode.BadRecordError as error:
            yield error


def caption(found: Explanation, spec: Spec) -> str:
    """The most probable class, and the explained one if it is another."""
    best = int(found.probabilities.argmax())
    classes = [best] if found.target == best else [best, found.target]
    texts = [f"{spec.class_names[k]} {found.probabilities[k]:.3f}" for k in classes]
    text = texts[0] if len(texts) == 1 else f"{texts[0]}; explained: {texts[1]}"
    return text.encode(errors="replace").decode().replace("\n", " ")


def write_picture(found: Explanation, spec: Spec, method: str, path: Path) -> None:
    """Writes a PNG: the image as the model sees it, beside it the overlay, above them the caption."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(caption(found, spec), fontsize=11, parse_math=False)
    shown = np.broadcast_to(found.image, (*found.image.shape[:2], 3))
    for axis, pixels, title in (
        (left, shown, "as the model sees it"),
        (right, saliency.overlay(shown, found.heat), method),
    ):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


if __name__ == "__main__":
    cli.program(main)
