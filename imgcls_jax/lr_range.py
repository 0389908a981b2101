"""Learning-rate range test (Smith, arXiv:1506.01186): trains a while at a rate that rises, and suggests one.

python -m imgcls_jax.lr_range --config=configs/vit.py[:DATA] --workdir=W [--min_lr=1e-6] [--max_lr=10] [--steps=200]
  [--config.optimizer.name=sgd ...]

The rate rises by equal factors, without warm-up and decay, until the loss is four times its lowest or not finite. Of
the smoothed loss two rates are read: a tenth of the rate at its lowest, which is suggested, and the rate at which it
falls steepest. W/lr_range.json has all of it, W/lr_range.png the curve. Nothing else is kept: the run that follows
needs a --workdir of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from imgcls_jax import atomic, cli
from imgcls_jax.types import ConfigError, UserError

SMOOTHING = 0.9  # of the exponential average of the loss
EXPLODED = 4.0  # times the lowest smoothed loss, at which the test stops
SKIPPED = 10  # steps at the start whose average has too little behind it to be the lowest or the steepest


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What a test found.

    Attributes:
      lr: learning rate of each step.
      loss: of each step.
      smoothed: exponential average of the loss, corrected for its start.
      stopped: why it ended: "the loss exploded" or "the largest rate was reached".
      suggested: a tenth of the rate at the lowest smoothed loss.
      steepest: the rate at which the smoothed loss falls fastest with the logarithm of the rate, up to its lowest.
    """

    lr: list[float]
    loss: list[float]
    smoothed: list[float]
    stopped: str
    suggested: float
    steepest: float


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponential average s = 0.9 s + 0.1 loss from 0, divided by 1 - 0.9^n after n losses, as Adam's."""
    average, found = 0.0, []
    for n, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**n))
    return found


def exploded(smoothed: Sequence[float]) -> bool:
    """Whether the last smoothed loss is not finite, or, after the first steps, over four times the lowest."""
    last = smoothed[-1]
    return not math.isfinite(last) or (len(smoothed) > SKIPPED and last > EXPLODED * min(smoothed))


def conclude(lr: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """What the losses [N] at rising rates [N] say.

    Raises:
      UserError: if they are too few, or none is lower than the first.
    """
    smoothed = smooth(losses)
    finite = [loss for loss in smoothed if math.isfinite(loss)]
    if len(finite) <= SKIPPED + 1:
        raise UserError(
            f"The loss was no longer finite after {len(finite)} steps, at a rate of {lr[len(finite) - 1]:.3g}: lower "
            "--min_lr or look at the data."
        )
    values = np.array(finite)
    lowest = SKIPPED + int(values[SKIPPED:].argmin())
    if lowest <= SKIPPED + 1:
        raise UserError(
            f"The loss never fell below {values[SKIPPED]:.4g}, which it had at the start: raise --max_lr or --steps, "
            "or look at model and loss (--config.debug.overfit_batch=True)."
        )
    slopes = np.gradient(values, np.log(lr[: len(values)]))[SKIPPED : lowest + 1]
    return RangeTest(
        lr=list(lr),
        loss=list(losses),
        smoothed=smoothed,
        stopped="the loss exploded" if exploded(smoothed) else "the largest rate was reached",
        suggested=lr[lowest] / 10,
        steepest=lr[SKIPPED + int(slopes.argmin())],
    )


def rising(config: ConfigDict, *, min_lr: float, max_lr: float, steps: int) -> ConfigDict:
    """The config with a rate that rises from `min_lr` to nearly `max_lr` in `steps` steps, by equal factors.

    Raises:
      ConfigError: for values that do not rise, or too few steps.
    """
    if not 0 < min_lr < max_lr:
        raise ConfigError(f"--min_lr={min_lr:g} and --max_lr={max_lr:g} must be above 0 and rise.")
    if steps < 5 * SKIPPED:
        raise ConfigError(f"--steps={steps} must be at least {5 * SKIPPED}.")
    c = config.copy_and_resolve_references()
    with c.unlocked():
        c.optimizer.lr, c.total_steps = min_lr, steps
        c.schedule.update(name="geometric", warmup_steps=0, warmup_epochs=0.0, end_factor=max_lr / min_lr)
    return c


def run(config: ConfigDict, workdir: Path) -> RangeTest:
    """Trains with a config whose rate rises, until its steps are done or the loss explodes."""
    from imgcls_jax import build, workdirs

    config, weights = workdirs.starting_point(config, workdir)
    built = build.build(config)
    state, _ = build.first_state(built, weights)
    batches, constants = build.batches_of(built, 0, state), built.constants()
    lr: list[float] = []
    losses: list[float] = []
    try:
        for _ in range(built.total_steps):
            batch = next(batches)
            state, logs = built.train_step(state, batch, constants)
            lr.append(float(logs["lr"]))
            losses.append(float(logs["loss"]))
            if exploded(smooth(losses)):
                break
    finally:
        batches.close()
    return conclude(lr, losses)


def write(found: RangeTest, workdir: Path, title: str) -> None:
    """Writes W/lr_range.json and W/lr_range.png, atomically; losses that are not finite are null."""
    values: dict[str, Any] = dataclasses.asdict(found)
    for name in ("loss", "smoothed"):
        values[name] = [loss if math.isfinite(loss) else None for loss in values[name]]
    with atomic.replacing(workdir / "lr_range.json") as path:
        path.write_text(json.dumps(values, indent=2) + "\n")
    _plot(found, workdir / "lr_range.png", title)


def _plot(found: RangeTest, path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.plot(found.lr, found.loss, color="0.75", linewidth=1, label="loss")
    axis.plot(found.lr, found.smoothed, color="tab:blue", label="smoothed")
    axis.axvline(found.suggested, color="tab:green", label=f"suggested: {found.suggested:.2g} (lowest / 10)")
    axis.axvline(found.steepest, color="tab:orange", linestyle="--", label=f"steepest: {found.steepest:.2g}")
    finite = [loss for loss in found.smoothed if math.isfinite(loss)]
    low, high = min(finite), max(finite[: SKIPPED + 1])
    axis.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss")
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.legend(fontsize=8)
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_float("min_lr", 1e-6, "the rate of the first step", flag_values=values)
    flags.DEFINE_float("max_lr", 10.0, "the rate that the last step comes near", flag_values=values)
    flags.DEFINE_integer("steps", 200, "training steps", flag_values=values)
    config, workdir = cli.train_flags(argv, usage=__doc__ or "", values=values)
    config = rising(config, min_lr=values.min_lr, max_lr=values.max_lr, steps=values.steps)
    import jax

    from imgcls_jax import platform

    platform.initialize()
    found = run(config, workdir)
    if jax.process_index() == 0:
        write(found, workdir, f"{config.model.name} on {config.data.name}, {config.optimizer.name}")
        print(f"{len(found.lr)} steps; {found.stopped}.")
        print(f"suggested: --config.optimizer.lr={found.suggested:.2g} (a tenth of the rate at the lowest loss)")
        print(f"steepest fall of the loss: {found.steepest:.2g}")
        print(f"curve: {workdir / 'lr_range.png'}, numbers: {workdir / 'lr_range.json'}")
    return 0


if __name__ == "__main__":
    cli.program(main)
