"""Every model: parameter counts, forward, backward, train and eval, dtypes; the shared layers against references."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from imgcls_jax import models
from imgcls_jax.models import layers, vit
from imgcls_jax.types import ConfigError

SMALL_RESNET = {"stage_sizes": (1, 1), "width": 8}
SMALL_VIT = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
SINCOS = {"patch_size": 4, "pos_embed": "sincos2d"}
# id: (name, overrides, image shape, width of the features): every architecture and every choice in it, small.
CASES = {
    "lenet5": ("lenet5", {}, (28, 28, 1), 84),
    "lenet5-modern-8x40x3": ("lenet5", {"modern": True}, (8, 40, 3), 84),
    "resnet20-28x28x1": ("resnet20", {"stage_sizes": (1, 1, 1), "width": 8}, (28, 28, 1), 32),
    "resnet18": ("resnet18", SMALL_RESNET, (32, 32, 3), 16),
    "resnet50": ("resnet50", SMALL_RESNET, (31, 33, 3), 64),
    "seresnet50": ("seresnet50", SMALL_RESNET, (32, 32, 3), 64),
    "vit-cls": ("vit_tiny_patch16_224", SMALL_VIT, (16, 12, 3), 16),
    "vit-gap-sincos2d": ("vit_mu_patch16_224", {**SINCOS, "pool": "gap"}, (8, 8, 1), 32),
    "vit-cls-sincos2d": ("vit_mu_patch16_224", SINCOS, (8, 8, 1), 32),
    "vit-map-scan": ("vit_tiny_patch16_224", {**SMALL_VIT, "pool": "map", "scan": True, "mlp_dim": 24}, (8, 8, 3), 16),
}
each_case = pytest.mark.parametrize("case", CASES)


def make(case, *, num_classes=5, **extra):
    """The case's model and images [4,H,W,C]."""
    name, overrides, shape, _ = CASES[case]
    images = jax.random.normal(jax.random.key(7), (4, *shape))
    return models.build(name, num_classes=num_classes, **{**overrides, **extra}), images


def shapes_of(model, images):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def init(model, images):
    """Random variables, none at its initial value: heads and last scales start at zero, which would hide what is wrong.

    Made by numpy from the shapes, because compiling an initialisation for each model takes longer than the tests.
    """
    rng = np.random.default_rng(0)

    def value(path, leaf):
        name, noise = path[-1].key, rng.standard_normal(leaf.shape, np.float32)
        if name == "kernel":
            outputs = 3 if path[-2].key in ("qkv", "q", "kv") else 1  # the last axes, [3, H, D/H] or [F]
            return noise / math.sqrt(math.prod(leaf.shape[:-outputs]))
        return {"scale": 1 + 0.2 * noise, "var": np.exp(0.2 * noise)}.get(name, 0.2 * noise)

    return jax.tree_util.tree_map_with_path(value, shapes_of(model, images))


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def forward(model, variables, images, *, train=False, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    rngs = {"dropout": keys[0], "drop_path": keys[1]}
    return model.apply(variables, images, train=train, rngs=rngs, mutable=["batch_stats"] if train else [])


def paths(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_lenet5_count_is_the_same_at_28_and_at_32():
    model = models.build("lenet5", num_classes=10)
    for side in (8, 28, 32):
        assert count(shapes_of(model, jnp.zeros((1, side, side, 1)))) == 61_706


@each_case
def test_forward_and_features(case):
    model, images = make(case)
    variables = init(model, images)
    logits, _ = forward(model, variables, images)
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all())
    # The same parameters without the head: its product with the features is the logits.
    backbone, _ = make(case, num_classes=0)
    (head,) = {k.split("/")[0] for k in paths(variables["params"])} - {
        k.split("/")[0] for k in paths(shapes_of(backbone, images)["params"])
    }
    params = {k: v for k, v in variables["params"].items() if k != head}
    features, _ = forward(backbone, {**variables, "params": params}, images)
    assert features.shape == (4, CASES[case][3]) and features.dtype == jnp.float32
    dense = variables["params"][head]
    np.testing.assert_allclose(features @ dense["kernel"] + dense["bias"], logits, rtol=1e-4, atol=1e-5)


@each_case
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(case):
    model, images = make(case)
    variables = init(model, images)

    @jax.jit
    def gradients(params):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])

        return jax.grad(loss)(params)

    for path, gradient in paths(gradients(variables["params"])).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(np.asarray(gradient) != 0), path


