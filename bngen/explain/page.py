"""An explanation as one self-contained page: the plan before and after fusion, side by side.

In: an `Explained`, texts of its kernels by kind and symbol, seconds where they were measured. Out:
HTML that needs no network. What it is made of lies in ``browser/``: the page's own HTML, CSS and
JavaScript, and dagre (MIT), which lays graphs out. Data and texts are deflated, each text kind by
itself, so that a page of a thousand kernels opens at once and unpacks assembly when it is looked
at.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bngen.explain.gather import BASELINE, Explained
from bngen.explain.report import KernelRow

_BROWSER = Path(__file__).parent / "browser"
RIDGE = 10.0
"""Operations a byte from which a kernel counts as bound by arithmetic, where no limits were
measured: about what two memory channels and a few cores with wide vectors come to."""
SMALL = 64 << 10
"""Bytes up to which a kernel is bound by neither: starting it takes as long."""


def page(
    found: Explained,
    texts: Mapping[str, Mapping[str, str]],
    seconds: Sequence[float] = (),
    ridge: float = RIDGE,
) -> str:
    """The page.

    Args:
        found: the explanation.
        texts: kind -> symbol of a kernel -> text; of ``graph`` and ``plan``, what it is of -> text.
        seconds: of each kernel, in order; may be missing.
        ridge: operations a byte from which arithmetic is what takes the time.
    """
    report = found.report
    plans = [_plan(report.fusion, report.kernels, seconds)]
    if found.before and report.fusion != BASELINE:
        plans.insert(0, _plan(BASELINE, found.before, ()))
    data = {
        **{k: v for k, v in report.data().items() if k != "kernels"},
        "plans": plans,
        "ridge": ridge,
        "small": SMALL,
        "texts": {kind: sorted(parts) for kind, parts in texts.items()},
    }
    blobs = [_blob("data", data), *(_blob(f"text-{kind}", t) for kind, t in texts.items())]
    parts = {
        "@LICENSE@": _read("dagre.LICENSE"),
        "@STYLE@": _read("page.css"),
        "@BLOBS@": "\n".join(blobs),
        "@DAGRE@": _read("dagre.min.js"),
        "@SCRIPT@": _read("page.js"),
        "@TITLE@": html.escape(f"{report.program} at {report.fusion}"),  # last: it may hold marks
    }
    made = _read("page.html")
    for mark, part in parts.items():
        before, _, after = made.partition(mark)
        made = f"{before}{part}{after}"
    return made


def _plan(name: str, rows: Sequence[KernelRow], seconds: Sequence[float]) -> dict[str, Any]:
    kernels = [asdict(row) for row in rows]
    for kernel, time in zip(kernels, seconds, strict=False):
        kernel["seconds"] = time
    return {"name": name, "kernels": kernels}


def _blob(name: str, content: Any) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(content).encode(), 6)).decode()
    return f'<script type="text/plain" id="{html.escape(name)}">{packed}</script>'


def _read(name: str) -> str:
    return (_BROWSER / name).read_text(encoding="utf-8")
