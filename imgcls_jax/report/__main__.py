"""Writes one self-contained HTML page about a run, or several to compare; the first is what others are compared with.

python -m imgcls_jax.report --workdir=W [W2 ...] [--output=report.html]          W/report.html by default
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from imgcls_jax import cli
from imgcls_jax.types import ConfigError, UserError


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_string("output", None, "the file to write; W/report.html by default", flag_values=values)
    others = cli.parse(values, ["report", *argv])
    if values.workdir is None:
        raise ConfigError("--workdir is missing: python -m imgcls_jax.report --workdir=W [W2 ...] [--output=FILE].")
    workdirs = [Path(values.workdir), *map(Path, others)]
    twice = [path for path in workdirs if workdirs.count(path) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice; name each run once.")
    for path in workdirs:
        if not (path / "config.json").exists():
            raise UserError(f"{path} is not a work directory (it has no config.json); pass the --workdir of a run.")
    output = Path(values.output) if values.output else workdirs[0] / "report.html"

    from imgcls_jax import platform, report

    platform.initialize()
    report.write(workdirs, output)
    print(f"Wrote {output}.")
    return 0


if __name__ == "__main__":
    cli.program(main)
