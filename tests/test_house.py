"""The rules of the house, read from the source: who imports whom, and what files are called.

Imports inside functions count too: a lazy import is still a dependency.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bngen
from bngen import options

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bngen"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "_schedules" not in p.parts)

# Leaves that anyone may import; they import nothing of bngen but each other.
LEAVES = {
    "arrays", "dtypes", "errors", "files", "initializers", "labels", "moments", "options",
    "version",
}  # fmt: skip
PLANNING = {"ir", "lang", "plan", "passes"}
GENERATING = {"codegen", "lower", "scheduling", "target"}
# What a room (a folder or a top-level module) may import, besides itself and the leaves.
MAY_IMPORT = {
    **{leaf: set() for leaf in LEAVES},
    "ir": set(),
    "plan": {"ir"},
    "passes": {"ir", "plan"},
    "lang": {"ir", "passes"},
    "models": {"ir", "lang"},
    "programs": {"lang", "models"},
    "runtime": set(),
    "target": {"runtime"},
    "lower": {"ir", "plan"},
    "scheduling": {"ir", "lower", "plan", "target"},
    "codegen": {"ir", "lower", "plan", "runtime", "scheduling", "target"},
    "tuning": PLANNING | GENERATING | {"runtime"},
    "manifest": {"codegen", "ir", "passes", "plan", "runtime", "target"},
    "binding": {"codegen", "ir", "manifest", "passes", "plan", "runtime", "target"},
    "cache": {"ir", "plan", "runtime", "target", "tuning"},
    "stages": set(),
    "compiler": {
        "binding", "cache", "codegen", "ir", "lang", "passes", "plan", "runtime", "stages",
        "target", "tuning",
    },
    "explain": {
        "codegen", "ir", "lang", "manifest", "passes", "plan", "scheduling", "target", "tuning",
    },
    "torch_bridge": {"cache", "compiler", "explain", "ir", "lang", "models", "runtime"},
    "verification": {"ir", "torch_bridge"},
    "bench": {
        "codegen", "compiler", "explain", "lang", "models", "passes", "plan", "programs", "runtime",
        "target", "torch_bridge", "tuning",
    },
    "cli": {
        "bench", "cache", "compiler", "explain", "programs", "runtime", "target", "tuning",
        "verification",
    },
    "__main__": {"cli"},
    "": {"compiler", "lang", "models", "runtime", "torch_bridge"},  # public names
}  # fmt: skip
# Where a room may see some modules of another alone.
ONLY_PARTS = {
    # What the machine is, and what a bundle needs of it: no loading, no running.
    ("target", "runtime"): {"compiled_for", "host"},
    # Linking, and looking at what was compiled.
    ("codegen", "runtime"): {"memory_file", "native", "tiles", "toolchain"},
    ("cache", "tuning"): {"records"},
    ("compiler", "tuning"): {"records"},
    # A program that ends in an update has its gradient made while it is traced; one in mixed
    # precision is made from one that is not.
    ("lang", "passes"): {"autocast", "autodiff", "grad_rules"},
    ("explain", "tuning"): {"records"},
    # Which strategy, which knobs, how many operations: nothing is lowered.
    ("explain", "codegen"): {"nests", "operations", "signature"},
    ("explain", "scheduling"): {"knobs"},
    # The blocks that lowering has named, and the facts that knobs follow from; of a target, what it
    # is to a schedule.
    ("scheduling", "lower"): {
        "facts",
        "geometry",
        "joined_rows",
        "lowered",
        "opaque",
        "sweep_facts",
    },
    ("scheduling", "target"): {"cpus", "machine", "tiles"},
    ("cli", "runtime"): {"artifact", "bundle"},
    ("cli", "target"): {"parse"},
    ("verification", "torch_bridge"): {"reference"},
}

NUMPY_ONLY = {"ir", "lang", "plan", "passes", "models", "verification"}
ONLY_THERE = {
    # In the bench, for the multiply-add loop that measures the machine's peak; in the runtime, for
    # the threads of a machine without OpenMP.
    "tvm": {"target", "lower", "scheduling", "codegen", "runtime/threads.py", "bench/limits.py"},
    "tvm_ffi": {"lower", "scheduling", "codegen", "runtime"},
    "torch": {"torch_bridge"},
    "click": {"cli/main.py"},
    "rich": {"cli/console.py", "bench/tables.py"},
    "optuna": {"tuning/search.py"},
    "matplotlib": {"bench/plots.py", "bench/ablation_plots.py"},
}


def room_of(path: Path) -> str:
    """The folder or top-level module a file belongs to; ``""`` for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax of a module, which is looked at by many tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported_by(path: Path) -> list[tuple[str, int, bool]]:
    """Dotted names of what a module imports, with the line and whether that runs on import."""
    tree = parsed(path)
    found: list[tuple[str, int, bool]] = []
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING")
        for inner in ast.walk(outer)
    }
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        eager = id(node) not in lazy
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            dotted = ".".join((*base, *([node.module] if node.module else [])))
            found += ((f"{dotted}.{alias.name}", node.lineno, eager) for alias in node.names)
    return found


