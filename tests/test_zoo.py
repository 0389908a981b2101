"""Every name of the zoo: parameters, forward, backward, training mode and evaluation mode, features."""

import functools
import math
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import COUNTS, DEEPER, SIDES

from imgcls_jax import models

CLASSES = 5
# Compiling is nearly all the time that these tests take.
FAST_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
NOISE = np.random.default_rng(0).standard_normal(1 << 20, np.float32)


def images(name):
    side = next(side for pattern, side in SIDES if re.search(pattern, name))
    shape = (2, side, side, models.MODELS[name].channels)
    return np.resize(NOISE, shape)


def shapes_of(model, image):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


def quick_variables(shapes):
    """Values in a sensible range, none at zero: repeated noise, because real initialisations take long to compile."""

    def value(path, leaf):
        name, noise = path[-1].key, np.resize(NOISE, leaf.shape)
        if name == "kernel":
            return noise / math.sqrt(math.prod(leaf.shape[:-1]))
        return {"scale": 1 + 0.2 * noise, "var": np.exp(0.2 * noise)}.get(name, 0.2 * noise)

    return jax.tree_util.tree_map_with_path(value, shapes)


def paths(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def test_the_counts_cover_every_model():
    assert set(COUNTS) == set(models.MODELS)


@pytest.mark.parametrize("name", models.MODELS)
def test_parameters_features_and_stem(name):
    """At the native size: float32 variables and logits in bfloat16 too; `num_classes=0` takes away the heads alone."""
    variant = models.MODELS[name]
    size = variant.preprocessing.image_size
    image = jax.ShapeDtypeStruct((1, size, size, variant.channels), jnp.float32)
    model = models.build(name, num_classes=variant.num_classes, dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), image)
    assert logits.shape == (1, variant.num_classes)
    assert {x.dtype for x in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}
    flat = paths(variables)
    assert sum(leaf.size for path, leaf in flat.items() if path.startswith("params/")) == COUNTS[name]
    heads = {k for k in flat if ".".join(k.split("/")[1:-1]) in variant.layout.heads}
    assert {flat[k].shape[-1] for k in heads} == {variant.num_classes}
    backbone = models.build(name, num_classes=0)
    image = jax.ShapeDtypeStruct((1, size, size, 2), jnp.float32)
    features, variables = jax.eval_shape(
        functools.partial(backbone.init_with_output, train=False), jax.random.key(0), image
    )
    assert features.ndim == 2 and features.dtype == jnp.float32
    assert paths(variables).keys() == flat.keys() - heads
    stem = paths(variables)[f"params/{variant.layout.stem}/kernel"]
    assert stem.shape[2] == 2


def distinct():
    """Names that build what no earlier one builds: some differ in image size and preprocessing alone."""
    built = {}
    for name, variant in models.MODELS.items():
        built.setdefault(f"{variant.architecture} {dict(variant.fields)}", name)
    return [pytest.param(name, marks=pytest.mark.slow if re.search(DEEPER, name) else ()) for name in built.values()]


@pytest.mark.parametrize("name", distinct())
def test_forward_and_backward(name):
    """Finite logits and finite gradients that are not zero, for every parameter; batch norm that follows `train`."""
    image = images(name)
    model = models.build(name, num_classes=CLASSES)
    variables = quick_variables(shapes_of(model, image))

    def run(variables, image):
        def loss(params):
            rngs = {"dropout": jax.random.key(1), "drop_path": jax.random.key(2)}
            logits, state = model.apply(
                {**variables, "params": params}, image, train=True, rngs=rngs, mutable=["batch_stats", "aux_logits"]
            )
            outputs = [logits, *jax.tree.leaves(state.pop("aux_logits", {}))]
            return sum(jnp.mean(jax.nn.logsumexp(x, axis=-1) - x[:, 0]) for x in outputs), (logits, state)

        gradients, (logits, state) = jax.grad(loss, has_aux=True)(variables["params"])
        evaluated = model.apply(variables, image, train=False)
        return evaluated, logits, state, gradients

    compiled = jax.jit(run).lower(variables, image).compile(compiler_options=FAST_TO_COMPILE)
    evaluated, trained, state, gradients = compiled(variables, image)
    assert evaluated.shape == trained.shape == (2, CLASSES) and evaluated.dtype == jnp.float32
    assert np.isfinite(evaluated).all() and np.isfinite(trained).all()
    for path, gradient in paths(gradients).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(np.asarray(gradient) != 0), path
    if "batch_stats" in variables:
        before, after = paths(variables["batch_stats"]), paths(state["batch_stats"])
        assert before.keys() == after.keys()
        assert all(np.any(np.asarray(before[k]) != np.asarray(after[k])) for k in before)
        assert np.abs(evaluated - trained).max() > 1e-3
