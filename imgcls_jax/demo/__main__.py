"""A page to try a run with: drop or paste an image, see what it is, where the model looks, and what is like it.

python -m imgcls_jax.demo --workdir=W [--step=N] [--ema] [--port=7860] [--host=127.0.0.1] [--max_megabytes=20]
    [--neighbours=10000]

The page is this machine's alone unless --host says otherwise (0.0.0.0: whoever reaches this machine may use it), needs
no internet, and keeps nothing that is sent. Images are prepared as in predict, and probabilities calibrated if
W/temperature.json is of the checkpoint. Ctrl-C ends it.

Neighbours are looked for among training images, whose features are made once and kept in W/demo; --neighbours=0 leaves
them out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from imgcls_jax import cli
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, UserError


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = _flags()
    if cli.parse(values, ["demo", *argv]) or values.workdir is None:
        raise ConfigError("Usage: python -m imgcls_jax.demo --workdir=W [--port=7860]; see --help.")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"The page needs {error.name}, which is missing; pip install 'imgcls_jax[demo]'.") from error
    from imgcls_jax.demo import server

    workdir = Path(values.workdir)
    config = config_lib.read(workdir / "config.json")
    # Taken first, so that nobody waits for the model to learn that the port is in use.
    with server.listen(values.host, values.port) as listening:
        answer, about = _load(config, workdir, values)
        page = server.render(**about, max_megabytes=values.max_megabytes)
        max_bytes = values.max_megabytes * 2**20
        app = server.application(answer, page, max_bytes=max_bytes, host=values.host)
        print(f"Open {server.address(listening)} in a browser; Ctrl-C ends it.", flush=True)
        server.serve(app, listening)
    return 0


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint to try; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "use the averaged weights", flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on", flag_values=values)
    flags.DEFINE_integer(
        "port", 7860, "port to listen on; 0: any that is free", lower_bound=0, upper_bound=65535, flag_values=values
    )
    flags.DEFINE_integer("max_megabytes", 20, "of an image file, at most", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "neighbours", 10_000, "training images to look among, at most; 0: none", lower_bound=0, flag_values=values
    )
    return values


def _load(config: config_lib.ConfigDict, workdir: Path, values: flags.FlagValues) -> tuple[Any, dict[str, Any]]:
    """(image file -> answer, what the page says of the model); everything is compiled."""
    from imgcls_jax import build, demo, evaluate, platform, workdirs, writers
    from imgcls_jax.demo import neighbours

    platform.initialize()
    progress, started = writers.Progress(), time.monotonic()
    run = build.build(config)
    step, variables = workdirs.restore_variables(run.abstract_state, workdir, values.step, ema=values.ema)
    temperature = evaluate.temperature_of(workdir, step, progress, ema=values.ema)
    near = None
    if values.neighbours:
        near = neighbours.prepare(
            run, variables, workdir, step=step, ema=values.ema, images=values.neighbours, progress=progress
        )
    model = demo.load(run, variables, temperature, near)
    progress.line(f"ready after {writers.duration(time.monotonic() - started)}")
    return partial(demo.answer, model), {
        "name": workdir.absolute().name,
        "model": config.model.name,
        "data": run.spec.name,
        "step": step,
        "ema": values.ema,
        "class_names": run.spec.class_names,
        "task": run.spec.task,
        "temperature": model.judge.temperature,
        "compared": 0 if near is None else len(near.index),
    }


if __name__ == "__main__":
    cli.program(main)
