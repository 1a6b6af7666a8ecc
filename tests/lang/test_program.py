"""Programs: argument types, results, source lines, calls of programs by programs, laziness."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bngen as bg
from bngen.ir.interp import run
from bngen.ir.types import TensorType
from bngen.ir.verify import verify
from tests.lang.meaning import normal


@bg.program
def scaled(x: bg.Tensor[2, 3], s: bg.Tensor[bg.float32], power=2):
    """Doc."""
    return x * s**power


def test_argument_types():
    @bg.program
    def f(
        a: bg.Tensor[8, 3],
        b: bg.Tensor[8, bg.int64],
        c: bg.Tensor[()],
        d: bg.Tensor[bg.int64],
        *,
        e: bg.Tensor((4,), np.float64),
    ):
        return a

    assert f.arguments == {
        "a": TensorType((8, 3)),
        "b": TensorType((8,), "int64"),
        "c": TensorType(()),
        "d": TensorType((), "int64"),
        "e": TensorType((4,), "float64"),
    }
    assert [i.name for i in f.graph.inputs] == ["a", "b", "c", "d", "e"]


def test_python_values_between_tensors_keep_their_defaults():
    @bg.program
    def f(a: bg.Tensor[3], /, p=2.0, b: bg.Tensor[3] = None, *, c: bg.Tensor[3]):
        assert p == 2.0
        return a, b, c

    assert [v.name for v in f.graph.outputs] == ["a", "b", "c"]


def test_annotations_that_are_text_see_the_factorys_variables():
    def make(n):
        return bg.program(_with_text_annotations("def f(x: 'bg.Tensor[n, 3]'): return x", bg=bg))

    n = 5  # what `program` sees is the scope of its caller
    assert make(n).arguments == {"x": TensorType((5, 3))}


def _with_text_annotations(source, **names):
    exec(source, names)
    return names["f"]


def test_program_keeps_name_doc_and_graph():
    assert (scaled.name, scaled.__doc__) == ("scaled", "Doc.")
    assert scaled.graph is scaled.graph
    assert scaled.parameters == {}


def test_nodes_carry_the_users_line():
    first = test_nodes_carry_the_users_line.__code__.co_firstlineno

    def layer(x):
        return bg.relu(x)  # first + 4

    def f(x):
        with bg.scope("net"):
            y = bg.layers.conv2d(x, "conv", 4, 1)  # first + 8
        return layer(y)

    nodes = bg.trace(f, bg.Tensor[1, 3, 4, 4]).graph.nodes
    assert [(n.op, n.loc.file, n.loc.line - first) for n in nodes] == [
        ("conv2d", __file__, 8),
        ("bias_add", __file__, 8),
        ("relu", __file__, 4),
    ]


@pytest.mark.parametrize(
    ("result", "names", "is_tuple"),
    [
        (lambda x: x, (), False),
        (lambda x: (x,), (), True),
        (lambda x: [x, -x], (), True),
        (lambda x: {"loss": x, "grad:w": -x}, ("loss", "grad:w"), True),
    ],
)
def test_results(result, names, is_tuple):
    graph = bg.trace(result, bg.Tensor[2, 3]).graph
    assert (graph.output_names, graph.tuple_output) == (names, is_tuple)


def test_trace_names_arguments_and_program():
    def f(x, *rest, eps=1e-5):
        return x + rest[0] + rest[1]

    program = bg.trace(f, *[bg.Tensor[2]] * 3, name="net")
    assert (program.name, list(program.arguments)) == ("net", ["x", "rest_0", "rest_1"])
    assert bg.trace(lambda x: x, bg.Tensor[2]).name == "program"
    program.graph.producers()


# --- programs that call programs --------------------------------------------------------------


def _same_meaning(a, b, *arrays):
    verify(a.graph, "trace")
    for got, want in zip(
        *(run(p.graph, dict(zip(p.arguments, arrays, strict=True))).outputs for p in (a, b)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_a_program_called_while_tracing_is_inlined():
    def outer(x, s):
        return scaled(scaled(x, s), s=s, power=3)

    def by_hand(x, s):
        return (x * (s * s)) * s**3

    types = scaled.arguments.values()
    x, s = normal(2, 3).astype("float32"), np.float32(1.5)
    _same_meaning(bg.trace(outer, *types), bg.trace(by_hand, *types), x, s)


def _counter(x):
    """Running statistics, a dropout mask and a parameter: all that inlining must carry over."""
    w = bg.parameter("w", 3, init=0.5)
    y = bg.dropout(bg.layers.batch_norm(x, "bn"), seed=bg.buffer("seed", (), "int64"))
    return {"y": y * w, "again": bg.dropout(x, seed=1)}


def test_a_program_made_from_a_graph_is_inlined():
    traced = bg.trace(_counter, bg.Tensor[64, 3])
    again = bg.Program.from_graph(traced.graph)
    assert (again.name, again.arguments) == (traced.name, traced.arguments)
    assert again.graph is traced.graph

    def twice(program):
        def f(x):
            first = program(x)
            with bg.scope("inner"):
                other = program(x=x)
            return {"a": first["y"], "b": program(x)["y"], "c": other["y"], "d": first["again"]}

        return bg.trace(f, bg.Tensor[64, 3])

    a, b = twice(traced).graph, twice(again).graph
    verify(b, "inlining")
    assert [(i.name, i.kind, i.init) for i in a.inputs] == [
        (i.name, i.kind, i.init) for i in b.inputs
    ]
    assert {t.name for t, _ in a.updates} == {t.name for t, _ in b.updates}
    streams = [n.attrs["stream"] for n in b.nodes if n.op == "random_uniform"]
    assert sorted(streams) == list(range(6))
    rng = np.random.default_rng(0)
    args = {i.name: rng.random(i.value.shape) for i in a.inputs}
    args |= {n: np.int64(7) for n in args if n.endswith(("seed", "tracked"))}
    left, right = run(a, args), run(b, args)
    for got, want in zip(left.outputs, right.outputs, strict=True):
        np.testing.assert_array_equal(got, want)
    for name, want in left.updates.items():
        np.testing.assert_array_equal(right.updates[name], want)
    assert left.updates["bn.num_batches_tracked"] == 9


def test_inlining_keeps_draws_that_share_a_stream_together():
    graph = bg.trace(lambda x: bg.dropout(x, seed=1), bg.Tensor[50]).graph
    draw = next(n for n in graph.nodes if n.op == "random_uniform")
    other = replace(draw, outputs=(replace(draw.out, name="recomputed"),))
    graph = replace(
        graph, nodes=(*graph.nodes, other), outputs=(draw.out, other.out), tuple_output=True
    )
    program = bg.Program.from_graph(graph)
    inlined = bg.trace(lambda x: (*program(x), *program(x)), bg.Tensor[50]).graph
    first, recomputed, second, _ = run(inlined, {"x": np.ones(50, "float32")}).outputs
    np.testing.assert_array_equal(first, recomputed)
    assert not np.array_equal(first, second)


def test_updates():
    def f(w, g):
        bg.update(w, w - g)
        return w * 1.0  # still the old value

    graph = bg.trace(f, bg.Tensor[3], bg.Tensor[3]).graph
    result = run(graph, {"w": np.ones(3, "float32"), "g": np.full(3, 0.25, "float32")})
    np.testing.assert_array_equal(result.outputs[0], np.ones(3))
    np.testing.assert_array_equal(result.updates["w"], np.full(3, 0.75))


def test_a_failed_trace_leaves_nothing_behind():
    def bad(x):
        with bg.scope("left"), bg.scope("open"):
            raise ValueError("mine")

    with pytest.raises(bg.ProgramError):
        _ = bg.trace(bad, bg.Tensor[3]).graph
    program = bg.trace(lambda x: x * bg.parameter("w", 3), bg.Tensor[3])
    assert list(program.parameters) == ["w"]
    with pytest.raises(bg.ProgramError, match="only works while a program is being traced"):
        bg.parameter("w", 3)


# --- the package ------------------------------------------------------------------------------


def test_every_public_name_is_there():
    for name in bg.__all__:
        if name not in ("build", "grad", "value_and_grad"):  # these load the compiler
            assert getattr(bg, name) is not None
    assert set(bg.__all__) <= set(dir(bg))


def test_import_is_light():
    code = (
        "import sys, bngen; light = set(sys.modules); bngen.models.make('tiny_resnet').graph;"
        "bad = ({'numpy'} & light) | ({'torch', 'tvm'} & set(sys.modules)); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