def rooms_imported_by(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms of bngen a module imports, other than its own."""
    for name, line, _ in imported_by(path):
        parts = name.split(".")
        if parts[0] == "bngen":
            candidate = parts[1] if len(parts) > 1 else ""
            is_room = (
                len(parts) > 2
                or (PACKAGE / candidate).is_dir()
                or (PACKAGE / f"{candidate}.py").exists()
            )
            room = candidate if is_room else ""
            if room != room_of(path):
                yield room, line


def modules_of(name: str) -> Iterator[Path]:
    """The files that Python runs to import a dotted name of bngen, or an attribute of a module."""
    folder = ROOT
    for part in name.split("."):
        if (folder / part).is_dir():
            folder = folder / part
            yield folder / "__init__.py"
        else:
            if (folder / f"{part}.py").exists():
                yield folder / f"{part}.py"
            return


def run_on_import(name: str) -> set[Path]:
    """All files of bngen that importing a module runs."""
    found: set[Path] = set()
    waiting = set(modules_of(name))
    while waiting:
        path = waiting.pop()
        found.add(path)
        eager = (seen for seen, _, now in imported_by(path) if now and seen.startswith("bngen."))
        waiting |= {file for seen in eager for file in modules_of(seen)} - found
    return found


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    package = tmp_path / "bngen"
    (package / "ir").mkdir(parents=True)
    module = package / "ir" / "x.py"
    module.write_text(
        "import tvm.te\nfrom bngen.lang import trace\nfrom . import node\nfrom .. import errors\n"
        "def f():\n    from bngen import passes\n"
        "if TYPE_CHECKING:\n    import numpy\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(imported_by(module)) == [
        ("tvm.te", 1, True),
        ("bngen.lang.trace", 2, True),
        ("bngen.ir.node", 3, True),
        ("bngen.errors", 4, True),
        ("bngen.passes", 6, False),
        ("numpy", 8, False),
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{path.name} is in no room of the house: add it to MAY_IMPORT"
    allowed = MAY_IMPORT[room] | LEAVES
    breaches = [
        f"line {line}: {seen}" for seen, line in rooms_imported_by(path) if seen not in allowed
    ]
    assert not breaches, f"{path.relative_to(ROOT)} may not import {breaches}"


def uses() -> dict[str, set[str]]:
    """The rooms that each room imports; the package itself does so by the names of its homes."""
    found: dict[str, set[str]] = {
        "": {f"{home}.".split(".")[0] for home in bngen._HOMES}
        | {home.split(".")[1] for home in bngen._MODULES.values()}
    }
    for path in MODULES:
        found.setdefault(room_of(path), set()).update(room for room, _ in rooms_imported_by(path))
    return found


def test_no_cycle_between_rooms():
    TopologicalSorter(uses()).prepare()  # raises CycleError, naming the cycle


def test_the_table_grants_what_is_used():
    used = uses()
    assert used.keys() == MAY_IMPORT.keys()
    for room, allowed in MAY_IMPORT.items():
        assert allowed == used[room] - LEAVES, f"{room} does not import all of what it may"


def test_of_some_rooms_others_see_a_part():
    seen: dict[tuple[str, str], set[str]] = {}
    for path in MODULES:
        for name, _, _ in imported_by(path):
            package, room, *rest = (*name.split("."), "", "")
            if package == "bngen":
                seen.setdefault((room_of(path), room), set()).add(rest[0])
    for pair, parts in ONLY_PARTS.items():
        assert seen[pair] == parts, f"{pair[0]} sees {seen[pair]} of {pair[1]}"


def module_name(path: Path) -> str:
    """Dotted, as imports write it; a package goes by its folder's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_cycle_between_files():
    """Neither by imports inside functions: who needs those to break a circle has one."""
    names = {module_name(path) for path in MODULES}
    uses: dict[str, set[str]] = {}
    for path in MODULES:
        own = uses.setdefault(module_name(path), set())
        for name, _, _ in imported_by(path):
            while name and name not in names:  # what is imported from a module is in it
                name = name.rpartition(".")[0]
            own |= {name} - {"", module_name(path)}
    TopologicalSorter(uses).prepare()


def test_the_table_itself_has_no_cycle():
    TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_other_packages_stay_in_their_rooms(path):
    room = room_of(path)
    for name, line, _ in imported_by(path):
        top = name.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        own = {room, str(path.relative_to(PACKAGE))}
        assert own & ONLY_THERE.get(top, own), f"{where} imports {top}"
        if room in NUMPY_ONLY and top not in sys.stdlib_module_names:
            assert top in {"bngen", "numpy"}, f"{where} imports {top}"


def test_what_help_needs_is_imported_instantly():
    """`bngen --help` runs the modules that `cli.main` imports, and those that they import."""
    needed = run_on_import("bngen.cli.main")
    assert {PACKAGE / "__init__.py", PACKAGE / "cli/console.py", PACKAGE / "options.py"} <= needed
    commands = {PACKAGE / "cli" / f"{name}.py" for name in options.ALL}
    assert not commands & needed, "a command is imported when it runs"
    for path in needed:
        for name, line, eager in imported_by(path):
            top = name.split(".")[0]
            if eager and top != "bngen":
                where = f"{path.relative_to(ROOT)}:{line}"
                assert top in sys.stdlib_module_names | {"click"}, f"{where} imports {top}"


def test_target_asks_the_host_only():
    seen = {name for path in (PACKAGE / "target").glob("*.py") for name, _, _ in imported_by(path)}
    assert {n for n in seen if n.startswith("bngen.runtime")} <= {
        "bngen.runtime.host", "bngen.runtime.host.Caches", "bngen.runtime.compiled_for.CompiledFor",
    }  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    tree = parsed(path)
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"
    stars = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
             and any(a.name == "*" for a in n.names)]  # fmt: skip
    assert not stars, f"{path.relative_to(ROOT)} imports * on lines {stars}"