@pytest.mark.parametrize("case", ["resnet18", "resnet50", "seresnet50", "resnet20-28x28x1"])
def test_batch_norm_uses_the_batch_in_training_and_its_running_statistics_in_evaluation(case):
    model, images = make(case)
    images = 3 * images + 1
    variables = init(model, images)
    first, updated = forward(model, variables, images, train=True)
    evaluated, _ = forward(model, variables, images)
    assert np.abs(first - evaluated).max() > 1e-3
    before, after = paths(variables["batch_stats"]), paths(updated["batch_stats"])
    assert set(before) == set(after)
    for path, value in before.items():
        assert np.any(np.asarray(value) != np.asarray(after[path])), path
    # 0.9 of the old mean and 0.1 of the batch's, as torch's momentum of 0.1 does.
    conv = layers.Conv(model.width, *((7, 2) if model.stem == "imagenet" else (3, 1)))
    batch_mean = conv.apply({"params": variables["params"]["conv1"]}, images).mean((0, 1, 2))
    expected = 0.9 * before["bn1/mean"] + 0.1 * batch_mean
    np.testing.assert_allclose(after["bn1/mean"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("resnet18", {"drop_path": 0.5}),
        ("vit-cls", {"drop_path": 0.5}),
        ("vit-cls", {"dropout": 0.5}),
        ("vit-map-scan", {"drop_path": 0.5}),
        ("vit-map-scan", {"drop_path": 0.5, "remat": "full"}),
    ],
)
def test_random_layers_follow_their_key_in_training_and_are_off_in_evaluation(case, extra):
    model, images = make(case, **extra)
    plain, _ = make(case)
    variables = init(model, images)
    first, second, again = (forward(model, variables, images, train=True, seed=s)[0] for s in (0, 1, 0))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(forward(model, variables, images)[0], forward(plain, variables, images)[0])


@each_case
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters_and_logits(case):
    model, images = make(case, dtype=jnp.bfloat16)
    full, _ = make(case)
    variables = init(full, images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes_of(model, images)))
    logits, _ = forward(model, variables, images)
    reference, _ = forward(full, variables, images)
    assert logits.dtype == jnp.float32
    _, updated = jax.eval_shape(lambda: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))
    backbone, _ = make(case, num_classes=0, dtype=jnp.bfloat16)
    features = jax.eval_shape(lambda v: backbone.apply(v, images, train=False), variables)
    assert features.dtype == jnp.float32
    error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
    assert 1e-6 < error < 0.1  # it differs, as bfloat16 must, and not by much
    text = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, images).as_text()
    products = [
        line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    wide = [line for line in products if "bf16" not in line]
    assert len(products) > len(wide) == 1, wide  # the head alone


@pytest.mark.parametrize(("case", "extra"), [("lenet5", {}), ("vit-cls", {"depth": 1})])
def test_bfloat16_gradients_are_summed_over_many_examples_in_float32(case, extra):
    """A running sum in bfloat16 stands still at 256 times its terms: biases, positions and tokens would show it."""
    full, images = make(case, **extra)
    variables = init(full, images)
    images = jax.random.normal(jax.random.key(8), (2048, *CASES[case][2]))

    def gradients(dtype):
        model, _ = make(case, dtype=dtype, **extra)
        return jax.jit(jax.grad(lambda v: model.apply(v, images, train=True)[:, 0].mean()))(variables)["params"]

    expected = paths(gradients(jnp.float32))
    for path, got in paths(gradients(jnp.bfloat16)).items():
        error = np.linalg.norm(got - expected[path]) / np.linalg.norm(expected[path])
        assert error < 0.05, (path, error)


def stack_blocks(params):
    """The parameters of `scan=True` from those of `scan=False`."""
    depth = sum(key.startswith("blocks.") for key in params)
    rest = {k: v for k, v in params.items() if not k.startswith("blocks.")}
    blocks = [params[f"blocks.{i}"] for i in range(depth)]
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def test_scan_equals_no_scan_and_remat_equals_no_remat():
    plain, images = make("vit-cls")
    params = init(plain, images)["params"]
    stacked = stack_blocks(params)

    def value_and_grad(model, params):
        def loss(params):
            logits = model.apply({"params": params}, images, train=True)
            return jnp.sum(jnp.sin(logits)), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return logits, gradients

    logits, gradients = value_and_grad(plain, params)
    for scan, remat in ((False, "full"), (False, "dots"), (True, "none"), (True, "full"), (True, "dots")):
        model, _ = make("vit-cls", scan=scan, remat=remat)
        expected = stack_blocks(gradients) if scan else gradients
        assert jax.tree.map(jnp.shape, shapes_of(model, images)["params"]) == jax.tree.map(jnp.shape, expected)
        got_logits, got_gradients = value_and_grad(model, stacked if scan else params)
        np.testing.assert_allclose(got_logits, logits, rtol=1e-5, atol=1e-5)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got_gradients, expected)


