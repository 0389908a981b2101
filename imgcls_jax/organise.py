"""Copies of images, or links to them, in a folder for each class."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

# The folder of images that are none of the classes.
REJECTED = "_rejected"

# Bytes of a folder's name; file systems take 255.
_LONGEST = 200


class Organiser:
    """Puts images into DIR/CLASS/NAME: never moves one, never overwrites one, and does nothing twice.

    Where DIR/CLASS/NAME is another image, NAME_2 is taken, then NAME_3, and so on. The names follow from what is placed
    and in which order; what is there already, from a run that was killed, stays as it is.

    Args:
      folder: DIR.
      class_names: in label order.
      link: symbolic links in place of copies.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], *, link: bool) -> None:
        self._folder, self._link = folder, link
        self._folders = dict(zip(class_names, folder_names(class_names), strict=True))
        self._taken: set[str] = set()

    def place(self, file: str, classes: Sequence[str]) -> None:
        """Puts one image into the folder of each of `classes`; of none: into that of rejected ones.

        Raises:
          OSError: as copying does.
        """
        for name in [self._folders[c] for c in classes] or [REJECTED]:
            target = self._target(file, self._folder / name)
            if not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.tmp")
                temporary.unlink(missing_ok=True)
                if self._link:
                    temporary.symlink_to(os.path.abspath(file))
                else:
                    shutil.copy2(file, temporary)
                os.rename(temporary, target)

    def _target(self, file: str, folder: Path) -> Path:
        """Where to put the file: a free place, or that where an earlier run has put it."""
        stem, suffix = os.path.splitext(os.path.basename(file))
        count = 1
        while True:
            target = folder / (f"{stem}_{count}{suffix}" if count > 1 else stem + suffix)
            key = os.fspath(target).casefold()  # to some file systems A.jpg and a.jpg are one file
            if key not in self._taken and (not os.path.lexists(target) or self._placed(file, target)):
                self._taken.add(key)
                return target
            count += 1

    def _placed(self, file: str, target: Path) -> bool:
        """Whether what stands at the target is this file's copy, or the link to it."""
        if self._link or target.is_symlink():
            return self._link and target.is_symlink() and os.readlink(target) == os.path.abspath(file)
        return target.is_file() and filecmp.cmp(file, target, shallow=False)


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder's name for each class, all different on any file system, and none of them REJECTED."""
    names: list[str] = []
    taken = {REJECTED.casefold()}
    for class_name in class_names:
        plain = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", class_name)
        plain = plain.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore").strip(" .") or "_"
        name, count = plain, 1
        while name.casefold() in taken:
            count += 1
            name = f"{plain}_{count}"
        taken.add(name.casefold())
        names.append(name)
    return names
