"""Programs as files: the same again, and nothing that reaches beyond its memory."""

import json
import random

import pytest

import bngen as bg
from bngen.compiler import build
from bngen.runtime import bundle
from bngen.runtime.plain import PlainError

BUDGET = 400
"""Damaged files that are tried."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    from bngen import cache

    def net(x, labels):
        x = bg.relu(bg.layers.batch_norm(bg.layers.conv2d(x, "c", 16, 3), "b"))
        return bg.cross_entropy(bg.layers.linear(bg.flatten(x, 1), "head", 4), labels), x

    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "keep", lambda key, built, *rest: kept.append(built))
        patch.setenv("BNGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        shapes = bg.Tensor((2, 3, 5, 5)), bg.Tensor((2,), dtype="int64")
        build(bg.trace(net, *shapes, name="p"), grad=True, cache=True)
    return kept[0]


@pytest.fixture
def contents(built):
    return bundle.files(built, b"library", {"k0": b"object"})


def test_what_is_written_is_read_again(built, contents):
    again = bundle.built_of(contents)
    assert again == built
    assert again.manifest == built.manifest
    assert bundle.files(again, b"library", {"k0": b"object"}) == contents
    assert contents[bundle.LIBRARY] == b"library"
    assert contents[bundle.object_file("k0")] == b"object"


def test_the_manifest_is_not_read_before_it_is_asked_for(contents):
    again = bundle.built_of({**contents, bundle.MANIFEST: b"nonsense"})
    assert again.manifest["target"]["cpu"]
    with pytest.raises(PlainError):
        again.manifest["kernels"]


def _operand(form, **changes):
    for name, value in changes.items():
        form["operands"][name][0] = value


def _calls(form, **changes):
    form["signature"]["calls"].update(changes)


def _copy(form):
    """The operands of the first step that is a copy."""
    return form["steps"]["operands"][form["steps"]["symbol"].index("")]


HOSTILE = {
    "beyond the arena": lambda f: f.update(nbytes=0),
    "before it": lambda f: _operand(f, offset=-64),
    "far behind it": lambda f: _operand(f, offset=1 << 62),
    "a negative extent": lambda f: _operand(f, shape=[-1, -1]),
    "a large extent": lambda f: _operand(f, shape=[1 << 40]),
    "objects": lambda f: _operand(f, dtype="object"),
    "records": lambda f: _operand(f, dtype="float32,float32"),
    "another name": lambda f: _operand(f, dtype="f4"),
    "no name": lambda f: _operand(f, dtype="(1,"),
    "no such width": lambda f: _operand(f, dtype="int7"),
    "a result over an input": lambda f: f["signature"]["outputs"].update(
        slot=["in:x", "out:1"], offset=[1 << 20, 0]
    ),
    "no such slot": lambda f: _operand(f, slot="in:nothing"),
    "no slot": lambda f: _operand(f, slot=""),
    "no such operand": lambda f: f["steps"]["operands"][0].append(10**6),
    "the last operand": lambda f: f["steps"]["operands"][0].append(-1),
    "more forward than there is": lambda f: _calls(f, start=[0, 10**6], stop=[10**6, 10**6]),
    "less than nothing": lambda f: _calls(f, start=[0, -1], stop=[-1, len(f["steps"]["name"])]),
    "steps of no call": lambda f: _calls(f, stop=[f["signature"]["calls"]["stop"][0]] * 2),
    "a call of another name": lambda f: _calls(f, name=["forward", "sideways"]),
    "backward alone": lambda f: f["signature"].update(
        calls={"name": ["backward"], "start": [0], "stop": [len(f["steps"]["name"])], "reads": [[]]}
    ),
    "no calls": lambda f: f["signature"].update(
        calls={"name": [], "start": [], "stop": [], "reads": []}
    ),
    "backward reads what it does not say": lambda f: _calls(f, reads=[[], []]),
    "backward reads what there is not": lambda f: f["signature"]["calls"]["reads"][1].append("no"),
    "forward reads gradients": lambda f: _calls(
        f, start=[0, len(f["steps"]["name"])], stop=[len(f["steps"]["name"])] * 2
    ),
    "a copy of nothing": lambda f: _copy(f).pop(),
    "a copy of another shape": lambda f: _copy(f).__setitem__(0, 0),
    "a negative arena": lambda f: f.update(nbytes=-1),
    "another format": lambda f: f.update(format=1),
    "labels of nothing": lambda f: f["signature"]["labels"].update(name=["nothing"]),
    "a result of nothing": lambda f: f["signature"]["outputs"].update(slot=["nothing", "nothing"]),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_what_would_reach_beyond_its_memory_is_refused(contents, change):
    form = json.loads(contents[bundle.BUILT])
    HOSTILE[change](form)
    with pytest.raises(PlainError):
        bundle.built_of({**contents, bundle.BUILT: json.dumps(form).encode()})


def _leaves(data, path=()):
    """Paths of everything in a document."""
    yield path
    if isinstance(data, dict | list):
        for name, item in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _leaves(item, (*path, name))


def _changed(data, path, value):
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = _changed(data[path[0]], path[1:], value)
    return copy


def test_hostile_documents_are_read_or_refused(contents):
    """Any part of the document becomes something else: a `Built` comes out, or a `PlainError`."""
    form = json.loads(contents[bundle.BUILT])
    paths, rng = list(_leaves(form)), random.Random(0)
    values = [None, True, -1, 0, 2**63, 1.5, "", "x", "in:x", [], [1], {}, {"x": 1}, [[]]]
    refused = 0
    for _ in range(BUDGET):
        document = _changed(form, rng.choice(paths), rng.choice(values))
        try:
            bundle.built_of({**contents, bundle.BUILT: json.dumps(document).encode()})
        except PlainError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > BUDGET // 2
