"""Every kind of source that `pretrained.read` takes, and what it says of those that it does not. No torch needed."""

import json
import math
import os
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from helpers import tiny_config
from safetensors.numpy import save_file

from imgcls_jax import config as config_lib
from imgcls_jax import models, pretrained
from imgcls_jax.checkpoint import Checkpointer
from imgcls_jax.models.variant import Preprocessing
from imgcls_jax.pretrained import convert
from imgcls_jax.state import TrainState
from imgcls_jax.types import UserError

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.float32([1.5, -2])}
TIMM = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "crop_pct": 0.9}
EXPECTED = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.9, 64)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == np.float32
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def randoms(tree, seed=0):
    """Random arrays in the shapes of a tree, at a scale at which activations stay in range."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(leaf.shape[-1] / math.prod(leaf.shape)) ** np.float32(0.5)
        return 1 + np.float32(0.2) * noise

    return jax.tree_util.tree_map_with_path(value, tree)


# --- files and folders


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_safetensors(tmp_path, dtype):
    save_file({k: v.astype(dtype) for k, v in TENSORS.items()}, tmp_path / "w.safetensors")
    weights = pretrained.read(str(tmp_path / "w.safetensors"))
    same(weights.tensors, TENSORS)
    assert weights.preprocessing is None


def test_the_names_that_wrappers_make(tmp_path):
    wrapped = {"module.a.weight": TENSORS["a.weight"], "_orig_mod.module.a.bias": TENSORS["a.bias"]}
    save_file(wrapped, tmp_path / "w.safetensors")
    same(pretrained.read(str(tmp_path / "w.safetensors")).tensors, TENSORS)


def test_a_folder_of_timm_s(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert pretrained.read(str(tmp_path)).preprocessing is None
    card = {"architecture": "resnet18", "pretrained_cfg": {**TIMM, "input_size": [3, 64, 64], "tag": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        weights = pretrained.read(str(source))
        same(weights.tensors, TENSORS)
        assert weights.preprocessing == EXPECTED
    # An older timm wrote the settings beside the architecture.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", **TIMM, "input_size": [3, 64, 64]}))
    assert pretrained.read(str(tmp_path)).preprocessing == EXPECTED


TRANSFORMERS = [
    ({"size": 224, "crop_pct": 0.875}, (0.875, 224)),
    ({"size": {"height": 384, "width": 384}}, (1.0, 384)),
    (
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        (0.875, 224),
    ),
    ({"size": {"shortest_edge": 224}, "do_center_crop": False, "crop_size": 192}, (1.0, 224)),
]


@pytest.mark.parametrize("card, expected", TRANSFORMERS)
def test_a_folder_of_transformers(tmp_path, card, expected):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    card = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3, **card}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
    found = pretrained.read(str(tmp_path)).preprocessing
    assert found == Preprocessing((0.5,) * 3, (0.25,) * 3, "bicubic", *expected)


@pytest.mark.parametrize(
    "card",
    [
        "{",
        "[]",
        '{"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}',
        '{"pretrained_cfg": {"mean": [0.5], "std": [0.0], "input_size": [1, 8, 8]}}',
        '{"pretrained_cfg": {"mean": [0.5], "std": [0.5, 0.5], "input_size": [1, 8, 8]}}',
        '{"pretrained_cfg": {"mean": [0.5], "std": [0.5], "input_size": [1, 8, 8], "interpolation": "psychic"}}',
        '{"pretrained_cfg": {"mean": [0.5], "std": [0.5], "input_size": [1, 8, 8], "crop_pct": 2}}',
    ],
)
def test_a_card_that_makes_no_sense_is_one_sentence(tmp_path, card):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(card)
    with pytest.raises(
        UserError, match=r"config\.json does not say how images are made \(.*\): mend or delete it"
    ) as caught:
        pretrained.read(str(tmp_path))
    assert "\n" not in str(caught.value)


# --- work directories


def run_of(folder, name, overrides, states, **config):
    """A work directory whose checkpoints hold the model's variables; the average is another model."""
    config = tiny_config(**{"model.name": name, "data.mean": (0.25,), "data.std": (0.75,), **config})
    folder.mkdir()
    (folder / "config.json").write_text(config_lib.to_json(config))
    model = models.build(name, num_classes=5, **overrides)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    checkpointer = Checkpointer(folder / "checkpoints", keep_last=5)
    for step in states:
        raw, average = (jax.tree.map(jnp.asarray, randoms(shapes, seed)) for seed in (step, -step % 1000))
        state = [
            {"params": v["params"], "model_state": {k: x for k, x in v.items() if k != "params"}}
            for v in (raw, average)
        ]
        checkpointer.save(TrainState(jnp.int32(step), **state[0], opt_state={"m": jnp.ones(3)}, ema=state[1]), step, {})
    checkpointer.close()
    return shapes


