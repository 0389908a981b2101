"""What a run minimises, as a function the train step is handed: new methods leave the step and the loop alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from imgcls_jax.losses import Loss
from imgcls_jax.types import Batch, PyTree

Variables = Mapping[str, PyTree]
# (variables, batch, rngs) -> (loss [B], {"logits": [B,K], "model_state": updated collections}).
# batch["image"] is [B,H,W,C] float32, augmented and normalised; batch["target"] is [B,K] float32.
Objective = Callable[[Variables, Batch, dict[str, jax.Array]], tuple[jax.Array, dict[str, Any]]]


def supervised(model: nn.Module, loss: Loss, *, aux_weight: float) -> Objective:
    """Learns the given targets: `loss(logits [B,K], targets [B,K]) -> [B]`.

    Auxiliary classifiers, which a model keeps in the collection `aux_logits`, add `aux_weight` times their losses.
    """

    def objective(variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
        mutable = [name for name in variables if name != "params"] + ["aux_logits"]
        logits, collections = model.apply(variables, batch["image"], train=True, rngs=rngs, mutable=mutable)
        model_state = dict(collections)
        total = loss(logits, batch["target"])
        for aux_logits in jax.tree.leaves(model_state.pop("aux_logits", {})):
            total += aux_weight * loss(aux_logits, batch["target"])
        return total, {"logits": logits, "model_state": model_state}

    return objective


OBJECTIVES = {"supervised": supervised}
