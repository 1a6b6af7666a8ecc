"""`bngen verify` on a stand-in compiler: right and wrong modules, what is printed."""

import numpy as np
import pytest

SMALL = ("tiny_densenet", "--batch", "2", "--image", "32", "--quiet")
CASES = [
    "random",
    "mean 1e4 times the spread",
    "constant channel",
    "gamma zero and negative",
    "NaN in the input",
]


@pytest.mark.parametrize("network", ["densenet", "resnet", "mobilenet", "vgg"])
def test_a_right_module_agrees(bngen, compiler, network):
    outcome = bngen("verify", f"tiny_{network}", "--batch", "3", "--image", "33", "--quiet")
    assert outcome.status == 0, outcome.out
    assert outcome.out.startswith(f"tiny_{network} agrees with PyTorch and float64: ")
    assert outcome.err == ""


def test_json(bngen, compiler):
    report = bngen("verify", *SMALL, "--json").json
    assert report["agrees"] is True
    assert report["cases"] == CASES
    assert report["differences"] == []
    # The logits, and for each BN its two statistics and its two running statistics, in each case.
    graph = compiler.calls[0]["program"].graph
    layers = sum(node.op == "batch_norm" for node in graph.nodes)
    assert report["compared"] == len(CASES) * (1 + 4 * layers + counters(graph))


def counters(graph):
    return sum(target.name.endswith("num_batches_tracked") for target, _ in graph.updates)


def test_progress_names_the_cases(bngen, compiler):
    outcome = bngen("verify", *SMALL[:-1])
    assert [f"checking: {case}" for case in CASES] == [
        line for line in outcome.err.splitlines() if line.startswith("checking")
    ]


def test_a_wrong_output_is_a_failed_check(bngen, compiler):
    compiler.tweak = lambda index, array: array * np.float32(1.01) if index == 0 else array
    outcome = bngen("verify", *SMALL)
    assert outcome.status == 1
    title, head, *rows = outcome.out.splitlines()
    assert "differs from PyTorch and float64" in title
    assert head.split()[:3] == ["case", "tensor", "kind"]
    assert rows and all("output" in row for row in rows)


def test_a_wrong_variance_names_its_layer(bngen, compiler):
    compiler.tweak = lambda index, array: array * np.float32(1.001) if index == 2 else array
    report = bngen("verify", *SMALL, "--json").json
    (name,) = {d["tensor"] for d in report["differences"]}
    assert name.endswith(".var")
    assert {d["kind"] for d in report["differences"]} == {"variance"}
    assert report["agrees"] is False


def test_lost_nan_is_a_failed_check(bngen, compiler):
    compiler.tweak = lambda index, array: np.nan_to_num(array)
    report = bngen("verify", *SMALL, "--json").json
    assert {d["case"] for d in report["differences"]} == {"NaN in the input"}
    assert {d["note"] for d in report["differences"]} == {"NaN or infinity out of place"}


def test_statistics_held_by_arguments(bngen, compiler, tmp_path):
    (tmp_path / "net.py").write_text(
        "import bngen as bg\n"
        "@bg.program\n"
        "def f(x: bg.Tensor[4, 3, 5, 5], mean: bg.Tensor[3], var: bg.Tensor[3]):\n"
        "    return bg.relu(bg.batch_norm(x, mean, var, training=True))\n"
    )
    outcome = bngen("verify", "net.py:f", "--json")
    assert outcome.status == 0, outcome.out
    assert outcome.json["compared"] == 4 * 5  # no gamma: one case less


def test_without_torch_it_says_what_to_install(bngen, compiler, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = bngen("verify", *SMALL)
    assert outcome.status == 2
    assert "pip install 'bngen[torch]'" in outcome.error_line
    assert not compiler.calls
