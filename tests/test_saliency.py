"""Heat maps against what can be derived without them: analytically, in NumPy, and (marker parity) by torch's hooks."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from zoo import SIDES

from imgcls_jax import models, saliency
from imgcls_jax.models import layers
from imgcls_jax.models.vit import ViT
from imgcls_jax.types import ConfigError


def randomised(variables, seed=0):
    """Variables with every parameter drawn anew: heads that begin as zeros have no gradient to show."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (x + rng.normal(0, 0.5 / math.sqrt(max(x.shape[:-1] or (1,))), x.shape)).astype(np.float32)  # noqa: E731
    return {**variables, "params": jax.tree.map(draw, variables["params"])}


def init(model, images):
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)


class Tiny(nn.Module):
    """A convolution, global average pooling, a linear layer."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        x = nn.relu(layers.Conv(6, 3, stride=2, use_bias=True, name="conv")(images))
        x = layers.FeatureMap()(x)
        return layers.classifier(x.mean((1, 2)), 4, kernel_init=nn.initializers.normal(1), name="head")


class Corner(nn.Module):
    """Two classes: how bright the top left quarter is, and how dark."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        corner = images[:, : images.shape[1] // 2, : images.shape[2] // 2].mean((1, 2, 3))
        return jnp.stack([corner, -corner], axis=-1)


