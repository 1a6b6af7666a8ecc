"""What an op sees of a program: the types of values, values, attributes.

Nouns only, frozen, compared by structure; what an op makes of them stands in `ops`, programs made
of them in `node`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bngen.dtypes import DTYPES, FLOAT, DType


@dataclass(frozen=True)
class TensorType:
    """Logical shape (NCHW for feature maps) and element type of a value."""

    shape: tuple[int, ...]
    dtype: str = FLOAT

    def __str__(self) -> str:
        return f"{self.element.short}[{','.join(map(str, self.shape))}]"

    @property
    def element(self) -> DType:
        """The row of the element type."""
        return DTYPES[self.dtype]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense logical tensor."""
        return self.size * self.element.nbytes

    @property
    def is_float(self) -> bool:
        """Whether gradients can flow through a value of this type."""
        return self.element.is_float

    @property
    def channel_axis(self) -> int:
        """The axis that runs over channels: the only one of a vector, otherwise axis 1."""
        return 0 if len(self.shape) == 1 else 1

    @property
    def channels(self) -> int:
        """Extent of the channel axis; 0 where there are no axes."""
        return self.shape[self.channel_axis] if self.shape else 0


@dataclass(frozen=True)
class Value:
    """A name that is assigned once. Values of one graph are told apart by name alone."""

    name: str
    type: TensorType

    def __eq__(self, other: object) -> bool:
        # Passes look values up by the thousand, and nearly always find the one that they have.
        if self is other:
            return True
        if not isinstance(other, Value):
            return NotImplemented
        return self.name == other.name and self.type == other.type

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.type.dtype


@dataclass(frozen=True)
class Attrs(Mapping[str, Any]):
    """An immutable, hashable attribute dictionary; keys are kept sorted."""

    items_: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(**attrs: Any) -> Attrs:
        """Build from keyword arguments; lists become tuples."""
        frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs.items()}
        return Attrs(tuple(sorted(frozen.items())))

    def __getitem__(self, key: str) -> Any:
        for k, v in self.items_:
            if k == key:
                return v
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (k for k, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)
