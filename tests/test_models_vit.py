"""Vision transformers' kin, ConvNeXt and Mixer: what neither tests/test_zoo.py nor equality with timm shows."""

import functools
import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax import models, pretrained
from imgcls_jax.models import layers
from imgcls_jax.models.convnext import ConvNeXt
from imgcls_jax.models.mixer import Mixer
from imgcls_jax.models.vit import LAYOUT, ViT
from imgcls_jax.pretrained import convert
from imgcls_jax.types import ConfigError, UserError

IMAGES = np.random.default_rng(0).standard_normal((3, 8, 12, 3), np.float32)
SMALL = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
PATCHES = 2 * 3
# Compiling is nearly all the time that these tests take.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def small(**fields):
    return ViT(num_classes=5, **{**SMALL, **fields})


def shapes(model, images=IMAGES):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]


def random_params(model, images=IMAGES):
    """None at its initial value: heads start at zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes(model, images))


def initial_params(model, images=IMAGES):
    return paths(jit(lambda: model.init(jax.random.key(0, impl="unsafe_rbg"), images, train=False))()["params"])


def paths(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


@functools.partial(jit, static_argnums=0, static_argnames="train")
def forward(model, params, images=IMAGES, *, train=False, seed=0):
    """(outputs, collections that the model wrote)."""
    keys = jax.random.split(jax.random.key(seed))
    rngs = {"dropout": keys[0], "drop_path": keys[1]}
    return model.apply({"params": params}, images, train=train, rngs=rngs, mutable=["dist_logits", "aux_logits"])


def test_distilled_logits_are_the_mean_of_two_heads_and_training_shows_the_second():
    model = small(distilled=True)
    params = random_params(model)
    logits, written = forward(model, params)
    assert written == {}
    trained, written = forward(model, params, train=True)
    assert set(written) == {"dist_logits"}
    second = written["dist_logits"]["logits"]
    assert second.shape == (3, 5) and second.dtype == jnp.float32
    np.testing.assert_allclose(trained, logits, rtol=1e-5, atol=1e-6)
    # Without either head the mean is half of the other's.
    without = jax.tree.map(np.zeros_like, params["head"])
    np.testing.assert_allclose(2 * forward(model, {**params, "head": without})[0], second, rtol=1e-5, atol=1e-6)
    first = 2 * forward(model, {**params, "head_dist": without})[0]
    np.testing.assert_allclose((first + second) / 2, logits, rtol=1e-5, atol=1e-6)
    assert np.abs(first - second).max() > 0.01
    assert set(jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=True))) == {"params"}


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, 1),
        ({"pool": "gap"}, 0),
        ({"distilled": True}, 2),
        ({"registers": 3}, 4),
        ({"registers": 3, "pool": "map"}, 3),
        ({"registers": 3, "no_embed_class": True}, 0),
        ({"distilled": True, "no_embed_class": True}, 0),
    ],
)
def test_rows_of_the_position_table(fields, rows):
    assert shapes(small(**fields))["pos_embed"].shape == (1, rows + PATCHES, 16)


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
def test_registers_are_read_by_the_blocks_and_not_by_the_pool(pool):
    for depth in (0, 1):
        model = small(registers=2, depth=depth, pool=pool, no_embed_class=True)
        params = random_params(model)
        before = forward(model, params)[0]
        after = forward(model, {**params, "reg_token": -params["reg_token"]})[0]
        assert (np.abs(after - before).max() > 1e-3) == (depth == 1)


def test_layer_scale_of_zero_leaves_a_block_out():
    model = small(layer_scale=0.5)
    params = random_params(model)
    for block in ("blocks.0", "blocks.1"):
        assert params[block]["ls1"]["gamma"].shape == params[block]["ls2"]["gamma"].shape == (16,)
    assert not any("gamma" in path for path in paths(shapes(small())))
    off = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if path[-1].key == "gamma" else x, params)
    without = {k: v for k, v in params.items() if not k.startswith("blocks")}
    np.testing.assert_array_equal(forward(model, off)[0], forward(small(depth=0), without)[0])
    assert np.abs(forward(model, params)[0] - forward(model, off)[0]).max() > 1e-3


def test_layer_scale_and_registers_under_scan_equal_those_without():
    fields = {"layer_scale": 0.5, "registers": 2, "drop_path": 0.3}
    model, scanned = small(**fields), small(scan=True, remat="full", **fields)
    params = random_params(model)
    rest = {k: v for k, v in params.items() if not k.startswith("blocks")}
    stacked = {**rest, "blocks": jax.tree.map(lambda *x: np.stack(x), params["blocks.0"], params["blocks.1"])}
    np.testing.assert_allclose(forward(scanned, stacked)[0], forward(model, params)[0], rtol=1e-5, atol=1e-5)


def test_fc_norm_comes_after_the_mean():
    for fc_norm, name in ((False, "norm"), (True, "fc_norm")):
        model = ViT(num_classes=0, pool="gap", fc_norm=fc_norm, **SMALL)
        params = random_params(model)
        params[name] = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
        features = forward(model, params)[0]
        unit = np.allclose(features.std(axis=1), 1, atol=1e-3) and np.allclose(features.mean(axis=1), 0, atol=1e-5)
        assert unit == fc_norm


def test_initialisation_is_as_documented():
    params = initial_params(small(width=96, depth=1, distilled=True, registers=64, layer_scale=1e-5))
    assert np.std(params["reg_token"]) == pytest.approx(1e-6, rel=0.1)
    assert np.unique(params["reg_token"][0], axis=0).shape[0] == 64  # equal ones would stay equal for ever
    assert np.std(params["dist_token"]) == pytest.approx(0.02, rel=0.3)
    assert np.all(params["blocks.0/ls2/gamma"] == np.float32(1e-5))
    assert not np.any(params["head/kernel"]) and not np.any(params["head_dist/kernel"])

    params = initial_params(ConvNeXt(num_classes=5, stage_sizes=(1, 1), widths=(32, 64)))
    kernels = [k for k in params if k.endswith("kernel")]
    assert len(kernels) == 2 + 2 * 3 + 1
    for path in kernels:
        assert np.std(params[path]) == pytest.approx(0.02, rel=0.15), path
    assert not any(np.any(v) for k, v in params.items() if k.endswith("bias"))
    assert np.all(params["stages.1.blocks.0/gamma"] == np.float32(1e-6))

    params = initial_params(Mixer(num_classes=5, patch_size=4, width=64, depth=1, tokens_dim=64, channels_dim=128))
    for name, inputs, outputs in (("mlp_tokens", PATCHES, 64), ("mlp_channels", 64, 128)):
        expected = math.sqrt(2 / (inputs + outputs))
        assert np.std(params[f"blocks.0/{name}/fc1/kernel"]) == pytest.approx(expected, rel=0.1)
        assert np.std(params[f"blocks.0/{name}/fc1/bias"]) == pytest.approx(1e-6, rel=0.3)
    assert np.std(params["stem.proj/kernel"]) == pytest.approx(math.sqrt(1 / 48), rel=0.1)
    assert not np.any(params["head/kernel"])


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        (small(distilled=True), {"drop_path": 0.5}),
        (small(registers=1, layer_scale=0.5), {"dropout": 0.5}),
        (ConvNeXt(num_classes=5, stage_sizes=(2, 2), widths=(8, 16)), {"drop_path": 0.5}),
        (Mixer(num_classes=5, patch_size=4, width=16, depth=2, tokens_dim=8, channels_dim=32), {"drop_path": 0.5}),
        (Mixer(num_classes=5, patch_size=4, width=16, depth=2, tokens_dim=8, channels_dim=32), {"dropout": 0.5}),
    ],
)
def test_random_layers_follow_their_key_in_training_and_are_off_in_evaluation(model, extra):
    params = random_params(model)
    random = model.copy(**extra)
    first, second, again = (forward(random, params, train=True, seed=seed)[0] for seed in (0, 1, 0))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(forward(random, params)[0], forward(model, params)[0])


def test_bfloat16_keeps_float32_parameters_and_logits():
    for model in (
        small(distilled=True, layer_scale=0.5),
        small(pool="gap", fc_norm=True, registers=2),
        ConvNeXt(num_classes=5, stage_sizes=(1, 1), widths=(8, 16)),
        Mixer(num_classes=5, patch_size=4, width=16, depth=1, tokens_dim=8, channels_dim=32),
    ):
        params, half = random_params(model), model.copy(dtype=jnp.bfloat16)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes(half)))
        expected, got = forward(model, params)[0], forward(half, params)[0]
        assert got.dtype == jnp.float32
        assert 1e-5 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.1


@pytest.mark.parametrize(
    ("name", "overrides", "side", "message"),
    [
        ("deit_tiny_distilled_patch16_224", {"pool": "gap"}, 32, "a distilled model needs pool='cls' without fc_norm"),
        ("deit_tiny_distilled_patch16_224", {"fc_norm": True}, 32, "a distilled model needs pool='cls' without fc_"),
        ("convnext_tiny", {}, 31, "the image size 31x31 is too small: sides must be 32 pixels or more"),
        ("convnext_tiny", {"stage_sizes": (1, 1)}, 32, "stage_sizes=(1, 1) and widths=(96, 192, 384, 768) differ"),
        ("convnext_tiny", {"drop_path": 1.0}, 32, "drop_path is 1.0"),
        ("mixer_b16_224", {}, 40, "patch_size=16 does not divide the image size 40x40"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(name, overrides, side, message):
    with pytest.raises(ConfigError) as error:
        shapes(models.build(name, num_classes=5, **overrides), jnp.zeros((1, side, side, 3)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_of_mixer_fit_one_image_size_only():
    overrides = {"width": 16, "depth": 1, "tokens_dim": 8, "channels_dim": 32}
    model = models.build("mixer_b16_224", num_classes=5, **overrides)
    tensors = pretrained.to_state_dict("mixer_b16_224", {"params": random_params(model, np.zeros((1, 32, 32, 3)))})
    pretrained.from_state_dict("mixer_b16_224", tensors, image_size=32, **overrides)
    with pytest.raises(UserError, match=r"of another shape: blocks\.0\.mlp_tokens\.fc1\.weight"):
        pretrained.from_state_dict("mixer_b16_224", tensors, image_size=64, **overrides)


def test_positions_keep_the_first_of_more_prefix_tokens_than_are_wanted():
    """The class token is the first: a distilled model's weights start one without a distillation token."""
    positions = np.random.default_rng(0).standard_normal((1, 2 + 9, 4), np.float32)
    resized = convert.resize_positions(positions, (3, 3), 1)
    np.testing.assert_array_equal(resized, np.delete(positions, 1, axis=1))
    np.testing.assert_array_equal(convert.resize_positions(positions, (5, 2), 2)[:, :2], positions[:, :2])
    np.testing.assert_array_equal(convert.resize_positions(positions, (3, 3), 0), positions[:, 2:])
    assert convert.resize_positions(positions, (3, 3), 3) is None


