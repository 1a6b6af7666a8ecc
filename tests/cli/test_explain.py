"""`bngen explain`: a program and a folder of a build, as text, as JSON, and how it fails."""

from __future__ import annotations

import pytest

SMALL = ("tiny_densenet", "--batch", "2", "--image", "32", "-mcpu", "x86-64-v3")


def test_a_program_is_explained_without_compiling(bngen, monkeypatch):
    def never(*args, **asked):
        raise AssertionError("compiled")

    monkeypatch.setattr("bngen.compiler.bundle", never)
    outcome = bngen("explain", *SMALL, "--grad", "--fusion", "bnff")
    assert outcome.status == 0
    for word in (
        "tiny_densenet at bnff for x86-64-v3",
        "backward bnff",
        "\nkernels",
        "\nnot fused",
    ):
        assert word in outcome.out
    assert "planning tiny_densenet" in outcome.err


def test_json_is_the_report(bngen):
    found = bngen("explain", *SMALL, "--json", "--emit", "graph,plan").json
    assert found["program"] == "tiny_densenet" and found["fusion"] == "icf"
    assert [s["name"] for s in found["stages"]] == [n[3:] for n in found["texts"]["graph"]]
    for kernel in found["kernels"]:
        assert kernel["name"] in found["texts"]["plan"]["plan"]
        nbytes = sum(m["nbytes"] for m in (*kernel["reads"], *kernel["writes"]))
        assert kernel["intensity"] == kernel["operations"] / max(nbytes, 1)


def test_bfloat16_is_explained(bngen):
    asked = ("explain", *SMALL, "--dtype", "bfloat16")
    found = bngen(*asked, "--json").json
    assert max(found["map_bytes_by_type"], key=found["map_bytes_by_type"].get) == "bf16"
    cast = next(s for k in found["kernels"] for s in k["sublayers"] if s["op"] == "cast")
    assert cast["dtype"] in ("bf16", "f32")
    assert "by type: " in bngen(*asked).out


NET = """
import bngen as bg

@bg.program
def net(x: bg.Tensor[2, 16, 8, 8], w: bg.Tensor[16, 16, 3, 3]):
    return bg.relu(bg.conv2d(x, w, padding=1))
"""


def test_a_folder_is_explained_with_its_texts(bngen, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    assert bngen("build", "net.py", "--out", "built", "--emit", "asm").status == 0
    found = bngen("explain", "built", "--json", "--emit", "asm").json
    symbols = [k["symbol"] for k in found["kernels"]]
    assert found["program"] == "net" and set(found["texts"]["asm"]) == set(symbols)
    assert "text" in bngen("explain", "built", "--emit", "tir").error_line
    assert "BNGEN_DUMP" in bngen("explain", "built", "--emit", "graph").error_line
    for flag in (("--fusion", "none"), ("--batch", "7"), ("--grad",), ("-mcpu=znver3",)):
        outcome = bngen("explain", "built", *flag)
        assert outcome.status == 2 and flag[0].partition("=")[0] in outcome.error_line
    assert all(k["record"] is k["overwritten"] is k["traffic_alone"] is None
               for k in found["kernels"])  # fmt: skip
    assert bngen("explain", "net.py", "--emit", "tir").out.count("\n--- tir: ") == len(set(symbols))


@pytest.mark.parametrize("content", ["{", '{"generator": "bngen"}'])
def test_a_damaged_folder_is_refused(bngen, tmp_path, content):
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "manifest.json").write_text(content)
    outcome = bngen("explain", "built")
    assert outcome.status == 2 and "build it again" in outcome.error_line
    (tmp_path / "built" / "manifest.json").unlink()
    assert "built is a folder, not a program" in bngen("explain", "built").error_line


def test_a_page_that_cannot_be_written_is_refused_at_once(bngen, tmp_path):
    (tmp_path / "taken").write_text("")
    outcome = bngen("explain", *SMALL, "--html", "taken/page.html")
    assert outcome.status == 2 and "--html" in outcome.error_line


def test_a_folder_has_a_page_with_layers_and_edges(bngen, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    assert bngen("build", "net.py", "--grad", "--out", "built").status == 0
    found = bngen("explain", "built", "--json", "--html", "built.html").json
    assert any(kernel["sources"] for kernel in found["kernels"])
    lines = {s["line"] for kernel in found["kernels"] for s in kernel["sublayers"]}
    assert any(line.endswith("net.py:6") for line in lines)
    assert all(kernel["layer"] and kernel["work"] for kernel in found["kernels"])
    assert (tmp_path / "built.html").stat().st_size > 50_000
