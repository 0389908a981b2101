"""Files that only torch can write, and Google's npz as timm reads them. `pytest -m parity`."""

import collections
import functools
import pickle
import tarfile

import jax
import numpy as np
import pytest
from flax import traverse_util
from test_pretrained_files import Malicious, big_transfer, same

from imgcls_jax import models, pretrained
from imgcls_jax.types import UserError

pytestmark = pytest.mark.parity

RAW = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.float32([1.5, -2])}
AVERAGE = {name: array + 1 for name, array in RAW.items()}


def tensors(arrays, torch, prefix=""):
    return collections.OrderedDict((prefix + k, torch.from_numpy(v.copy())) for k, v in arrays.items())


# id: torch -> what is saved; every one holds RAW.
CONTENTS = {
    "plain": lambda t: tensors(RAW, t),
    "state_dict": lambda t: {"state_dict": tensors(RAW, t, "module."), "epoch": 3, "arch": "resnet50"},
    "model": lambda t: {"model": tensors(RAW, t), "optimizer": {"state": {0: t.ones(3)}}},
    "timm": lambda t: {"epoch": 1, "state_dict": tensors(RAW, t), "state_dict_ema": tensors(AVERAGE, t)},
    "model_ema": lambda t: {"model_ema": tensors(AVERAGE, t), "model_state": tensors(RAW, t)},
    "only an average": lambda t: {"model_ema": tensors(RAW, t, "_orig_mod.module."), "step": 1},
    "nested": lambda t: {"model": {"state_dict": tensors(RAW, t)}},
    "bfloat16": lambda t: {k: v.bfloat16() for k, v in tensors(RAW, t).items()},
    "float16": lambda t: {k: v.half() for k, v in tensors(RAW, t).items()},
    "parameters": lambda t: {k: t.nn.Parameter(v) for k, v in tensors(RAW, t).items()},
    "counters": lambda t: {**tensors(RAW, t), "bn.num_batches_tracked": t.tensor(7), "version": 2},
}


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt", "pth.tar"])
def test_suffixes(torch, tmp_path, suffix):
    torch.save(CONTENTS["plain"](torch), tmp_path / f"w.{suffix}")
    same(pretrained.read(str(tmp_path / f"w.{suffix}")).tensors, RAW)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", CONTENTS)
