"""What a machine can do: vectors, multiply-add units, loads, caches. Schedules follow from this.

In: an architecture and LLVM's features. Out: a `Machine`. Three numbers must not be taken for one
another: how many elements of a type a vector holds (`Machine.lanes`), how many channels a block of
a layout has (which the driver chooses, see `Target.channel_block`), and these traits.

A row of `TRAITS` stands for all CPUs of an instruction set; what one of them does better than the
row says is worth a row of its own only where knobs would differ.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from bngen.runtime.host import Caches

FLOAT32 = 4
"""Bytes of an element."""


@dataclass(frozen=True)
class Traits:
    """What CPUs of an architecture with some instructions have in common.

    Attributes:
        arch: LLVM's name of the architecture.
        needs: features, all of which such a CPU has.
        vector_bytes: bytes of the widest vector worth using.
        vector_registers: how many of them there are.
        folds_broadcasts: whether a multiply-add reads one element of memory into all lanes itself.
        multiply_add_units: vector multiply-adds that start in a cycle.
        multiply_add_latency: cycles until the next one may use a result.
        load_ports: vectors, or elements for all lanes, that are loaded in a cycle.
    """

    arch: str
    needs: frozenset[str]
    vector_bytes: int
    vector_registers: int
    folds_broadcasts: bool = False
    multiply_add_units: int = 2
    multiply_add_latency: int = 4
    load_ports: int = 2

    @property
    def multiply_adds_in_flight(self) -> int:
        """Sums that must be under way at once, that no unit waits for the result of another."""
        return self.multiply_add_units * self.multiply_add_latency


@dataclass(frozen=True)
class Machine:
    """One machine: its traits, and what the system says of it.

    Attributes:
        traits: what its CPU has in common with others.
        l1: bytes of level-1 data cache of one core.
        l2: bytes of level-2 cache of one core.
        l3: one core's share of the level-3 cache, in bytes.
        threads: CPUs this process may use, the default number of threads.
    """

    traits: Traits
    l1: int
    l2: int
    l3: int
    threads: int

    def lanes(self, element_bytes: int) -> int:
        """Elements of so many bytes in a vector."""
        return self.traits.vector_bytes // element_bytes


def _row(arch: str, needs: str, *sizes: int, **more: bool) -> Traits:
    return Traits(arch, frozenset(needs.split()), *sizes, **more)


TRAITS: tuple[Traits, ...] = (
    _row("x86_64", "avx512f", 64, 32, folds_broadcasts=True),
    _row("x86_64", "avx", 32, 16),
    _row("x86_64", "", 16, 16),
    # SVE's length is unknown while compiling; its low 128 bits are NEON's registers.
    _row("aarch64", "", 16, 32),
)
"""The first row of an architecture whose needs are met. Units, latency and ports are those of the
cores that the knobs' constants were fitted on (znver3, znver4), and of most others: Neoverse,
Skylake, Golden Cove."""

_OTHER = _row("", "", 16, 16)


def traits_of(arch: str, features: Set[str]) -> Traits:
    """The traits of CPUs of an architecture that have these features.

    An architecture without a row has none that bngen knows of: the least that any has.
    """
    rows = (row for row in TRAITS if row.arch == arch and row.needs <= features)
    return next(rows, _OTHER)


def machine_of(arch: str, features: Set[str], caches: Caches, threads: int) -> Machine:
    """A machine of an architecture with these features, caches and threads."""
    return Machine(traits_of(arch, features), caches.l1, caches.l2, caches.l3, threads)
