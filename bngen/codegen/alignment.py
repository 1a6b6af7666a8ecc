"""What a kernel may assume of the memory behind its parameters: alignment, and being one buffer.

In: a PrimFunc, scheduled or not, and positions in its signature. Out: the same function whose
parameters are declared anew; statements and block names stay. TVM declares every parameter of a TE
function aligned to 64 bytes and LLVM then emits aligned vector moves, which fault on memory that
the user brings. In this version of TVM the declaration is the type of the parameter's variable, so
it changes by substituting the variable, and that costs well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm_ffi
from tvm import DataType, tirx
from tvm.ir import Expr, TensorLoad, Var


def relax_alignment(func: tirx.PrimFunc, parameters: Sequence[int]) -> tirx.PrimFunc:
    """Let some parameters lie at any address that is a multiple of their element's size.

    Args:
        func: a kernel, before or after scheduling.
        parameters: positions in the signature; the other parameters keep their alignment.

    Returns:
        The kernel in which vector moves on these parameters are unaligned ones.
    """
    if not parameters:
        return func
    chosen = [func.params[i] for i in parameters]
    return substituted(func, {var: _aligned_to_element(var) for var in chosen})


def merge_parameters(func: tirx.PrimFunc, keep: int, drop: int) -> tirx.PrimFunc:
    """Make an input the same memory as an output, so that a kernel can accumulate in place.

    ::

        f(x, acc, out): out[i] = acc[i] + g(x, i)    ->    f(x, out): out[i] = out[i] + g(x, i)

    Passing one array twice would break the promise that parameters do not alias; one parameter
    keeps it. Do this last: TVM's schedule primitives take the read of ``out`` for a read of what
    the block itself writes. The alignment is that of ``keep``.

    Args:
        func: a scheduled kernel made from TE, which writes each element of an output once.
        keep: position of the output.
        drop: position of the input, of the same shape and element type; it leaves the signature.

    Returns:
        The kernel with one parameter fewer.

    Raises:
        ValueError: the two differ in shape or type, or ``drop`` is read anywhere else than in the
            one statement that writes ``keep``, at the element that it writes.
    """
    kept, dropped = func.params[keep], func.params[drop]
    if not _same_memory_layout(kept, dropped):
        raise ValueError(f"cannot merge {_describe(dropped)} into {_describe(kept)}")
    if not _reads_what_it_overwrites(func.body, kept, dropped):
        raise ValueError(
            f"cannot merge {dropped.name} into {kept.name}: the kernel does not read"
            f" {dropped.name}[i] only where it writes {kept.name}[i]"
        )
    merged = substituted(func, {dropped: kept})
    params = [var for i, var in enumerate(merged.params) if i != drop]
    return tirx.PrimFunc(params, merged.body, merged.ret_type, merged.attrs, merged.span)


def merge_overwritten(
    function: tirx.PrimFunc, pairs: list[tuple[int, int]], shapes: list[tuple[int, ...]]
) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    """Make one parameter of each pair that shares memory and has one shape in the kernel.

    A pair that is read in another statement than the one that writes stays two parameters: the
    memory plan has made sure that each element is read before it is written.

    Args:
        function: a scheduled kernel.
        pairs: positions of inputs and outputs that share memory, see `signature.overwritten`.
        shapes: of all parameters.

    Returns:
        The kernel, and the positions of the inputs that left its signature.
    """
    dropped: list[int] = []
    for i, o in pairs:
        if i in dropped or shapes[i] != shapes[o]:
            continue
        before = [sum(d < p for d in dropped) for p in (i, o)]
        try:
            function = merge_parameters(function, keep=o - before[1], drop=i - before[0])
        except ValueError:
            continue
        dropped.append(i)
    return function, tuple(dropped)


def substituted(func: tirx.PrimFunc, replacement: Mapping[Var, Var]) -> tirx.PrimFunc:
    """The function with some of its variables replaced wherever they occur."""

    def replace(root: tirx.PrimFunc, mutator: tvm_ffi.StructuralMutator) -> tirx.PrimFunc:
        for old, new in replacement.items():
            mutator.var_remap_set(old, new)
        return mutator.default_mutate(root)

    return tvm_ffi.structural_mutate(func, (tirx.PrimFunc, replace))


def _aligned_to_element(var: Var) -> Var:
    return redeclared(var, alignment=DataType(var.ty.dtype).itemsize)


def redeclared(
    var: Var, *, shape: Sequence[int] | None = None, alignment: int | None = None
) -> Var:
    """A fresh variable of the same buffer type but for its shape or alignment."""
    ty = var.ty
    return tirx.decl_buffer(
        ty.shape if shape is None else shape,
        ty.dtype,
        var.name,
        strides=ty.strides,
        elem_offset=ty.elem_offset,
        scope=ty.storage_scope,
        data_alignment=ty.data_alignment if alignment is None else alignment,
        offset_factor=ty.offset_factor,
        layout=ty.layout,
    )


def _same_memory_layout(a: Var, b: Var) -> bool:
    fields = ("dtype", "shape", "strides", "elem_offset", "storage_scope", "layout")
    return all(tvm_ffi.structural_equal(getattr(a.ty, f), getattr(b.ty, f)) for f in fields)


def _reads_what_it_overwrites(body: tirx.Stmt, kept: Var, dropped: Var) -> bool:
    """Whether ``kept`` has one store, and all reads of ``dropped`` are in it at its own element."""
    stores: list[tirx.BufferStore] = []

    def collect(store: tirx.BufferStore) -> None:
        if store.buffer.same_as(kept):
            stores.append(store)

    tvm_ffi.structural_walk(body, (tirx.BufferStore, collect))
    if len(stores) != 1:
        return False
    (store,) = stores
    in_place = [
        read
        for read in _reads(store.value, dropped)
        if tvm_ffi.structural_equal(read.indices, store.indices)
    ]
    return 0 < len(in_place) == len(_reads(body, dropped))


def _reads(root: tirx.Stmt | Expr, buffer: Var) -> list[TensorLoad]:
    """Every occurrence of a read of ``buffer`` below ``root``."""
    found: list[TensorLoad] = []

    def collect(load: TensorLoad) -> None:
        if load.source.same_as(buffer):
            found.append(load)

    tvm_ffi.structural_walk(root, (TensorLoad, collect))
    return found


def _describe(var: Var) -> str:
    extents = ", ".join(str(extent) for extent in var.ty.shape)
    return f"{var.name}: {var.ty.dtype}[{extents}]"
