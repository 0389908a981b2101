"""Whether a machine's steps became slower: ratios of rows against those of an earlier benchmark, never times."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgcls_jax import config as config_lib
from imgcls_jax.benchmarking.rows import Row, read
from imgcls_jax.types import UserError

LOSS = 0.15  # of a ratio, from which on it fails


@dataclasses.dataclass(frozen=True)
class Change:
    """A ratio then and now.

    Attributes:
      row: as it was measured now.
      before: the ratio in the baseline.
    """

    row: Row
    before: float

    @property
    def loss(self) -> float:
        """The share of the ratio that was lost; below 0: it rose; 1 where nothing was measured."""
        return 1.0 if self.row.ratio is None else 1.0 - self.row.ratio / self.before

    @property
    def failed(self) -> bool:
        """Whether the loss is LOSS or more."""
        return self.loss >= LOSS


def machine(environment: Mapping[str, Any]) -> str:
    """What a baseline belongs to, from `environment.describe`: "nvidia-h200-1" (devices), or of a CPU, with its cores,
    "amd-epyc-family-25-model-17-2": which step is how near to the matrix product differs from one to the next.
    """
    ((kind, count), *_) = environment["devices"].items()
    if kind == "cpu":
        kind, count = environment["processor"], environment["cpus"]
    return f"{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}-{count}"


def load(path: Path) -> tuple[list[Row], ConfigDict]:
    """(the rows of a benchmark's JSON file that have a ratio, the config that they were measured with).

    Raises:
      UserError: if there is no such file, or nothing in it to compare with.
    """
    try:
        values = json.loads(path.read_text())
        rows, config = [read(row) for row in values["rows"]], config_lib.from_dict(values["config"])
    except FileNotFoundError as error:
        raise UserError(
            f"There is no baseline {path} for this machine: write one with --preset=check --output=FOLDER and copy "
            "its benchmark.json there, or name one with --baseline."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what benchmark wrote ({error}): write it again with --output.") from error
    rows = [row for row in rows if row.ratio]
    if not rows:
        raise UserError(f"No row of {path} has a ratio to compare with: write it again with --preset=check.")
    return rows, config


def compared(before: Sequence[Row], now: Sequence[Row]) -> list[Change]:
    """The rows of `now` with the ratios of the same cases before; of a case that was measured twice the better."""
    ratios = {row.case: row.ratio for row in before if row.ratio}
    best: dict[Any, Row] = {}
    for row in now:
        if row.case in ratios and (row.case not in best or (row.ratio or 0.0) > (best[row.case].ratio or 0.0)):
            best[row.case] = row
    return [Change(row, ratios[case]) for case, row in best.items()]


def verdict(changes: Sequence[Change]) -> None:
    """Raises UserError, naming the worst of the rows that lost LOSS of their ratio or more, if there are any."""
    failed = sorted((change for change in changes if change.failed), key=lambda change: -change.loss)
    if not failed:
        return
    worst = failed[0]
    others = f" ({len(failed) - 1} more rows lost as much or more than {LOSS:.0%})" if len(failed) > 1 else ""
    what = worst.row.error or f"its ratio fell from {worst.before:.3f} to {worst.row.ratio:.3f}"
    raise UserError(
        f"{worst.row.case}: {what}, a loss of {worst.loss:.0%} against the baseline{others}; find the commit that did "
        "it, or write a new baseline if it is meant."
    )


def table(changes: Sequence[Change]) -> str:
    """A line for each row: its ratio before and now, and what it gained or lost."""
    width = max(len(str(change.row.case)) for change in changes)
    lines = [f"{'case':{width}}  before     now  change"]
    for change in changes:
        now = change.row.error or f"{change.row.ratio:.3f}  {-change.loss:+.1%}"
        lines.append(
            f"{change.row.case!s:{width}}  {change.before:6.3f}  {now:>6}" + (" FAILED" if change.failed else "")
        )
    return "\n".join(lines)
