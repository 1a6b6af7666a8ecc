"""What a machine can do: its CPU's traits, caches, threads. Schedules follow from this.

In: a CPU's traits, and what the system says. Out: a `Machine`. Three numbers must not be taken for
one another: how many elements of a type a vector holds (`Machine.lanes`), how many channels a block
of a layout has (which the driver chooses, see `Target.channel_block`), and the traits.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

from bngen.dtypes import DTYPES
from bngen.runtime.host import Caches
from bngen.target.cpus import Traits


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

    def lanes(self, dtype: str) -> int:
        """Elements of a type in a vector."""
        return self.traits.vector_bytes // DTYPES[DTYPES[dtype].computed].nbytes

    def of_pairs(self) -> Machine:
        """The same machine to a kernel whose multiply-adds are of pairs, see `Traits.of_pairs`."""
        return replace(self, traits=self.traits.of_pairs())


def machine_of(traits: Traits, caches: Caches, threads: int) -> Machine:
    """A machine with these traits, caches and threads."""
    return Machine(traits, caches.l1, caches.l2, caches.l3, threads)


# --- levels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """A set of features that systems build for, by which record files are found.

    Attributes:
        name: x86-64's micro-architecture level, else the architecture.
        adds: features beyond the level below.
        caches: what to count on where the machine is not at hand: the least that such CPUs have.
    """

    name: str
    adds: frozenset[str] = frozenset()
    caches: Caches = Caches(32 << 10, 256 << 10, 1 << 20)


def _level(name: str, adds: str, *caches: int) -> Level:
    known = [Caches(*caches)] if caches else []
    return Level(name, frozenset(adds.split()), *known)


LEVELS: dict[str, tuple[Level, ...]] = {
    "x86_64": (
        _level("x86-64", "sse2"),
        _level("x86-64-v2", "cx16 popcnt sse3 sse4.1 sse4.2 ssse3"),
        _level("x86-64-v3", "avx2 bmi bmi2 f16c fma lzcnt movbe", 32 << 10, 256 << 10, 2 << 20),
        _level(
            "x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl",
            32 << 10, 1 << 20, 1408 << 10,
        ),
    ),
    "aarch64": (_level("aarch64", "", 64 << 10, 1 << 20, 1 << 20),),
}  # fmt: skip
"""Architecture -> its levels, each with all that those before it have."""


def level_of(arch: str, features: Set[str]) -> Level:
    """The highest level of an architecture whose features, and those below, are all there."""
    reached = Level(arch)
    for level in LEVELS.get(arch, ()):
        if not level.adds <= features:
            break
        reached = level
    return reached
