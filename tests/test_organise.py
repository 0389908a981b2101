"""Copies and links by class: nothing is overwritten, nothing is done twice, any class can be a folder."""

import os

import pytest

from imgcls_jax import organise
from imgcls_jax.organise import Organiser


@pytest.fixture
def images(tmp_path):
    for name, data in {"a/x.jpg": b"1", "b/x.jpg": b"2", "c/x.jpg": b"2", "d/X.jpg": b"4"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    return [str(tmp_path / name) for name in ("a/x.jpg", "b/x.jpg", "c/x.jpg", "d/X.jpg")]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", [False, True])
def test_clashes_get_a_number_and_a_second_run_changes_nothing(images, tmp_path, link):
    out = tmp_path / "out"
    (out / "cat").mkdir(parents=True)
    (out / "cat/x.jpg").write_bytes(b"the user's")
    want = {"cat/x.jpg": b"the user's", "cat/x_2.jpg": b"1", "cat/x_3.jpg": b"2", "cat/x_4.jpg": b"2"}
    want |= {"cat/X.jpg": b"4", "dog/x.jpg": b"1", "dog/X_2.jpg": b"4", "_rejected/x.jpg": b"2"}
    for stop in (2, 4, 4):  # the first is killed half-way
        organiser = Organiser(out, ("cat", "dog"), link=link)
        for image in images[:stop]:
            organiser.place(image, ["cat"])
        if stop == 4:
            organiser.place(images[0], ["dog"])
            organiser.place(images[3], ["dog"])  # on some disks X.jpg is x.jpg
            organiser.place(images[1], [])
    assert contents(out) == want
    assert all((out / name).is_symlink() == (link and name != "cat/x.jpg") for name in want)
    if link:
        assert os.readlink(out / "cat/x_2.jpg") == images[0]
    assert [os.path.exists(image) for image in images] == [True] * 4


def test_any_class_name_is_a_folder_of_its_own():
    names = ["cat", "a/b", "a_b", "A:B", "..", "", "_rejected", "con\ntrol ", "\u4e2d" * 100, "Cat"]
    got = organise.folder_names(names)
    assert got[:9] == ["cat", "a_b", "a_b_2", "A_B_3", "_", "__2", "_rejected_2", "con_trol", "\u4e2d" * 66]
    assert len({name.casefold() for name in got}) == len(names)