RUNS = {
    "batch-norm": ("resnet18", {"stage_sizes": (1, 1, 1, 1), "width": 8}),
    "scan": ("vit_tiny_patch16_224", {"patch_size": 8, "width": 8, "depth": 2, "num_heads": 2, "scan": True}),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_work_directory_gives_its_newest_raw_weights(tmp_path, case):
    name, overrides = RUNS[case]
    crop = ("resize_centre_crop(32, crop_pct=0.8, interpolation='bilinear')",)
    more = {"augment.host_eval": crop, "data.image_size": 32, "data.channels": 3}
    shapes = run_of(tmp_path / "run", name, overrides, (3, 20), **more)
    weights = pretrained.read(str(tmp_path / "run"))
    expected = randoms(shapes, 20)
    same(weights.tensors, convert.state_dict(expected))
    got = pretrained.from_state_dict(name, weights.tensors, image_size=32, **overrides)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert weights.preprocessing == Preprocessing((0.25,) * 3, (0.75,) * 3, "bilinear", 0.8, 32)


def test_a_work_directory_without_a_crop(tmp_path):
    run_of(tmp_path / "run", "lenet5", {}, (1,))
    assert pretrained.read(str(tmp_path / "run")).preprocessing == Preprocessing((0.25,), (0.75,), "bicubic", 1.0, 8)


# Orbax closes its event loop after the first error while other reads still report to it; nothing is lost by that.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_work_directories_that_hold_no_weights(tmp_path):
    run_of(tmp_path / "run", "lenet5", {}, (1, 2))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2" / "params")
    with pytest.raises(UserError, match=r"Checkpoint 2 in .*run is damaged"):
        pretrained.read(str(tmp_path / "run"))
    for step in "12":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    with pytest.raises(UserError, match="has saved no checkpoint yet"):
        pretrained.read(str(tmp_path / "run"))


# --- Google's npz


class Reference:
    """A vision transformer in flax's own layers, in big_vision's modules and so under its names."""

    class MlpBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.gelu(nn.Dense(4 * x.shape[-1])(x), approximate=False)
            return nn.Dense(x.shape[-1])(y)

    class Encoder1DBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm(1e-6)(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
            return x + Reference.MlpBlock()(nn.LayerNorm(1e-6)(x))

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(2):
                x = Reference.Encoder1DBlock(name=f"encoderblock_{i}")(x)
            return nn.LayerNorm(1e-6, name="encoder_norm")(x)

    class MAPHead(nn.Module):
        @nn.compact
        def __call__(self, x):
            probe = self.param("probe", nn.initializers.normal(), (1, 1, x.shape[-1]))
            probe = jnp.tile(probe, (x.shape[0], 1, 1))
            x = nn.MultiHeadDotProductAttention(num_heads=2)(probe, x)
            return (x + Reference.MlpBlock()(nn.LayerNorm(1e-6)(x)))[:, 0]

    class ViT(nn.Module):
        pool: str

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(x).reshape(len(x), -1, 8)
            x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], 8))
            if self.pool == "cls":
                token = self.param("cls", nn.initializers.normal(), (1, 1, 8))
                x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
            x = Reference.Encoder(name="Transformer")(x)
            if self.pool == "map":
                x = Reference.MAPHead(name="MAPHead_0")(x)
            else:
                x = x[:, 0] if self.pool == "cls" else x.mean(axis=1)
            return nn.Dense(5, name="head")(x)


IMAGES = np.random.default_rng(1).standard_normal((3, 16, 16, 3)).astype(np.float32)
VIT = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}


