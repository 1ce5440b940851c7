"""Damage, from a seed: to bytes, and to what JSON holds."""

import copy
import json
import struct

import numpy as np

_INTEGERS = (0, 1, 2, 7, 16, 127, 128, 255, 256, 348, 540, 32767, 65535, 2**31 - 1, 2**32 - 1)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, -1e30, 3.4e38, np.nan, np.inf, -np.inf, 352.0, 1e-3)
_VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -1e308, 1e308, float("nan"),
    float("inf"), "", "x", "ddpm", "../x", "a\nb", "é" * 50, [], [1], ["a", "a"], [[]], {},
    {"x": 1},
)  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator, head: int = 352) -> bytes:
    """One to four mutations; half of them hit the first ``head`` bytes."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not changed:
            break
        kind = _KINDS[rng.choice(len(_KINDS), p=_SHARES)]
        reach = min(head, len(changed)) if rng.random() < 0.5 else len(changed)
        kind(changed, int(rng.integers(reach)), rng)
    return bytes(changed)


def _flip(data, at, rng):
    data[at] ^= 1 << int(rng.integers(8))


def _byte(data, at, rng):
    data[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))


def _integer(data, at, rng):
    size = int(rng.choice([2, 4, 8]))
    value = int(rng.choice(_INTEGERS)) * int(rng.choice([1, -1])) % 256**size
    _put(data, at - at % size, value.to_bytes(size, str(rng.choice(["little", "big"]))))


def _real(data, at, rng):
    value = float(rng.choice(_REALS))
    _put(data, at - at % 4, struct.pack("<f" if rng.random() < 0.8 else ">f", value))


def _swap(data, at, rng):
    size = int(rng.choice([2, 4]))
    at -= at % size
    data[at : at + size] = data[at : at + size][::-1]


def _exchange(data, at, rng):
    """Two fields change places."""
    size = int(rng.choice([2, 4]))
    other = int(rng.integers(len(data)))
    first, second = data[at : at + size], data[other : other + size]
    _put(data, at, bytes(second))
    _put(data, other, bytes(first))


def _truncate(data, at, rng):
    del data[at:]


def _extend(data, at, rng):
    count = int(rng.choice([1, 16, 500, 100_000]))
    data += rng.bytes(count) if rng.random() < 0.5 else bytes(count)


def _duplicate(data, at, rng):
    count = int(rng.choice([1, 4, 16, 348]))
    data[at:at] = data[at : at + count]


def _remove(data, at, rng):
    del data[at : at + int(rng.choice([1, 2, 4, 16]))]


def _noise(data, at, rng):
    _put(data, at, rng.bytes(int(rng.integers(1, 32))))


def _put(data, at, raw):
    data[at : at + len(raw)] = raw[: len(data) - at]


_WEIGHTED = {
    _flip: 4, _byte: 4, _integer: 4, _real: 4, _swap: 2, _exchange: 2, _truncate: 1, _extend: 1,
    _duplicate: 1, _remove: 1, _noise: 1,
}  # fmt: skip
_KINDS = tuple(_WEIGHTED)
_SHARES = np.array(list(_WEIGHTED.values())) / sum(_WEIGHTED.values())


def damaged_json(content, rng: np.random.Generator) -> bytes:
    """What JSON holds with one to three of its values replaced, removed or doubled; sometimes its
    text is damaged instead."""
    if rng.random() < 0.2:
        return damaged(json.dumps(content).encode(), rng, 10**6)
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(content))
        if not places:
            break
        holder, key = places[rng.integers(len(places))]
        value = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
        chance = rng.random()
        if chance < 0.1:
            del holder[key]
        elif chance < 0.2 and isinstance(holder, dict):
            holder[str(value)] = holder[key]
        elif chance < 0.3 and isinstance(holder[key], int | float):
            holder[key] *= float(rng.choice([-1, 1e-9, 1e9, 1.5]))
        else:
            holder[key] = value
    return json.dumps(content).encode()


def _places(content):
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])
