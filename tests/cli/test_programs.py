"""What PROGRAM may be, and the one line that says what is wrong with it."""

import os
import sys

import pytest

GOOD = """
import bngen as bg
print("the file says hello")

@bg.program
def double(x: bg.Tensor[2, 3, 4, 4]):
    return x + x

def net(batch=4, image=8, depth=2):
    print("making")
    return bg.trace(lambda x: bg.relu(x), bg.Tensor[batch, depth, image, image], name="net")

def fixed():
    return double

not_a_program = 3

def returns_text(batch=1):
    return "text"

def plain(x: bg.Tensor[2, 3], w: bg.Tensor[3], batch=1):
    return x * w

async def later():
    return double

class Network:
    def __call__(self, x: bg.Tensor[2, 3]):
        return x

class Sized:
    def __init__(self, depth):
        pass

nameless = lambda x: x
"""


@pytest.fixture
def good(tmp_path):
    (tmp_path / "net.py").write_text(GOOD)


def test_the_files_folder_is_importable_only_while_it_is_read(bngen, compiler, good, tmp_path):
    before = list(sys.path)
    assert bngen("build", "net.py:net").status == 0
    assert sys.path == before


def built(compiler):
    (call,) = compiler.calls
    return call["program"]


def test_a_program_in_a_file(bngen, compiler, good):
    outcome = bngen("build", "net.py:double")
    assert outcome.status == 0
    assert built(compiler).name == "double"
    assert "hello" in outcome.err
    assert "hello" not in outcome.out


def test_the_only_program_needs_no_name(bngen, compiler, good):
    assert bngen("build", "net.py").status == 0
    assert built(compiler).name == "double"


def test_a_function_takes_the_sizes_it_names(bngen, compiler, good):
    outcome = bngen("build", "net.py:net", "--batch", "2")
    assert outcome.status == 0
    assert built(compiler).graph.inputs[0].value.shape == (2, 2, 8, 8)
    assert "making" not in outcome.out


def test_a_function_without_sizes(bngen, compiler, good):
    assert bngen("build", "net.py:fixed").status == 0
    assert built(compiler).name == "double"


def test_modules_beside_the_file_can_be_imported(bngen, compiler, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "shapes_of_mine.py").write_text("N = 5\n")
    (tmp_path / "sub" / "net2.py").write_text(
        "import bngen as bg\nfrom shapes_of_mine import N\n"
        "@bg.program\ndef f(x: bg.Tensor[N, 2]):\n    return x * 2.0\n"
    )
    assert bngen("build", "sub/net2.py:f").status == 0
    assert built(compiler).graph.inputs[0].value.shape == (5, 2)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["densenet112"], ["'densenet112'", "did you mean", "densenet121 or"]),
        (["alexnet"], ["no built-in program 'alexnet'", "densenet121", "file.py:function"]),
        (["nett.py:net"], ["no file nett.py", "did you mean net.py"]),
        (["elsewhere/x.py:f"], ["no file elsewhere/x.py"]),
        (["net.py:dubble"], ["no 'dubble'", "did you mean double"]),
        (["net.py:not_a_program"], ["is a int, neither a program nor a function"]),
        (["net.py:returns_text"], ["returned a str", "@bg.program"]),
        (
            ["net.py:plain"],
            ["net.py:21: net.py:plain is no program, but a function that needs x, w",
             "write @bg.program above it"],
        ),
        (["net.py:plain", "--batch", "2"], ["a function that needs x, w", "@bg.program"]),
        (["net.py:nameless"], ["a function that needs x", "@bg.program"]),
        (["net.py:Network"], ["returned a Network", "@bg.program"]),
        (["net.py:Sized"], ["a function that needs depth"]),
        (["net.py:bg"], ["is a module, neither a program nor a function"]),
        (["net.py:double", "--batch", "2"], ["takes no batch", "--batch"]),
        (["net.py:fixed", "--image", "9"], ["takes no image", "--image"]),
        (["densenet121", "--image", "4"], ["densenet121: image=4", "or more"]),
    ],
)  # fmt: skip
def test_bad_names_in_one_line(bngen, compiler, good, words, facts):
    outcome = bngen("build", *words)
    assert (outcome.status, outcome.out) == (2, "")
    for fact in facts:
        assert fact in outcome.error_line
    assert not compiler.calls


