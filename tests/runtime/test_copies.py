"""Copies and pickles of modules: the same results, memory of their own."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import bngen as bg
from bngen.errors import BngenError, CallError
from bngen.runtime import bundle_form
from tests import networks

X = np.random.default_rng(0).standard_normal((2, 3, 6, 6), dtype=np.float32)
LABELS = np.array([1, 3])


@pytest.fixture(scope="module")
def module():
    return bg.build(networks.small(), grad=True, threads=2).init(0)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "in a container": lambda m: copy.deepcopy({"net": [m, m]})["net"][1],
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_computes_the_same_and_shares_nothing(module, kind):
    before = module.state_dict()
    module(X, LABELS)
    copied = COPIES[kind](module)
    with pytest.raises(CallError, match="backward needs a forward call first"):
        copied.backward()
    expected = module.backward()
    copied.load_state_dict(before)
    module.load_state_dict(before)
    assert copied(X, LABELS) == module(X, LABELS)
    copied(X + 1, LABELS), module(X, LABELS)
    for name, gradient in module.backward().items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)
    assert copied.signature == module.signature and copied.manifest() == module.manifest()
    copied.init(3)
    assert not np.array_equal(copied.state_dict()["fc.weight"], before["fc.weight"])
    np.testing.assert_array_equal(module.state_dict()["fc.weight"], before["fc.weight"])
    np.testing.assert_array_equal(
        copied.state_dict()["fc.weight"], copy.copy(module).init(3).state_dict()["fc.weight"]
    )


def test_copies_of_a_module_without_values():
    module = bg.build(networks.small())
    for make in COPIES.values():
        with pytest.raises(CallError, match="parameters have no values yet"):
            make(module)(X, LABELS)


def test_a_pickle_in_another_process(module, tmp_path):
    (tmp_path / "net").write_bytes(pickle.dumps(module))
    np.save(tmp_path / "x.npy", X)
    code = (
        "import pickle, sys, numpy as np;"
        "m = pickle.loads(open('net', 'rb').read());"
        "loss = m(np.load('x.npy'), np.array([1, 3]));"
        "print(float(loss), 'tvm.te' in sys.modules, sorted(m.backward())[0])"
    )
    expected = float(copy.copy(module)(X, LABELS))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [repr(expected), "False", "conv.bias"]


def test_a_pickle_holds_objects_but_no_texts(module, tmp_path):
    restored = pickle.loads(pickle.dumps(module))
    restored.save_objects(tmp_path)
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted(module.emit("asm"))
    with pytest.raises(BngenError, match="the bundle of net holds no asm texts .*--emit asm"):
        restored.emit("asm")
    again = pickle.loads(pickle.dumps(restored))
    assert again(X, LABELS) == restored(X, LABELS)


def test_a_pickle_of_another_version(module, monkeypatch):
    kept = pickle.dumps(module)
    monkeypatch.setattr(bundle_form, "versions", lambda: ("9.9", "0.1"))
    with pytest.raises(BngenError, match="made by bngen .*, and this is bngen 9.9 .*build"):
        pickle.loads(kept)
