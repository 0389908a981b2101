"""The devices of this process, on which the first one of several works alone once all have made the features."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def shardings(axis: int = 0) -> tuple[NamedSharding, NamedSharding, int]:
    """(an array's axis split over this process's devices, every device holds the whole array, number of devices)."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
    split = PartitionSpec(*(None,) * axis, "rows")
    return NamedSharding(mesh, split), NamedSharding(mesh, PartitionSpec()), len(devices)
