"""The training loop: restore, step, log, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from imgcls_jax import build as build_lib
from imgcls_jax import diagnosis, environment, evaluate, pretrained, trees, workdirs, writers
from imgcls_jax.checkpoint import Checkpointer
from imgcls_jax.data.pipeline import Transform
from imgcls_jax.data.sources import Source
from imgcls_jax.metrics.examples import Examples
from imgcls_jax.monitor import Monitor
from imgcls_jax.preemption import EXIT_CODE, Stopper
from imgcls_jax.state import TrainState


class Loop:
    """One run in one work directory, from wherever it stands to its last step."""

    def __init__(self, config: ConfigDict, workdir: Path, data: Mapping[str, Source] | None = None) -> None:
        config, weights = workdirs.starting_point(config, workdir)
        main = jax.process_index() == 0
        self.progress = writers.Progress(enabled=main)
        self.built = run = build_lib.build(config, data=data)
        config = run.config  # with what it found of a teacher
        self.config, self.workdir = config, workdir
        workdirs.claim(config, workdir)
        k = config.checkpoint
        self.checkpointer = Checkpointer(
            workdir / "checkpoints",
            keep_last=k.keep_last,
            keep_best=k.keep_best,
            best_metric=f"{run.eval_split}/{k.best_metric or run.headlines[0]}",
        )
        self.start, self.state = self.checkpointer.restore_latest(run.abstract_state) or (0, self.first_state(weights))
        self.saved_step, self.saved_time = self.start, time.monotonic()
        if main:
            environment.record(workdir, self.start)
        devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
        self.progress.line(
            f"{config.model.name}, {trees.count(run.abstract_state.params):,} parameters; {run.spec.name}; "
            f"{run.total_steps} steps of {config.batch_size}; {devices}"
            + (f"; continues after step {self.start}" if self.start else "")
        )
        self.writer = writers.Writer(
            workdir, self.start, enabled=main, wandb_project=config.wandb.project, config=config.to_dict()
        )
        self.monitor = Monitor(
            self.writer,
            self.progress,
            every=config.log_every_steps,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
            batch_size=config.batch_size,
        )

    def first_state(self, weights: pretrained.Weights | None) -> TrainState:
        """The state at step 0: random, or from weights."""
        state, report = build_lib.first_state(self.built, weights)
        if report is not None:
            self.progress.line(f"Weights from {self.config.init['from']}: {report}.")
        return state

    def run(self) -> int:
        """Trains. Returns the exit code: 0 when the last step is done and evaluated, 143 when a signal stopped it."""
        run, meter = self.built, self.monitor.meter
        self.evaluate_if_due(self.start)
        skipped = jnp.zeros((), jnp.int32)  # records, on all processes, since the run was started or continued
        batches, constants = build_lib.batches_of(run, self.start, self.state), run.constants()
        try:
            with Stopper() as stopper:
                for step in range(self.start + 1, run.total_steps + 1):
                    waiting = time.perf_counter()
                    batch = next(batches)
                    waited = time.perf_counter() - waiting
                    self.state, logs = run.train_step(self.state, batch, constants)
                    if self.config.data.on_error == "skip":
                        skipped += (~batch["mask"]).sum()
                        logs = {**logs, "skipped": skipped}
                    self.monitor.step(step, logs, waited)
                    if step == self.start + 1:
                        jax.block_until_ready(logs)  # compiled; from here on the clock runs
                        meter.start()
                    stopping = stopper.should_stop(step) and step < run.total_steps
                    if not stopping:  # the evaluation that is due is made up for by the run that continues
                        self.evaluate_if_due(step)
                    self.save_if_due(step, last=stopping or step == run.total_steps)
                    if stopping:
                        self.progress.line(f"Stopped by a signal after step {step}; saved. The same command continues.")
                        return EXIT_CODE
            return 0
        finally:
            self.progress.end()
            batches.close()
            self.writer.close()
            self.checkpointer.close()

    def evaluate_if_due(self, step: int) -> None:
        """Evaluates raw and averaged weights at the steps that ask for it and at the last, once each."""
        every, total, split = self.config.eval_every_steps, self.built.total_steps, self.built.eval_split
        due = step == total or (every and step and step % every == 0)
        if not due or self.writer.has(step, f"{split}/{self.built.headlines[0]}"):
            return
        self.monitor.pause()
        scalars: dict[str, float] = {}
        for ema in (False, True) if self.state.ema else (False,):
            last, variables = step == total, self.state.variables(ema=ema)
            examples = evaluate_split(self.built, variables, split, self.progress, keep_logits=last)
            prefix = f"{split}/ema_" if ema else f"{split}/"
            values = evaluate.headline_values(examples, self.config.eval.topk)
            scalars |= {prefix + name: value for name, value in values.items()}
            if last and jax.process_index() == 0:
                result = evaluate.report(examples, topk=self.config.eval.topk) | {"step": step, "ema": ema}
                result |= evaluate.shown(self.config.eval.tta)
                name = evaluate.file_name(split, ema=ema)
                evaluate.write(self.workdir, name, examples, result, data=self.built.spec.name, split=split)
        self.writer.write(step, scalars)
        self.progress.line(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in scalars.items()))
        warning = diagnosis.overfitting(self.writer.events, split)
        if warning and warning[0] == step:
            self.progress.line(f"warning: {warning[1]}")
        self.monitor.meter.start()

    def save_if_due(self, step: int, *, last: bool) -> None:
        """Saves every so many steps or minutes and when `last`, after every loss so far was found finite."""
        every, minutes = self.config.checkpoint_every_steps, self.config.checkpoint_every_minutes
        due = last or (every and step % every == 0)
        if not due and minutes and step % self.config.log_every_steps == 0:
            late = time.monotonic() - self.saved_time > 60 * minutes
            # The processes' clocks differ: the first one decides.
            due = bool(multihost_utils.broadcast_one_to_all(np.array(late))) if jax.process_count() > 1 else late
        if not due or step == self.saved_step:
            return
        self.monitor.pause()
        here = [event for event in self.writer.events if event["step"] == step]
        self.checkpointer.save(self.state, step, {name: v for event in here for name, v in event.items()})
        if last:
            self.checkpointer.wait()
        self.saved_step, self.saved_time = step, time.monotonic()
        self.monitor.meter.start()


def evaluate_split(
    run: build_lib.Run,
    variables: dict[str, Any],
    split: str,
    progress: writers.Progress,
    *,
    keep_logits: bool,
    transforms: Sequence[Transform] = (),
    stopwatch: evaluate.Stopwatch | None = None,
) -> Examples:
    """What the model says of each example of a split: what training and the eval binary both call.

    `transforms` are applied to each image after those of the config.
    """
    records, batches = build_lib.eval_batches(run, split, transforms)
    count = -(-records // run.config.eval.batch_size)
    show = lambda done: progress.update(f"evaluating {split}: {done}/{count} batches", force=False)  # noqa: E731
    return evaluate.evaluate(
        run.eval_step,
        variables,
        batches,
        spec=run.spec,
        num_records=records,
        keep_logits=keep_logits,
        progress=show,
        stopwatch=stopwatch,
    )


def train(
    config: ConfigDict,
    workdir: Path,
    data: Mapping[str, Source] | None = None,
    at_end: Callable[[build_lib.Run, Path, TrainState], None] = lambda run, workdir, state: None,
) -> int:
    """Runs or continues the run in `workdir`; prints a table at the end. Returns the exit code.

    Args:
      config: a locked config.
      workdir: new, or of a run of this config.
      data: for a data set made in Python, as in `build.build`.
      at_end: called by the main process with the run's objects, `workdir` and the state when the last step is done.
    """
    loop = Loop(config, workdir, data)
    code = loop.run()
    if code == 0:
        split = loop.built.eval_split
        names = ["train/loss", "train/skipped", "train/images_per_second", "train/data_wait"]
        names += [f"{split}/{prefix}{name}" for prefix in ("", "ema_") for name in loop.built.headlines]
        values = [(name, loop.writer.last(name)) for name in names]
        rows = [(name, f"{value:,.4f}") for name, value in values if value is not None]
        loop.progress.line(f"Done: {loop.built.total_steps} steps in {workdir}\n{writers.table(rows)}")
        if jax.process_index() == 0:
            at_end(loop.built, workdir, loop.state)
    return code
