"""Files are there whole or not at all."""

import pytest

from imgcls_jax import atomic


def test_what_was_there_stays_until_all_is_written(tmp_path):
    path = tmp_path / "new" / "file.json"
    with atomic.replacing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with atomic.replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(type(error)), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
