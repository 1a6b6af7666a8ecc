"""Which numbers of a kernel its machine code is better for knowing.

In: a lowered kernel. Out: positions among the integers in it, in the order of a mutator. They are

- sizes of what lies on the stack, and all that is an attribute;
- how vectors are loaded: lanes, the distance of their elements, what a shuffle takes;
- immediate arguments of instructions, but for the size of a workspace;
- divisors of what an inner loop counts: to divide by a literal is to multiply;
- distances between the operands of an instruction, which are displacements in its loads: where the
  second output block of a register tile lay at a distance that was not known, 1x1 kernels were 5 %
  slower (AVX2, 28x28 pixels).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Var

_COUNTED = frozenset({"int32", "int64", "uint64"})
_DIVISIONS = (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)
_WORKSPACE = tvm.ir.Op.get("tirx.TVMBackendAllocWorkspace")


def fixed(function: tirx.PrimFunc, numbers: Sequence[int]) -> list[int]:
    """Positions of the numbers that stay in the code.

    Args:
        function: a lowered kernel.
        numbers: all integers in it, in the order of a mutator.
    """
    walk = _Walk()
    tvm_ffi.structural_mutate(function, walk.visits())
    assert walk.numbers == numbers, "numbers were visited out of turn"
    return walk.fixed


class _Walk:
    """A walk over a function that goes as a mutator does, and changes nothing.

    Attributes:
        numbers: all integers so far.
        fixed: positions of those that stay.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.fixed: list[int] = []
        self._stay = False
        self._in_instruction = False
        self._inner: set[Var] = set()

    def visits(self) -> list[tuple[Any, Any]]:
        """What is done for which node."""
        return [
            (tirx.IntImm, self._number),
            (Call, self._call),
            (tirx.Ramp, self._ramp),
            (tirx.Broadcast, self._broadcast),
            (tirx.Shuffle, self._shuffle),
            (_DIVISIONS, self._division),
            ((tirx.Add, tirx.Sub), self._distance),
            (tirx.For, self._loop),
            (tirx.Bind, self._bind),
            (tirx.Let, self._let),
            (tirx.AllocBuffer, self._allocation),
            (tirx.AttrStmt, self._attribute),
        ]

    def _number(self, number: tirx.IntImm, _mutator: tvm_ffi.StructuralMutator) -> Expr:
        if self._stay or number.ty.dtype not in _COUNTED:
            self.fixed.append(len(self.numbers))
        self.numbers.append(number.value)
        return number

    def _call(self, call: Call, mutator: tvm_ffi.StructuralMutator) -> Expr:
        if call.op.same_as(_WORKSPACE):
            return mutator.default_mutate(call)
        before, self._in_instruction = self._in_instruction, _is_number(call)
        self._staying(call.args, mutator)
        self._in_instruction = before
        return call

    def _ramp(self, ramp: tirx.Ramp, mutator: tvm_ffi.StructuralMutator) -> Expr:
        mutator.mutate(ramp.base)
        self._staying((ramp.stride, ramp.lanes), mutator)
        return ramp

    def _broadcast(self, same: tirx.Broadcast, mutator: tvm_ffi.StructuralMutator) -> Expr:
        mutator.mutate(same.value)
        self._staying((same.lanes,), mutator)
        return same

    def _shuffle(self, shuffle: tirx.Shuffle, mutator: tvm_ffi.StructuralMutator) -> Expr:
        for vector in shuffle.vectors:
            mutator.mutate(vector)
        self._staying(shuffle.indices, mutator)
        return shuffle

    def _division(self, division: Any, mutator: tvm_ffi.StructuralMutator) -> Expr:
        mutator.mutate(division.a)
        if self._is_inner(division.a):
            self._staying((division.b,), mutator)
        else:
            mutator.mutate(division.b)
        return division

    def _distance(self, distance: Any, mutator: tvm_ffi.StructuralMutator) -> Expr:
        if not self._in_instruction:
            return mutator.default_mutate(distance)
        self._staying((distance.a, distance.b), mutator)
        return distance

    def _loop(self, loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            self._inner.add(loop.loop_var)
        return mutator.default_mutate(loop)

    def _bind(self, bind: tirx.Bind, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        if self._is_inner(bind.value):
            self._inner.add(bind.var)
        return mutator.default_mutate(bind)

    def _let(self, let: tirx.Let, mutator: tvm_ffi.StructuralMutator) -> Expr:
        self._inner.add(let.var)
        return mutator.default_mutate(let)

    def _allocation(
        self, allocation: tirx.AllocBuffer, mutator: tvm_ffi.StructuralMutator
    ) -> tirx.Stmt:
        before, self._stay = self._stay, True
        mutator.default_mutate(allocation)
        self._stay = before
        return allocation

    def _attribute(self, node: tirx.AttrStmt, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
        mutator.mutate(node.node)
        self._staying((node.value,), mutator)
        mutator.mutate(node.body)
        return node

    def _staying(self, children: Iterable[Any], mutator: tvm_ffi.StructuralMutator) -> None:
        """Walk over children; those that are numbers stay."""
        for child in children:
            before, self._stay = self._stay, self._stay or isinstance(child, tirx.IntImm)
            mutator.mutate(child)
            self._stay = before

    def _is_inner(self, value: Expr) -> bool:
        """Whether it is computed anew again and again."""
        found: list[Var] = []
        tvm_ffi.structural_walk(value, (Var, found.append))
        return not self._inner.isdisjoint(found)


def _is_number(call: Call) -> bool:
    """Whether it gives a value, not an address or nothing."""
    return isinstance(call.ty, tvm.ir.PrimType) and str(call.ty) not in ("void", "handle")
