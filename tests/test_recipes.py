"""Recipes against the tables of their papers, by hand: steps, rates, what decays, augmentation and loss."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from helpers import ROOT, on_one_device

from imgcls_jax import augment, build, optim, trees
from imgcls_jax import config as config_lib
from imgcls_jax.augment import device, distortions, host, policies
from imgcls_jax.data import sources
from imgcls_jax.data.arrays import ArraySource
from imgcls_jax.types import Spec

IMAGENET, CIFAR, FASHION = 1_281_167, 50_000, 60_000


def cosine(peak, epochs, warmup_epochs=0.0, warmup_steps=0, end=0.0):
    """A line from 0 to the peak, then half a cosine to `end`."""

    def rate(step, steps_per_epoch):
        warmup = warmup_steps or round(warmup_epochs * steps_per_epoch)
        if step < warmup:
            return peak * step / warmup
        t = (step - warmup) / (round(epochs * steps_per_epoch) - warmup)
        return end + (peak - end) * (1 + math.cos(math.pi * t)) / 2

    return rate


def drops(peak, factor, epochs, warmup_epochs=0.0):
    """The peak times `factor` for each of `epochs` that is over."""

    def rate(step, steps_per_epoch):
        warmup = round(warmup_epochs * steps_per_epoch)
        if step < warmup:
            return peak * step / warmup
        return peak * factor ** sum(step >= epoch * steps_per_epoch for epoch in epochs)

    return rate


def staircase(peak, factor, every, warmup_epochs):
    def rate(step, steps_per_epoch):
        warmup = round(warmup_epochs * steps_per_epoch)
        return peak * step / warmup if step < warmup else peak * factor ** (step // (every * steps_per_epoch))

    return rate


def kernels(path):
    return path.endswith("kernel")


def everything(path):
    return True


def all_but_batch_norm(path):
    return "bn" not in path.split("/")[-2]


CROP = host.RandomResizedCrop(224)
CUBIC = host.RandomResizedCrop(224, interpolation="bicubic")
FLIP = host.HorizontalFlip()


def rand(magnitude):
    return policies.RandAugment(2, magnitude, mstd=0.5, p=0.5, ops="timm_increasing")


def eval_crop(crop_pct):
    return (host.ResizeCentreCrop(224, crop_pct, "bicubic"),)


BCE = {"loss.name": "sigmoid_binary_cross_entropy", "optimizer.name": "lamb"}
# timm's and apex' 1e-6 and 1, of the mean over 1,000 classes.
LAMB = {"optimizer.eps": 1e-3, "optimizer.clip_norm": 1000.0, "optimizer.b1": 0.9, "optimizer.b2": 0.999}
SGD = {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "loss.name": "softmax_cross_entropy"}
ADAMW = {"optimizer.name": "adamw", "loss.name": "softmax_cross_entropy", "optimizer.b2": 0.999}


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a paper says of its recipe."""

    images: int
    batch: int
    epochs: float
    rate: object
    decays: object
    model: str
    host: tuple
    device: tuple
    other: dict
    evaluation: tuple | None = None


