"""Kernels that share a function: only what numbers tell apart does, with the same results."""

import dataclasses
import functools
import threading

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

import bngen as bg
from bngen.codegen import compile as compiling
from bngen.codegen import shared
from bngen.codegen.code import Stopped, compiled
from bngen.codegen.compile import compile_plan
from bngen.codegen.pipeline import generated, lowered
from bngen.passes.prepare import join_gradient, prepare
from bngen.target.parse import Target
from tests.profiles import LEVELS

NATIVE = Target.parse()
LANES = 8


# --- what is shared ---------------------------------------------------------------------------


def kernel(rows, columns, divisor=1, apart=1, inner=False, offset=0, scale=1.0, seed=7):
    """A lowered kernel of rows of vectors; where ``inner``, columns are divided, not rows alone."""
    x = te.placeholder((1 << 14,), "float32", "x")

    def element(i, j, lane):
        at = (i + j if inner else i) // divisor
        drawn = (i.astype("uint64") * tirx.const(seed, "uint64")).astype("float32")
        return te.exp(x[at * 64 + offset + lane * apart]) * scale + drawn

    y = te.compute((rows, columns, LANES), element, "y")
    sch = tvm.s_tir.Schedule(te.create_prim_func([x, y]).with_attr("global_symbol", "k"))
    row, _, lane = sch.get_loops(sch.get_sblock("y"))
    sch.parallel(row)
    sch.vectorize(lane)
    with NATIVE.tvm() as target:
        (found,) = lowered(tvm.IRModule({"k": sch.mod["main"]}), target).functions.values()
    return found


def shared_by(*kernels):
    return shared.share(kernels, [2] * len(kernels))


@pytest.mark.parametrize(
    "differing",
    [
        {"rows": 5},
        {"columns": 7},
        {"rows": 8, "columns": 9},
        {"divisor": 5},
        {"rows": 9, "columns": 2, "divisor": 7},
    ],
    ids=str,
)
def test_kernels_that_differ_in_numbers_share_a_function(differing):
    of = {"rows": 7, "columns": 3, "divisor": 3}
    members = [of, of | differing, of]
    (one,) = shared_by(*(kernel(**given) for given in members))
    assert one.members == (0, 1, 2)
    assert one.numbers[0] == one.numbers[2] != one.numbers[1]
    assert all(0 <= number for numbers in one.numbers for number in numbers)
    x = np.random.default_rng(0).normal(size=1 << 14).astype("float32")
    with NATIVE.tvm() as target:
        call = generated(tvm.IRModule({"k": one.function}), target).mod["k"]
        for given_, numbers in zip(members, one.numbers, strict=True):
            alone = generated(tvm.IRModule({"k": kernel(**given_)}), target).mod["k"]
            theirs, ours = (
                tvm.runtime.tensor(np.zeros((given_["rows"], given_["columns"], LANES), "float32"))
                for _ in range(2)
            )
            alone(tvm.runtime.tensor(x), theirs)
            call(tvm.runtime.tensor(x), ours, *numbers)
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize(
    "differing",
    [
        {"apart": 3},  # another way to load a vector
        {"divisor": 5, "inner": True},  # a division in the inner loop
        {"offset": 24},  # a displacement in a load
        {"scale": 2.0},  # what is no integer
        {"seed": 2**64 - 59},  # what 32 bits do not hold
    ],
    ids=str,
)
def test_what_code_is_better_for_knowing_stays(differing):
    of = {"rows": 7, "columns": 3, "divisor": 3, "apart": 2, "offset": 8} | {
        "inner": "inner" in differing
    }
    one, other = shared_by(kernel(**of), kernel(**of | differing))
    assert one.numbers == other.numbers == ((),)


def test_too_many_numbers_are_too_many(monkeypatch):
    sizes = [(3, 8), (8, 3), (4, 2), (2, 5)]  # rows and columns in no order: a number each
    kernels = [kernel(rows, columns) for rows, columns in sizes]
    (one,) = shared_by(*kernels)
    assert len(one.numbers[0]) == 2
    monkeypatch.setattr(shared, "MOST", 1)
    assert [s.members for s in shared_by(*kernels)] == [(0, 1), (2, 3)]


columns = st.lists(st.integers(-(2**31), 2**31), min_size=2, max_size=6).filter(
    lambda c: len(set(c)) > 1
)


