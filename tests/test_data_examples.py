"""Serialised examples, written and parsed, against the protocol buffer library and TFDS's definition."""

import numpy as np
import pytest

from imgcls_jax.data import examples

VALUES = {"image": bytes(range(256)) * 300, "label": -1, "id": 2**40, "zero": 0, "file_name": "ü\n/x.jpg", "e": b""}
SEVERAL = {"ints": [3, -(2**63), 2**63 - 1, 0, 300], "bytes": [b"a", b"", b"c" * 200], "floats": [0.5, -2.0], "no": []}


def of_tfds():
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example()


def written_by_protobuf() -> bytes:
    example = of_tfds()
    feature = example.features.feature
    feature["ints"].int64_list.value.extend(SEVERAL["ints"])
    feature["bytes"].bytes_list.value.extend(SEVERAL["bytes"])
    feature["floats"].float_list.value.extend(SEVERAL["floats"])
    feature["no"].int64_list.SetInParent()
    return example.SerializeToString()


def test_what_is_encoded_is_what_protobuf_reads():
    example = of_tfds()
    example.ParseFromString(examples.encode(VALUES))
    feature = example.features.feature
    assert feature.keys() == VALUES.keys()
    for name, value in VALUES.items():
        kind = "int64_list" if isinstance(value, int) else "bytes_list"
        expected = value.encode() if isinstance(value, str) else value
        assert feature[name].WhichOneof("kind") == kind and list(getattr(feature[name], kind).value) == [expected]


def test_what_is_encoded_is_parsed():
    found = examples.parse(examples.encode(VALUES), VALUES)
    assert found == {name: [v.encode() if isinstance(v, str) else v] for name, v in VALUES.items()}
    assert examples.parse(examples.encode(VALUES), ["label", "other"]) == {"label": [-1]}


def test_what_protobuf_writes_is_parsed():
    assert examples.parse(written_by_protobuf(), SEVERAL) == SEVERAL


def test_numbers_that_are_not_packed_and_fields_that_are_not_known():
    """Each may be so in a message, and protobuf says what it means."""
    numbers = b"\x08\x05" + b"\x0a\x02\x01\x02" + b"\x08\xac\x02" + b"\x18\x01"  # 5; 1 and 2; 300; unknown
    ints = b"\x1a" + bytes([len(numbers)]) + numbers
    unknown = b"\x08\x05" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\xa2\x06\x01x"
    entry = b"\x12" + bytes([len(ints)]) + ints + b"\x0a\x01a"  # the value before the key
    features = b"\x0a" + bytes([len(entry)]) + entry
    record = unknown + b"\x0a" + bytes([len(features)]) + features
    example = of_tfds()
    example.ParseFromString(record)
    expected = list(example.features.feature["a"].int64_list.value)
    assert examples.parse(record, ["a"]) == {"a": expected} == {"a": [5, 1, 2, 300]}


def test_a_record_that_is_cut_short_is_refused_wherever_it_is_cut():
    for record in (examples.encode(VALUES | {"image": b"image"}), written_by_protobuf()):
        for end in range(1, len(record)):
            with pytest.raises(ValueError, match="truncated"):
                examples.parse(record[:end], ["label", "image", "ints"])
    assert examples.parse(b"", ["label"]) == {}


def test_damage_is_refused_or_gives_values_and_does_nothing_else():
    record = np.frombuffer(written_by_protobuf(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = record.copy()
        damaged[rng.integers(len(record), size=2)] = rng.integers(256, size=2)
        try:
            found = examples.parse(damaged.tobytes(), SEVERAL)
        except ValueError:
            refused += 1
        else:
            assert found.keys() <= SEVERAL.keys()
            assert all(-(2**63) <= v < 2**63 for vs in found.values() for v in vs if isinstance(v, int))
    assert 300 < refused < 2900
