"""What is published about data sets of TFDS: known with no data at hand, and without importing TFDS."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is published about a TFDS data set.

    Attributes:
      version: of TFDS's builder.
      class_names: K names in label order.
      splits: number of records by split.
      config: TFDS's name of the variant that the data set's name alone means, if it has variants.
    """

    version: str
    class_names: tuple[str, ...]
    splits: Mapping[str, int]
    config: str = ""


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


_FLOWERS_TEXT = """
    pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
    bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris,
    globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower,
    fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke,
    sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya,
    cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia,
    bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula,
    sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia?, cautleya spicata,
    japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris,
    windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus,
    toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen,
    watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow,
    mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily
"""
_FLOWERS = tuple(" ".join(_FLOWERS_TEXT.split()).split(", "))


def tfds_file(path: str) -> Path | None:
    """A file in TFDS's package, found without importing it; None if it is not there."""
    package = importlib.util.find_spec("tensorflow_datasets")
    folders = (package.submodule_search_locations if package else None) or []
    return next((Path(folder) / path for folder in folders if (Path(folder) / path).exists()), None)


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """ImageNet's class names in TFDS's label order, from the file in TFDS's package."""
    path = tfds_file("datasets/imagenet2012/labels.txt")
    return tuple(path.read_text().split() if path else map(str, range(1000)))


FACTS: dict[str, Facts] = {
    "mnist": Facts("3.0.1", DIGIT_NAMES, {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Facts("3.0.1", _FASHION, {"train": 60_000, "test": 10_000}),
    "cifar10": Facts("3.0.2", _CIFAR10, {"train": 50_000, "test": 10_000}),
    "cifar100": Facts("3.0.2", _CIFAR100, {"train": 50_000, "test": 10_000}),
    "imagenet2012": Facts("5.1.0", wordnet_ids(), {"train": 1_281_167, "validation": 50_000}),
    "imagenet_a": Facts("0.1.0", wordnet_ids(), {"test": 7_500}),
    "imagenet_r": Facts("0.2.0", wordnet_ids(), {"test": 30_000}),
    "imagenet_v2": Facts("3.0.0", wordnet_ids(), {"test": 10_000}, config="matched-frequency"),
    "oxford_flowers102": Facts("2.1.1", _FLOWERS, {"train": 1_020, "test": 6_149, "validation": 1_020}),
    # The names of its classes are in its annotations only; published too: "mini", 500,000 of train.
    "i_naturalist2021": Facts("2.0.1", tuple(map(str, range(10_000))), {"train": 2_686_843, "val": 100_000}),
}


def tfds_path(name: str) -> str:
    """Where TFDS keeps a data set, relative to its folder: NAME, or NAME/CONFIG."""
    return f"{name}/{FACTS[name].config}" if name in FACTS and FACTS[name].config else name


def how_to_prepare(name: str) -> str:
    """A sentence with the command that prepares a TFDS data set."""
    if name in FACTS:
        return f"prepare it with `python -m imgcls_jax.data.prepare {name} --from=FOLDER` from its original files."
    return (
        f"prepare it on a machine with TensorFlow, with `tfds build {name} --file_format=array_record`, "
        f"and copy the folder {name} here."
    )
