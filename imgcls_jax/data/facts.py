"""What is published about data sets of TFDS: known with no data at hand, and without importing TFDS."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is published about a TFDS data set: version, K, class names in label order, records by split."""

    version: str
    class_names: tuple[str, ...]
    splits: Mapping[str, int]


DIGIT_NAMES = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_TEXT = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_TEXT.split())


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """ImageNet's class names in TFDS's label order, from the file in TFDS's package, found without importing it."""
    package = importlib.util.find_spec("tensorflow_datasets")
    for folder in (package.submodule_search_locations if package else None) or []:
        path = Path(folder) / "datasets" / "imagenet2012" / "labels.txt"
        if path.exists():
            return tuple(path.read_text().split())
    return tuple(str(i) for i in range(1000))


FACTS: dict[str, Facts] = {
    "mnist": Facts("3.0.1", DIGIT_NAMES, {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Facts("3.0.1", _FASHION, {"train": 60_000, "test": 10_000}),
    "cifar10": Facts("3.0.2", _CIFAR10, {"train": 50_000, "test": 10_000}),
    "cifar100": Facts("3.0.2", _CIFAR100, {"train": 50_000, "test": 10_000}),
    "imagenet2012": Facts("5.1.0", (), {"train": 1_281_167, "validation": 50_000}),
}

# The data sets that `python -m imgcls_jax.data.prepare` makes.
PREPARABLE = ("mnist", "fashion_mnist", "cifar10", "cifar100")


def how_to_prepare(name: str) -> str:
    """A sentence with the command that prepares a TFDS data set."""
    if name in PREPARABLE:
        return f"prepare it with `python -m imgcls_jax.data.prepare {name} --from=FOLDER` from its original files."
    return (
        f"prepare it on a machine with TensorFlow, with `tfds build {name} --file_format=array_record`, "
        f"and copy the folder {name} here."
    )
