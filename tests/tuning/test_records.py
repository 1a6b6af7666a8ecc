"""Records: legality, where they are looked for, what files may hold, and that results stay."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen import models
from bngen.codegen import nests
from bngen.codegen.nests import BY_KIND, STRATEGIES, choose, legal
from bngen.codegen.signature import signature
from bngen.compiler import build
from bngen.errors import BngenError, ToolchainError
from bngen.lower.facts import Declined
from bngen.passes.prepare import join_gradient, prepare
from bngen.target.parse import Target
from bngen.tuning import records
from bngen.tuning.records import Record, Records, digest, find, read, write
from tests.profiles import takes_long

MAP = {"n": 2, "h": 12, "w": 10, "out_blocks": 6, "lanes": 8, "group_rows": 4}
OPERAND = {"groups": 2, "in_blocks": 3, "in_lanes": 8, "r": 3, "s": 3, "padded_w": 12}
STRIDES = {"stride_h": 1, "stride_w": 1, "dilation_h": 1}
CONV = {**MAP, **OPERAND, **STRIDES, "dilation_w": 1}
TASK = {"chunks": 2, "out_blocks": 2, "in_blocks": 3}
WGRAD = {"n": 2, "h": 6, "w": 6, "out_blocks": 4, "lanes": 8, **OPERAND, **STRIDES, "groups": 1}
EXTENTS = {
    "conv": CONV,
    "tiles": {**CONV, "lanes": 16, "pairs": 1},
    "phased_tiles": {**MAP, **OPERAND, "lanes": 16, "pairs": 1, "spread_h": 2, "spread_w": 2},
    "phased": {**MAP, **OPERAND, "spread_h": 2, "spread_w": 2},
    "winograd": {**CONV, "h": 7, "groups": 1, "group_rows": 7},
    "depthwise": CONV,
    "wgrad": WGRAD,
    "winograd_wgrad": WGRAD,
    "depthwise_wgrad": WGRAD,
    "window": MAP,
    "pointwise": MAP,
    "shuffled": {**CONV, "period": 1, "alike": 1},
    "shuffled_wgrad": {**WGRAD, "period": 1, "alike": 1},
    "product": {"m": 8, "n": 40, "k": 12, "lanes": 8},
}
RECORD = Record(
    "00112233445566aa", "conv", "relu conv2d", CONV, {"columns": 5, "blocks": 3, "rows": 4},
    1.5e-4, 2e-4, 2, 24,
)  # fmt: skip


def space(kind, extents):
    """The knobs that a record of a kind may have, each with its choices."""
    return BY_KIND[kind].space(facts_of(kind, extents))


def candidates(kind, extents):
    """All legal knobs of a kind of kernel."""
    return BY_KIND[kind].candidates(facts_of(kind, extents))


def facts_of(kind, extents):
    """The facts of a record, all of which are there."""
    found = nests.read(kind, extents)
    assert not isinstance(found, Declined), found.reason
    return found


@dataclass(frozen=True)
class Cpu:
    cpu: str = "znver4"
    psabi: str = "x86-64-v4"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """The user's and the shipped folder, both empty."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(records, "shipped_folder", lambda: tmp_path / "shipped")
    return {"user": records.user_folder(), "shipped": tmp_path / "shipped", "given": tmp_path}


@pytest.mark.parametrize(
    ("kind", "knobs", "reason"),
    [
        ("conv", {"columns": 3, "blocks": 3, "rows": 12}, None),
        ("conv", {"columns": 11, "blocks": 3, "rows": 4}, "columns 11 is none of 1, 2, "),
        ("conv", {"columns": 3, "blocks": 2, "rows": 4}, "blocks 2 is none of 1, 3"),
        ("conv", {"columns": 3, "blocks": 3, "rows": 6}, "rows 6 is none of 4, 12"),
        ("conv", {"columns": 3, "blocks": 3}, "conv kernels take columns, blocks, rows, not"),
        ("conv", {"columns": True, "blocks": 3, "rows": 4}, "columns True is none of"),
        ("phased", {"columns": 6, "blocks": 1, "rows": 4}, "columns 6 is none of 1, 2, 3, 4, 5"),
        ("winograd", {"columns": 20, "blocks": 6, "rows": 8}, None),
        ("winograd", {"columns": 21, "blocks": 6, "rows": 8}, "columns 21 is none of 1, 2, "),
        ("winograd", {"columns": 4, "blocks": 6, "rows": 7}, "rows 7 is none of 8"),
        ("wgrad", {**TASK, "rows": 2, "blocks": 4, "in_lanes": 1}, "blocks 4 is none of 1, 2"),
        ("wgrad", {**TASK, "rows": 2, "blocks": 2}, "wgrad kernels take"),
        ("partial", {"rows": 1}, "partial kernels have no knobs"),
        ("fallback", {"rows": 1}, "fallback kernels have no knobs"),
        ("winged", {"rows": 1}, "there is no strategy 'winged'"),
        ("window", {"rows": 8}, "rows 8 is none of 4, 12"),
    ],
)  # fmt: skip
def test_legality_names_what_is_wrong(kind, knobs, reason):
    declined = legal(kind, EXTENTS.get(kind, {"lanes": 8} if kind == "fallback" else MAP), knobs)
    if reason is None:
        assert declined is None
    else:
        assert reason in declined.reason


