"""Where scalars go: metrics.jsonl, TensorBoard, Weights & Biases, and the live line on the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from imgcls_jax import atomic
from imgcls_jax.types import UserError

Scalars = Mapping[str, float]

# Seconds between two lines about many images where they are not rewritten in place.
_LINE_SECONDS = 30.0


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl; a last line torn by a kill is left out."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


class Writer:
    """Writes scalars by step to W/metrics.jsonl and W/tensorboard/, and to Weights & Biases if a project is named.

    Args:
      workdir: W.
      start_step: the step the run continues from: events after it, left by a run that was killed, are removed, so that
        the file is what an uninterrupted run would have written.
      enabled: False (all processes but the first) keeps the events in memory and writes nothing.
      wandb_project: "" for none.
      config: the resolved config, for Weights & Biases.

    Raises:
      UserError: if a project is named and the package wandb is missing.
    """

    def __init__(
        self, workdir: Path, start_step: int, *, enabled: bool, wandb_project: str, config: Mapping[str, Any]
    ) -> None:
        path = workdir / "metrics.jsonl"
        self.events = [event for event in read_jsonl(path) if event["step"] <= start_step] if start_step else []
        self._file: TextIO | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not enabled:
            return
        from tensorboardX import SummaryWriter

        with atomic.replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(event) + "\n" for event in self.events))
        self._file = path.open("a")
        purge = start_step + 1 if start_step else None
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge)
        if wandb_project:
            self._wandb = _wandb_run(workdir, wandb_project, config)

    def write(self, step: int, scalars: Scalars) -> None:
        """Writes one event; its line is in the file when this returns."""
        event = {"step": step, **scalars}
        self.events.append(event)
        if self._file is None:
            return
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)

    def has(self, step: int, name: str) -> bool:
        """Whether an event of this step holds `name`."""
        return any(event["step"] == step and name in event for event in self.events)

    def last(self, name: str) -> float | None:
        """The newest value of `name`; None if there is none."""
        return next((event[name] for event in reversed(self.events) if name in event), None)

    def close(self) -> None:
        """Flushes and closes all outputs."""
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(workdir: Path, project: str, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("wandb.project is set but wandb is missing; pip install 'imgcls_jax[wandb]'.") from error
    # The id follows from the work directory, so that a resumed run continues the same curve.
    name = workdir.absolute().name
    return wandb.init(project=project, id=name, name=name, dir=str(workdir), resume="allow", config=dict(config))


class Progress:
    """The line on the terminal: rewritten in place on a terminal, one line an update elsewhere.

    Args:
      enabled: False prints nothing (processes other than the first).
      stream: standard error by default, so that standard output stays for results.
    """

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._enabled = enabled
        self._live = self._stream.isatty()
        self._width = 0
        self._last = 0.0

    def update(self, text: str, *, force: bool = True) -> None:
        """Shows `text`; with force=False at most ten times a second on a terminal and never elsewhere."""
        if not self._enabled or (not force and (not self._live or time.monotonic() - self._last < 0.1)):
            return
        self._last = time.monotonic()
        if self._live:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self._enabled:
            return
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._stream.write(text + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leaves the live line standing and goes to the next."""
        if self._enabled and self._live and self._width:
            self._stream.write("\n")
            self._width = 0


class Pace:
    """The line of a command that goes through many images: how many are done, how fast, and how long it will take.

    Args:
      progress: where it is shown.
      total: images.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._started = self._shown = 0.0
        self._before = 0  # images done when the clock started

    def update(self, done: int) -> None:
        """Shows that `done` images are done; where lines are not rewritten in place, no more than one in a while."""
        now = time.monotonic()
        if not self._started:  # the first batch is compiled for; from here on the clock runs
            self._started, self._shown, self._before = now, now, done
        elif now > self._started:
            rate = (done - self._before) / (now - self._started)
            left = duration((self._total - done) / rate) if rate else "?"
            line = now - self._shown >= _LINE_SECONDS
            self._shown = now if line else self._shown
            text = f"{done:,}/{self._total:,} images  {rate:,.0f} img/s  {left} left"
            self._progress.update(text, force=line)


def duration(seconds: float) -> str:
    """Seconds as "1h02m", "3m05s" or "12s"; "?" if not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)
