"""The picture of an explanation's page, taken anew: ``python docs/page_picture.py``.

In: DenseNet-121's training step, planned. Out: ``docs/pictures/explain.png``, by a Chromium that is
installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the tests' browser
from bngen import cache  # noqa: E402
from bngen.explain.gather import explained  # noqa: E402
from bngen.explain.page import page  # noqa: E402
from bngen.models import make  # noqa: E402
from tests.explain.browser import Browser  # noqa: E402

CHOSEN = """(() => { const p = state.plans[1];
    const i = p.kernels.findIndex((k) => k.strategy === "winograd" && k.sublayers.length > 3);
    choose(p, i, true); return i })()"""


def main() -> None:
    """Open the page, choose a kernel, take the picture."""
    found = explained(make("densenet121"), cache.target("llvm -mcpu=x86-64-v4"), grad=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(page(found, {}))
        browser = Browser(Path(folder) / "profile")
        try:
            browser.open(Path(folder) / "page.html")
            assert browser.evaluate(CHOSEN) >= 0
            browser.wait("document.getElementById('details').innerText.includes('winograd')")
            browser.evaluate("new Promise((done) => setTimeout(done, 500))")
            browser.picture(HERE / "pictures" / "explain.png")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
