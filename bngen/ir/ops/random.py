"""Random numbers: each a function of its own number, of a seed and of a stream.

A kernel draws the numbers that it loads, and backward draws forward's again; nothing is stored.
"""

from __future__ import annotations

import math

import numpy as np

from bngen.ir.ops.row import ShapeError, Types, pointwise
from bngen.ir.types import Attrs, TensorType

MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Shifts and factors of a 64-bit mix: splitmix64's finalizer (Stafford's mix 13)."""
STREAM = 0x9E3779B97F4A7C15
"""What a stream adds to a mixed seed: splitmix64's increment."""
ROUND = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))
"""Shifts and factors of a round over elements: lowbias32 (Wellons, "hash-prospector")."""
_MOST_DRAWN = 2**32
"""Random numbers of one draw: each is a function of its number, in 32 bits."""


def _mixed(z: int) -> int:
    for shift, factor in MIX:
        z = (z ^ (z >> shift)) * factor % 2**64
    return z


def random_key(seed: int, stream: int) -> tuple[int, int]:
    """What elements are hashed with: the low and the high half of 64 bits."""
    key = _mixed((_mixed(seed % 2**64) + stream * STREAM) % 2**64)
    return key % 2**32, key >> 32


def _random_uniform(arrays, attrs):
    """Numbers in [0, 1): each element's row-major number, hashed with 64 bits of seed and stream.

    Their grid is 2**-24, and 2**-32 below that, so that rare events keep their probability.
    """
    (seed,) = arrays
    with np.errstate(over="ignore"):
        x = np.arange(math.prod(attrs["shape"]), dtype=np.uint32)
        for half in random_key(int(seed.item()), attrs["stream"]):
            x = x ^ np.uint32(half)
            for shift, factor in ROUND:
                x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    high, low = (x >> np.uint32(8)).astype(np.float32), (x & np.uint32(255)).astype(np.float32)
    u = np.where(high == 0, low * np.float32(2.0**-32), high * np.float32(2.0**-24))
    return (u.reshape(attrs["shape"]),)


def _infer_random(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (seed,) = types
    if seed.element.kind != "int" or seed.shape:
        raise ShapeError(f"the seed must be a single integer, got {seed}")
    if math.prod(attrs["shape"]) > _MOST_DRAWN:
        raise ShapeError(f"{list(attrs['shape'])} are more than 2^32 numbers")
    return (TensorType(tuple(attrs["shape"])),)


RANDOM = (
    pointwise(
        "random_uniform",
        ("seed",),
        _random_uniform,
        _infer_random,
        defaults={"shape": ..., "stream": 0},
        random=True,
    ),
)
