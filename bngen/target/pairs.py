"""Instructions for pairs of bfloat16, as LLVM IR in text, which TVM links with a kernel.

In: lanes of a vector of floats. Out: the text, and the names of its functions. A word is 32 bits,
two bfloat16, the first in the low half:

- `DOT` ``(sums, broadcast, words)``: to each sum the products of both pairs (VDPBF16PS). Those of
  the high halves come first; subnormal numbers count as zero.
- `PACK` ``(low, high)``: words of two vectors of floats, each rounded to nearest even
  (VCVTNE2PS2BF16, and a shuffle); subnormal numbers become zero.
- `NARROW` ``(floats)``: 16 bits of each, rounded likewise (VCVTNEPS2BF16).

Why text: LLVM's intrinsics take vectors of ``bfloat``, which TVM cannot hand to them. All of it is
inlined, so that nothing of it is left in an object file but the instructions.

Where the broadcast is the last operand, and only there, the instruction loads it itself.
"""

from __future__ import annotations

DOT, PACK, NARROW = "bngen_dot_of_pairs", "bngen_pack_pairs", "bngen_narrow"
FEATURE = "avx512bf16"
WIDTHS = {16: "512", 8: "256", 4: "128"}
"""Lanes -> bits of the instructions; the narrower ones need AVX512-VL, which all such CPUs have."""

_ATTRIBUTES = "alwaysinline nounwind willreturn nosync nofree norecurse memory(none)"
_INTRINSICS = "llvm.x86.avx512bf16"


def functions(lanes: int) -> str:
    """All functions for vectors of so many floats."""
    bits = WIDTHS[lanes]
    f, i, h = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{2 * lanes} x bfloat>"
    dot, pack = f"@{_INTRINSICS}.dpbf16ps.{bits}", f"@{_INTRINSICS}.cvtne2ps2bf16.{bits}"
    order = ", ".join(f"i32 {n // 2 + lanes * (n % 2)}" for n in range(2 * lanes))
    return f"""
declare {f} {dot}({f}, {h}, {h})
declare {h} {pack}({f}, {f})

define {f} @{DOT}({f} %sums, {i} %broadcast, {i} %words) {_ATTRIBUTES} {{
  %x = bitcast {i} %broadcast to {h}
  %y = bitcast {i} %words to {h}
  %r = call {f} {dot}({f} %sums, {h} %y, {h} %x)
  ret {f} %r
}}

define {i} @{PACK}({f} %low, {f} %high) {_ATTRIBUTES} {{
  %r = call {h} {pack}({f} %high, {f} %low)
  %s = shufflevector {h} %r, {h} poison, <{2 * lanes} x i32> <{order}>
  %w = bitcast {h} %s to {i}
  ret {i} %w
}}

define <{lanes} x i16> @{NARROW}({f} %floats) {_ATTRIBUTES} {{
  %r = fptrunc {f} %floats to <{lanes} x bfloat>
  %b = bitcast <{lanes} x bfloat> %r to <{lanes} x i16>
  ret <{lanes} x i16> %b
}}
"""
