"""Which attention a program gets: XLA's on a CPU, to the bit, and cuDNN's in programs for NVIDIA GPUs that have it.

There is no GPU here. What is compiled for one is read from its StableHLO, traced as JAX traces where there is a GPU:
the version of cuDNN and the question whether the GPUs will do are all that the fixture answers in its place.
"""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from imgcls_jax import models
from imgcls_jax.models import layers

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


def plain(q, k, v):
    return jax.nn.dot_product_attention(q, k, v)


def qkv(dtype="bfloat16", *, batch=2, queries=40, keys=40, heads=3, size=32):
    shapes = (queries, keys, keys)
    keys_of = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (batch, n, heads, size), dtype) for key, n in zip(keys_of, shapes, strict=True)]


def gradients(attend):
    return jax.grad(lambda *args: jnp.sum(jnp.square(attend(*args).astype(jnp.float32))), argnums=(0, 1, 2))


def calls(function, *args, platform="cuda"):
    """The cuDNN kernels that a program for the platform calls, in order."""
    text = jax.jit(lambda *args: function(*args)).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"@(__cudnn\$\w+)", text)


def assert_same_bits(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.fixture
def ampere(monkeypatch):
    """Traces as on a machine whose GPUs have cuDNN's flash attention."""
    versions = SimpleNamespace(cudnn_get_version=lambda: 91100)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)
    monkeypatch.setattr(layers, "_flash_runs", lambda: True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_cpu_it_is_the_plain_program(dtype):
    args = qkv(dtype)
    assert str(jax.make_jaxpr(layers.attention)(*args)) == str(jax.make_jaxpr(plain)(*args))
    assert_same_bits(jax.jit(layers.attention)(*args), jax.jit(plain)(*args))


def test_a_gpu_gets_cudnn_forward_and_backward(ampere):
    assert calls(layers.attention, *qkv()) == [FORWARD]
    assert calls(layers.attention, *qkv("float16", size=128, queries=150, keys=130)) == [FORWARD]
    assert calls(gradients(layers.attention), *qkv()) == [FORWARD, BACKWARD]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", {}),
        ("bfloat16", {"size": 36}),
        ("bfloat16", {"size": 136, "queries": 150, "keys": 150}),
        ("bfloat16", {"queries": 1}),
        ("bfloat16", {"queries": 32, "keys": 32}),
    ],
)
def test_what_cudnn_does_not_take_or_not_speed_up_is_left_to_xla(ampere, dtype, shape):
    assert calls(gradients(layers.attention), *qkv(dtype, **shape)) == []


def test_other_platforms_get_the_plain_program_from_the_same_trace(ampere):
    """The compiler sees no choice, and no residuals of the branch that was not taken."""
    args = qkv()
    for platform in ("cpu", "tpu", "rocm"):
        assert calls(gradients(layers.attention), *args, platform=platform) == []
    assert_same_bits(jax.jit(gradients(layers.attention))(*args), jax.jit(gradients(plain))(*args))


def test_transformations_keep_cudnn(ampere):
    q, k, v = (jnp.stack([x] * 2) for x in qkv())
    assert calls(jax.vmap(gradients(layers.attention)), q, k, v) == [FORWARD, BACKWARD]
    again = gradients(jax.checkpoint(lambda *args: layers.attention(*args)))
    assert calls(again, q[0], k[0], v[0])[-1] == BACKWARD


@pytest.mark.parametrize("fields", [{}, {"scan": True}, {"scan": True, "remat": "full"}])
def test_a_model_trains_with_it(ampere, fields):
    """One kernel a block, or one in the body of the loop over blocks; no scores in the program."""
    size = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2, "dtype": jnp.bfloat16}
    model = models.build("vit_tiny_patch16_224", num_classes=5, **size, **fields)
    images = jnp.zeros((2, 28, 28, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def loss(variables):
        return jnp.sum(model.apply(variables, images, train=True))

    found = calls(jax.grad(loss), variables)
    blocks = 1 if fields else 3
    assert found.count(BACKWARD) == blocks
    assert found.count(FORWARD) == blocks * (2 if "remat" in fields else 1)


def test_a_sharded_program_keeps_it(ampere):
    """Batch and heads over the mesh, as `sharding` lays out a batch and a qkv kernel."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.NamedSharding(mesh, jax.P("data", None, "model"))
    step = jax.jit(gradients(layers.attention), in_shardings=(sharding,) * 3)
    text = step.trace(*qkv(heads=4)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@CustomSPMDPartitioning") == 2  # the two kernels, which JAX divides when XLA asks


def test_a_program_traced_for_a_cpu_is_exported_for_all(monkeypatch):
    """As on a machine with GPUs: cuDNN's part would not go into a file for several platforms."""
    pretend_to_have(monkeypatch, "gpu", ["9.0"])
    args = qkv()
    with jax.default_device(jax.devices("cpu")[0]):
        function = jax.jit(lambda *args: layers.attention(*args))
        exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(*args)
    assert_same_bits(exported.call(*args), jax.jit(plain)(*args))


def pretend_to_have(monkeypatch, backend, capabilities):
    devices = [SimpleNamespace(compute_capability=capability) for capability in capabilities]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda *, backend: devices)


@pytest.mark.parametrize(
    ("backend", "capabilities", "runs"),
    [
        ("cpu", [], False),
        ("tpu", [], False),
        ("gpu", ["9.0", "9.0"], True),
        ("gpu", ["8.0"], True),
        ("gpu", ["12.0"], True),
        ("gpu", ["8.0", "7.5"], False),
        ("gpu", ["gfx90a"], False),
    ],
)
def test_gpus_that_will_do(monkeypatch, backend, capabilities, runs):
    pretend_to_have(monkeypatch, backend, capabilities)
    assert layers._flash_runs() is runs
