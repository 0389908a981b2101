"""What to predict: files, folders, patterns and lists."""

import os

import pytest

from imgcls_jax.data import inputs
from imgcls_jax.types import UserError

FILES = ("img10.jpg", "img2.JPG", "img02.jpg", "b/x1.png", "b/.hidden.png", ".c/y.png", "notes.txt", "b/deep/z.webp")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/again").symlink_to(tmp_path)
    (tmp_path / "nowhere.gif").symlink_to("gone.gif")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "recursive", "found"),
    [
        (["."], False, ["./img2.JPG", "./img02.jpg", "./img10.jpg", "./nowhere.gif"]),
        (["."], True, ["./b/deep/z.webp", "./b/x1.png", "./img2.JPG", "./img02.jpg", "./img10.jpg", "./nowhere.gif"]),
        (["img*.jpg"], False, ["img02.jpg", "img10.jpg"]),
        (["*/*.png"], False, ["b/x1.png"]),
        (["b/*"], False, ["b/again/img2.JPG", "b/again/img02.jpg", "b/again/img10.jpg", "b/again/nowhere.gif"]),
        (["notes.txt", "typo.jpg", "./notes.txt"], False, ["notes.txt", "typo.jpg"]),
        (["img10.jpg", "."], False, ["img10.jpg", "./img2.JPG", "./img02.jpg", "./nowhere.gif"]),
    ],
)
def test_inputs_are_the_files_they_name_each_once_in_natural_order(folder, names, recursive, found):
    got = inputs.image_files(names, recursive=recursive)
    if names == ["b/*"]:
        assert got[:4] == found and set(got[4:]) == {"b/deep/z.webp", "b/x1.png"}
    else:
        assert got == found


def test_a_name_with_brackets_that_exists_is_no_pattern(folder):
    (folder / "a[1].jpg").touch()
    (folder / "a1.jpg").touch()
    assert inputs.image_files(["a[1].jpg"]) == ["a[1].jpg"]
    assert inputs.image_files(["a[12].jpg"]) == ["a1.jpg"]


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (b"a b.jpg\nc\n\n", ["a b.jpg", "c"]),
        (b"a.jpg\r\n b*.jpg", ["a.jpg", " b*.jpg"]),
        (b"line\nbreak.jpg\0\xff.jpg\0a.jpg\0a.jpg\0", ["line\nbreak.jpg", os.fsdecode(b"\xff.jpg"), "a.jpg"]),
    ],
)
def test_a_list_names_files_by_line_or_by_nul(listed, names):
    assert inputs.image_files(["-"], listed=listed) == names


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("empty", "^empty gives no image; folders within it are read with --recursive.$"),
        ("*.bmp", r"^\*.bmp gives no image; name what holds some.$"),
        ("-", "^The list on standard input names no file; name what holds some.$"),
    ],
)
def test_what_gives_no_image_is_refused(folder, name, sentence):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=sentence):
        inputs.image_files(["img10.jpg", name])