def test_grad_cam_is_the_class_activation_map_of_a_linear_head():
    """With global average pooling the gradient of a logit is the head's column over the number of places."""
    images = jax.random.normal(jax.random.key(1), (3, 12, 8, 3))
    model = Tiny()
    variables = init(model, images)
    targets = jnp.array([2, 0, 2])
    found = saliency.grad_cam(model, variables, images, targets)

    conv, head = variables["params"]["conv"], variables["params"]["head"]["kernel"]
    feature_map = jax.lax.conv_general_dilated(
        images, conv["kernel"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    feature_map = np.maximum(np.asarray(feature_map + conv["bias"]), 0)
    cam = np.einsum("bhwc,cb->bhw", feature_map, np.asarray(head)[:, targets]) / (6 * 4)
    assert (cam < 0).any()
    np.testing.assert_allclose(found, np.maximum(cam, 0), atol=1e-6)


def erf(x):
    return np.vectorize(math.erf)(x)


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def mlp(x, p):
    x = x @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    return x * (1 + erf(x / math.sqrt(2))) / 2 @ p["fc2"]["kernel"] + p["fc2"]["bias"]


def attend(q, k, v):
    """Of q [H,N,d], k, v [H,M,d]: (result [N,H,d], probabilities [H,N,M])."""
    p = softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
    return (p @ v).swapaxes(0, 1), p


def numpy_rollout(params, image, *, patch, pool, depth):
    """(logits, relevance [h,w]) of a vision transformer written out in NumPy, one image, one head after another."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    kernel = params["patch_embed.proj"]["kernel"]
    cells = [image[i * patch :, j * patch :][:patch, :patch] for i in range(rows) for j in range(columns)]
    x = np.stack([np.tensordot(cell, kernel, 3) for cell in cells]) + params["patch_embed.proj"]["bias"]
    prefix = [params[k][0] for k in ("cls_token", "dist_token", "reg_token") if k in params]
    x = np.concatenate([*prefix, x]) + params["pos_embed"][0]
    skipped = len(x) - len(cells)
    product = np.eye(len(x))
    for i in range(depth):
        p = params[f"blocks.{i}"]
        y = layer_norm(x, p["norm1"])
        qkv = np.einsum("nd,dphe->phne", y, p["attn"]["qkv"]["kernel"]) + p["attn"]["qkv"]["bias"][:, :, None]
        y, probabilities = attend(*qkv)
        x = x + np.einsum("nhe,hed->nd", y, p["attn"]["proj"]["kernel"]) + p["attn"]["proj"]["bias"]
        x = x + mlp(layer_norm(x, p["norm2"]), p["mlp"])
        mixed = 0.5 * probabilities.mean(0) + 0.5 * np.eye(len(x))
        product = mixed @ product
    x = layer_norm(x, params["norm"])
    head = lambda x, name: x @ params[name]["kernel"] + params[name]["bias"]  # noqa: E731
    if "head_dist" in params:
        logits, weights = (head(x[0], "head") + head(x[1], "head_dist")) / 2, np.r_[0.5, 0.5, np.zeros(len(x) - 2)]
    elif pool == "cls":
        logits, weights = head(x[0], "head"), np.r_[1, np.zeros(len(x) - 1)]
    elif pool == "gap":
        logits, weights = (
            head(x[skipped:].mean(0), "head"),
            np.r_[np.zeros(skipped), np.full(len(cells), 1 / len(cells))],
        )
    else:
        p = params["attn_pool"]
        q = np.einsum("nd,dphe->phne", p["latent"][0], p["q"]["kernel"]) + p["q"]["bias"][:, :, None]
        kv = np.einsum("nd,dphe->phne", x[skipped:], p["kv"]["kernel"]) + p["kv"]["bias"][:, :, None]
        y, probabilities = attend(q[0], *kv)
        y = np.einsum("nhe,hed->nd", y, p["proj"]["kernel"]) + p["proj"]["bias"]
        logits = head((y + mlp(layer_norm(y, p["norm"]), p["mlp"]))[0], "head")
        weights = np.r_[np.zeros(skipped), probabilities.mean(0)[0]]
    return logits, (weights @ product)[skipped:].reshape(rows, columns)


@pytest.mark.parametrize(
    "fields",
    [
        {"pool": "cls", "distilled": True, "registers": 2},
        {"pool": "map"},
        pytest.param({"pool": "cls"}, marks=pytest.mark.slow),
        pytest.param({"pool": "gap", "registers": 3}, marks=pytest.mark.slow),
        pytest.param({"pool": "cls", "scan": True, "remat": "full"}, marks=pytest.mark.slow),
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_rollout_is_that_of_a_transformer_written_in_numpy(fields):
    images = jax.random.normal(jax.random.key(1), (2, 12, 8, 3))
    model = ViT(num_classes=5, patch_size=4, width=16, depth=3, num_heads=2, mlp_dim=24, **fields)
    variables = randomised(init(model, images))
    found = saliency.attention_rollout(model, variables, images)
    logits = model.apply(variables, images, train=False)

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    if "blocks" in params:
        stacked = params.pop("blocks")
        params |= {f"blocks.{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(3)}
    for i, image in enumerate(np.asarray(images, np.float64)):
        expected = numpy_rollout(params, image, patch=4, pool=fields["pool"], depth=3)
        np.testing.assert_allclose(logits[i], expected[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[i], expected[1], rtol=1e-4, atol=1e-6)
        assert expected[1].std() > 0.02 * expected[1].mean()  # the weights make it look somewhere


def test_occlusion_finds_what_a_model_looks_at():
    images = jnp.ones((2, 20, 16, 1)).at[1].set(-1)
    heats = saliency.occlusion(Corner(), {}, images, jnp.array([0, 0]), patch=4, stride=3, batch_size=7)
    assert heats.shape == (2, 20, 16) and heats.dtype == np.float32
    bright, dark = heats
    assert bright[:7, :5].min() > 0 and np.abs(bright[13:]).max() < 1e-6 and np.abs(bright[:, 11:]).max() < 1e-6
    # Hiding a dark corner makes "bright" more probable, and a patch within the corner takes away one fifth of it.
    assert dark[:7, :5].max() < 0
    whole, part = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-2 * (1 - 16 / 80)))
    np.testing.assert_allclose(bright[0, 0], whole - part, rtol=1e-4)


def test_occlusion_does_not_depend_on_the_batches_and_covers_every_pixel():
    images = jax.random.normal(jax.random.key(0), (1, 9, 7, 3))
    model = Tiny()
    variables = init(model, images)
    once = saliency.occlusion(model, variables, images, jnp.array([1]), batch_size=64)
    again = saliency.occlusion(model, variables, images, jnp.array([1]), batch_size=5)
    np.testing.assert_allclose(once, again, atol=1e-6)
    assert np.isfinite(once).all() and once.std() > 0
    with pytest.raises(ValueError, match="never hidden"):
        saliency.occlusion(model, variables, images, jnp.array([1]), patch=3, stride=4)


def test_probabilities_of_many_labels_are_each_by_themselves():
    images = jnp.ones((1, 8, 8, 1))
    heat = saliency.occlusion(Corner(), {}, images, jnp.array([0]), task="multilabel", patch=8, stride=8)
    np.testing.assert_allclose(heat, 1 / (1 + np.exp(-1)) - 0.5, rtol=1e-5)


def side_of(name):
    return next(side for pattern, side in SIDES if re.match(pattern, name))


def images_of(name, count=2):
    side = max(64, side_of(name)) if name != "lenet5" else 28
    return jax.random.normal(jax.random.key(1), (count, side, side, models.MODELS[name].channels))


QUICK = ["lenet5", "resnet20"]
LONG = [
    "airbench94",
    "mobilenetv3_small_100",
    "alexnet",
    "vgg11",
    "vgg11_bn",
    "resnet18",
    "seresnet18",
    "legacy_seresnet50",
    "resnetv2_50x1_bit",
    "wrn40_4",
    "densenet121",
    "densenet_bc_100_12",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "convnext_tiny",
    "googlenet",
    "mixer_b16_224",
]


def test_every_architecture_but_the_transformers_is_tried():
    tried = {models.MODELS[name].architecture for name in QUICK + LONG} | {ViT}
    assert tried == {entry.architecture for entry in models.MODELS.values()}


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in LONG])
def test_every_architecture_has_a_map(name):
    images = images_of(name)
    # Of so many classes one has a logit above 0: where all are below, a map without positive part is right.
    model = models.build(name, num_classes=20)
    variables = init(model, images)
    if name == "mixer_b16_224":  # its head begins as zeros
        variables = randomised(variables)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    heats = saliency.heat_maps("gradcam", model, variables, images, logits.argmax(-1))
    assert heats.shape == images.shape[:3] and heats.dtype == np.float32
    assert heats.min() >= 0 and (heats.max((1, 2)) == 1).all()
    assert heats.std((1, 2)).min() > 0.01


@pytest.mark.parametrize("name", ["lenet5", "alexnet", "vgg11", "resnet20"])
def test_the_mark_changes_neither_the_program_nor_the_variables(name):
    """As compared with the model without: an interceptor takes the mark out."""
    images = jax.ShapeDtypeStruct(images_of(name).shape, jnp.float32)
    model = models.build(name, num_classes=5)

    def programs():
        variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
        return str(jax.tree_util.tree_flatten_with_path(variables)), str(
            jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, images)
        )

    def without(next_fun, args, kwargs, context):
        marked.append(isinstance(context.module, layers.FeatureMap))
        return args[0] if marked[-1] else next_fun(*args, **kwargs)

    marked = []
    with nn.intercept_methods(without):
        bare = programs()
    assert any(marked) and programs() == bare


def test_reading_a_map_does_not_change_the_logits():
    images = images_of("lenet5")
    model = models.build("lenet5", num_classes=5)
    variables = init(model, images)
    before = model.apply(variables, images, train=False)
    logits, maps = saliency._apply(model, variables, images, {})
    np.testing.assert_array_equal(logits, before)
    assert [m.shape for m in maps] == [(2, 10, 10, 16)]
    np.testing.assert_array_equal(model.apply(variables, images, train=False), before)


def test_auto_is_what_suits_the_model():
    vit, lenet = models.build("vit_mu_patch16_224", num_classes=5), models.build("lenet5", num_classes=5)
    resnet, mixer = models.build("resnet18", num_classes=5), models.build("mixer_b16_224", num_classes=5)
    choose = saliency.choose_method
    assert choose("auto", vit, (32, 32, 3)) == "rollout"
    assert choose("auto", lenet, (28, 28, 1)) == "gradcam"
    assert choose("auto", mixer, (32, 48, 3)) == "gradcam"
    assert saliency.map_size(mixer, (32, 48, 3)) == (2, 3)
    assert choose("auto", resnet, (32, 32, 3)) == "occlusion"  # 1x1
    assert choose("occlusion", vit, (32, 32, 3)) == "occlusion"
    for method, model, sentence in (
        ("gradcam", vit, "a vision transformer lacks: choose rollout"),
        ("gradcam", resnet, "at 32x32 pixels the last feature map of this model is a single place"),
        ("rollout", resnet, "is for vision transformers, not ResNet: choose gradcam"),
        ("gradcan", resnet, "did you mean 'gradcam'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            choose(method, model, (32, 32, 3))
    with pytest.raises(ConfigError, match="has no feature map"):
        saliency.grad_cam(Corner(), {}, jnp.ones((1, 4, 4, 1)), jnp.array([0]))


def test_heat_maps_are_in_0_to_1_and_none_is_all_zero_without_evidence():
    model = Tiny()
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = init(model, images)
    for method in ("gradcam", "occlusion"):
        heats = saliency.heat_maps(method, model, variables, images, jnp.array([1, 1]))
        assert heats.shape == (2, 16, 16) and heats.dtype == np.float32
        assert heats.min() >= 0 and heats.max((1, 2)).tolist() == [1, 1]
    conv, head = variables["params"]["conv"], variables["params"]["head"]
    against = {"params": {"conv": conv, "head": jax.tree.map(lambda x: -abs(x), head)}}
    assert not saliency.heat_maps("gradcam", model, against, images, jnp.array([1, 1])).any()
    sure = {
        "params": {**variables["params"], "head": {"kernel": jnp.zeros((6, 4)), "bias": jnp.array([0, 40.0, 0, 0])}}
    }
    assert not saliency.heat_maps("occlusion", model, sure, images, jnp.array([1, 1])).any()  # nothing but rounding
    vit = ViT(num_classes=5, patch_size=4, width=16, depth=1, num_heads=2)
    heats = saliency.heat_maps("rollout", vit, randomised(init(vit, images)), images, jnp.array([1, 1]))
    assert heats.min((1, 2)).tolist() == [0, 0] and heats.max((1, 2)).tolist() == [1, 1]


def test_an_overlay_gets_brighter_with_the_heat():
    heat = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for channels in (1, 3):
        out = saliency.overlay(np.full((8, 8, channels), 128, np.uint8), heat)
        assert out.shape == (8, 8, 3) and out.dtype == np.uint8
        assert (np.diff(out.reshape(-1, 3) @ (0.2126, 0.7152, 0.0722)) > -0.5).all()
    np.testing.assert_array_equal(out[0, 0], [64, 64, 66])  # inferno begins at nearly black
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.corrcoef(saliency.overlay(image, np.zeros((8, 8))).ravel(), image.ravel())[0, 1] > 0.999


@pytest.mark.parity
def test_grad_cam_is_that_of_torch_hooks_on_timm(torch):
    import timm

    from imgcls_jax import pretrained

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=7).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
        net.fc.weight.normal_(0, 0.1)
    images = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    targets = [3, 5]
    kept = {}

    def hook(module, inputs, output):
        output.retain_grad()
        kept["map"] = output

    net.layer4.register_forward_hook(hook)
    logits = net(torch.from_numpy(images).permute(0, 3, 1, 2))
    logits[range(2), targets].sum().backward()
    weights = kept["map"].grad.mean((2, 3), keepdim=True)
    expected = torch.relu((weights * kept["map"]).sum(1)).detach().numpy()

    model = models.build("resnet18", num_classes=7)
    tensors = {k: v.numpy() for k, v in net.state_dict().items()}
    variables = pretrained.from_state_dict("resnet18", tensors, num_classes=7)
    found = saliency.grad_cam(model, variables, images, jnp.array(targets))
    assert found.shape == (2, 3, 3) and expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
