"""What a model costs, from its traced program: nothing is computed and nothing compiled."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def count(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one image [H,W,C] in evaluation).

    Counted are convolutions and matrix products, those inside attention included; elementwise work, pooling and
    normalisation are not, as is the custom (a GMAC of the literature is often called a GFLOP).
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    apply = functools.partial(model.apply, train=False)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return parameters, _macs(jax.make_jaxpr(apply)(variables, image).jaxpr)


def _macs(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += out * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, features = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
            total += out * math.prod(kernel) // kernel[features]
        elif eqn.primitive.name == "cond":  # the same for several platforms; not all of them count as products
            total += max(_macs(branch.jaxpr) for branch in eqn.params["branches"])
        else:
            times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            total += times * sum(_macs(inner) for inner in _inner(eqn.params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs inside an operation: the body of a scan, what a jit or a custom gradient wraps."""
    found = []
    values = [v for value in params.values() for v in (value if isinstance(value, tuple) else (value,))]
    for value in values:
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns"):
            found.append(jaxpr)
    return found
