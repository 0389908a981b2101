"""Processes that take turns, A B A B, so that what slows the machine slows all of them; shared by the comparisons.

A worker is a script of `workers/`, run by the interpreter of the environment that its library needs. Those that wait
for their turn are stopped. The figures are medians over the rounds, the ratios medians of each round's ratio. Linux.

All sides have the huge pages that our programs ask for, unless GLIBC_TUNABLES is set: torch is faster with them too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class EndedError(SystemExit):
    """A worker ended before its time; its own output says why. Ends the program, unless somebody can do without it."""


@dataclasses.dataclass
class Worker:
    """One side of a comparison in a process of its own; see workers/serve.py.

    Attributes:
      name: in the table.
      command: that starts it.
      env: added to the environment, in which JAX uses the CPU.
      about: what it says of itself; start_s, from its command to its first batch, with imports and compilation.
      rounds: its answers so far.
    """

    name: str
    command: list[str]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __enter__(self) -> Worker:
        """Starts it, waits for its first batch and stops it until it is asked."""
        env = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ, "PYTHONPATH": str(HERE.parent)}
        env |= {"JAX_PLATFORMS": "cpu", **self.env}
        start = time.perf_counter()
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
        )
        try:
            self.about = self._read() | {"start_s": time.perf_counter() - start}
        except BaseException:
            self.__exit__()
            raise
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(self, *error: object) -> None:
        """Ends it and its children."""
        self._signal(signal.SIGKILL)
        self._process.communicate()

    def ask(self, warm: int, batches: int) -> dict[str, Any]:
        """Lets it make batches; returns, and keeps, what that took."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        print(warm, batches, file=self._process.stdin, flush=True)
        self.rounds.append(self._read())
        self._signal(signal.SIGSTOP)
        return self.rounds[-1]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise EndedError(
            f"{self.name} ended with {self._process.wait()}: see above; the command was {' '.join(self.command)}"
        )

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and so have its children
            os.killpg(self._process.pid, number)

    def median(self, unit: str) -> float:
        """Images a second ("wall") or a CPU-second ("cpu"), the median over the rounds."""
        return statistics.median(speeds(self.rounds, unit))


def speeds(rounds: Sequence[Mapping[str, float]], unit: str) -> list[float]:
    """Images a second ("wall") or a CPU-second ("cpu") of each round."""
    return [r["images"] / r[unit] for r in rounds]


def ratios(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]], unit: str) -> list[float]:
    """a's speed by b's in each round, in order; above 1, a is faster.

    Raises:
      ValueError: they are not of the same rounds.
    """
    return [x / y for x, y in zip(speeds(a, unit), speeds(b, unit), strict=True)]


def take_turns(
    workers: Sequence[Worker],
    *,
    rounds: int,
    warm: int,
    batches: int,
    unit: str,
    optional: Callable[[Worker], bool] = lambda worker: False,
) -> list[Worker]:
    """Starts them one after the other, and has each make its batches in every round; prints a line a round.

    Args:
      workers: to measure.
      rounds: how many.
      warm: batches before each turn that are not counted.
      batches: of a turn.
      unit: "wall" or "cpu": of the images a second that are printed.
      optional: whether to go on without a worker that does not start.

    Returns:
      Those that started.
    """
    started: list[Worker] = []
    # Workers that are stopped would outlive this process, as nothing reaches them: they are ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for worker in workers:
            try:
                started.append(worker.__enter__())
                print(f"{worker.name} is ready after {worker.about['start_s']:.0f} s", flush=True)
            except EndedError as error:
                if not optional(worker):
                    raise
                print(f"left out: {error}", flush=True)
        for i in range(rounds):
            for worker in started:
                worker.ask(warm, batches)
            now = (f"{w.name}: {speeds(w.rounds, unit)[-1]:.4g}" for w in started)
            print(f"round {i + 1} of {rounds}", *now, sep="  ", flush=True)
    finally:
        for worker in started:
            worker.__exit__()
    return started


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }


def use_cores(count: int) -> None:
    """Lets this process and those it starts from now on run on so many cores only; 0: on those it has."""
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def write_json(path: Path | None, found: object) -> None:
    """Writes the figures to a temporary name and renames it; does nothing without a path."""
    if path is None:
        return
    text = json.dumps(found, indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.absolute().parent, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
