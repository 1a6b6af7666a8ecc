"""Parameters declared anew: the alignment LLVM is told, memory that has none, sums in place."""

import re

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import te
from tvm.ir import Var

from bngen.codegen.alignment import merge_parameters, relax_alignment
from bngen.target.parse import Target

ROWS, DEPTH, LANES = 8, 32, 16
A, B, ACC, OUT = range(4)


def accumulated_product(dtype="float32", accumulate=lambda acc, i, j: acc[i, j]):
    """``out = a @ b + acc`` as an unscheduled kernel with blocks ``product`` and ``out``."""
    a = te.placeholder((ROWS, DEPTH), dtype, name="a")
    b = te.placeholder((DEPTH, LANES), dtype, name="b")
    acc = te.placeholder((ROWS, LANES), dtype, name="acc")
    k = te.reduce_axis((0, DEPTH), name="k")
    product = te.compute(
        (ROWS, LANES), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="product"
    )
    out = te.compute((ROWS, LANES), lambda i, j: product[i, j] + accumulate(acc, i, j), name="out")
    return te.create_prim_func([a, b, acc, out]).with_attr("tirx.noalias", True)


def schedule(func):
    """The product of each group of four rows in registers, the store slot below it."""
    sch = tvm.s_tir.Schedule(func)
    product, out = sch.get_sblock("product"), sch.get_sblock("out")
    i, j = sch.get_loops(out)
    tile, i = sch.split(i, [None, 4])
    sch.vectorize(j)
    sch.compute_at(product, tile, preserve_unit_loops=True)
    i, j, k = sch.get_loops(product)[-3:]
    sch.reorder(k, i, j)
    sch.vectorize(j)
    sch.unroll(i)
    sch.set_scope(product, 0, "local")
    sch.decompose_reduction(product, k)
    return sch.mod["main"]


def compiled(func):
    return tvm.compile(func, target=Target.parse("llvm -mcpu=native").tvm())