def compares_op_names(path: Path) -> list[int]:
    """Lines on which ``.op`` of something is compared with words rather than looked up."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            asked = any(isinstance(s, ast.Attribute) and s.attr == "op" for s in sides)
            words = [n for s in sides for n in ast.walk(s) if isinstance(n, ast.Constant)]
            if asked and any(isinstance(w.value, str) for w in words):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_of_ops_decide_nothing(path):
    """What must be known of an op is a facet of its row; tables may have a row an op."""
    lines = compares_op_names(path)
    assert not lines, f"{path.relative_to(ROOT)} compares names of ops on lines {lines}"


def test_comparisons_with_the_name_of_an_op_are_found(tmp_path):
    module = tmp_path / "x.py"
    module.write_text(
        "if node.op == 'cat': pass\nif node.op in ('exp', 'log'): pass\n"
        "if 'cat' != a.b.op: pass\nif node.op in TABLE: pass\nif node.row.moves == 'joins': pass\n"
    )
    assert compares_op_names(module) == [1, 2, 3]


def test_rooms_that_are_drawn_are_there():
    drawing = (ROOT / "docs" / "how" / "overview.md").read_text().split("\n## ")[0]
    drawn = re.findall(r"^.*bngen/([\w/]+(?:, \w+)*)$", drawing, re.MULTILINE)
    rooms = [room for line in drawn for room in line.split(", ")]
    assert len(rooms) > 10
    assert [room for room in rooms if not (PACKAGE / room).is_dir()] == []


def test_file_names():
    vague = {"utils", "util", "helpers", "misc", "stuff"}
    for path in MODULES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*|__init__|__main__", path.stem), path
        assert path.stem not in vague, f"{path.relative_to(ROOT)} does not say what it holds"
    for folder in {p.parent for p in MODULES}:
        assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} is no package"


def test_schedules_are_data():
    files = [p for p in (ROOT / "schedules").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".md", ".toml"}, files
