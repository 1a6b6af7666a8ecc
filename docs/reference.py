"""The language's reference, made of docstrings when the site is built: a hook of MkDocs.

In: the public names of bngen. Out: the page ``reference.md``, a section for each home of names, in
the order of ``bngen.__all__``.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import bngen

TITLES = {
    "bngen.compiler": "Compiling",
    "bngen.runtime.bundle": "Bundles",
    "bngen.runtime.loading": "Loading",
    "bngen.lang.program": "Programs",
    "bngen.lang.tensor": "Tensors",
    "bngen.lang.gradients": "Gradients and training steps",
    "bngen.lang.state": "Parameters and buffers",
    "bngen.lang.windows": "Convolutions, matrix products, pools",
    "bngen.lang.normalization": "Batch normalization",
    "bngen.lang.image_norms": "Other normalizations",
    "bngen.lang.activations": "Activations",
    "bngen.lang.pointwise": "Element by element",
    "bngen.lang.reductions": "Reductions",
    "bngen.lang.shapes": "Shapes",
    "bngen.lang.places": "Places",
    "bngen.lang.loss": "Losses of classes",
    "bngen.lang.regression": "Losses of regression",
    "bngen.lang.optim": "Optimizers",
    "bngen.lang.adaptive": "Adaptive optimizers",
    "bngen.lang.clipping": "Clipping",
    "bngen.torch_bridge.backend": "PyTorch",
    "bngen.torch_bridge.explain": "PyTorch, explained",
    "bngen.torch_bridge.tensors": "PyTorch's tensors",
    "bngen.errors": "Errors",
}
"""Home of public names -> title of its section; homes that are not here come last."""
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:\.\w+)*): (.*)$")


def homes() -> dict[str, list[str]]:
    """Public functions and classes by the module that they come from."""
    found: dict[str, list[str]] = {}
    for name in bngen.__all__:
        thing = getattr(bngen, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            found.setdefault(thing.__module__, []).append(name)
    order = [*TITLES, *(home for home in found if home not in TITLES)]
    return {home: found[home] for home in order if home in found}


def page() -> str:
    """The page, as Markdown."""
    parts = [
        "# Reference",
        "Made of the docstrings. Names are those of `torch.nn.functional` and `torch` where an op "
        "exists there; shapes are NCHW.",
    ]
    for home, names in homes().items():
        parts.append(f"## {TITLES.get(home, home.removeprefix('bngen.'))}")
        doc = inspect.getdoc(importlib.import_module(home)) or ""
        parts.append(text_of(doc.partition("\n\n")[0]))
        for name in sorted(names, key=str.lower):
            parts.append(entry(name, getattr(bngen, name)))
    return "\n\n".join(parts) + "\n"


def entry(name: str, thing: Any) -> str:
    """One name: its signature and its docstring."""
    try:
        signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))
    except (TypeError, ValueError):
        signature = ""
    shown = f"### {name}\n\n```text\nbngen.{name}{signature}\n```"
    return f"{shown}\n\n{text_of(inspect.getdoc(thing) or '')}"


def text_of(doc: str) -> str:
    """A docstring in Google's style as Markdown."""
    lines, code = [], False
    for line in doc.splitlines():
        section = _SECTION.match(line)
        bare = line.strip()
        if section:
            lines += ["", f"**{section[1]}**", ""]
        elif line.startswith("    ") and (found := _ENTRY.match(bare)) and not line[4].isspace():
            lines.append(f"- `{found[1]}`: {_inline(found[2])}")
        elif bare.endswith("::"):
            lines += [_inline(bare[:-1]), ""]
        else:
            lines.append(line if code else f"  {_inline(bare)}" if line[:4] == "    " else
                         _inline(line))  # fmt: skip
    return "\n".join(lines).strip()


def _inline(text: str) -> str:
    """Backquotes as in Markdown; what looks like HTML or a link is none."""
    if "`" in text:
        return text.replace("``", "`")
    return text.replace("<", "&lt;").replace("[", "\\[")


def on_files(files: Any, config: Any) -> Any:
    """MkDocs's event: add the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference.md", content=page()))
    return files
