"""TVM's lowering pipeline for scheduled kernels, but for some things.

In: a scheduled IRModule. Out: a lowered one, and of that a library.

- TVM puts an allocation of more than 1 KiB into a workspace that the runtime hands out,
  accumulators of a register tile included. To LLVM such a tile is memory that anything may point
  to: it cannot always promote it to registers. A tile allocated on the stack it can.
- TVM checks every argument of every call against the signature. bngen makes all arguments itself,
  from what the user's have been checked to be; the checks were most of a small kernel's code, and
  two fifths of the time that a network took to compile.
- Lanes from all over a few vectors are loaded as those vectors and shuffled.
- Vectors whose elements lie apart, side by side with others, are loaded in rows and turned over.
- Sums of products of pairs become the instruction for them.
- Floats are computed as written: what was hidden from TVM's algebra (`bngen.lower.opaque`) appears
  once that has nothing more to say.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.ir.transform import PassContext, Sequential

from bngen.codegen.pairs import sum_pairs
from bngen.codegen.shuffles import shuffled
from bngen.codegen.temporaries import ON_STACK, flatten, shorten_chains
from bngen.codegen.transposes import turn_gathers
from bngen.lower.opaque import revealed

NAME = "bngen"
_NOTHING = Sequential([])

STACK_LIMIT = 1 << 16
"""Bytes of an allocation in local scope that stays on the stack, which a thread has 8 MiB of."""


def compile_module(module: tvm.IRModule, target: Any, *, paired: bool = True) -> Any:
    """Machine code of scheduled kernels for a target; see `lowered`."""
    return generated(lowered(module, target, paired=paired), target)


def lowered(module: tvm.IRModule, target: Any, *, paired: bool = True) -> tvm.IRModule:
    """Scheduled kernels as LLVM takes them.

    Args:
        module: the kernels.
        target: TVM's.
        paired: whether they may hold numbers of a type that comes in pairs.
    """
    if "riscv64" in str(target.attrs.get("mtriple", "")):
        module = _with_fixed_vectors(module, target)
    passes, finish = _pipeline(paired)
    with PassContext(config={"tirx.disable_cse_tir": True}):
        bound = tirx.transform.BindTarget(target.with_host(target))(module)
        return finish(passes(bound))


def generated(module: tvm.IRModule, target: Any) -> Any:
    """Machine code of lowered kernels."""
    tirx.register_tir_pipeline(NAME, lambda: (_NOTHING, lambda: _NOTHING, lambda: _NOTHING))
    return tvm.compile(module, target=target, tir_pipeline=NAME)


def _with_fixed_vectors(module: tvm.IRModule, target: Any) -> tvm.IRModule:
    """Lower functions for the CPU without RVV; LLVM then uses all of it.

    Where TVM sees RVV it makes vectors of unknown length of loops whose length is known, and some
    of its own passes do not know what to do with them. LLVM needs no help for vectors of 4 lanes.
    """
    config = {"kind": "llvm", **{k: target.attrs[k] for k in ("mtriple", "mcpu", "mattr")
                                 if k in target.attrs}}  # fmt: skip
    plain = tvm.target.Target({**config, "mattr": [*config.get("mattr", ()), "-zve32x"]})
    functions = {name: f.with_attr("target", plain) for name, f in module.functions.items()}
    return tvm.IRModule(functions, attrs=module.attrs)


def _pipeline(paired: bool) -> tuple[Any, Any]:
    """What TVM's own pipeline does, and then what finishes code for a CPU."""
    passes, finish_host, _ = tirx.get_tir_pipeline("s_tir")
    last = [*([sum_pairs()] if paired else ()), _reveal()]
    return passes, Sequential(
        [_tiles_on_stack(), tirx.transform.SkipAssert(), finish_host(), *last]
    )


def _reveal() -> Any:
    """The last pass: nothing that simplifies sees floats as what they are."""

    @tirx.transform.prim_func_pass(opt_level=0, name="bngen.Reveal")
    def reveal(func: tirx.PrimFunc, _module: Any, _context: Any) -> tirx.PrimFunc:
        return tvm_ffi.structural_mutate(
            func,
            [
                (Call, _revealed),
                (TensorLoad, _shuffled),
                (tirx.Let, flatten),
                (tirx.BufferStore, _shortened),
                (tirx.Bind, _shortened),
                (tirx.SeqStmt, _turned),
            ],
        )

    return reveal


def _revealed(call: Call, mutator: tvm_ffi.StructuralMutator) -> Any:
    return revealed(mutator.default_mutate(call))


def _shuffled(load: TensorLoad, mutator: tvm_ffi.StructuralMutator) -> Any:
    return shuffled(mutator.default_mutate(load))


def _shortened(
    statement: tirx.BufferStore | tirx.Bind, mutator: tvm_ffi.StructuralMutator
) -> tirx.Stmt:
    return shorten_chains(mutator.default_mutate(statement))


def _turned(statements: tirx.SeqStmt, mutator: tvm_ffi.StructuralMutator) -> tirx.Stmt:
    statements = mutator.default_mutate(statements)
    return turn_gathers(statements) if isinstance(statements, tirx.SeqStmt) else statements


def _tiles_on_stack() -> Any:
    @tirx.transform.prim_func_pass(opt_level=0, name="bngen.TilesOnStack")
    def mark(func: tirx.PrimFunc, _module: Any, _context: Any) -> tirx.PrimFunc:
        return tvm_ffi.structural_mutate(func, (tirx.AllocBuffer, _mark))

    return mark


def _mark(allocation: tirx.AllocBuffer, mutator: tvm_ffi.StructuralMutator) -> tirx.AllocBuffer:
    ty = allocation.buffer.ty
    if ty.storage_scope != "local" or _nbytes(ty) > STACK_LIMIT:
        return mutator.default_mutate(allocation)
    marks = {**dict(allocation.annotations or {}), ON_STACK: tirx.const(1, "bool")}
    return tirx.AllocBuffer(allocation.buffer, marks)


def _nbytes(ty: Any) -> int:
    total = tvm.DataType(ty.dtype).itemsize
    for extent in ty.shape:
        total *= int(extent)
    return total