def array(shape, offset, dtype="float32", seed=None):
    """An array that begins ``offset`` bytes after a 64-byte boundary."""
    count, dtype = int(np.prod(shape)), np.dtype(dtype)
    raw = np.zeros(count * dtype.itemsize + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    made = raw[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
    if seed is not None:
        made[:] = np.random.default_rng(seed).integers(-4, 5, shape)
    return made


def declared(library):
    """The attributes of each parameter's pointer in the LLVM text: ``{name: attributes}``."""
    text = library.mod.inspect_source("ll")
    (signature,) = re.findall(r"define .*@\w+_compute_\((.*)\) unnamed_addr", text)
    return {name: words.strip() for words, name in re.findall(r"ptr ([^%]*)%(\w+)", signature)}


def vector_moves(library):
    """Which alignments the vector loads and stores of each buffer promise: ``{name: bytes}``."""
    text = library.mod.inspect_source("ll")
    base = dict(re.findall(r"%([\w.]+) = getelementptr .*? ptr %([\w.]+)", text))
    found = {}
    for pointer, alignment in re.findall(
        r"(?:load|store) <\d+ x .*, ptr %([\w.]+), align (\d+)", text
    ):
        while pointer in base:
            pointer = base[pointer]
        found.setdefault(pointer, set()).add(int(alignment))
    return found


def uses(func, var):
    """How often a variable occurs in a function, regions of blocks and parameters included."""
    found = []
    tvm_ffi.structural_walk(func, (Var, lambda v: found.append(v) if v.same_as(var) else None))
    return len(found)


def operands(offset, dtype="float32"):
    """Arrays for the kernel's parameters, all at one distance from a 64-byte boundary."""
    shapes = [(ROWS, DEPTH), (DEPTH, LANES), (ROWS, LANES)]
    arrays = [array(shape, offset, dtype, seed) for seed, shape in enumerate(shapes)]
    return [*arrays, array((ROWS, LANES), offset, dtype)]


def test_only_the_chosen_parameters_are_moved_unaligned():
    func = schedule(accumulated_product())
    moves = vector_moves(compiled(func))
    assert (moves["b"], moves["out"], moves["acc"]) == ({64}, {64}, {64})
    library = compiled(relax_alignment(func, [B, OUT]))
    moves = vector_moves(library)
    assert (moves["b"], moves["out"], moves["acc"]) == ({4}, {4}, {64})
    attributes = declared(library)
    assert set(attributes) == {"a", "b", "acc", "out"}
    assert all("noalias" in words for words in attributes.values())
    assert {name: re.search(r"align (\d+)", words)[1] for name, words in attributes.items()} == {
        "a": "64", "b": "4", "acc": "64", "out": "4",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
def test_memory_aligned_to_its_elements_suffices(dtype):
    size = np.dtype(dtype).itemsize
    func = relax_alignment(schedule(accumulated_product(dtype)), [A, B, ACC, OUT])
    assert [p.ty.data_alignment for p in func.params] == [size] * 4
    a, b, acc, out = operands(size, dtype)
    compiled(func)["main"](a, b, acc, out)
    # Small integers: every order of the sum is exact, and uint8 wraps alike in NumPy.
    np.testing.assert_array_equal(out, a @ b + acc)


def test_the_old_variables_are_gone_from_signature_body_and_regions():
    func = schedule(accumulated_product())
    relaxed = relax_alignment(func, [B, OUT])
    for position in (B, OUT):
        old, new = func.params[position], relaxed.params[position]
        assert uses(relaxed, old) == 0
        assert uses(relaxed, new) == uses(func, old) > 2
    assert all(relaxed.params[i].same_as(func.params[i]) for i in (A, ACC))
    assert all(p.ty.data_alignment == 64 for p in func.params)


def test_an_unscheduled_kernel_can_be_relaxed_and_then_scheduled():
    func = accumulated_product()
    before = relax_alignment(schedule(func), [B, ACC, OUT])
    after = schedule(relax_alignment(func, [B, ACC, OUT]))
    tvm.ir.assert_structural_equal(before, after)


def test_an_accumulation_in_place_is_one_buffer_that_nothing_aliases():
    func = schedule(accumulated_product())
    merged = merge_parameters(relax_alignment(func, [ACC, OUT]), keep=OUT, drop=ACC)
    assert [p.name for p in merged.params] == ["a", "b", "out"]
    library = compiled(merged)
    attributes = declared(library)
    assert set(attributes) == {"a", "b", "out"}
    assert "noalias" in attributes["out"]
    assert not re.search("readonly|writeonly|readnone", attributes["out"])
    assert vector_moves(library)["out"] == {4}

    a, b, start, _ = operands(0)
    out = array(start.shape, 4)
    out[:] = start
    library["main"](a, b, out)
    np.testing.assert_array_equal(out, start + a @ b)
    library["main"](a, b, out)
    np.testing.assert_array_equal(out, start + a @ b + a @ b)


def test_merging_keeps_the_alignment_of_the_output_and_leaves_the_input_kernel_alone():
    func = schedule(accumulated_product())
    text = func.script()
    merged = merge_parameters(relax_alignment(func, [ACC]), keep=OUT, drop=ACC)
    assert [p.ty.data_alignment for p in merged.params] == [64, 64, 64]
    assert func.script() == text


@pytest.mark.parametrize(
    "accumulate",
    [
        pytest.param(lambda acc, i, j: acc[ROWS - 1 - i, j], id="another element"),
        pytest.param(lambda acc, i, j: acc[i, j] + acc[i, LANES - 1 - j], id="one more element"),
        pytest.param(lambda acc, i, j: te.const(1.0, "float32"), id="never"),
    ],
)
def test_an_input_read_elsewhere_than_where_the_output_is_written_is_not_merged(accumulate):
    func = accumulated_product(accumulate=accumulate)
    with pytest.raises(ValueError, match=r"cannot merge acc into out: .* acc\[i\] only where"):
        merge_parameters(func, keep=OUT, drop=ACC)


def test_an_input_read_before_the_statement_that_writes_the_output_is_not_merged():
    acc = te.placeholder((8,), name="acc")
    copy = te.compute((8,), lambda i: acc[i] * 2.0, name="copy")
    out = te.compute((8,), lambda i: copy[7 - i] + acc[i], name="out")
    with pytest.raises(ValueError, match="cannot merge acc into out"):
        merge_parameters(te.create_prim_func([acc, out]), keep=1, drop=0)


def test_an_output_that_is_a_running_sum_is_not_merged():
    acc = te.placeholder((8,), name="acc")
    k = te.reduce_axis((0, 4), name="k")
    out = te.compute((8,), lambda i: te.sum(acc[i] + k, axis=k), name="out")
    with pytest.raises(ValueError, match="cannot merge acc into out"):
        merge_parameters(te.create_prim_func([acc, out]), keep=1, drop=0)


@pytest.mark.parametrize("shape, dtype", [((4, 2), "float32"), ((8,), "int32")])
def test_buffers_of_different_shape_or_type_are_not_merged(shape, dtype):
    acc = te.placeholder(shape, dtype, name="acc")
    out = te.compute((8,), lambda i: acc(*np.unravel_index(0, shape)).astype("float32"), name="out")
    with pytest.raises(ValueError, match=r"cannot merge acc: .* into out: float32\[8\]"):
        merge_parameters(te.create_prim_func([acc, out]), keep=1, drop=0)
