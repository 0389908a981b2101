"""Files like ImageNet's for benchmarks: JPEGs of about 500 x 375 pixels and 96 KB, cut from photographs in packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# (package, file in it); those of packages that are not installed are done without.
PHOTOS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
)

# Width and height; ImageNet's most frequent first.
SIZES = ((500, 375),) * 6 + ((375, 500),) * 2 + ((500, 333), (500, 400), (400, 300), (640, 480))


def find() -> dict[str, Path]:
    """The photographs that are installed, by name."""
    found = {}
    for package, file in PHOTOS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / file
            if path.exists():
                found[path.stem] = path
    return found


def make(folder: Path, count: int) -> Path:
    """An image folder with `count` files in train/, a class for each photograph, and one file in test/.

    File i is the same on every machine with the same photographs and libraries: a random part of a photograph, some of
    them mirrored, with other colours and a camera's noise, at quality 90 to 97, four of five with halved chroma.
    """
    photos = {name: Image.open(path).convert("RGB") for name, path in find().items()}
    target = folder / f"originals-{count}-of-{len(photos)}"
    names = list(photos)

    def write(root: Path) -> None:
        def one(i: int) -> None:
            name = names[i % len(names)] if i else names[0]
            path = root / ("test" if i == count else "train") / name / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            _vary(photos[name], path, np.random.default_rng([0, i]))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, range(count + 1)))

    return _once(target, write)


def shrink(originals: Path, short: int, quality: int = 90) -> Path:
    """A copy of an image folder of JPEGs with the short side at `short` pixels."""

    def write(root: Path) -> None:
        def one(path: Path) -> None:
            out = root / path.relative_to(originals)
            out.parent.mkdir(parents=True, exist_ok=True)
            image = cv2.imread(str(path))
            assert image is not None, path
            scale = short / min(image.shape[:2])
            size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
            cv2.imwrite(
                str(out),
                cv2.resize(image, size, interpolation=cv2.INTER_AREA),
                [cv2.IMWRITE_JPEG_QUALITY, quality],
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, sorted(originals.rglob("*.jpg"))))

    return _once(originals.with_name(f"{originals.name}-short-{short}"), write)


def _vary(photo: Image.Image, path: Path, rng: np.random.Generator) -> None:
    width, height = SIZES[rng.integers(len(SIZES))]
    part_width = min(photo.width, photo.height * width / height) * rng.uniform(0.6, 1.0)
    part_height = part_width * height / width
    left, top = rng.uniform(0, photo.width - part_width), rng.uniform(0, photo.height - part_height)
    box = (left, top, left + part_width, top + part_height)
    pixels: np.ndarray = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS, box=box), np.float32)
    pixels = pixels[:, :: rng.choice([-1, 1])]
    pixels = pixels * rng.uniform(0.8, 1.2, 3) + rng.uniform(-15, 15, 3)
    pixels = pixels + rng.normal(0, rng.uniform(3, 10), (height, width, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    subsampling = "4:2:0" if rng.random() < 0.8 else "4:4:4"
    image.save(path, "JPEG", quality=int(rng.integers(90, 98)), subsampling=subsampling)


def _once(target: Path, write: Callable[[Path], None]) -> Path:
    """`target`, written by `write` if it is not there; it appears whole or not at all."""
    if not target.exists():
        print(f"writing {target}", flush=True)
        temporary = target.with_name(f".{target.name}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        temporary.rename(target)
    return target