@pytest.mark.filterwarnings("ignore:coroutine 'later' was never awaited")
def test_an_async_function_is_no_program(bngen, compiler, good):
    assert "returned a coroutine, not a program" in bngen("build", "net.py:later").error_line


def test_a_file_that_cannot_be_read(bngen, compiler, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_bytes(b"x = '\xff'\n")
    outcome = bngen("build", "net.py:f")
    assert outcome.status == 2 and "net.py" in outcome.error_line
    (tmp_path / "net.py").write_bytes(b"x = 0\0\n")
    assert bngen("build", "net.py:f").status == 2
    (tmp_path / "net.py").write_text("x = 0\n")

    def refuse(self, path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("importlib.machinery.SourceFileLoader.get_data", refuse)
    outcome = bngen("build", "net.py:f")
    assert outcome.status == 2
    assert "net.py:1: PermissionError: [Errno 13] Permission denied" in outcome.error_line


def test_a_neighbour_that_is_called_like_a_library(bngen_process, tmp_path):
    """NumPy is there before the user's folder is looked in."""
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the wrong one')\n")
    (tmp_path / "net.py").write_text(HEAD + "def f():\n    return 3\n")
    # As the `bngen` script, which has no folder of the user's on its path.
    done = bngen_process("build", "net.py:f", env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert done.returncode == 2, done.stderr
    assert "net.py:f returned a int, not a program" in done.stderr


HEAD = "import bngen as bg\n"


@pytest.mark.parametrize(
    ("source", "line", "fact"),
    [
        ("x = = 1\n", 1, "syntax error"),
        ("import bngen as bg\n\n1 / 0\n", 3, "ZeroDivisionError"),
        ("import no_such_module\n", 1, "ModuleNotFoundError"),
        ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
        ("class Stop(BaseException): pass\nraise Stop\n", 2, "Stop"),
        ("import functools\nf = functools.partial(lambda: 1 / 0)\n", 2, "ZeroDivisionError"),
        (HEAD + "def f():\n    return f()\n", 3, "RecursionError"),
        (HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3]):\n    yield x\n", 2, "is a generator"),
        (HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3]):\n    return x.vew(6)\n",
         4, "did you mean view"),
        (HEAD + "def f():\n    return g()\ndef g():\n    return [][0]\n", 5, "IndexError"),
        (HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3]):\n    return x.nothing\n", 4, "nothing"),
        (HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3]):\n    pass\n", 2, "returns nothing"),
        (
            HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3]):\n    return bg.rleu(x)\n",
            4, "did you mean relu",
        ),
        (
            HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3], w: bg.Tensor[4, 3, 1, 1]):\n"
            "    return bg.conv2d(x, w)\n",
            4, "conv2d",
        ),
        (
            HEAD + "@bg.program\ndef f(x: bg.Tensor[2, 3, 8, 8], w: bg.Tensor[4, 5, 1, 1]):\n"
            "    return bg.conv2d(x, w)\n",
            4, "conv2d",
        ),
    ],
)  # fmt: skip
def test_errors_in_the_file_name_its_line(bngen, compiler, tmp_path, source, line, fact):
    (tmp_path / "bad.py").write_text(source)
    outcome = bngen("build", "bad.py:f")
    assert outcome.status == 2
    assert f"bad.py:{line}: " in outcome.error_line
    assert fact in outcome.error_line
    assert not (tmp_path / "bngen-out").exists()


def test_debug_shows_where_in_the_file(bngen, compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_DEBUG", "0")
    (tmp_path / "bad.py").write_text("def f():\n    return 1 / 0\n")
    outcome = bngen("build", "bad.py:f", "--debug")
    assert outcome.status == 2
    assert "return 1 / 0" in outcome.err