# transformers' names, those of files and those of modules since its version 5, with timm's.
NAMES = {
    "vit.embeddings.cls_token": "cls_token",
    "deit.embeddings.distillation_token": "dist_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "vit.encoder.layer.11.attention.output.dense.weight": "blocks.11.attn.proj.weight",
    "vit.layers.10.attention.o_proj.weight": "blocks.10.attn.proj.weight",
    "vit.encoder.layer.0.layernorm_before.weight": "blocks.0.norm1.weight",
    "vit.encoder.layer.0.layernorm_after.bias": "blocks.0.norm2.bias",
    "vit.encoder.layer.0.intermediate.dense.weight": "blocks.0.mlp.fc1.weight",
    "vit.encoder.layer.0.output.dense.weight": "blocks.0.mlp.fc2.weight",
    "vit.layers.3.mlp.fc2.bias": "blocks.3.mlp.fc2.bias",
    "vit.layernorm.weight": "norm.weight",
    "classifier.weight": "head.weight",
    "cls_classifier.bias": "head.bias",
    "distillation_classifier.weight": "head_dist.weight",
}


def test_names_of_transformers_become_timms_and_timms_stay():
    for theirs, ours in NAMES.items():
        assert set(convert.under_our_names(LAYOUT, {theirs: np.zeros(1)})) == {ours}
    q, k, v = np.arange(12.0).reshape(3, 2, 2)
    for prefix, names in (
        ("vit.encoder.layer.2.attention.attention", ("query", "key", "value")),
        ("layers.2.attention", ("q_proj", "k_proj", "v_proj")),
    ):
        tensors = {f"{prefix}.{name}.weight": part for name, part in zip(names, (q, k, v), strict=True)}
        fused = convert.under_our_names(LAYOUT, tensors)
        assert list(fused) == ["blocks.2.attn.qkv.weight"]
        np.testing.assert_array_equal(fused["blocks.2.attn.qkv.weight"], np.concatenate([q, k, v]))
    for fields in ({"distilled": True, "registers": 1, "layer_scale": 0.1}, {"pool": "map", "fc_norm": True}):
        timms = convert.state_dict({"params": random_params(small(**fields))})
        renamed = convert.under_our_names(LAYOUT, timms)
        assert renamed.keys() == timms.keys()


def test_deit3_drops_all_blocks_alike_and_its_head_starts_at_random():
    """models_v2.py of arXiv:2204.07118's code: one rate for all blocks, N(0, 0.02) heads, layer scale 1e-4."""
    model = models.build("deit3_small_patch16_224", num_classes=50, patch_size=4, depth=3, drop_path=0.2)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    assert np.std(params["head"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert np.all(params["blocks.0"]["ls1"]["gamma"] == np.float32(1e-4))
    rates = []

    def note(next_fun, args, kwargs, context):
        if isinstance(context.module, layers.DropPath) and context.method_name == "__call__":
            rates.append(args[1])
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        model.apply({"params": params}, jnp.zeros((1, 8, 8, 3)), train=True, rngs={"drop_path": jax.random.key(1)})
    assert rates == [0.2] * 6  # two branches a block