RSB_A2 = Paper(
    IMAGENET, 2048, 300, cosine(5e-3, 300, 5, end=1e-6), kernels, "resnet50",
    (CUBIC, FLIP, rand(7)), (device.MixUpOrCutMix(0.1, 1.0),),
    {**BCE, **LAMB, "optimizer.weight_decay": 0.02, "loss.label_smoothing": 0.0, "loss.target_threshold": 0.2,
     "model.drop_path": 0.05, "data.repeats": 3, "optimizer.ema_decay": 0.0},
    eval_crop(0.95),
)  # fmt: skip
DEIT3_S = Paper(
    IMAGENET, 2048, 800, cosine(4e-3, 800, 5, end=1e-5), kernels, "deit3_small_patch16_224",
    (CUBIC, FLIP, policies.ThreeAugment(0.3)), (device.MixUpOrCutMix(0.8, 1.0),),
    {**BCE, **LAMB, "optimizer.weight_decay": 0.05, "loss.label_smoothing": 0.0, "loss.target_threshold": 0.0,
     "model.drop_path": 0.05, "model.dropout": None, "data.repeats": 3},
)  # fmt: skip
PAPERS = {
    # Section 5.1 of arXiv:1706.02677.
    "resnet.py:imagenet2012": Paper(
        IMAGENET, 1024, 90, drops(0.4, 0.1, (30, 60, 80), 5), kernels, "resnet50", (CROP, FLIP), (),
        {**SGD, "optimizer.weight_decay": 1e-4, "optimizer.nesterov": True},
    ),
    # Table 2 of arXiv:2110.00476.
    "resnet_strikes_back.py:a2:imagenet2012": RSB_A2,
    "resnet_strikes_back.py:a1:imagenet2012": dataclasses.replace(
        RSB_A2, epochs=600, rate=cosine(5e-3, 600, 5, end=1e-6), device=(device.MixUpOrCutMix(0.2, 1.0),),
        other={**RSB_A2.other, "optimizer.weight_decay": 0.01, "loss.label_smoothing": 0.1},
    ),
    "resnet_strikes_back.py:a3:imagenet2012": dataclasses.replace(
        RSB_A2, epochs=100, rate=cosine(8e-3, 100, 5, end=1e-6),
        host=(dataclasses.replace(CUBIC, size=160), FLIP, rand(6)),
        evaluation=(host.ResizeCentreCrop(160, 0.95, "bicubic"),),
        other={**RSB_A2.other, "model.drop_path": 0.0, "data.repeats": 1, "data.image_size": 160},
    ),
    # Section 5.1 of arXiv:1709.01507.
    "se_resnet.py:imagenet2012": Paper(
        IMAGENET, 1024, 100, drops(0.6, 0.1, (30, 60, 90)), kernels, "seresnet50", (CROP, FLIP), (),
        {**SGD, "optimizer.weight_decay": 1e-4, "optimizer.nesterov": False},
    ),
    # Section 5.2 of arXiv:1905.11946 and its code.
    "efficientnet.py:imagenet2012": Paper(
        IMAGENET, 4096, 350, staircase(0.256, 0.97, 2.4, 5), all_but_batch_norm, "efficientnet_b0",
        (CROP, FLIP, policies.AutoAugment()), (),
        {"optimizer.name": "rmsprop", "optimizer.b2": 0.9, "optimizer.momentum": 0.9, "optimizer.eps": 1e-3,
         "optimizer.weight_decay": 1e-5, "optimizer.ema_decay": 0.9999, "model.dropout": 0.2, "model.drop_path": 0.2,
         "loss.label_smoothing": 0.1},
    ),
    # Section 4.2 of arXiv:1608.06993.
    "densenet.py:imagenet2012": Paper(
        IMAGENET, 256, 90, drops(0.1, 0.1, (30, 60)), everything, "densenet121",
        (CROP, distortions.ColorJitter(0.4, 0.4, 0.4), FLIP), (),
        {**SGD, "optimizer.weight_decay": 1e-4, "optimizer.nesterov": True},
    ),
    "densenet.py:cifar10": Paper(
        CIFAR, 64, 300, drops(0.1, 0.1, (150, 225)), everything, "densenet_bc_100_12", (),
        (device.PadAndCrop(4), device.HorizontalFlip()), {**SGD, "optimizer.weight_decay": 1e-4},
    ),
    # Section 2 of arXiv:2205.01580; decay 1e-4 that is not times the rate of 1e-3.
    "vit.py:imagenet2012": Paper(
        IMAGENET, 1024, 90, cosine(1e-3, 90, warmup_steps=10_000), kernels, "vit_small_patch16_224",
        (CROP, FLIP, policies.RandAugment(2, 10, ops="timm")), (device.MixUp(0.2),),
        {**ADAMW, "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0, "model.pool": "gap",
         "model.pos_embed": "sincos2d"},
    ),
    # arXiv:2106.10270: B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1.
    "vit.py:b16:imagenet2012": Paper(
        IMAGENET, 4096, 300, cosine(1e-3, 300, warmup_steps=10_000), kernels, "vit_base_patch16_224",
        (CROP, FLIP, policies.RandAugment(2, 20, ops="timm")), (device.MixUp(0.8),),
        {**ADAMW, "optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1.0, "model.pool": None,
         "model.pos_embed": None, "model.dropout": 0.1, "model.drop_path": 0.1, "loss.label_smoothing": 0.0},
    ),
    # The commands of DeiT's README_revenge.md (arXiv:2204.07118).
    "deit3.py:small:imagenet2012": DEIT3_S,
    "deit3.py:base:imagenet2012": dataclasses.replace(
        DEIT3_S, rate=cosine(3e-3, 800, 5, end=1e-5), model="deit3_base_patch16_224",
        host=(dataclasses.replace(CUBIC, size=192), *DEIT3_S.host[1:]),
        other={**DEIT3_S.other, "model.drop_path": 0.2, "data.image_size": 192},
    ),
    "deit3.py:finetune:imagenet2012": dataclasses.replace(
        DEIT3_S, batch=512, epochs=20, rate=cosine(1e-5, 20, 5, end=1e-5), model="deit3_base_patch16_224",
        host=(CUBIC, FLIP, rand(9)),
        other={**ADAMW, "optimizer.weight_decay": 0.1, "model.drop_path": 0.2, "loss.label_smoothing": 0.1,
               "optimizer.clip_norm": 0.0, "data.repeats": 1},
    ),
    # Table 5 of arXiv:2201.03545.
    "convnext.py:imagenet2012": Paper(
        IMAGENET, 4096, 300, cosine(4e-3, 300, 20, end=1e-6), kernels, "convnext_tiny",
        (CUBIC, FLIP, rand(9), distortions.RandomErasing(0.25, mode="pixel")), (device.MixUpOrCutMix(0.8, 1.0),),
        {**ADAMW, "optimizer.weight_decay": 0.05, "optimizer.ema_decay": 0.9999, "model.drop_path": 0.1,
         "loss.label_smoothing": 0.1, "optimizer.clip_norm": 0.0},
        eval_crop(0.875),
    ),
    # Section 3 of arXiv:1605.07146.
    "wide_resnet.py:cifar10": Paper(
        CIFAR, 128, 200, drops(0.1, 0.2, (60, 120, 160)), everything, "wrn28_10", (),
        (device.PadAndCrop(4, "reflect"), device.HorizontalFlip()),
        {**SGD, "optimizer.weight_decay": 5e-4, "optimizer.nesterov": True, "loss.label_smoothing": 0.0},
    ),
    # arXiv:1708.04896 and its code, but for the cosine.
    "wide_resnet.py:fashion_mnist": Paper(
        FASHION, 128, 300, cosine(0.1, 300), everything, "wrn40_4", (),
        (device.PadAndCrop(4), device.HorizontalFlip(), device.RandomErasing(0.5, scale=(0.02, 0.4))),
        {**SGD, "optimizer.weight_decay": 5e-4, "loss.label_smoothing": 0.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("spec", PAPERS)
def test_a_recipe_is_its_papers_table(spec):
    paper, config = PAPERS[spec], config_lib.load(f"{ROOT}/configs/{spec}")
    known = sources.spec(config.data.name)
    assert (known.splits["train"], config.batch_size, config.total_epochs) == (paper.images, paper.batch, paper.epochs)
    assert (config.total_steps, config.data.train_split) == (0, "train")
    per_epoch = paper.images / paper.batch
    total = round(paper.epochs * per_epoch)
    rate = build.build_schedule(config, total, per_epoch)
    epochs = [0, 0.5, 1, 2.5, 4.9, 5.1, 10, 19, 21, 31, 61, 81, 91, 121, 151, 161, 226, 299, 599, 799]
    steps = [round(epoch * per_epoch) for epoch in epochs if epoch < paper.epochs] + [total - 1]
    got, expected = [float(rate(step)) for step in steps], [paper.rate(step, per_epoch) for step in steps]
    # The cosine's float32 is off by about 1e-7 of the peak; at the end little else is left of the rate.
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6 * max(expected), err_msg=str(steps))
    values = dict(config_lib.leaves(config)) | {"model.name": config.model.name}
    assert {key: values[key] for key in paper.other} == paper.other
    assert config.model.name == paper.model
    size = config.data.image_size
    assert tuple(augment.parse("host", config.augment.host_train, host.HOST, size=size)) == paper.host
    assert tuple(augment.parse("device", config.augment.device, device.DEVICE)) == paper.device
    if paper.evaluation:
        assert tuple(augment.parse("eval", config.augment.host_eval, host.HOST, size=size)) == paper.evaluation


# Where variants of a recipe have the same parameters, one.
DECAY = [spec for spec in PAPERS if not re.search(r":a[13]:|:base:|:finetune:|densenet.py:imagenet2012", spec)]


@pytest.mark.parametrize("spec", DECAY)
def test_what_decays_is_what_decays_in_the_paper(spec):
    config = config_lib.load(f"{ROOT}/configs/{spec}")
    model = build.build_model(config, 10)
    image = jax.ShapeDtypeStruct((1, *build.image_shape(config)), np.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    mask = optim.decay_mask(params, config.optimizer.decay_exclude)
    expected = trees.map_with_path(lambda path, _: PAPERS[spec].decays(path), params)
    assert mask == expected


def test_every_recipe_that_has_variants_takes_them_before_the_data_set():
    for spec, size in (("vit.py:b16", 8), ("deit3.py:base", 8), ("resnet_strikes_back.py:a1:fashion_mnist", 28)):
        assert config_lib.load(f"{ROOT}/configs/{spec}").data.image_size == size
    own = config_lib.load(f"{ROOT}/configs/vit.py:b16:folder:/my photos")
    assert (own.data.name, own.model.name) == ("folder:/my photos", "vit_base_patch16_224")
    with pytest.raises(config_lib.ConfigError, match="Unknown data set 'a4:digits'"):
        config_lib.load(f"{ROOT}/configs/resnet_strikes_back.py:a4:digits")


def generated(config, classes):
    """Random images of the size that the recipe's data set has, 8 a class or so."""
    side = 256 if config.data.image_size > 32 else config.data.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, side, side, config.data.channels), dtype=np.uint8)
    labels = rng.integers(0, classes, 16).astype(np.int32)
    names = tuple(map(str, range(classes)))
    spec = Spec(config.data.name, classes, names, {"train": 16, "test": 16})
    return {split: ArraySource(images, labels, spec, split) for split in ("train", "test")}


def two_steps(spec, **overrides):
    """The losses of two steps of a recipe with batches of 8, and the states before and after."""
    config = config_lib.load(f"{ROOT}/configs/{spec}")
    config.batch_size, config.total_steps = 8, 2
    for name, value in overrides.items():
        config.model[name] = value
    classes = 1000 if config.data.image_size > 32 else 10
    run = build.build(config, data=generated(config, classes))
    state, batches, losses = run.init(), build.train_batches(run, 0), []
    before = jax.device_get(state.params)
    for _ in range(2):
        state, logs = run.train_step(state, build.put(run, 8, next(batches)), run.constants())
        losses.append(float(logs["loss"]))
    batches.close()
    return config, losses, before, jax.device_get(state.params)


def check_two_steps(spec, **overrides):
    config, losses, before, after = two_steps(spec, **overrides)
    classes = 1000 if config.data.image_size > 32 else 10
    binary = config.loss.name == "sigmoid_binary_cross_entropy"
    chance = classes * math.log(2) if binary else math.log(classes)  # a network that knows nothing yet
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] == pytest.approx(chance, rel=0.35)
    moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    assert np.mean(moved) > 0.5  # zero-initialised scales keep the inner parameters of a block still for one step
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


@pytest.mark.slow
def test_two_steps_of_deit3_on_images_of_its_size():
    check_two_steps("deit3.py:small:imagenet2012", depth=1, width=48, num_heads=2, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("spec", PAPERS)
def test_two_steps_on_images_of_the_right_size(spec):
    on_one_device("test_recipes", f"check_two_steps({spec!r}, dtype='float32')")
