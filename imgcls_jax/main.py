"""Trains, evaluates and saves one run, and writes its report; the same command again continues it where it stopped.

python -m imgcls_jax.main --config=configs/vit.py[:DATA] [--workdir=W] [--config.optimizer.lr=3e-4 ...]
"""

from __future__ import annotations

from collections.abc import Sequence

from imgcls_jax import cli


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    config, workdir = cli.train_flags(argv, usage=__doc__ or "")
    # Imported after the flags are read: a typing error must not wait for jax.
    from imgcls_jax import platform, report, train

    platform.initialize()
    return train.train(config, workdir, at_end=report.write_at_end)


if __name__ == "__main__":
    cli.program(main)
