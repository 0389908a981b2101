"""The mesh, and rules that turn a tree of shapes into a tree of shardings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imgcls_jax import trees
from imgcls_jax.types import ConfigError, PyTree

# "replicate", "fsdp", or the axes of the leaf's last dimensions, each "data", "fsdp", "model" or None.
Rule = tuple[str, str | tuple[str | None, ...]]

BATCH_AXES = ("data", "fsdp")
# Smaller leaves are replicated by "fsdp": gathering them costs more than holding them.
FSDP_MIN_SIZE = 1024


def make_mesh(*, data: int, fsdp: int, model: int) -> Mesh:
    """A mesh over all devices of all processes with axes data, fsdp, model; data=-1 takes what is left.

    Raises:
      ConfigError: if the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    if fsdp < 1 or model < 1 or (data < 1 and data != -1):
        raise ConfigError(f"sharding.data={data}, fsdp={fsdp}, model={model}: sizes must be positive (data may be -1).")
    if data == -1:
        data = max(1, count // (fsdp * model))
    if data * fsdp * model != count:
        raise ConfigError(
            f"sharding: data={data} x fsdp={fsdp} x model={model} is {data * fsdp * model} devices but there are "
            f"{count}; set sizes that multiply to {count} (sharding.data=-1 takes what is left)."
        )
    return jax.make_mesh((data, fsdp, model), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """The first axis (B) is split over data and fsdp, the others are whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, key: str, batch_size: int) -> None:
    """Raises ConfigError unless `batch_size` divides over the mesh's batch axes."""
    parts = batch_parts(mesh)
    if batch_size < 1 or batch_size % parts:
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        advice = f"{below} or {above}" if below > 0 else str(above)
        raise ConfigError(f"{key}={batch_size} does not divide over {parts} devices; set it to {advice}.")


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process must supply, ascending, int64.

    Processes that share a data shard (tensor parallelism across processes) get the same rows.
    """
    slices = batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices if index is not None]))


def put_batch(mesh: Mesh, batch_size: int, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The process's rows, in the order of `local_rows`, as global arrays [batch_size, ...] split over the mesh."""
    sharding = batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in local.items()
    }


def spec(rule: str | tuple[str | None, ...], path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of one leaf.

    Raises:
      ConfigError: if a named axis does not divide the leaf's dimension or the rule has more axes than the leaf.
    """
    if rule == "replicate":
        return PartitionSpec()
    if rule == "fsdp":
        size = mesh.shape["fsdp"]
        axes = [i for i, dim in enumerate(shape) if dim % size == 0]
        if size == 1 or not axes or math.prod(shape) < FSDP_MIN_SIZE:
            return PartitionSpec()
        largest = max(axes, key=lambda i: (shape[i], i))
        return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))
    if isinstance(rule, str) or len(rule) > len(shape):
        raise ConfigError(f"sharding.rules: {rule!r} does not fit the parameter '{path}' of shape {tuple(shape)}.")
    # Blocks stacked by scan have a layer axis in front, which stays whole.
    entries = (None,) * (len(shape) - len(rule)) + tuple(rule)
    for dim, axis in zip(shape, entries, strict=True):
        if axis is not None and (axis not in mesh.shape or dim % mesh.shape[axis]):
            raise ConfigError(
                f"sharding.{axis}={mesh.shape.get(axis)} does not divide '{path}' of shape {tuple(shape)}; choose "
                "another size or rule."
            )
    return PartitionSpec(*entries)


def params_shardings(params: PyTree, rules: Sequence[Rule], mesh: Mesh) -> PyTree:
    """A tree of NamedSharding for a tree of arrays or shapes; every leaf must match a rule."""
    return trees.map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(trees.match(rules, path), path, leaf.shape, mesh)), params
    )


def like_params(tree: PyTree, params: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    """Shardings for a tree that holds copies of the parameters somewhere inside (optimizer state).

    A leaf whose path ends in a parameter's path and that has its shape is sharded as the parameter is; any other leaf
    (a count, a factored moment) is replicated.
    """
    known = {
        path: (leaf.shape, sharding)
        for path, leaf, sharding in zip(
            trees.paths(params), jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def one(path: str, leaf: Any) -> NamedSharding:
        parts = path.split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return trees.map_with_path(one, tree)
