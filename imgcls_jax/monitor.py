"""Watches a running loop: per-step metrics still on the device, throughput, the terminal line, a diverging loss."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from imgcls_jax import writers
from imgcls_jax.types import UserError


class Meter:
    """Throughput and data wait between two logged steps, without compilation, evaluation and saving.

    The clock runs from `start` to `stop`; the loop stops it around what is not training. What is counted are steps that
    the device has finished: it runs behind the host, which may dispatch dozens of steps in no time.
    """

    def __init__(self) -> None:
        self._examples = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._since: float | None = None

    @property
    def running(self) -> bool:
        """Whether the clock runs."""
        return self._since is not None

    def start(self) -> None:
        """Lets the clock run."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Holds the clock."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
        self._since = None

    def add(self, examples: int, waited: float) -> None:
        """Counts a finished step of `examples` that waited `waited` seconds for its data."""
        self._examples += examples
        self._waited += waited

    def take(self) -> dict[str, float]:
        """{"train/images_per_second", "train/data_wait" (fraction of the time)} since steps were last taken, if any."""
        if not self._examples:
            return {}
        if self.running:
            self.stop()
            self.start()
        examples, seconds, waited = self._examples, self._seconds, self._waited
        self._examples, self._seconds, self._waited = 0, 0.0, 0.0
        return {"train/images_per_second": examples / seconds, "train/data_wait": waited / seconds}


class Monitor:
    """Logs every `every` steps, one interval late: reading newer metrics would make the device wait for the host.

    Args:
      writer: where events go.
      progress: the terminal line.
      every: steps between events.
      total_steps, steps_per_epoch, batch_size: of the run.
    """

    def __init__(
        self,
        writer: writers.Writer,
        progress: writers.Progress,
        *,
        every: int,
        total_steps: int,
        steps_per_epoch: float,
        batch_size: int,
    ) -> None:
        self.writer, self.progress, self.meter = writer, progress, Meter()
        self._every, self._total = every, total_steps
        self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
        # (step, metrics on the device, seconds it waited for its batch; None: dispatched while the clock was held)
        self._pending: list[tuple[int, Mapping[str, jax.Array], float | None]] = []
        self._rates: dict[int, dict[str, float]] = {}
        self._rate = math.nan

    def step(self, step: int, logs: Mapping[str, jax.Array], waited: float) -> None:
        """Takes note of a step just dispatched, which waited `waited` seconds for its batch.

        Raises:
          UserError: when the loss of an earlier step turns out not to be finite.
        """
        self._pending.append((step, logs, waited if self.meter.running else None))
        if step % self._every == 0:
            self.flush(step - self._every, rate_of=step)

    def pause(self) -> None:
        """Waits for the device, writes all that is pending and holds the clock: before evaluating, saving, ending."""
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
        self.meter.stop()
        self.flush(self._total, rate_of=self._pending[-1][0] if self._pending else self._total)

    def flush(self, until: int, *, rate_of: int) -> None:
        """Reads the metrics of the pending steps up to `until`, checks that each is finite, writes the logged ones.

        The throughput of the steps that have finished since the last time becomes that of the event of `rate_of`.
        """
        ready = [entry for entry in self._pending if entry[0] <= until]
        self._pending = self._pending[len(ready) :]
        values = jax.device_get([logs for _, logs, _ in ready])
        for _, _, waited in ready:
            if waited is not None:
                self.meter.add(self._batch_size, waited)
        self._rates[rate_of] = self._rates.get(rate_of) or self.meter.take()
        for (step, _, _), logs in zip(ready, values, strict=True):
            for name, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
                if not math.isfinite(logs[name]):
                    raise UserError(
                        f"The {what} of step {step} is {logs[name]}, so the run stopped there; checkpoints from before "
                        "are kept. Lower optimizer.lr, set optimizer.clip_norm, or look at the data."
                    )
            if step % self._every == 0 or step == self._total:
                self._write(step, {name: float(value) for name, value in logs.items()})

    def _write(self, step: int, logs: dict[str, Any]) -> None:
        rates = self._rates.pop(step, {})
        self._rate = rates.get("train/images_per_second", self._rate)
        epoch = step / self._steps_per_epoch
        self.writer.write(step, {"epoch": epoch, **{f"train/{k}": v for k, v in logs.items()}, **rates})
        line = f"step {step}/{self._total}  epoch {epoch:.1f}  loss {logs['loss']:.4f}  top1 {logs['top1']:.3f}"
        line += f"  lr {logs['lr']:.2e}"
        if math.isfinite(self._rate):  # not before the first steps have been seen to finish
            left = (self._total - step) * self._batch_size / self._rate
            line += f"  {self._rate:,.0f} img/s  {writers.duration(left)} left"
        self.progress.update(line)
