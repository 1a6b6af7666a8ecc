"""Records: legality, where they are looked for, what files may hold, and that results stay."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen import models
from bngen.codegen.compile import signature
from bngen.codegen.nests import RULES
from bngen.compiler import build
from bngen.errors import BngenError, ToolchainError
from bngen.lower.kernel import lower
from bngen.passes.prepare import join_gradient, prepare
from bngen.scheduling import legality
from bngen.scheduling.legality import candidates, legal
from bngen.target.parse import Target
from bngen.tuning import records
from bngen.tuning.records import Record, Records, digest, find, read, write

CONV = {"n": 2, "h": 12, "w": 10, "out_blocks": 6, "groups": 2, "group_rows": 4}
TASK = {"chunks": 2, "out_blocks": 2, "in_blocks": 3}
WGRAD = {"n": 2, "h": 6, "w": 6, "out_blocks": 4, "in_blocks": 3, "in_lanes": 8}
EXTENTS = {
    "conv": CONV,
    "phased": {**CONV, "spread_h": 2, "spread_w": 2},
    "winograd": {**CONV, "h": 7, "groups": 1, "group_rows": 7},
    "depthwise": CONV,
    "wgrad": WGRAD,
    "winograd_wgrad": WGRAD,
    "depthwise_wgrad": WGRAD,
    "window": CONV,
    "pointwise": CONV,
}
RECORD = Record(
    "00112233445566aa", "conv", "relu conv2d", CONV, {"columns": 5, "blocks": 3, "rows": 4},
    1.5e-4, 2e-4, 2, 24,
)  # fmt: skip


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
        ("window", {"rows": 8}, "rows 8 is none of 4, 12"),
    ],
)  # fmt: skip
def test_legality_names_what_is_wrong(kind, knobs, reason):
    declined = legal(kind, EXTENTS.get(kind, {}), knobs)
    if reason is None:
        assert declined is None
    else:
        assert reason in declined.reason


def test_extents_of_another_kind_are_declined():
    assert "lack 'w'" in legal("conv", {"h": 4, "out_blocks": 1}, RECORD.knobs).reason


@pytest.mark.parametrize("kind", EXTENTS)
def test_candidates_are_all_legal_and_distinct(kind):
    found = list(candidates(kind, EXTENTS[kind]))
    assert len({tuple(c.items()) for c in found}) == len(found) > 1
    assert all(legal(kind, EXTENTS[kind], c) is None for c in found)


@given(st.data())
def test_what_is_no_candidate_is_illegal(data):
    kind = data.draw(st.sampled_from(sorted(EXTENTS)))
    names = legality.knobs_of(kind, EXTENTS[kind])
    knobs = {n: data.draw(st.integers(0, 13), n) for n in names}
    is_candidate = knobs in list(candidates(kind, EXTENTS[kind]))
    assert (legal(kind, EXTENTS[kind], knobs) is None) == is_candidate


def test_every_rule_with_knobs_declares_them():
    # `partial` takes knobs for uniformity's sake and uses none.
    assert set(RULES) == {*legality.KNOBS, "partial"}


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
        knobs = find(Cpu(), places["given"]).lookup("conv", "some kernel|u.")
        assert knobs == {**RECORD.knobs, "columns": rows}
        (places[where] / f"{name}.toml").unlink()
    assert find(Cpu(), places["given"]).lookup("conv", "some kernel") is None


def test_a_kernel_that_one_file_lacks_may_be_in_the_next(places):
    write(places["user"] / "znver4.toml", [replace(RECORD, id=digest("conv", "a"))], {})
    write(places["shipped"] / "generic.toml", [replace(RECORD, id=digest("conv", "b"))], {})
    found = find(Cpu())
    assert found.lookup("conv", "a") == found.lookup("conv", "b") == RECORD.knobs
    assert found.lookup("conv", "c") is None
    assert found.lookup("window", "a") is None


def test_illegal_knobs_are_passed_over():
    bad = replace(RECORD, id=digest("conv", "a"), knobs={**RECORD.knobs, "rows": 5})
    assert Records({bad.id: bad}).lookup("conv", "a") is None


def test_where_nothing_beat_the_rule_the_rule_decides():
    even = replace(RECORD, id=digest("conv", "a"), seconds=RECORD.baseline)
    assert Records({even.id: even}).lookup("conv", "a") is None


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


def test_records_change_no_result(tmp_path):
    """Every kernel of a step on knobs that are not the rule's own."""
    graph = models.make("tiny_densenet", batch=2, image=32, loss=True).graph
    target = Target.parse()
    plan = prepare(join_gradient(graph), target.lanes).planned.plan
    odd = []
    with target.tvm():
        for kernel in plan.kernels:
            low = lower(kernel, plan.layouts)
            if low.kind not in legality.KNOBS or not low.extents.get("lanes"):
                continue
            own = RULES[low.kind].knobs(low.extents, target)
            others = [k for k in candidates(low.kind, low.extents) if k != own]
            if others:
                extents = dict(low.extents)
                knobs = others[len(odd) % len(others)]
                key = digest(low.kind, signature(kernel, plan))
                odd.append(replace(RECORD, id=key, kind=low.kind, extents=extents, knobs=knobs))
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
