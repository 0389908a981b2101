"""Checkpoints by Orbax: asynchronous, atomic, restorable whole or in part, onto any mesh."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from imgcls_jax.state import TrainState
from imgcls_jax.types import PyTree, UserError

log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores `TrainState` under a directory, one folder a step.

    Every field of the state is an item of its own, so that evaluation reads the parameters without the optimizer.

    Args:
      directory: W/checkpoints, made if it does not exist.
      keep_last: how many of the newest to keep.
      keep_best: how many of the best by `best_metric` (larger is better) to keep besides.
      read_only: never write or clean up (eval beside a training run).
    """

    def __init__(
        self, directory: Path, *, keep_last: int = 1, keep_best: int = 0, best_metric: str = "", read_only: bool = False
    ) -> None:
        self.directory = directory.absolute()
        keep: list[Any] = [policies.LatestN(max(1, keep_last))]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.preservation_policy.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        self._best_metric = best_metric
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, step: int, metrics: dict[str, float]) -> None:
        """Starts to save; returns once the state has been copied off the device, so that it may be donated."""
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        wanted = {self._best_metric: metrics[self._best_metric]} if self._best_metric in metrics else None
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=wanted)

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """The state of a step, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        Fields of `abstract` that are None are not read and stay None. Raises whatever Orbax raises for a damaged
        checkpoint.
        """
        wanted = _items(abstract)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        values: dict[str, PyTree] = {name: restored[name] for name in wanted}
        return dataclasses.replace(abstract, step=jax.device_put(np.int32(step), abstract.step.sharding), **values)

    def variables(self, step: int) -> dict[str, PyTree]:
        """The raw variables of a step as host arrays, whatever model, mesh and machine they are of.

        Raises whatever Orbax raises for a damaged checkpoint.
        """
        trees: dict[str, PyTree] = {"model_state": {}}
        for item in ("params", "model_state"):
            folder = self.directory / str(step) / item
            if item == "params" or folder.exists():
                with ocp.PyTreeCheckpointer() as reader:
                    shapes = reader.metadata(folder).item_metadata.tree
                    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
                    trees[item] = reader.restore(folder, restore_args=as_numpy)
        return {"params": trees["params"], **trees["model_state"]}

    def restore_latest(self, abstract: TrainState) -> tuple[int, TrainState] | None:
        """The newest checkpoint that can be read, or None if there is none at all.

        A damaged one is reported and moved to `damaged/` beside the checkpoints, so that its step can be saved again.

        Raises:
          UserError: if there are checkpoints but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.restore(abstract, step)
            except Exception as error:  # Orbax raises a dozen types for damaged files
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                log.warning("Checkpoint %s is damaged (%s); falling back to the one before.", step, reason)
                self._set_aside(step)
        if steps:
            raise UserError(
                f"None of the checkpoints in {self.directory} can be read; they were moved to "
                f"{self.directory.parent / 'damaged'}: run the same command again to start from step 0."
            )
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            target = self.directory.parent / "damaged" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set_aside_{step}")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when all saves are on disk; raises what a failed save raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads."""
        self._manager.close()


def _items(state: TrainState) -> dict[str, PyTree]:
    """The fields to save (the step is the checkpoint's own name) that hold any leaf: Orbax refuses empty trees."""
    fields = {name: getattr(state, name) for name in ("params", "model_state", "opt_state", "ema")}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}