@given(columns, st.integers(-9, 9).filter(bool), st.integers(-99, 99))
def test_a_term_is_its_column_and_what_depends_on_it_has_its_parameter(column, factor, base):
    term = shared._term(column)
    assert [term.base + term.factor * p for p in term.parameter] == column
    assert min(term.parameter) == 0
    assert shared._term([base + factor * c for c in column]).parameter == term.parameter


# --- programs ---------------------------------------------------------------------------------


def block(widths, batch, size, kernel_size):
    """A block whose layers read all before them, then a mean."""
    names = {
        f"w{i}": bg.Tensor[width, 5 + sum(widths[:i]), kernel_size, kernel_size]
        for i, width in enumerate(widths)
    }

    def net(x, **weights):
        for weight in weights.values():
            normalized = bg.batch_norm(x, None, None, training=True)
            y = bg.conv2d(bg.relu(normalized), weight, padding=kernel_size // 2)
            x = bg.cat([x, y], 1)
        return bg.mean(x**2)

    lines = ", ".join(names)
    namespace = {"net": net}
    exec(f"def dense(x, {lines}): return net(x, {', '.join(f'{n}={n}' for n in names)})", namespace)
    dense = namespace["dense"]
    dense.__annotations__ = {"x": bg.Tensor[batch, 5, size, size], **names}
    return bg.program(dense)


@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(
    st.lists(st.integers(3, 24), min_size=3, max_size=4),
    st.integers(1, 3),
    st.integers(4, 9),
    st.sampled_from([1, 3]),
    st.sampled_from(LEVELS),
)
def test_results_are_those_of_functions_of_their_own(widths, batch, size, taps, level):
    program = block(widths, batch, size, taps)
    modules = []
    for largest in (1, compiling.LARGEST):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiling, "LARGEST", largest)
            modules.append(bg.build(program, fusion=level, grad=True, cache=False))
    rng = np.random.default_rng(0)
    args = [rng.normal(size=s.shape).astype(s.dtype) for s in modules[0].signature.arguments]
    alone, together = ((m(*args), m.backward()) for m in modules)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4)  # all but contractions
    close(together[0], alone[0])
    for name, gradient in alone[1].items():
        close(together[1][name], gradient, atol=1e-5 * abs(gradient).max(), err_msg=name)
    counts = [m.manifest()["counts"]["distinct"] for m in modules]
    assert counts[1] <= counts[0]


@pytest.fixture(scope="module")
def plan():
    graph = join_gradient(block((16, 16, 16, 16), 2, 6, 1).graph)
    return prepare(graph, NATIVE.channel_block).planned.plan


@pytest.fixture(scope="module")
def codes(plan):
    return [c.code for c in compile_plan(plan, NATIVE, jobs=1)]


def test_layers_of_a_block_share_functions_and_profilers_see_the_symbol(codes):
    names = {code.symbol for code in codes}
    assert len(names) < len({(code.symbol, code.numbers) for code in codes})
    for code in codes:
        assert code.symbol.encode() in code.machine_code
        assert f"{code.symbol}_compute_" in code.text("ll") or "parallel" not in code.text("tir")


def test_names_do_not_depend_on_who_compiles(plan, codes):
    others = [c.code for c in compile_plan(plan, NATIVE, jobs=2)]
    assert [(c.symbol, c.numbers) for c in codes] == [(c.symbol, c.numbers) for c in others]


def test_forms_are_made_again_of_what_was_compiled_together(codes):
    code = next(code for code in codes if any(code.numbers))
    again = dataclasses.replace(code, kept=None)
    assert again.text("asm") == code.text("asm")


def test_nothing_more_is_compiled_once_nobody_waits(codes):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        compiled(codes[0].tasks, stop)


def test_a_size_on_the_stack_is_no_number():
    sizes = [tirx.const(64, "int32"), tirx.const(128, "int32")]
    buffers = [tirx.decl_buffer((size,), "float32", scope="local") for size in sizes]
    one, other = shared_by(
        *(
            tirx.PrimFunc([], tirx.SeqStmt([tirx.AllocBuffer(b), tirx.BufferStore(b, 0.0, [0])]))
            for b in buffers
        )
    )
    assert one.numbers == other.numbers == ((),)
