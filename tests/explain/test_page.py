"""The page of an explanation in a real browser: it opens, is clicked, searched and typed at."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import bngen as bg
from bngen.explain.gather import Explained, explained
from bngen.explain.page import page
from bngen.models import make
from bngen.target.parse import Target
from tests.explain import browser

TARGET = Target.parse("llvm -mcpu=x86-64-v3")
KERNELS = 1200


@pytest.fixture(scope="module")
def found() -> Explained:
    return explained(make("tiny_densenet", batch=2, image=32), TARGET, grad=True)


def test_a_page_needs_nothing_but_itself(found):
    made = page(found, {"asm": {"k": "</script>"}})
    assert not re.search(r"(?:src|href)=\"(?!data:)", made) and "@" + "STYLE@" not in made
    assert "Permission is hereby granted" in made  # dagre's license goes with it
    assert made.count("</script>") == made.count("<script")
    assert "<title>tiny_densenet at icf</title>" in made


def test_names_cannot_break_out_of_a_page(found):
    report = replace(found.report, program="</title><script>x</script>@STYLE@")
    made = page(replace(found, report=report), {})
    assert "<script>x" not in made and "@STYLE@ at icf</title>" in made


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.executable() is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    running = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture
def opened(chromium, found, tmp_path):
    symbol = "a_kernel"
    rows = tuple(replace(k, symbol=symbol) for k in found.report.kernels)
    shown = replace(found, report=replace(found.report, kernels=rows))
    texts = {"asm": {symbol: "vfmadd231ps"}, "graph": dict(found.graphs)}
    (tmp_path / "page.html").write_text(page(shown, texts))
    chromium.errors.clear()
    chromium.open(tmp_path / "page.html")
    yield chromium
    assert chromium.errors == []


def details(chromium) -> str:
    return chromium.evaluate("document.getElementById('details').innerText")


def place_of(chromium, plan: int, kernel: int) -> tuple[float, float]:
    """Where the middle of a kernel is in the window."""
    return chromium.evaluate(
        f"(() => {{ const p = state.plans[{plan}], b = p.boxes[{kernel}], v = p.view,"
        " r = p.canvas.getBoundingClientRect(), x = b.x + b.w / 2, y = b.y + b.h / 2;"
        " return [r.x + v.x + x * v.scale, r.y + v.y + y * v.scale] })()"
    )


def test_both_plans_are_drawn(opened, found):
    assert opened.evaluate("state.plans.map((p) => p.name)") == ["none", "icf"]
    counts = [len(found.before), len(found.report.kernels)]
    assert opened.evaluate("state.plans.map((p) => p.kernels.length)") == counts
    assert "What fusion saves" in details(opened)
    # no two boxes of a plan lie over one another, and colours are there
    overlap = """state.plans.map((p) => p.boxes.some((a, i) => p.boxes.some((b, j) => i < j
        && a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h)))"""
    assert opened.evaluate(overlap) == [False, False]
    seen = "new Set(state.plans[1].canvas.getContext('2d').getImageData(0, 0, 400, 600).data).size"
    opened.wait(f"{seen} > 8")


def test_a_click_shows_a_kernel_and_its_code(opened, found):
    index = next(i for i, k in enumerate(found.report.kernels) if k.strategy == "winograd")
    opened.click(*place_of(opened, 1, index))
    row = found.report.kernels[index]
    shown = details(opened)
    for word in (row.name, row.layer, "winograd", *(m.name for m in row.reads)):
        assert word in shown
    assert row.sublayers[0].text in opened.evaluate("document.getElementById('code').textContent")
    tab = "[...document.querySelectorAll('[role=tab]')].find((b) => b.dataset.kind === '{}')"
    opened.evaluate(f"{tab.format('asm')}.click()")
    opened.wait("document.getElementById('code').textContent === 'vfmadd231ps'")
    opened.evaluate(f"{tab.format('tir')}.click()")
    opened.wait("document.getElementById('code').textContent.includes('--emit tir')")


def test_a_click_on_a_layer_shows_the_kernels_that_hold_it(opened, found):
    layer = "features.denseblock1.denselayer1.conv2"
    opened.evaluate(f"choose(state.plans[1], state.plans[1].kernels.findIndex("
                    f"(k) => k.layer === '{layer}'), true)")  # fmt: skip
    opened.evaluate("document.querySelector('#details dd .link').click()")
    held = [k for k in found.report.kernels
            if layer in {k.layer, *(s.layer for s in k.sublayers)}]  # fmt: skip
    shown = details(opened)
    assert f"{len(held)} kernels at icf" in shown and all(k.name in shown for k in held)


def test_search_finds_ops_and_layers(opened, found):
    opened.press("/")
    assert opened.evaluate("document.activeElement.id") == "search"
    opened.type("conv2d_grad_weight")
    hits = [k for k in found.report.kernels if "conv2d_grad_weight" in k.name]
    opened.wait(
        "document.getElementById('details').getAttribute('aria-label') === 'Search results'"
    )
    assert f"{len(hits)} at icf" in details(opened)
    opened.press("Escape")
    assert "What fusion saves" in details(opened)


def test_everything_is_reached_from_the_keyboard(opened, found):
    reached = []
    for _ in range(9):
        opened.press("Tab")
        reached.append(
            opened.evaluate("document.activeElement.id || document.activeElement.tagName")
        )
    assert reached[:5] == ["search", "colour", "size", "theme", "help"]
    assert "CANVAS" in reached
    opened.evaluate("state.plans[1].canvas.focus()")
    for key in ("Home", "ArrowRight", "ArrowDown", "+", "-", "0"):
        opened.press(key)
    first = opened.evaluate("state.chosen.kernel")
    assert first in {i for i, k in enumerate(found.report.kernels) if 1 in k.sources} | {1}
    assert found.report.kernels[first].name in opened.evaluate(
        "document.getElementById('status').textContent"
    )
    opened.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "details"
    opened.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "link"
    opened.press("Enter")  # what it leads to takes its place
    assert opened.evaluate("document.activeElement.id") == "details"
    opened.press("/")
    opened.type("conv2d")
    opened.press("Enter")
    assert opened.evaluate("document.activeElement.className") == "link"
    opened.press("Enter")
    opened.evaluate("document.querySelector('[role=tab][aria-selected=true]').focus()")
    for key, kind in (("ArrowRight", "tir"), ("End", "asm"), ("ArrowRight", "ir")):
        opened.press(key)
        shown = "document.querySelector('#' + document.getElementById('code')"
        assert opened.evaluate("document.activeElement.dataset.kind") == kind
        assert opened.evaluate(f"{shown}.getAttribute('aria-labelledby')).dataset.kind") == kind
    wide = "[...document.querySelectorAll('.scroll')].every((e) => e.tabIndex === 0)"
    assert opened.evaluate(wide)


def test_a_narrow_window_and_a_dark_one(opened):
    opened.resize(400, 800)
    opened.wait("innerWidth === 400")
    assert opened.evaluate("document.documentElement.scrollWidth") == 400
    before = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.evaluate("document.getElementById('theme').click()")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert opened.evaluate("document.getElementById('failed').hidden")
    sides = opened.evaluate("state.plans.map((p) => p.canvas.getBoundingClientRect().width)")
    assert all(300 < side <= 400 for side in sides)
    # fingers and the wheel scroll a page that plans fill
    assert opened.evaluate("getComputedStyle(state.plans[0].canvas).touchAction") == "pan-y"
    scale = opened.evaluate("state.plans[0].fit(), state.plans[0].view.scale")
    opened.wheel(*place_of(opened, 0, 0), 300)
    opened.wait("scrollY > 0")
    assert opened.evaluate("state.plans[0].view.scale") == scale


def test_all_text_can_be_read(opened):
    """4.5 to 1, in boxes of any colour, too, and 3 to 1 for the borders of fields, as WCAG asks."""
    contrast = """((a, b) => { const [x, y] = [luminance(a), luminance(b)];
        return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05) })"""
    value = "getComputedStyle(document.documentElement).getPropertyValue"
    for _ in range(2):
        opened.evaluate("document.getElementById('theme').click()")
        boxes = f"[...WORKS, ...Object.keys(BOUNDS)].map((k) => {contrast}(onto(ink[k]), ink[k]))"
        assert min(opened.evaluate(boxes)) >= 4.5
        for back in ("back", "panel"):
            for name, least in (("ink", 4.5), ("soft", 4.5), ("link", 4.5), ("field", 3.0)):
                both = ", ".join(f"{value}('--{x}').trim()" for x in (name, back))
                assert opened.evaluate(f"{contrast}({both})") >= least
    shown, width = opened.evaluate("""(() => {
        const c = document.createElement('canvas').getContext('2d');
        const s = tail(c, 'features.denseblock1.denselayer1.conv1', 100);
        return [s, c.measureText(s).width] })()""")
    assert re.fullmatch(r"…\S*conv1", shown) and width <= 100
    assert opened.evaluate("tail(state.plans[0].canvas.getContext('2d'), 'x', 100)") == "x"


def test_a_browser_that_cannot_show_it_says_so(chromium, found, tmp_path):
    made, without = page(found, {}), "<script>delete window.DecompressionStream</script>"
    (tmp_path / "page.html").write_text(made.replace("<head>", f"<head>{without}", 1))
    assert "<noscript>" in made
    chromium.command("Page.navigate", url=(tmp_path / "page.html").as_uri())
    failed = "document.getElementById('failed')"
    chromium.wait(f"{failed} && !{failed}.hidden")
    assert "this browser" in chromium.evaluate("document.body.innerText")


def test_boxes_grow_with_what_they_are_measured_by(chromium, found, tmp_path):
    seconds = [1e-6 * (i + 1) for i in range(len(found.report.kernels))]
    (tmp_path / "page.html").write_text(page(found, {}, seconds, ridge=5.0))
    chromium.errors.clear()
    chromium.open(tmp_path / "page.html")
    choice = "document.getElementById('size')"
    chromium.evaluate(f"{choice}.value = 'seconds', {choice}.dispatchEvent(new Event('change'))")
    areas = "state.plans[1].boxes.map((b) => b.w * b.h)"
    chromium.wait(f"{areas}.every((a, i, all) => i === 0 || a > all[i - 1])")
    assert "not timed" in chromium.evaluate("state.plans[0].figure.textContent")
    assert "not timed" not in chromium.evaluate("state.plans[1].figure.textContent")
    assert chromium.errors == []


def test_wheel_and_fit(opened):
    x, y = place_of(opened, 1, 0)
    before = opened.evaluate("state.plans[1].view.scale")
    opened.wheel(x, y, -400)
    opened.wait(f"state.plans[1].view.scale > {before} * 1.2")
    opened.evaluate("state.plans[1].fit()")
    assert opened.evaluate("state.plans[1].view.scale") == pytest.approx(before)


def test_a_thousand_kernels_open_in_two_seconds(chromium, found, tmp_path):
    own, many = found.report.kernels, []
    while len(many) < KERNELS:
        first = len(many)
        many += [replace(k, call="forward", sources=tuple(first + s for s in k.sources))
                 for k in own]  # fmt: skip
    large = replace(found, report=replace(found.report, kernels=tuple(many)), before=tuple(many))
    (tmp_path / "page.html").write_text(page(large, {}))
    taken = []
    for _ in range(2):  # others may use the machine, too
        chromium.open(tmp_path / "page.html")
        taken.append(float(chromium.evaluate("document.documentElement.dataset.drawn")))
    assert min(taken) < 2000
    paint = """(() => { const p = state.plans[1], t = performance.now();
        for (let i = 0; i < 10; i++) p.paint(); return (performance.now() - t) / 10 })()"""
    assert chromium.evaluate(paint) < 1000 / 30
    assert chromium.errors == []


def test_the_page_of_a_program_that_is_not_fused(chromium, tmp_path):
    @bg.program
    def one(x: bg.Tensor[2, 3]):
        return bg.relu(x)

    (tmp_path / "page.html").write_text(page(explained(one, TARGET, fusion="none"), {}))
    chromium.errors.clear()
    chromium.open(tmp_path / "page.html")
    assert chromium.evaluate("state.plans.map((p) => p.kernels.length)") == [1]
    assert chromium.errors == []