@pytest.mark.parametrize("kind", EXTENTS)
def test_extents_of_another_kind_are_declined(kind):
    knobs = next(candidates(kind, EXTENTS[kind]))
    gone = [n for n in ("w", "lanes") if n in EXTENTS[kind]]
    without = {n: v for n, v in EXTENTS[kind].items() if n not in gone}
    assert legal(kind, without, knobs).reason == f"the extents lack {', '.join(gone)}"
    reason = legal(kind, {**EXTENTS[kind], "depth": 3}, knobs).reason
    assert reason.startswith("the extents have depth, which")


@pytest.mark.parametrize("kind", EXTENTS)
def test_facts_are_the_records_extents_and_nothing_else(kind):
    assert facts_of(kind, EXTENTS[kind]).extents() == EXTENTS[kind]
    wide = {**EXTENTS[kind], "element_bytes": 8}
    assert facts_of(kind, wide).extents() == wide


@pytest.mark.parametrize("kind", EXTENTS)
def test_candidates_are_all_legal_and_distinct(kind):
    found = list(candidates(kind, EXTENTS[kind]))
    assert len({tuple(c.items()) for c in found}) == len(found) > 1
    assert all(legal(kind, EXTENTS[kind], c) is None for c in found)


@given(st.data())
def test_what_is_no_candidate_is_illegal(data):
    kind = data.draw(st.sampled_from(sorted(EXTENTS)))
    names = space(kind, EXTENTS[kind])
    knobs = {n: data.draw(st.integers(0, 13), n) for n in names}
    is_candidate = knobs in list(candidates(kind, EXTENTS[kind]))
    assert (legal(kind, EXTENTS[kind], knobs) is None) == is_candidate


def test_every_strategy_is_tuned_but_some():
    # `partial` takes knobs for uniformity's sake and uses none; the others have none.
    without = "partial packing copies plain moves merges rows columns column_statistics pixels"
    assert {row.kind for row in STRATEGIES} == {*EXTENTS, *without.split()}


def test_a_file_says_what_was_written(tmp_path):
    others = [replace(RECORD, id=f"{i:016x}", what='a "quoted" \\ name') for i in (2, 1)]
    path = tmp_path / "deep" / "znver4.toml"
    write(path, [RECORD, *others], {"apache-tvm": "0.27", "a b": "1"})
    assert sorted(read(path), key=lambda r: r.id) == sorted([RECORD, *others], key=lambda r: r.id)
    again = tmp_path / "again.toml"
    write(again, reversed(read(path)), {"apache-tvm": "0.27", "a b": "1"})
    assert again.read_text() == path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["znver4.toml"]


def test_lookup_prefers_the_nearest(places):
    order = [
        (where, name)
        for where in ("given", "user", "shipped")
        for name in ("znver4", "x86-64-v4", "generic")
    ]
    key = digest("conv", "some kernel")
    for rows, (where, name) in enumerate(order, start=1):
        mine = replace(RECORD, id=key, knobs={**RECORD.knobs, "columns": rows})
        write(places[where] / f"{name}.toml", [mine], {})
    for rows, (where, name) in enumerate(order, start=1):
        knobs = find(Cpu(), places["given"]).lookup("conv", "some kernel|u.", RECORD.extents)
        assert knobs == {**RECORD.knobs, "columns": rows}
        (places[where] / f"{name}.toml").unlink()
    assert find(Cpu(), places["given"]).lookup("conv", "some kernel", RECORD.extents) is None


def test_a_kernel_that_one_file_lacks_may_be_in_the_next(places):
    write(places["user"] / "znver4.toml", [replace(RECORD, id=digest("conv", "a"))], {})
    write(places["shipped"] / "generic.toml", [replace(RECORD, id=digest("conv", "b"))], {})
    found = find(Cpu())
    for kernel in ("a", "b"):
        assert found.lookup("conv", kernel, RECORD.extents) == RECORD.knobs
    assert found.lookup("conv", "c", RECORD.extents) is None
    assert found.lookup("window", "a", RECORD.extents) is None


