"""Steps of a ResNet-50 in plain flax, as flax's ImageNet example has them, on one device and with jit; see versus.py.

What that example does: nn.Conv and nn.BatchNorm as they are, float32 images that were normalised before, targets one
hot, the decay added to the loss over all kernels, accuracy counted in the step. As there, nothing is donated.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import arguments
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from serve import serve

STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the stride is the 3x3's."""

    width: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,C] -> [B,H/stride,W/stride,4 width]."""
        y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.width, (3, 3), (self.stride, self.stride))(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.width, (1, 1), (self.stride, self.stride))(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The v1.5 network for 1,000 classes."""

    stages: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [B,H,W,3] -> logits [B,1000] float32."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = conv(64, (7, 7), (2, 2), padding=((3, 3), (3, 3)))(x)
        x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding="SAME")
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                x = Bottleneck(64 * 2**i, 2 if i and not j else 1, conv, norm)(x)
        return nn.Dense(arguments.CLASSES, dtype=self.dtype)(x.mean(axis=(1, 2))).astype(jnp.float32)


def main() -> None:
    """Serves steps on one batch that is on the device."""
    args, _ = arguments.read(__doc__)
    model = ResNet(STAGES[args.model], jnp.dtype(args.dtype))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((args.batch_size, args.size, args.size, 3), np.float32), args.dtype)
    labels = jnp.asarray(rng.integers(0, arguments.CLASSES, args.batch_size))
    tx = optax.sgd(arguments.LEARNING_RATE, momentum=arguments.MOMENTUM, nesterov=True)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:1])
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = tx.init(params)

    def metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        targets = jax.nn.one_hot(labels, arguments.CLASSES)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).mean()}

    @jax.jit
    def train_step(params: Any, stats: Any, opt_state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            found = metrics(logits, labels)
            decay = sum(jnp.square(p).sum() for p in jax.tree.leaves(params) if p.ndim > 1)
            return found["loss"] + arguments.WEIGHT_DECAY / 2 * decay, (updated["batch_stats"], found)

        grads, (new_stats, found) = jax.grad(loss_fn, has_aux=True)(params)
        updates, new_opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_stats, new_opt_state, found

    @jax.jit
    def eval_step(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        logits: jax.Array = model.apply({"params": params, "batch_stats": stats}, images, train=False)  # type: ignore[assignment]
        return metrics(logits, labels)

    waiting = None

    def train() -> int:
        nonlocal params, stats, opt_state, waiting
        params, stats, opt_state, waiting = train_step(params, stats, opt_state, images, labels)
        return args.batch_size

    def predict() -> int:
        nonlocal waiting
        before, waiting = waiting, eval_step(params, stats, images, labels)
        jax.block_until_ready(before)
        return args.batch_size

    step = {"train": train, "predict": predict}[args.mode]
    version = f"flax {flax.__version__}, jax {jax.__version__}, {jax.devices()[0].device_kind}"
    serve(step, finish=lambda: jax.block_until_ready(waiting), version=version)


if __name__ == "__main__":
    main()
