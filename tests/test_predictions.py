"""The file of a run of predictions that is under way, cut anywhere."""

import json
import os

from imgcls_jax import predictions

RECORDS = [{"path": f"{i} \u4e2d.jpg", "classes": ["a"], "probabilities": [i / 8]} for i in range(7)]


def continue_(output, batch_size=3, stop=7):
    """Predicts what is left, up to a number of images; the number that was there."""
    partial = predictions.Partial(output, {"step": 1}, batch_size=batch_size, num_images=len(RECORDS))
    for start in range(partial.done, stop, batch_size):
        partial.add(RECORDS[start : start + batch_size])
    partial.close()
    return partial.done


def test_wherever_it_is_cut_it_is_continued_without_a_duplicate_or_a_gap(tmp_path):
    output = tmp_path / "a.jsonl"
    continue_(output)
    path = tmp_path / "a.jsonl.partial"
    whole = path.read_bytes()
    done = set()
    for cut in range(len(whole) + 1):
        for tail in (b"", bytes(50)):  # a file system that lost power may leave zeros
            path.write_bytes(whole[:cut] + tail)
            done.add(continue_(output))
            assert path.read_bytes() == whole
    assert done == {0, 3, 6, 7}


def test_the_output_appears_when_it_is_complete(tmp_path):
    output = tmp_path / "folder" / "a.jsonl"
    assert continue_(output, stop=3) == 0 and not output.exists()
    assert continue_(output) == 3 and not output.exists()
    partial = predictions.Partial(output, {"step": 1}, batch_size=3, num_images=7)
    assert partial.done == 7 and list(partial.records()) == RECORDS
    partial.finish(output, [])
    assert os.listdir(output.parent) == ["a.jsonl"]
    assert output.read_text() == "".join(f"{line}\n" for line in map(json.dumps, RECORDS))
