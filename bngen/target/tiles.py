"""Instructions for tiles of a matrix unit (Intel's AMX), as LLVM IR in text, linked with a kernel.

In: a `Shape`. Out: the text, and the names of its functions. Eight registers hold up to 16 rows of
64 bytes each. Which one an instruction means is part of it, so there is a function for each:

=============================== ==================================================================
``CONFIGURE()``                 shapes of all registers; before anything else on a thread
``RELEASE()``                   they are empty again; a thread has less to save when it is stopped
``zero(t)()``                   register t becomes zeros
``load(t)(place, step)``        rows of register t, from memory; bytes from one row to the next
``store(t)(place, step)``       to memory
``dot(c, a, b)()``              c += a b: of each word of a's rows, a pair of bfloat16, the products
                                with that row of b (TDPBF16PS)
=============================== ==================================================================

Sums are float32, added in order, rounded to nearest; subnormal numbers count as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

FEATURES = frozenset(("amx-tile", "amx-bf16"))
SUMS = 4
"""Registers of sums, the first ones; of each depth, one for columns and one for weights follow."""
MOST_ROWS, ROW_BYTES, WORD_BYTES, DEPTHS = 16, 64, 4, 2
"""Rows of a register, bytes of a row, bytes of a word, and how many different depths there can be.
"""
MOST_WORDS = ROW_BYTES // WORD_BYTES
_PREFIX = "bngen_tiles_"
CONFIGURE, RELEASE = f"{_PREFIX}configure", f"{_PREFIX}release"
_REGISTERS = 8
_PALETTE, _BYTES_AT, _ROWS_AT, _CONFIGURATION = 1, 16, 48, 64
_INTRINSIC, _ATTRIBUTES = "@llvm.x86.", "alwaysinline nounwind"


def rows_for(columns: int) -> int:
    """Rows of registers for so many columns: as few of them as can be, and all hold as many."""
    return math.ceil(columns / math.ceil(columns / MOST_ROWS))


@dataclass(frozen=True)
class Shape:
    """What the registers hold.

    Attributes:
        rows: columns of a map that a register has sums of.
        depths: words that are summed over at once; of each kind there is, its own registers.
    """

    rows: int
    depths: tuple[int, ...]

    def registers(self, depth: int) -> tuple[int, int]:
        """Those of columns and of weights of a depth."""
        first = SUMS + 2 * self.depths.index(depth)
        return first, first + 1

    def configuration(self) -> bytes:
        """The 64 bytes that LDTILECFG reads."""
        held = [(self.rows, ROW_BYTES)] * SUMS
        for depth in self.depths:
            held += [(self.rows, depth * WORD_BYTES), (depth, ROW_BYTES)]
        found = bytearray(_CONFIGURATION)
        found[0] = _PALETTE
        for t, (rows, row_bytes) in enumerate(held):
            found[_BYTES_AT + 2 * t] = row_bytes
            found[_ROWS_AT + t] = rows
        return bytes(found)


def zero(t: int) -> str:
    """Name of the function that clears a register."""
    return f"{_PREFIX}zero_{t}"


def load(t: int) -> str:
    """Name of the function that loads a register."""
    return f"{_PREFIX}load_{t}"


def store(t: int) -> str:
    """Name of the function that stores a register."""
    return f"{_PREFIX}store_{t}"


def dot(c: int, a: int, b: int) -> str:
    """Name of the function that adds products to register c."""
    return f"{_PREFIX}dot_{c}_{a}_{b}"


def functions(shape: Shape) -> str:
    """All functions for registers of a shape."""
    numbers = ", ".join(f"i8 {byte}" for byte in shape.configuration())
    held = f"[{_CONFIGURATION} x i8]"
    return "\n".join((
        f"@{_PREFIX}shape = private unnamed_addr constant {held} [{numbers}], align 64",
        f"declare void {_INTRINSIC}ldtilecfg(ptr)",
        f"declare void {_INTRINSIC}tilerelease()",
        f"declare void {_INTRINSIC}tilezero(i8 immarg)",
        f"declare void {_INTRINSIC}tileloadd64(i8 immarg, ptr, i64)",
        f"declare void {_INTRINSIC}tilestored64(i8 immarg, ptr, i64)",
        f"declare void {_INTRINSIC}tdpbf16ps(i8 immarg, i8 immarg, i8 immarg)",
        _defined(CONFIGURE, "", f"ldtilecfg(ptr @{_PREFIX}shape)"),
        _defined(RELEASE, "", "tilerelease()"),
        *_of_registers(shape),
    ))  # fmt: skip


def _of_registers(shape: Shape) -> Iterable[str]:
    memory = "ptr %place, i64 %step"
    for t in range(_REGISTERS):
        yield _defined(load(t), memory, f"tileloadd64(i8 {t}, {memory})")
    for t in range(SUMS):
        yield _defined(zero(t), "", f"tilezero(i8 {t})")
        yield _defined(store(t), memory, f"tilestored64(i8 {t}, {memory})")
        for depth in shape.depths:
            a, b = shape.registers(depth)
            yield _defined(dot(t, a, b), "", f"tdpbf16ps(i8 {t}, i8 {a}, i8 {b})")


def _defined(name: str, parameters: str, call: str) -> str:
    body = f"call void {_INTRINSIC}{call} ret void"
    return f"define void @{name}({parameters}) {_ATTRIBUTES} {{ {body} }}"