def stacked(arrays):
    """The blocks on a leading axis, as big_vision's scan=True saves them."""
    first, second = "Transformer/encoderblock_0/", "Transformer/encoderblock_1/"
    rest = {k: v for k, v in arrays.items() if not k.startswith((first, second))}
    blocks = {k.removeprefix(first): v for k, v in arrays.items() if k.startswith(first)}
    return rest | {f"Transformer/encoderblock/{k}": np.stack([v, arrays[second + k]]) for k, v in blocks.items()}


def numbered(arrays):
    """The names of the original repository and AugReg, which counted all layers of a block together."""
    pairs = (
        ("MlpBlock_0", "MlpBlock_3"),
        ("LayerNorm_1", "LayerNorm_2"),
        ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
    )
    renamed = {}
    for name, array in arrays.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        renamed["Transformer/posembed_input/pos_embedding" if name == "pos_embedding" else name] = array
    # The class token had a row of its own.
    positions = renamed["Transformer/posembed_input/pos_embedding"]
    row = np.full((1, 1, 8), 0.5, np.float32)
    renamed["Transformer/posembed_input/pos_embedding"] = np.concatenate([row, positions], axis=1)
    renamed["cls"] = renamed["cls"] - row
    return renamed


def whole_state(arrays):
    """A training state: the optimizer's and the text tower's arrays beside the image model's."""
    return {f"params/img/{k}": v for k, v in arrays.items()} | {
        "params/t": np.ones(1),
        "opt/0/mu/embedding": np.ones(3),
    }


NPZ = {
    "cls": ("cls", lambda arrays: arrays),
    "gap": ("gap", lambda arrays: {f"params/{k}": v for k, v in arrays.items()}),
    "map": ("map", whole_state),
    "stacked": ("map", stacked),
    "augreg": ("cls", numbered),
    "augreg-state": ("cls", lambda arrays: {f"opt/target/{k}": v for k, v in numbered(arrays).items()}),
}


@pytest.mark.parametrize("case", NPZ)
def test_npz_of_vision_transformers_give_their_logits(tmp_path, case):
    pool, layout = NPZ[case]
    reference = Reference.ViT(pool)
    shapes = jax.eval_shape(lambda: reference.init(jax.random.key(0), IMAGES))
    variables = randoms(shapes)
    expected = jax.jit(reference.apply)(variables, IMAGES)
    assert np.std(expected, axis=0).mean() > 0.05  # the images matter
    np.savez(tmp_path / "w.npz", **layout(traverse_util.flatten_dict(variables["params"], sep="/")))
    tensors = pretrained.read(str(tmp_path / "w.npz")).tensors
    ours = pretrained.from_state_dict("vit_tiny_patch16_224", tensors, **VIT, pool=pool)
    model = models.build("vit_tiny_patch16_224", num_classes=5, **VIT, pool=pool)
    got = jax.jit(lambda v: model.apply(v, IMAGES, train=False))(ours)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def big_transfer(tensors):
    """timm's tensors under Big Transfer's names and in its layouts."""
    arrays = {}
    for name, tensor in tensors.items():
        module, leaf = name.rsplit(".", 1)
        norm = "norm" in module
        parts = module.split(".")
        if parts[0] == "stages":
            unit = f"resnet/block{int(parts[1]) + 1}/unit{int(parts[3]) + 1:02d}/"
            part = {"d": "a/proj", "1": "a", "2": "b", "3": "c"}["d" if parts[4] == "downsample" else parts[4][-1]]
            path = unit + part + ("/group_norm/" if norm else "/standardized_conv2d/")
        else:
            places = {"stem.conv": "root_block/standardized_conv2d", "norm": "group_norm", "head.fc": "head/conv2d"}
            path = f"resnet/{places[module]}/"
        if norm:
            arrays[path + {"weight": "gamma", "bias": "beta"}[leaf]] = tensor
        elif leaf == "weight":
            arrays[path + "kernel"] = tensor.transpose(2, 3, 1, 0)
        else:
            arrays[path + "bias"] = tensor
    return arrays


def test_npz_of_big_transfer_s_resnets(tmp_path):
    overrides = {"stage_sizes": (2, 1), "width": 32}
    model = models.build("resnetv2_50x1_bit", num_classes=5, **overrides)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    variables = randoms(shapes)
    np.savez(tmp_path / "w.npz", **big_transfer(convert.state_dict(variables)))
    tensors = pretrained.read(str(tmp_path / "w.npz")).tensors
    got = pretrained.from_state_dict("resnetv2_50x1_bit", tensors, **overrides)
    jax.tree.map(np.testing.assert_array_equal, got, variables)