def test_containers(torch, tmp_path, case, new):
    torch.save(CONTENTS[case](torch), tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    same(pretrained.read(str(tmp_path / "w.pth")).tensors, RAW)


def test_a_folder_with_nothing_but_pytorch_model_bin(torch, tmp_path):
    torch.save(CONTENTS["plain"](torch), tmp_path / "pytorch_model.bin")
    same(pretrained.read(str(tmp_path)).tensors, RAW)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(torch, tmp_path, how):
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    contents = {"state_dict": {"a": torch.ones(2)}, "extra": Malicious(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match=r"holds more than tensors \(\w+\.mkdir\), which would be code") as caught:
        pretrained.read(str(path))
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not marker.exists()
    if how == "zip":  # the file does what the test thinks it does
        torch.load(path, weights_only=False)
        assert marker.exists()


def truncated(torch, path):
    torch.save({"a": torch.ones(2000)}, path)
    path.write_bytes(path.read_bytes()[:4000])


def old_tar(torch, path):
    (path.parent / "notes").write_text("x")
    with tarfile.open(path, "w") as tar:
        tar.add(path.parent / "notes")


WRONG = {
    "truncated": (truncated, r"cannot be read as \.pth .*download it again"),
    "text": (
        lambda torch, path: path.write_text("no weights at all" * 100),
        r"cannot be read as \.pth \(not a state dict",
    ),
    "a tensor": (lambda torch, path: torch.save(torch.ones(3), path), "holds no dict of tensors by name but"),
    "an old tar": (old_tar, r"cannot be read as \.pth \(not a state dict"),
    "numbers": (
        lambda torch, path: torch.save({"epoch": 3, "lr": 0.1}, path),
        "but a dict of epoch, lr: save the model's",
    ),
    "a model": (lambda torch, path: torch.save(torch.nn.Linear(2, 2), path), r"holds more than tensors \(torch\.nn"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_weights_is_one_sentence(torch, tmp_path, case):
    make, expected = WRONG[case]
    make(torch, tmp_path / "w.pth")
    with pytest.raises(UserError, match=expected) as caught:
        pretrained.read(str(tmp_path / "w.pth"))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# --- npz as timm reads it


def vit_arrays(*, width, depth, heads, positions, big_vision, pool):
    """Random arrays under the names of AugReg's files, or of big_vision's."""
    rng = np.random.default_rng(0)
    mlp, attention, norm = (0, 0, 1) if big_vision else (3, 1, 2)

    def dense(*shape, inputs, bias):
        return {"kernel": rng.standard_normal(shape) / inputs**0.5, "bias": 0.2 * rng.standard_normal(bias)}

    def scale():
        return {"scale": 1 + 0.2 * rng.standard_normal(width), "bias": 0.2 * rng.standard_normal(width)}

    def attend():
        size = width // heads
        parts = {k: dense(width, heads, size, inputs=width, bias=(heads, size)) for k in ("query", "key", "value")}
        return {**parts, "out": dense(heads, size, width, inputs=width, bias=width)}

    def hidden():
        shapes = (width, 4 * width), (4 * width, width)
        return {f"Dense_{i}": dense(*shape, inputs=shape[0], bias=shape[1]) for i, shape in enumerate(shapes)}

    encoder = {
        f"encoderblock_{i}": {
            "LayerNorm_0": scale(),
            f"LayerNorm_{norm}": scale(),
            f"MultiHeadDotProductAttention_{attention}": attend(),
            f"MlpBlock_{mlp}": hidden(),
        }
        for i in range(depth)
    }
    table = 0.2 * rng.standard_normal((1, positions, width))
    tree = {
        "embedding": dense(16, 16, 3, width, inputs=768, bias=width),
        "head": dense(width, 1000, inputs=width, bias=1000),
        "Transformer": {**encoder, "encoder_norm": scale()},
    }
    if big_vision:
        tree["pos_embedding"] = table
    else:
        tree["Transformer"]["posembed_input"] = {"pos_embedding": table}
    if pool == "cls":
        tree["cls"] = 0.2 * rng.standard_normal((1, 1, width))
    if pool == "map":
        tree["MAPHead_0"] = {
            "probe": rng.standard_normal((1, 1, width)),
            "LayerNorm_0": scale(),
            "MlpBlock_0": hidden(),
            "MultiHeadDotProductAttention_0": attend(),
        }
    return {k: v.astype(np.float32) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def same_logits(torch, net, path, name, *, image_size, **overrides):
    """timm's logits and ours from the same npz."""
    with torch.no_grad():
        net.load_pretrained(str(path))
        images = np.random.default_rng(1).standard_normal((2, image_size, image_size, 3)).astype(np.float32)
        expected = net.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    variables = pretrained.from_state_dict(name, pretrained.read(str(path)).tensors, **overrides)
    model = models.build(name, num_classes=1000, **overrides)
    got = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    assert np.std(expected, axis=0).mean() > 0.05
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_augreg_s_vit_tiny(torch, tmp_path):
    import timm

    arrays = vit_arrays(width=192, depth=12, heads=3, positions=197, big_vision=False, pool="cls")
    np.savez(tmp_path / "w.npz", **arrays)
    net = timm.create_model("vit_tiny_patch16_224")
    same_logits(torch, net, tmp_path / "w.npz", "vit_tiny_patch16_224", image_size=224)


@pytest.mark.parametrize("stacked", [False, True], ids=["blocks", "stacked"])
@pytest.mark.parametrize("pool", ["gap", "map"])
def test_big_vision_s_vits_without_a_class_token(torch, tmp_path, pool, stacked):
    import timm

    arrays = vit_arrays(width=192, depth=2, heads=3, positions=16, big_vision=True, pool=pool)
    if stacked:
        first, second = "Transformer/encoderblock_0/", "Transformer/encoderblock_1/"
        blocks = {k.removeprefix(first): v for k, v in arrays.items() if k.startswith(first)}
        rest = {k: v for k, v in arrays.items() if not k.startswith((first, second))}
        arrays = rest | {f"Transformer/encoderblock/{k}": np.stack([v, arrays[second + k]]) for k, v in blocks.items()}
    np.savez(tmp_path / "w.npz", **{f"params/{k}": v for k, v in arrays.items()})
    fields = {"class_token": False, "global_pool": {"gap": "avg", "map": "map"}[pool], "fc_norm": False}
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, **fields)
    same_logits(torch, net, tmp_path / "w.npz", "vit_tiny_patch16_224", image_size=64, depth=2, pool=pool)


def test_big_transfer_s_resnet(torch, tmp_path):
    import timm

    net = timm.create_model("resnetv2_50x1_bit")
    generator = torch.Generator().manual_seed(0)
    random = {}
    for name, tensor in net.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.2
        random[name] = (noise * scale + (tensor.ndim == 1 and name.endswith("weight"))).numpy()
    np.savez(tmp_path / "w.npz", **big_transfer(random))
    same_logits(torch, net, tmp_path / "w.npz", "resnetv2_50x1_bit", image_size=97)