def test_illegal_knobs_are_passed_over():
    bad = replace(RECORD, id=digest("conv", "a"), knobs={**RECORD.knobs, "rows": 5})
    assert Records({bad.id: bad}).lookup("conv", "a", RECORD.extents) is None


def test_records_of_other_extents_are_passed_over():
    """A strategy may take a kernel for another one than when it was tuned, with other knobs."""
    mine, other = replace(RECORD, id=digest("conv", "a")), {**RECORD.extents, "w": 99}
    assert Records({mine.id: mine}).lookup("conv", "a", other) is None


def test_where_nothing_beat_the_rule_the_rule_decides():
    even = replace(RECORD, id=digest("conv", "a"), seconds=RECORD.baseline)
    assert Records({even.id: even}).lookup("conv", "a", RECORD.extents) is None


def test_a_folder_that_is_not_there():
    with pytest.raises(BngenError, match="no folder of schedule records nowhere"):
        find(Cpu(), "nowhere")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (("format = 1", "format = 7"), "format 7"),
        (("format = 1", "format = "), "is no record file"),
        (('kind = "conv"', "kind = 3"), "kernel 00112233445566aa: kind missing or wrong"),
        (("threads = 2", ""), "threads missing or wrong"),
        (("rows = 4", "rows = -4"), "extents, knobs missing or wrong"),
        (("[[kernel]]", "kernel = [3]\n[x]"), "kernel number 1: id, kind"),
    ],
)
def test_what_is_wrong_with_a_file_in_one_line(tmp_path, change, fact):
    text = records.render([RECORD], {})
    assert change[0] in text
    path = tmp_path / "x.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(BngenError) as error:
        read(path)
    assert fact in str(error.value) and str(path) in str(error.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToolchainError, match="cannot write"):
        write(tmp_path / "file" / "x.toml", [RECORD], {})


@pytest.mark.parametrize("path", sorted((records.shipped_folder()).glob("*.toml")), ids=str)
def test_shipped_records_are_legal(path):
    rows = read(path)
    assert rows and len({r.id for r in rows}) == len(rows)
    for row in rows:
        assert legal(row.kind, row.extents, row.knobs) is None, row.id


@takes_long("test_search compares each kind of candidate")
def test_records_change_no_result(tmp_path):
    """Every kernel of a step on knobs that are not the rule's own."""
    graph = models.make("tiny_densenet", batch=2, image=32, loss=True).graph
    target = Target.parse()
    plan = prepare(join_gradient(graph), target.channel_block).planned.plan
    odd = []
    for kernel in plan.kernels:
        choice = choose(kernel, plan.layouts, target.machine)
        kind, own = choice.strategy.kind, choice.knobs(target.machine)
        others = [k for k in choice.strategy.candidates(choice.facts) if k != own]
        if others:
            knobs, key = others[len(odd) % len(others)], digest(kind, signature(kernel, plan))
            extents = choice.facts.extents()
            odd.append(replace(RECORD, id=key, kind=kind, extents=extents, knobs=knobs))
    write(tmp_path / f"{target.cpu}.toml", {r.id: r for r in odd}.values(), {})
    rng = np.random.default_rng(3)
    x, labels = rng.standard_normal((2, 3, 32, 32)).astype(np.float32), np.array([1, 2])
    results = []
    for folder in (None, tmp_path):
        module = build(graph, grad=True, schedules=folder).init(1)
        results.append({"loss": module.forward(x, labels), **module.backward()})
        used = [k["knobs"] for k in module.manifest()["kernels"]]
        results[-1]["knobs"] = used
    own, tuned = results
    assert sum(a != b for a, b in zip(own.pop("knobs"), tuned.pop("knobs"), strict=True)) > 20
    for name, array in own.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(tuned[name], array, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


# --- where records are kept -------------------------------------------------------------------


def test_the_users_own_folder_may_be_out_of_reach(tmp_path, monkeypatch, caplog):
    """Nobody asked for it in so many words; a folder that was named is another matter."""
    (tmp_path / "bngen").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    records.find(Target.parse("llvm -mcpu=znver4"))
    assert "the user's schedule records are not read" in caplog.text
    with pytest.raises(BngenError, match="no folder of schedule records"):
        records.find(Target.parse("llvm -mcpu=znver4"), tmp_path / "bngen" / "schedules")


def test_a_user_without_a_home(homeless, caplog):
    records.find(Target.parse("llvm -mcpu=znver4"))
    assert "set XDG_DATA_HOME" in caplog.text


def test_a_full_disk_leaves_the_records_that_were_there(tmpfs):
    path = tmpfs("size=16k") / "cpu.toml"
    records.write(path, [], {})
    before = path.read_bytes()
    with pytest.raises(ToolchainError, match="No space left on device"):
        records.write(path, [], {"version": "x" * 20_000})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