def test_npz_in_bfloat16_and_with_names_of_its_own(tmp_path):
    """numpy writes bfloat16 as two bytes without a name; a layer before the logits is reported, not lost."""
    arrays = {"embedding/kernel": np.ones((4, 4, 3, 8)), "pre_logits/kernel": np.full((8, 6), 0.5)}
    np.savez(tmp_path / "w.npz", **{k: v.astype(ml_dtypes.bfloat16) for k, v in arrays.items()}, **TENSORS)
    tensors = pretrained.read(str(tmp_path / "w.npz")).tensors
    expected = {"patch_embed.proj.weight": np.ones((8, 3, 4, 4)), "pre_logits.fc.weight": np.full((6, 8), 0.5)}
    same(tensors, expected | TENSORS)


# --- what is no such thing


class Malicious:
    """Unpickling one makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def damaged_safetensors(path):
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-3])


def damaged_npz(path):
    np.savez(path, **TENSORS)
    path.write_bytes(path.read_bytes()[:-90])


def flipped_npz(path):
    np.savez(path, a=np.zeros(1000, np.float32))
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)


def incomplete_attention(path):
    np.savez(path, **{"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": np.float32(1)})


WRONG = {
    "truncated.safetensors": (damaged_safetensors, r"cannot be read as \.safetensors .*download it again"),
    "short.safetensors": (lambda path: path.write_bytes(b"\x05"), r"cannot be read as \.safetensors"),
    "truncated.npz": (damaged_npz, r"cannot be read as \.npz"),
    "flipped.npz": (flipped_npz, r"cannot be read as \.npz"),
    "notes.npz": (lambda path: path.write_text("not an archive"), r"cannot be read as \.npz"),
    "scalar.npz": (incomplete_attention, r"cannot be read as \.npz"),
    "words.npz": (lambda path: np.savez(path, a=np.array(["x"])), r"cannot be read as \.npz"),
    "page.safetensors": (lambda path: path.write_text("\n<!DOCTYPE html><html></html>"), "is a web page: download"),
    "page.pth": (lambda path: path.write_text("<html><body>404</body></html>"), "is a web page: download"),
    "pointer.npz": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "empty.pth": (lambda path: path.touch(), "is empty: download it again"),
    "weights.h5": (lambda path: path.write_text("x"), r"must end in one of \.safetensors, "),
    "folder": (
        lambda path: path.mkdir(),
        "neither model.safetensors nor pytorch_model.bin, nor is it the work directory",
    ),
    "missing.npz": (lambda path: None, "There are no weights at"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_weights_is_one_sentence(tmp_path, name):
    make, expected = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=expected) as caught:
        pretrained.read(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_an_npz_with_code_in_it_is_refused_and_the_code_not_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "w.npz"
    np.savez(path, a=np.array([Malicious(marker)], dtype=object))
    with pytest.raises(UserError, match=r"cannot be read as \.npz \(Object arrays cannot be loaded"):
        pretrained.read(str(path))
    np.save(tmp_path / "w.npy", np.array([Malicious(marker)], dtype=object), allow_pickle=True)
    (tmp_path / "w.npy").rename(path)
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        pretrained.read(str(path))
    assert not marker.exists()


def test_what_is_not_installed_is_said_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"w\.pth is a file of torch's, which is not installed: pip install torch, or"):
        pretrained.read(str(tmp_path / "w.pth"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'imgcls_jax\[hub\]'"):
        pretrained.read("hf:owner/name")


def test_load_takes_a_file_to_variables(tmp_path):
    model = models.build("lenet5", num_classes=5)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32), train=False))
    variables = randoms(shapes)
    save_file(pretrained.to_state_dict("lenet5", variables), tmp_path / "w.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.load(str(tmp_path / "w.safetensors"), "lenet5", in_chans=1), variables
    )
    with pytest.raises(UserError, match="The weights are not this model's"):
        pretrained.load(str(tmp_path / "w.safetensors"), "resnet20")
