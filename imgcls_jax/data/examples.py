"""Records as TFDS stores them, serialised tf.train.Example messages: written and read without protobuf.

Example     1: Features
Features    1: entries of a map, each with 1: name, 2: Feature
Feature     one of 1: list of bytes, 2: list of floats, 3: list of int64
a list      1: values, each in a field of its own, or numbers packed into one
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

# Kinds of fields on the wire: the last three bits of a tag; the others are the field's number.
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FIRST, _SECOND, _THIRD = (number << 3 | _LENGTH for number in (1, 2, 3))


def encode(example: Mapping[str, int | str | bytes]) -> bytes:
    """A serialised tf.train.Example with one value for each feature, the features in sorted order."""
    entries = []
    for name, value in sorted(example.items()):
        if isinstance(value, int):
            feature = _message(3, _message(1, _varint(value)))
        else:
            data = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
            feature = _message(1, _message(1, data))
        entries.append(_message(1, _message(1, name.encode()) + _message(2, feature)))
    return _message(1, b"".join(entries))


def parse(record: bytes, names: Iterable[str]) -> dict[str, list[Any]]:
    """The values of some features of a serialised tf.train.Example.

    Args:
      record: the message.
      names: of the features that are wanted; nothing is copied of the others.

    Returns:
      By name, a list of bytes, int or float: of those features that the record has.

    Raises:
      ValueError: the record is truncated or damaged.
    """
    wanted = {name.encode(): name for name in names}
    found: dict[str, list[Any]] = {}
    try:
        for tag, features_at, features_end in _fields(record, 0, len(record)):
            for _, entry_at, entry_end in _fields(record, features_at, features_end) if tag == _FIRST else ():
                name, value = None, (0, 0)
                for part, start, end in _fields(record, entry_at, entry_end):
                    if part == _FIRST:
                        name = wanted.get(record[start:end])
                    elif part == _SECOND:
                        value = (start, end)
                if name is not None:
                    found[name] = _values(record, *value)
    except IndexError as error:
        raise ValueError("the record is truncated") from error
    return found


def _values(data: bytes, start: int, end: int) -> list[Any]:
    """The values of the Feature that lies there."""
    values: list[Any] = []
    for kind, list_at, list_end in _fields(data, start, end):
        for tag, at, stop in _fields(data, list_at, list_end):
            if kind == _FIRST:
                values.append(data[at:stop])
            elif kind == _SECOND:
                values += np.frombuffer(data[at:stop], "<f4").tolist()  # one, or packed
            elif kind == _THIRD and tag in (_FIRST, _FIRST ^ _LENGTH):
                while at < stop:  # one, or packed
                    value, at = _read_varint(data, at)
                    values.append(value - (value >> 63 << 64))  # two's complement
    return values


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(tag, start, end) of the content of each field of the message that lies from `at` to `end`."""
    while at < end:
        # Numbers of one byte, which most are, are read here: a call takes longer than all that it does.
        tag, at = (data[at], at + 1) if data[at] < 128 else _read_varint(data, at)
        kind = tag & 7
        if kind == _LENGTH:
            length, at = (data[at], at + 1) if data[at] < 128 else _read_varint(data, at)
            stop = at + length
        elif kind == _VARINT:
            _, stop = _read_varint(data, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = at + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"the record is damaged (a field of kind {kind})")
        if stop > end:
            raise ValueError("the record is truncated or damaged (a field is longer than what holds it)")
        yield tag, at, stop
        at = stop


def _message(field: int, data: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(field << 3 | _LENGTH) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends; at most 64 bits of it."""
    value = data[at]
    at += 1
    if value > 127:
        value &= 127
        for shift in range(7, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise ValueError("the record is damaged (a number without an end)")
    return value & 2**64 - 1, at
