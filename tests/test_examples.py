"""Every example runs, as a user runs it, and shows what it says it shows."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = """
import runpy, sys
from importlib.machinery import PathFinder

class NoTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path = [NoTorch if finder is PathFinder else finder for finder in sys.meta_path]
runpy.run_path(sys.argv[1], run_name="__main__")
assert "torch" not in sys.modules
"""


def run(name):
    """Standard output of an example, in a process that finds no PyTorch."""
    command = [sys.executable, "-c", RUN, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text()))
    assert tested == {p.name for p in EXAMPLES.glob("*.py")}


def test_first_program():
    out = run("first_program.py")
    assert out.startswith("program cpl {")
    assert "out float32[8, 32, 56, 56]" in out
    readme = (EXAMPLES.parent / "README.md").read_text()
    source = (EXAMPLES / "first_program.py").read_text()
    program = re.search(r"@bg\.program\n.*?padding=1\)\n", readme, re.DOTALL).group()
    assert program in source.replace("  # fmt: skip", "")


def test_handwritten_fission():
    out = run("handwritten_fission.py")
    counts = [int(n) for n in re.findall(r"(\d+) kernels", out)]
    assert counts[0] > counts[1] == counts[2]
    assert "the same result from all three" in out


def test_own_activation():
    out = run("own_activation.py")
    assert "with Hard Swish as with ReLU" in out
    # The activation's own arithmetic is inside a kernel whose anchor is the second convolution.
    assert re.search(r"minimum,.*conv2d", out)


def test_train_digits():
    out = run("train_digits.py")
    assert float(re.search(r"test accuracy ([\d.]+)%", out).group(1)) >= 97
