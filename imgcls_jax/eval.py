"""Evaluates a run's checkpoint on a split: prints a table and writes W/eval/<split>.json.

python -m imgcls_jax.eval --workdir=W [--split=test] [--step=N] [--ema]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from imgcls_jax import cli
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_string("split", None, "split to evaluate; the run's data.eval_split by default", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint to evaluate; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "evaluate the averaged weights", flag_values=values)
    rest = cli.parse(values, ["eval", *argv])
    if rest or values.workdir is None:
        raise ConfigError("Usage: python -m imgcls_jax.eval --workdir=W [--split=test] [--step=N] [--ema].")
    workdir = Path(values.workdir)
    config = config_lib.read(workdir / "config.json")

    from imgcls_jax import platform

    platform.initialize()
    return evaluate_run(config, workdir, values.split, values.step, ema=values.ema)


def evaluate_run(
    config: config_lib.ConfigDict, workdir: Path, split: str | None, step: int | None, *, ema: bool
) -> int:
    """Restores one checkpoint of a run, evaluates a split with it, prints and writes the result. Returns 0."""
    import jax

    from imgcls_jax import build, evaluate, train, workdirs, writers
    from imgcls_jax.data import slices

    run = build.build(config)
    split = split or run.eval_split
    slices.check("--split", split, run.spec)
    step, variables = workdirs.restore_variables(run.abstract_state, workdir, step, ema=ema)
    main_process = jax.process_index() == 0
    progress = writers.Progress(enabled=main_process)
    result = train.evaluate_split(run, variables, split, progress)
    if main_process:
        path = evaluate.write(workdir, evaluate.file_name(split, ema=ema), result)
        progress.line("")
        print(f"{run.spec.name} {split}, {config.model.name} at step {step}{' (EMA)' if ema else ''}")
        print(writers.table(evaluate.summary(result)))
        print(f"  written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