def test_remat_recomputes_and_scan_keeps_the_program_short():
    def text(**extra):
        model, images = make("vit-cls", depth=6, **extra)
        variables = shapes_of(model, images)
        return str(jax.make_jaxpr(jax.grad(lambda v: model.apply(v, images, train=True).sum()))(variables))

    assert text(remat="full").count("remat") >= 6 and "remat" not in text()
    assert text(scan=True).count("dot_general") < text().count("dot_general") / 3


@pytest.mark.parametrize("scan", [False, True])
def test_remat_of_dots_keeps_the_products_with_parameters(scan):
    """Computed again are attention's two products alone; with "full" the four with parameters too, but the last."""
    depth = 1 if scan else 3

    def products(remat):
        model, images = make("vit-cls", depth=3, scan=scan, remat=remat)
        variables = shapes_of(model, images)
        program = jax.jit(jax.grad(lambda v: model.apply(v, images, train=True).sum())).lower(variables).as_text()
        return program.count("stablehlo.dot_general")

    assert products("dots") - products("none") == 2 * depth
    assert products("full") - products("none") == 5 * depth


def test_parameter_layouts_that_sharding_and_conversion_rely_on():
    model, images = make("vit-cls", mlp_dim=24)
    shapes = {k: v.shape for k, v in paths(shapes_of(model, images)["params"]).items()}
    assert shapes["blocks.1/attn/qkv/kernel"] == (16, 3, 2, 8)
    assert shapes["blocks.1/attn/qkv/bias"] == (3, 2, 8)
    assert shapes["blocks.1/attn/proj/kernel"] == (2, 8, 16)
    assert shapes["blocks.1/mlp/fc1/kernel"] == (16, 24)
    assert shapes["blocks.1/mlp/fc2/kernel"] == (24, 16)
    assert shapes["patch_embed.proj/kernel"] == (4, 4, 3, 16)
    assert shapes["pos_embed"] == (1, 1 + 4 * 3, 16)
    model, images = make("seresnet50")
    shapes = {k: v.shape for k, v in paths(shapes_of(model, images)["params"]).items()}
    assert shapes["layer2.0/conv2/kernel"] == (3, 3, 16, 16)
    assert shapes["layer2.0/downsample.0/kernel"] == (1, 1, 32, 64)
    assert shapes["layer2.0/se/fc1/kernel"] == (1, 1, 64, 8)
    assert shapes["fc/kernel"] == (64, 5)


def test_initialisation_is_as_documented():
    key = jax.random.key(0, impl="unsafe_rbg")  # its programs compile fast
    model, images = make("resnet50", stage_sizes=(1,))
    variables = jax.jit(lambda: model.init(key, images, train=False))()
    params = paths(variables["params"])
    assert not np.any(params["layer1.0/bn3/scale"]) and np.all(params["layer1.0/bn2/scale"] == 1)
    assert np.std(params["conv1/kernel"]) == pytest.approx(math.sqrt(2 / (7 * 7 * 8)), rel=0.1)
    assert np.std(params["fc/kernel"]) == pytest.approx(0.01, rel=0.2)

    width = 96
    model = models.build("vit_mu_patch16_224", num_classes=5, width=width, depth=2, scan=True, pool="map")
    params = paths(jax.jit(lambda: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))()["params"])
    square = math.sqrt(1 / width)  # standard deviation of Xavier-uniform for D x D, fused or not
    for path in ("blocks/attn/qkv", "blocks/attn/proj", "attn_pool/q", "attn_pool/kv", "attn_pool/proj"):
        assert np.std(params[f"{path}/kernel"]) == pytest.approx(square, rel=0.02), path
        assert np.abs(params[f"{path}/kernel"]).max() == pytest.approx(math.sqrt(3) * square, rel=0.02), path
    first, second = params["blocks/attn/qkv/kernel"]
    assert np.abs(first - second).max() > square
    assert np.std(params["pos_embed"]) == pytest.approx(square, rel=0.2)
    assert not np.any(params["head/kernel"])


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("shape", [(2, 6, 6, 5), (2, 7, 9, 5)])
def test_convolution_by_matrix_product_equals_lax(kernel_size, stride, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    conv = layers.Conv(4, kernel_size, stride=stride, padding=0)
    params = conv.init(jax.random.key(1), x)

    def reference(params, x):
        kernel = params["params"]["kernel"]
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    by_matmul = "dot_general" in str(jax.make_jaxpr(conv.apply)(params, x))
    assert by_matmul == (kernel_size == 1 or (shape[1] % kernel_size == 0 and shape[2] % kernel_size == 0))
    for f, g in ((conv.apply, reference), *(map(gradients_of, (conv.apply, reference)),)):
        got, expected = f(params, x), g(params, x)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected)


