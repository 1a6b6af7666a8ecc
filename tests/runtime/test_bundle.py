"""Programs as files: the same again, and nothing that reaches beyond its memory."""

import json
import math
import random

import numpy as np
import pytest

import bngen as bg
from bngen.errors import BngenError
from bngen.runtime import bundle, bundle_form
from bngen.runtime.plain import PlainError

BUDGET = 400
"""Damaged files that are tried."""


@pytest.fixture(scope="module")
def made():
    def net(x, labels):
        x = bg.relu(bg.layers.batch_norm(bg.layers.conv2d(x, "c", 16, 3), "b"))
        return bg.cross_entropy(bg.layers.linear(bg.flatten(x, 1), "head", 4), labels), x

    shapes = bg.Tensor((2, 3, 5, 5)), bg.Tensor((2,), dtype="int64")
    return bg.bundle(bg.trace(net, *shapes, name="p"), grad=True, emit=["tir"])


@pytest.fixture
def contents(made):
    return bundle.files(made)


def read(contents):
    return bundle.read(lambda names: [contents[name] for name in names])


def test_what_is_written_is_read_again(made, contents):
    again = read(contents)
    assert again == made
    assert again.manifest() == made.manifest()
    assert bundle.files(again) == contents
    assert contents[bundle_form.LIBRARY] == made.library
    symbol = made.built.kernels[0].symbol
    assert contents[bundle_form.object_file(symbol)] == made.objects[symbol]
    assert again.emit("tir") == made.emit("tir") and len(again.emit("tir")) == len(made.objects)


def test_the_manifest_is_not_read_before_it_is_asked_for(contents):
    again = read({**contents, bundle_form.MANIFEST: b"nonsense"})
    assert again.target.cpu
    with pytest.raises(PlainError):
        again.manifest()


def test_its_text_is_short(made):
    assert len(repr(made)) < 100
    assert f"Bundle(p, for {made.target.cpu} " in repr(made)


def test_a_bundle_without_kernels_or_state():
    same = bg.bundle(bg.trace(lambda x: x, bg.Tensor[3], name="same"))
    assert same.library is None and read(bundle.files(same)) == same
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(bg.load(same)(x), x)


def test_initializers_are_kept_whatever_number_they_hold():
    values = {"low": -math.inf, "high": math.inf, "seed": 2**62 + 1, "flag": True, "half": 0.5}
    dtypes = {"seed": "int64", "flag": "bool"}

    def program(x):
        for name, value in values.items():
            bg.buffer(name, (2,), dtypes.get(name, "float32"), init=value)
        bg.parameter("w", (4, 3), init=("kaiming_uniform", 5**0.5, 3))
        return x

    module = bg.load(read(bundle.files(bg.bundle(bg.trace(program, bg.Tensor[3])))))
    state = module.init(0).state_dict()
    for name, value in values.items():
        assert state[name].tolist() == [value] * 2
    bound = math.sqrt(2 / 6) * math.sqrt(3 / 3)
    assert 0.5 * bound < np.abs(state["w"]).max() <= bound


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
    "a number below nought": lambda f: f["steps"]["numbers"][0].append(-1),
    "a number of too many bits": lambda f: f["steps"]["numbers"][0].append(1 << 70),
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
    "another version": lambda f: f.update(made_by=["0.0", "0.0"]),
    "a version of nothing": lambda f: f.update(made_by=[]),
    "other fields": lambda f: f.update(more=1, format=9),
    "no code": lambda f: f["objects"].pop(f["steps"]["symbol"][0]),
    "a name that is a path": lambda f: f["objects"].update({"../../x": "0"}),
    "an empty name": lambda f: f["objects"].update({"": "0"}),
    "no kind of text": lambda f: f["texts"].update(cuda={}),
    "an initializer too few": lambda f: [c.pop() for c in f["initializers"].values()],
    "no initializer": lambda f: f["initializers"]["name"].__setitem__(0, "he"),
    "numbers too many": lambda f: f["initializers"]["numbers"][0].append(1),
    "no number": lambda f: f["initializers"]["numbers"].__setitem__(0, ["one", "two"]),
    "a fan-in of nothing": lambda f: f["initializers"]["numbers"].__setitem__(0, [1, 0]),
    "channels last of too few axes": lambda f: f["signature"]["arguments"].update(
        memory_format=["channels_last", "channels_last"]
    ),
    "no memory format": lambda f: f["signature"]["outputs"].update(
        memory_format=["contiguous_format", "nhwc"]
    ),
    "labels of nothing": lambda f: f["signature"]["labels"].update(name=["nothing"]),
    "a result of nothing": lambda f: f["signature"]["outputs"].update(slot=["nothing", "nothing"]),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_what_would_reach_beyond_its_memory_is_refused(contents, change):
    form = json.loads(contents[bundle_form.DATA])
    HOSTILE[change](form)
    with pytest.raises(BngenError) as caught:
        read({**contents, bundle_form.DATA: json.dumps(form).encode()})
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


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
    """Any part of the document becomes something else: a `Bundle` comes out, or one line."""
    form = json.loads(contents[bundle_form.DATA])
    paths, rng = list(_leaves(form)), random.Random(0)
    values = [None, True, -1, 0, 2**63, 1.5, "", "x", "in:x", [], [1], {}, {"x": 1}, [[]]]
    refused = 0
    for _ in range(BUDGET):
        document = _changed(form, rng.choice(paths), rng.choice(values))
        try:
            read({**contents, bundle_form.DATA: json.dumps(document).encode()})
        except BngenError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > BUDGET // 2
