"use strict";
// The page of an explanation: reads its data, lays out two plans, draws them, shows what is chosen.
// Kernels are placed by dagre, forty at a time in the order in which they run, so that a thousand of
// them take a fraction of a second; they are drawn on a canvas, as far as they can be seen.

const $ = (id) => document.getElementById(id);
const CHUNK = 40, GAP = 26, COLUMN_GAP = 90, MOST_FOUND = 60;
const HEAD = 34;  // pixels above a plan, for the names of the calls
const WORKS = ["CONV", "BN", "ReLU", "sum", "pool", "copy", "other"];
const BOUNDS = {
  compute: "bound by arithmetic", memory: "bound by memory", small: "small: starting it takes as long",
};
const narrow = matchMedia("(max-width: 900px)");  // where plans lie below one another, as in page.css
const state = { plans: [], layer: null, chosen: null, found: null, data: null };

// --- data -----------------------------------------------------------------------------------------

const texts = {};
async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
const textsOf = (kind) => (texts[kind] ??= unpacked(`text-${kind}`));

function size(n) {
  for (const [unit, factor] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (n >= factor) return `${(n / factor).toFixed(1)} ${unit}`;
  return `${n} B`;
}
function amount(n) {
  for (const [unit, factor] of [["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (n >= factor) return `${(n / factor).toFixed(1)} ${unit}`;
  return String(Math.round(n));
}
const label = (s) => (s.op === "cast" ? `to ${s.dtype}` : s.op);
const mapBytes = (t) => t.map_bytes_read + t.map_bytes_written;
const allBytes = (t) => mapBytes(t) + t.other_bytes;
const bound = (k) => (allBytes(k.traffic) <= state.data.small ? "small"
  : k.operations / Math.max(allBytes(k.traffic), 1) >= state.data.ridge ? "compute" : "memory");
const weight = { bytes: (k) => allBytes(k.traffic), operations: (k) => k.operations,
  seconds: (k) => k.seconds || 0 };

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

// --- layout ---------------------------------------------------------------------------------------

// An edge that a longer way round says as well is left out of the drawing.
function reduced(kernels) {
  const words = (kernels.length + 31) >> 5, reach = [], edges = [];
  kernels.forEach((k, i) => {
    const own = new Uint32Array(words);
    for (const p of [...k.sources].sort((a, b) => b - a)) {
      if (own[p >> 5] & (1 << (p & 31))) continue;
      edges.push([p, i]);
      const from = reach[p];
      for (let w = 0; w < words; w++) own[w] |= from[w];
      own[p >> 5] |= 1 << (p & 31);
    }
    reach.push(own);
  });
  return edges;
}

// Chunks in columns of so much height; a call begins a column of its own.
function stacked(chunks, tall) {
  const places = [], calls = [];
  let x = 0, y = 0, wide = 0, height = 0, call = null;
  for (const c of chunks) {
    if (c.call !== call || (y > 0 && y + c.h > tall * 1.02)) {
      if (call !== null) x += wide + COLUMN_GAP * (c.call !== call ? 2 : 1);
      if (c.call !== call) calls.push({ call: c.call, x });
      y = 0; wide = 0; call = c.call;
    }
    places.push({ x, y });
    y += c.h + GAP; wide = Math.max(wide, c.w); height = Math.max(height, y - GAP);
  }
  return { places, calls, width: x + wide, height };
}

class Plan {
  constructor(plan, index) {
    this.name = plan.name; this.kernels = plan.kernels; this.index = index;
    this.edges = reduced(this.kernels);
    this.readers = this.kernels.map(() => []);
    this.kernels.forEach((k, i) => k.sources.forEach((s) => this.readers[s].push(i)));
    this.words = this.kernels.map((k) => [k.name, k.layer, k.work, k.strategy, k.call,
      ...k.sublayers.flatMap((s) => [s.op, label(s), s.result, s.line, s.layer])].join(" ").toLowerCase());
    this.view = { x: 0, y: 0, scale: 1 };
    this.note = el("span");
    const caption = el("figcaption", {}, el("b", {}, this.name), ` ${this.summary()}`, this.note);
    this.canvas = el("canvas", { tabindex: 0, role: "application",
      "aria-label": `Plan at fusion level ${this.name}: ${this.kernels.length} kernels` });
    this.figure = el("figure", { class: "plan" }, caption, el("div", {}, this.canvas));
    this.listen();
  }

  summary() {
    const nbytes = this.kernels.reduce((sum, k) => sum + mapBytes(k.traffic), 0);
    return `${this.kernels.length} kernels, ${size(nbytes)} of feature maps`;
  }

  // Boxes by what they are measured with, chunks in the order of execution.
  arrange(by) {
    const measure = weight[by];
    const timed = by !== "seconds" || this.kernels.some((k) => k.seconds !== undefined);
    this.note.textContent = timed ? "" : "; not timed, so that all boxes are alike";
    const largest = Math.max(...this.kernels.map(measure)) || 1;
    this.boxes = this.kernels.map((k) => {
      const share = Math.sqrt(measure(k) / largest);
      return { x: 0, y: 0, w: 34 + 150 * share, h: 16 + 34 * share };
    });
    const chunks = [];
    let start = 0;
    for (let i = 1; i <= this.kernels.length; i++)
      if (i === this.kernels.length || i - start === CHUNK
          || this.kernels[i].call !== this.kernels[start].call) {
        chunks.push(this.chunk(start, i));
        start = i;
      }
    const aspect = [Math.max(this.canvas.clientWidth, 100), Math.max(this.canvas.clientHeight - HEAD, 100)];
    let best = null;
    for (let columns = 1; columns <= 40; columns++) {  // the height that shows most
      const total = chunks.reduce((sum, c) => sum + c.h + GAP, 0);
      const tall = Math.max(total / columns, ...chunks.map((c) => c.h));
      const found = stacked(chunks, tall);
      const scale = Math.min(aspect[0] / found.width, aspect[1] / found.height);
      if (best === null || scale > best.scale) best = { ...found, scale };
    }
    chunks.forEach((c, n) => {
      const { x, y } = best.places[n];
      for (let i = c.start; i < c.stop; i++) { this.boxes[i].x += x; this.boxes[i].y += y; }
    });
    Object.assign(this, { calls: best.calls, width: best.width, height: best.height });
    this.fit();
  }

  // Kernels that wait for none of their chunk, and serve none, stand in rows below the others.
  chunk(start, stop) {
    const graph = new dagre.graphlib.Graph();
    graph.setGraph({ rankdir: "TB", nodesep: 10, ranksep: 18, align: "UL" });
    graph.setDefaultEdgeLabel(() => ({}));
    const inside = this.edges.filter(([a, b]) => a >= start && b < stop && b >= start);
    const joined = new Set(inside.flat());
    for (const i of joined) graph.setNode(i, { width: this.boxes[i].w, height: this.boxes[i].h });
    for (const [a, b] of inside) graph.setEdge(a, b);
    if (joined.size) dagre.layout(graph);
    for (const i of joined) {
      const n = graph.node(i);
      this.boxes[i].x = n.x - n.width / 2; this.boxes[i].y = n.y - n.height / 2;
    }
    let w = joined.size ? graph.graph().width : 0, x = 0, y = joined.size ? graph.graph().height + 14 : 0;
    let high = 0;
    const most = Math.max(w, 260);
    for (let i = start; i < stop; i++) {
      if (joined.has(i)) continue;
      const b = this.boxes[i];
      if (x > 0 && x + b.w > most) { x = 0; y += high + 8; high = 0; }
      b.x = x; b.y = y;
      x += b.w + 10; high = Math.max(high, b.h); w = Math.max(w, x - 10);
    }
    return { start, stop, call: this.kernels[start].call, w, h: y + high };
  }

  // --- view

  fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    if (!this.boxes) return;
    const scale = Math.max(0.01, Math.min((w - 24) / this.width, (h - HEAD - 12) / this.height, 1.5));
    this.view = { scale, x: (w - this.width * scale) / 2, y: HEAD + (h - HEAD - this.height * scale) / 2 };
    this.draw();
  }

  zoom(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const v = this.view, scale = Math.min(4, Math.max(0.01, v.scale * factor));
    v.x = px - (px - v.x) * (scale / v.scale);
    v.y = py - (py - v.y) * (scale / v.scale);
    v.scale = scale;
    this.draw();
  }

  show(i) {
    const b = this.boxes[i], v = this.view, { clientWidth: w, clientHeight: h } = this.canvas;
    v.scale = Math.max(v.scale, 0.7);
    v.x = w / 2 - (b.x + b.w / 2) * v.scale;
    v.y = h / 2 - (b.y + b.h / 2) * v.scale;
    this.draw();
  }

  at(px, py) {
    const x = (px - this.view.x) / this.view.scale, y = (py - this.view.y) / this.view.scale;
    const slack = 3 / this.view.scale;
    let best = -1, least = slack;
    this.boxes.forEach((b, i) => {
      const away = Math.max(b.x - x, x - b.x - b.w, b.y - y, y - b.y - b.h);
      if (away < least) { least = away; best = i; }
    });
    return best;
  }

  // --- drawing

  draw() {
    if (this.waiting || !this.boxes) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    const { clientWidth: w, clientHeight: h } = this.canvas, ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(w * ratio) || this.canvas.height !== Math.round(h * ratio)) {
      this.canvas.width = Math.round(w * ratio); this.canvas.height = Math.round(h * ratio);
    }
    const c = this.canvas.getContext("2d"), v = this.view;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, w, h);
    c.setTransform(ratio * v.scale, 0, 0, ratio * v.scale, ratio * v.x, ratio * v.y);
    const seen = { x0: -v.x / v.scale, y0: -v.y / v.scale, x1: (w - v.x) / v.scale, y1: (h - v.y) / v.scale };
    const visible = (b) => b.x < seen.x1 && b.x + b.w > seen.x0 && b.y < seen.y1 && b.y + b.h > seen.y0;
    this.paintEdges(c, visible);
    this.paintBoxes(c, visible);
    c.font = `600 ${Math.max(15, 13 / v.scale)}px system-ui, sans-serif`;
    c.fillStyle = ink.soft;
    for (const { call, x } of this.calls) c.fillText(call, x, -12 / Math.min(1, v.scale));
  }

  paintEdges(c, visible) {
    const line = (a, b) => {
      const p = this.boxes[a], q = this.boxes[b];
      c.moveTo(p.x + p.w / 2, p.y + p.h);
      c.lineTo(q.x + q.w / 2, q.y);
    };
    c.lineWidth = Math.max(1, 0.6 / this.view.scale);
    c.strokeStyle = ink.edge;
    c.globalAlpha = this.view.scale < 0.15 ? 0.35 : 0.7;
    c.beginPath();
    for (const [a, b] of this.edges)
      if (this.kernels[a].call === this.kernels[b].call && b - a < 3 * CHUNK
          && (visible(this.boxes[a]) || visible(this.boxes[b]))) line(a, b);
    c.stroke();
    c.globalAlpha = 1;
    if (state.chosen?.plan !== this) return;
    const i = state.chosen.kernel;
    for (const [colour, pairs] of [[ink.reads, this.kernels[i].sources.map((s) => [s, i])],
      [ink.feeds, this.readers[i].map((r) => [i, r])]]) {
      c.strokeStyle = colour;
      c.lineWidth = Math.max(2, 1.6 / this.view.scale);
      c.beginPath();
      pairs.forEach(([a, b]) => line(a, b));
      c.stroke();
    }
  }

  paintBoxes(c, visible) {
    const by = $("colour").value, groups = new Map(), shown = [];
    this.boxes.forEach((b, i) => {
      if (!visible(b)) return;
      shown.push(i);
      const key = by === "work" ? this.kernels[i].work || "other" : bound(this.kernels[i]);
      groups.has(key) ? groups.get(key).push(b) : groups.set(key, [b]);
    });
    for (const [key, boxes] of groups) {
      c.fillStyle = ink[key];
      c.beginPath();
      for (const b of boxes) c.rect(b.x, b.y, b.w, b.h);
      c.fill();
    }
    for (const i of shown) this.paintMark(c, i);
    if (this.view.scale >= 0.55) for (const i of shown) this.paintLabel(c, i);
  }

  paintMark(c, i) {
    const b = this.boxes[i], chosen = state.chosen?.plan === this && state.chosen.kernel === i;
    const k = this.kernels[i];
    const held = state.layer !== null && (k.layer === state.layer || k.sublayers.some((s) => s.layer === state.layer));
    const found = state.found !== null && this.words[i].includes(state.found);
    if (!chosen && !held && !found) return;
    c.strokeStyle = chosen || found ? ink.mark : ink.ink;
    c.lineWidth = Math.max(2, (chosen ? 3 : 1.6) / this.view.scale);
    c.strokeRect(b.x - 1, b.y - 1, b.w + 2, b.h + 2);
  }

  paintLabel(c, i) {
    const b = this.boxes[i], k = this.kernels[i];
    const anchor = k.sublayers.find((s) => s.slot === "anchor") || k.sublayers[k.sublayers.length - 1];
    c.save();
    c.beginPath(); c.rect(b.x, b.y, b.w, b.h); c.clip();
    c.font = "11px system-ui, sans-serif";
    const key = $("colour").value === "work" ? k.work : bound(k);
    c.fillStyle = onto(ink[key]);
    const number = k.name.slice(0, 4), whole = `${number} ${anchor ? label(anchor) : ""}`;
    c.fillText(c.measureText(whole).width + 6 <= b.w ? whole : number, b.x + 3, b.y + 12);
    if (b.h > 27) c.fillText(b.layer ??= tail(c, k.layer, b.w - 6), b.x + 3, b.y + 25);
    c.restore();
  }

  // --- hands and keys

  listen() {
    const canvas = this.canvas, pointers = new Map();
    let moved = 0, apart = 0;
    canvas.addEventListener("pointerdown", (e) => {
      canvas.setPointerCapture(e.pointerId);
      pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
      moved = 0; apart = 0;
    });
    canvas.addEventListener("pointermove", (e) => {
      if (!pointers.has(e.pointerId)) {
        const i = this.at(e.offsetX, e.offsetY);
        canvas.title = i < 0 ? "" : `${this.kernels[i].name}\n${this.kernels[i].layer}`;
        return;
      }
      const [x, y] = pointers.get(e.pointerId);
      pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
      moved += Math.abs(e.offsetX - x) + Math.abs(e.offsetY - y);
      if (pointers.size === 2) {
        const [[ax, ay], [bx, by]] = [...pointers.values()];
        const now = Math.hypot(ax - bx, ay - by);
        if (apart) this.zoom(now / apart, (ax + bx) / 2, (ay + by) / 2);
        apart = now;
        return;
      }
      this.view.x += e.offsetX - x; this.view.y += e.offsetY - y;
      this.draw();
    });
    const up = (e) => {
      if (pointers.delete(e.pointerId) && moved < 5 && e.type === "pointerup") {
        const i = this.at(e.offsetX, e.offsetY);
        if (i >= 0) choose(this, i, false); else forget();
      }
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (e) => {
      if (narrow.matches && !e.ctrlKey) return;  // it scrolls the page
      e.preventDefault();
      this.zoom(Math.exp(-e.deltaY * 0.0015), e.offsetX, e.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => this.key(e));
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const at = state.chosen?.plan === this ? state.chosen.kernel : null, last = this.kernels.length - 1;
    const next = {
      ArrowRight: () => (at === null ? 0 : Math.min(at + 1, last)),
      ArrowLeft: () => (at === null ? last : Math.max(at - 1, 0)),
      ArrowUp: () => (at === null ? 0 : this.kernels[at].sources.at(-1) ?? at),
      ArrowDown: () => (at === null ? 0 : this.readers[at][0] ?? at),
      Home: () => 0, End: () => last,
    }[e.key];
    const act = { "+": () => this.zoom(1.3), "=": () => this.zoom(1.3), "-": () => this.zoom(1 / 1.3),
      0: () => this.fit(), Enter: () => $("details").focus() }[e.key];
    if (next && last >= 0) choose(this, next(), true); else if (act) act(); else return;
    e.preventDefault();
  }
}

// The end of a layer's name that there is room for: its begin is the same for many.
function tail(c, layer, room) {
  const fits = (text) => c.measureText(text).width <= room;
  if (fits(layer)) return layer;
  for (let from = 1; from < layer.length; from++)
    if (fits(`…${layer.slice(from)}`)) return `…${layer.slice(from)}`;
  return "…";
}

// --- what is chosen -------------------------------------------------------------------------------

const redraw = () => state.plans.forEach((p) => p.draw());
const say = (text) => { $("status").textContent = text; };

function choose(plan, kernel, show) {
  const k = plan.kernels[kernel];
  state.chosen = { plan, kernel };
  state.layer = k.layer || null;
  details(plan, kernel);
  if (show) plan.show(kernel);
  redraw();
  say(`${k.name}, ${k.layer}, ${bound(k)}, ${size(allBytes(k.traffic))}`);
}

function forget() {
  state.chosen = null; state.layer = null;
  overview();
  redraw();
}

function chooseLayer(layer) {
  state.chosen = null; state.layer = layer;
  const lists = state.plans.map((p) => {
    const held = p.kernels.map((k, i) => [k, i]).filter(([k]) => k.layer === layer
      || k.sublayers.some((s) => s.layer === layer));
    return [el("h3", {}, `${held.length} kernels at ${p.name}`), kernelList(p, held)];
  });
  fill("Layer", el("h2", {}, layer), ...lists.flat());
  redraw();
  say(`layer ${layer}`);
}

const kernelList = (plan, pairs) => el("ul", {}, ...pairs.map(([k, i]) => el("li", {},
  link(k.name, () => choose(plan, i, true)), ` ${size(allBytes(k.traffic))}`)));
// Long names break where their words end.
const broken = (name) => name.split(/(?<=[_.])/).flatMap((word) => [el("wbr"), word]);
const link = (text, onclick) => el("button", { class: "link", type: "button", onclick }, ...broken(text));

function fill(label, ...content) {
  const held = $("details").contains(document.activeElement);  // by what is about to go, maybe
  $("details").setAttribute("aria-label", label);
  $("details").replaceChildren(...content);
  $("details").scrollTop = 0;
  if (held) $("details").focus({ preventScroll: true });
}

function details(plan, i) {
  const k = plan.kernels[i], d = (name, ...value) => [el("dt", {}, name), el("dd", {}, ...value)];
  const declined = Object.entries(k.declined).map(([kind, why]) => el("div", {}, `not ${kind}: ${why}`));
  const knobs = Object.entries(k.knobs).map(([n, v]) => `${n}=${v}`).join(" ");
  const alone = k.traffic_alone ? allBytes(k.traffic_alone) : 0;
  const rows = [
    ...d("call", `${k.call}, kernel ${i + 1} of ${plan.kernels.length} at ${plan.name}`),
    ...(k.layer ? d("layer", link(k.layer, () => chooseLayer(k.layer))) : []),
    ...(k.work ? d("work", k.work) : []),
    ...d("bound", BOUNDS[bound(k)]),
    ...d("moves", `${size(allBytes(k.traffic))}${alone ? `; ${size(alone)} if each sub-layer swept for itself` : ""}`),
    ...d("does", `${amount(k.operations)} operations, ${(k.operations / Math.max(allBytes(k.traffic), 1)).toFixed(1)} a byte`),
    ...(k.seconds !== undefined ? d("took", `${(1e3 * k.seconds).toFixed(3)} ms`) : []),
    ...d("strategy", k.strategy, ...declined),
    ...(knobs ? d("knobs", knobs) : []),
    ...(k.record ? d("record", k.record) : []),
  ];
  fill(`Kernel ${k.name}`, el("h2", {}, ...broken(k.name)), el("dl", {}, ...rows), ...slots(k),
    maps("reads", k.reads), maps("writes", k.writes),
    el("h3", {}, "waits for"), kernelList(plan, k.sources.map((s) => [plan.kernels[s], s])),
    ...code(k));
}

function slots(k) {
  return [["load", "load slots"], ["anchor", "built around"], ["store", "store slots"]].flatMap(([slot, name]) => {
    const held = k.sublayers.filter((s) => s.slot === slot);
    if (!held.length) return [];
    return [el("h3", {}, name), el("table", {}, ...held.map((s) => el("tr", {}, el("th", {}, label(s)),
      el("td", {}, s.layer ? link(s.layer, () => chooseLayer(s.layer)) : "",
        s.line ? place(s.line) : ""))))];
  });
}

// A line of a file by its last folder; all of its path for who asks.
function place(line) {
  const short = line.split("/").slice(-2).join("/");
  if (short === line) return el("div", { class: "soft" }, line);
  return el("details", { class: "place soft" }, el("summary", {}, short), line);
}

function maps(name, values) {
  return el("div", {}, el("h3", {}, name), el("table", {}, ...values.map((m) => el("tr", {},
    el("td", {}, m.name, el("div", { class: "soft" }, `${m.type} ${m.layout}`)),
    el("td", { class: "n" }, size(m.nbytes))))));
}

function code(k) {
  const kinds = ["ir", "tir", "ll", "asm"];
  const shown = el("pre", { class: "code", tabindex: 0, id: "code", role: "tabpanel" });
  const tabs = el("div", { class: "tabs", role: "tablist", "aria-label": "Code", onkeydown: (e) => {
    const at = [...tabs.children].indexOf(document.activeElement), last = kinds.length - 1;
    const next = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0,
      End: last }[e.key];
    if (next === undefined) return;
    e.preventDefault();
    tabs.children[next].focus();
    show(kinds[next]);
  } });
  const show = async (kind) => {
    for (const b of tabs.children) {
      b.setAttribute("aria-selected", b.dataset.kind === kind);
      b.tabIndex = b.dataset.kind === kind ? 0 : -1;
    }
    shown.setAttribute("aria-labelledby", `tab-${kind}`);
    if (kind === "ir") { shown.textContent = k.sublayers.map((s) => s.text).join("\n"); return; }
    if (!state.data.texts[kind]) { shown.textContent = `not in this page: bngen explain --html FILE --emit ${kind}`; return; }
    shown.textContent = "...";
    shown.textContent = (await textsOf(kind))[k.symbol] ?? "not compiled at this level";
  };
  for (const kind of kinds) tabs.append(el("button", { type: "button", role: "tab", "data-kind": kind,
    id: `tab-${kind}`, "aria-controls": "code", onclick: () => show(kind) }, { ir: "IR", tir: "TIR", ll: "LLVM", asm: "assembly" }[kind]));
  show("ir");
  return [tabs, shown];
}

// --- the whole ------------------------------------------------------------------------------------

function overview() {
  const d = state.data, rows = [];
  for (const [call, total] of Object.entries(d.totals)) {
    if (d.unfused[call] && d.fusion !== "none") rows.push(totalRow(`${call}, none`, d.unfused[call]));
    rows.push(totalRow(`${call}, ${d.fusion}`, total));
  }
  const heads = ["", "kernels", "read", "written", "bytes", "ops"];
  fill("Overview", el("h2", {}, "What fusion saves"), el("div", { class: "scroll", ...region("Totals") },
    el("table", {}, el("tr", {}, ...heads.map((h, i) => el("th", { class: i ? "n" : "" }, h))), ...rows)),
    el("p", { class: "soft" }, "Read, written and bytes are of feature maps; ops are operations. Click a kernel, or press Tab ",
      "and the arrow keys; a click on a layer shows the kernels that hold it."));
}

const totalRow = (name, t) => el("tr", {}, el("th", {}, name), ...[t.kernels, t.traffic.sweeps_read,
  t.traffic.sweeps_written, size(mapBytes(t.traffic)), amount(t.operations)].map((v) => el("td", { class: "n" }, String(v))));

// What is wider than the window is scrolled by keys as well.
const region = (name) => ({ tabindex: 0, role: "region", "aria-label": name });

function tables() {
  const d = state.data, parts = [];
  if (d.refused.length) {
    const groups = [...d.refused].sort((a, b) => b.pairs.length - a.pairs.length);
    parts.push(el("details", {}, el("summary", {}, `What was not fused, and why (${groups.reduce((n, g) => n + g.pairs.length, 0)})`),
      el("div", { class: "scroll", ...region("What was not fused") }, el("table", {}, el("tr", {}, ...["times", "ops", "slot", "reason", "where"].map((h) => el("th", {}, h))),
        ...groups.map((g) => el("tr", {}, el("td", { class: "n" }, String(g.pairs.length)), el("th", {}, g.ops.join(" → ")),
          el("th", {}, g.slot), el("td", {}, g.reason), el("td", { class: "soft" },
            [...new Set(g.pairs.slice(0, 3).map(([, , a, b]) => [...new Set([a, b].filter(Boolean))].join(" → ")))].join("; "))))))));
  }
  if (d.stages.length)
    parts.push(el("details", {}, el("summary", {}, "The program after each pass"),
      el("div", { class: "scroll", ...region("The program after each pass") },
      el("table", {}, ...d.stages.map((s) => el("tr", {}, el("th", {}, s.name), el("td", { class: "n" }, String(s.ops)),
        el("td", { class: "soft" }, Object.entries(s.counts).sort((a, b) => b[1] - a[1]).slice(0, 8)
          .map(([op, n]) => `${n} ${op}`).join(", "))))))));
  for (const kind of ["graph", "plan"]) if (d.texts[kind]) {
    const holder = el("div"), box = el("details", {}, el("summary", {}, `The ${kind}`), holder);
    box.addEventListener("toggle", async () => {
      if (!holder.children.length) for (const [name, text] of Object.entries(await textsOf(kind)))
        holder.append(el("h3", {}, name), el("pre", { class: "code", tabindex: 0 }, text));
    });
    parts.push(box);
  }
  $("tables").replaceChildren(...parts);
}

// --- search, colours ------------------------------------------------------------------------------

function search() {
  const word = $("search").value.trim().toLowerCase();
  state.found = word || null;
  if (!word) { forget(); return; }
  let total = 0;
  const lists = state.plans.flatMap((p) => {
    const hits = p.kernels.map((k, i) => [k, i]).filter(([, i]) => p.words[i].includes(word));
    total += hits.length;
    const more = hits.length - MOST_FOUND;
    return [el("h3", {}, `${hits.length} at ${p.name}`), kernelList(p, hits.slice(0, MOST_FOUND)),
      more > 0 ? el("p", { class: "soft" }, `and ${more} more`) : null].filter(Boolean);
  });
  state.chosen = null; state.layer = null;
  fill("Search results", el("h2", {}, `Kernels with “${word}”`), ...lists);
  redraw();
  say(`${total} kernels found`);
}

// Black or white, whatever stands out more: on any colour by 4.5 to 1 at least.
function luminance(colour) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}
const onto = (colour) => (luminance(colour) > 0.179 ? "#000000" : "#ffffff");

let ink = {};
function colours() {
  const style = getComputedStyle(document.documentElement);
  ink = Object.fromEntries(["ink", "soft", "edge", "mark", "reads", "feeds", ...Object.keys(BOUNDS), ...WORKS]
    .map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  const byWork = $("colour").value === "work";
  $("legend").replaceChildren(...(byWork ? WORKS : Object.keys(BOUNDS)).map((key) => el("li", {},
    el("i", { style: `background: ${ink[key]}` }), byWork ? key : BOUNDS[key])),
  el("li", {}, el("i", { style: `background: ${ink.reads}` }), "reads from"),
  el("li", {}, el("i", { style: `background: ${ink.feeds}` }), "is read by"));
  redraw();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  colours();
}

// The fused plan first; the other while that can be looked at.
async function arrange() {
  for (const plan of [...state.plans].reverse()) {
    plan.arrange($("size").value);
    await new Promise((done) => setTimeout(done));
    document.documentElement.dataset.drawn ??= String(Math.round(performance.now()));
  }
}

async function start() {
  if (!("DecompressionStream" in window))
    throw new Error("this browser cannot unpack it, which those of 2023 and later can");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  const d = state.data = await unpacked("data");
  $("title").textContent = `${d.program} at ${d.fusion}${d.target.cpu ? `, for ${d.target.cpu}` : ""}`;
  state.plans = d.plans.map((plan, i) => new Plan(plan, i));
  if (state.plans.some((p) => p.kernels.some((k) => k.seconds !== undefined)))
    $("size").append(el("option", { value: "seconds" }, "time"));
  $("plans").replaceChildren(...state.plans.map((p) => p.figure));
  colours();
  overview();
  tables();
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (e) => {
    if (e.key !== "Enter") return;
    e.preventDefault();  // it would press what gets the focus
    ($("details").querySelector(".link") ?? $("details")).focus();
  });
  $("colour").addEventListener("change", colours);
  $("size").addEventListener("change", arrange);
  $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("help").addEventListener("click", () => {
    $("keys").hidden = !$("keys").hidden;
    $("help").setAttribute("aria-expanded", !$("keys").hidden);
  });
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
  new ResizeObserver(() => state.plans.forEach((p) => p.fit())).observe($("plans"));
  document.addEventListener("keydown", (e) => {
    const typing = e.target instanceof HTMLInputElement;
    if (e.key === "/" && !typing) { $("search").focus(); e.preventDefault(); }
    if (e.key === "Escape") { $("search").value = ""; state.found = null; forget(); }
  });
  await arrange();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

start().catch((error) => {
  $("failed").textContent = `This page cannot be shown: ${error.message}.`;
  $("failed").hidden = false;
  throw error;
});