def gradients_of(f):
    return jax.grad(lambda params, x: jnp.sum(jnp.sin(f(params, x))), argnums=(0, 1))


def test_convolution_in_groups_with_bias_equals_separate_ones():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 6))
    for kernel_size in (1, 3):
        conv = layers.Conv(4, kernel_size, groups=2, use_bias=True)
        params = {
            "kernel": jax.random.normal(jax.random.key(1), (kernel_size, kernel_size, 3, 4)),
            "bias": jnp.arange(4.0),
        }
        one = layers.Conv(2, kernel_size, use_bias=True)
        halves = [
            one.apply(
                {"params": {"kernel": params["kernel"][..., o : o + 2], "bias": params["bias"][o : o + 2]}},
                x[..., i : i + 3],
            )
            for o, i in ((0, 0), (2, 3))
        ]
        got = conv.apply({"params": params}, x)
        np.testing.assert_allclose(got, jnp.concatenate(halves, axis=-1), rtol=1e-5, atol=1e-5)


def test_drop_path_drops_whole_examples_and_keeps_the_expectation():
    x = 1 + jax.random.uniform(jax.random.key(0), (2000, 3, 4))
    drop = layers.DropPath()
    y = drop.apply({}, x, 0.3, train=True, rngs={"drop_path": jax.random.key(1)})
    ratio = np.asarray(y / x).reshape(2000, -1)
    np.testing.assert_array_equal(ratio.max(1) == 0, ratio.min(1) == 0)  # all of an example or nothing
    kept = ratio.max(1) > 0
    np.testing.assert_allclose(ratio[kept], 1 / 0.7, rtol=1e-5)
    assert abs(kept.mean() - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    assert abs(float(y.mean() / x.mean()) - 1) < 4 * math.sqrt(0.3 / 0.7 / 2000)
    np.testing.assert_array_equal(drop.apply({}, x, 0.3, train=False), x)
    np.testing.assert_array_equal(drop.apply({}, x, 0.0, train=True, rngs={"drop_path": jax.random.key(1)}), x)


def test_drop_path_rates_rise_linearly():
    np.testing.assert_allclose(layers.drop_path_rates(0.2, 5), [0, 0.05, 0.1, 0.15, 0.2])
    assert layers.drop_path_rates(0.0, 2) == [None, None]
    with pytest.raises(ConfigError, match="drop_path is 1"):
        layers.drop_path_rates(1.0, 2)


def test_dropped_residual_branches_leave_the_stem_and_the_shortcuts():
    """The last of three blocks has the full rate: at 0.999 an example's output is that of the net without it."""
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    kwargs = {"num_classes": 0, "stem": "small", "block": "basic", "width": 4}
    model = models.build("resnet18", stage_sizes=(2,), drop_path=0.999, **kwargs)
    variables = init(model, images)
    shorter = models.build("resnet18", stage_sizes=(1,), **kwargs)
    pruned = {k: {n: v for n, v in tree.items() if n != "layer1.1"} for k, tree in variables.items()}
    got, _ = forward(model, variables, images, train=True)
    expected, _ = forward(shorter, pruned, images, train=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_stems_divide_the_size_by_four_two_and_one():
    images = jnp.zeros((1, 32, 32, 3))
    for stem, side in (("imagenet", 8), ("half", 16), ("small", 32)):
        model = models.build("resnet18", num_classes=5, stem=stem, **SMALL_RESNET)
        _, state = jax.eval_shape(
            lambda m=model: m.init_with_output(
                jax.random.key(0), images, train=False, capture_intermediates=True, mutable=True
            )
        )
        (first,) = state["intermediates"]["layer1.0"]["__call__"]
        assert first.shape == (1, side, side, 8)


def test_sincos2d_is_the_formula():
    height, width, features = 3, 5, 12
    expected = np.zeros((height * width, features))
    for row in range(height):
        for column in range(width):
            for i in range(features // 4):
                frequency = 1 / 10_000 ** (i / (features // 4 - 1))
                values = (
                    math.sin(column * frequency),
                    math.cos(column * frequency),
                    math.sin(row * frequency),
                    math.cos(row * frequency),
                )
                expected[row * width + column, i :: features // 4] = values
    got = vit.sincos2d(height, width, features)
    assert got.shape == (1, 15, 12) and got.dtype == np.float32
    np.testing.assert_allclose(got[0], expected, atol=1e-6)


def test_the_class_token_has_no_fixed_position():
    """Without blocks its feature is its own layer norm, whatever the image."""
    model, images = make("vit-cls-sincos2d", depth=0, num_classes=0)
    variables = init(model, images)
    token = np.asarray(variables["params"]["cls_token"])[0, 0]
    norm = variables["params"]["norm"]
    expected = (token - token.mean()) / np.sqrt(token.var() + 1e-6) * norm["scale"] + norm["bias"]
    got = model.apply(variables, images, train=False)
    np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), rtol=1e-4, atol=1e-5)


def test_gap_is_the_mean_of_the_normed_tokens_and_ignores_their_order_without_positions():
    """A permutation of the patches permutes the positions too, so the features cannot change."""
    model, images = make("vit-cls", pool="gap", num_classes=0)
    variables = init(model, images)
    order = np.random.default_rng(0).permutation(12)
    patches = images.reshape(4, 4, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 12, 4, 4, 3)[:, order]
    shuffled = patches.reshape(4, 4, 3, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    params = {**variables["params"], "pos_embed": variables["params"]["pos_embed"][:, order]}
    got, _ = forward(model, {"params": params}, shuffled)
    np.testing.assert_allclose(got, forward(model, variables, images)[0], rtol=1e-4, atol=1e-5)
    assert np.abs(forward(model, variables, shuffled)[0] - got).max() > 1e-3


def test_attention_is_softmax_attention():
    q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), (2, n, 3, 4))) for i, n in ((0, 5), (1, 6), (2, 6)))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(4)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bmhd->bnhd", weights, v)
    np.testing.assert_allclose(layers.attention(*map(jnp.asarray, (q, k, v))), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "inner"), [(64, 8), (256, 16), (320, 24), (512, 32)])
def test_se_width_is_rounded_as_timm_does(channels, inner):
    assert layers.make_divisible(channels / 16, round_limit=0.0) == inner


def test_lists_of_a_config_read_from_json_are_accepted():
    model = models.build("resnet20", num_classes=5, stage_sizes=[1, 1])
    assert hash(model) == hash(models.build("resnet20", num_classes=5, stage_sizes=(1, 1)))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("lenet55", {}, "model.name='lenet55' is unknown (did you mean 'lenet5'?)"),
        ("zzz", {}, "model.name='zzz' is unknown; choices: airbench94, "),
        ("resnet50", {"drop_pth": 0.1}, "field of resnet50='drop_pth' is unknown (did you mean 'drop_path'?)"),
        ("resnet50", {"parent": None}, "field of resnet50='parent' is unknown"),
        ("resnet50", {"stem": "smal"}, "stem='smal' is unknown (did you mean 'small'?)"),
        ("resnet50", {"block": "Basic"}, "block='Basic' is unknown (did you mean 'basic'?)"),
        ("resnet50", {"shortcut": "pd"}, "shortcut='pd' is unknown (did you mean 'pad'?)"),
        ("resnet50", {"stage_sizes": ()}, "stage_sizes is"),
        ("vit_mu_patch16_224", {"pool": "avg"}, "pool='avg' is unknown"),
        ("vit_mu_patch16_224", {"pos_embed": "sincos"}, "pos_embed='sincos' is unknown (did you mean 'sincos2d'?)"),
        ("vit_mu_patch16_224", {"patch_size": 5}, "patch_size=5 does not divide the image size 32x32"),
        ("vit_mu_patch16_224", {"num_heads": 3}, "num_heads=3 does not divide width=32"),
        ("vit_mu_patch16_224", {"width": 30, "pos_embed": "sincos2d"}, "a multiple of 4 and at least 8, not 30"),
        ("vit_mu_patch16_224", {"drop_path": -0.1}, "drop_path is -0.1"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(name, overrides, message):
    def initialise():
        model = models.build(name, num_classes=5, **overrides)
        return model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)

    with pytest.raises(ConfigError) as error:
        jax.eval_shape(initialise)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
