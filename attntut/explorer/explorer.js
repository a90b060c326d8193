// Draws the panels of an explorer, in Jupyter (anywidget calls `render`) and on a static page (`upgrade`).
// The two differ only in where a state comes from: from the kernel, or from the data that the page carries.

const SVG = "http://www.w3.org/2000/svg";
const VIRIDIS = "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725";
const DIVERGING = "00456e 2a76a8 76aacf bdd6e8 f7f7f7 f6cdb0 e69460 c5602a 8a3800";
const FONT = 12; // pixels, whatever the width: nothing is scaled
const LEAST = 9; // before a name is dropped
const narrow = matchMedia("(max-width: 40rem)"); // explorer.css asks the same
const lying = matchMedia("(max-height: 30rem)"); // a phone on its side
const LOADED = Math.random().toString(36).slice(2, 8); // Jupyter loads this module once for each widget
let serial = 0;
const unique = () => `attntut-${LOADED}-${++serial}`;

// -- numbers, rounded by Python; attntut/explorer/rounding.py has the same `show` -------------------------------------

// The text of a number of so many decimals or, where they are null, of so many significant digits.
export function show(value, decimals, digits) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  const power = +value.toExponential(9).split("e")[1]; // of the leading digit
  const places = decimals ?? (value ? digits - 1 - power : 0);
  if (!value && places > 6) return "0";
  if (power < -5 || (power > 6 && places < 0)) return scientific(value, power + places);
  return value.toFixed(Math.max(0, places)).replace("-", "−");
}

function scientific(value, places) {
  const [mantissa, exponent] = value.toExponential(Math.max(0, places)).split("e");
  return (mantissa + "×10" + superscript(+exponent)).replace("-", "−");
}

const superscript = (n) => [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");

const numbers = (field) => field.values.map(Number); // some are strings: "NaN", "Infinity"
const textOf = ({ values, decimals, digits }, k) => show(Number(values[k]), decimals, digits);

// -- the page's data: JSON of attntut/explorer/grid.py, zlib, base64 -------------------------------------------------

async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

// -- small tools ------------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text; // a live region speaks only of what changed
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const short = (text, length = 11) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const withUnit = (text, unit) => (unit ? `${text} ${unit}` : text);
const titled = (label, unit) => (unit ? (label ? `${label} (${unit})` : unit) : label);

let ruler;
const widths = new Map();
function textWidth(text) {
  if (!ruler) {
    ruler = document.createElement("canvas").getContext("2d");
    ruler.font = `${FONT}px system-ui, sans-serif`;
  }
  if (!widths.has(text)) widths.set(text, ruler.measureText(text).width * 1.04 + 1);
  return widths.get(text);
}
const widest = (texts) => Math.max(0, ...texts.map(textWidth));

function table(stops) {
  const colors = stops.split(" ").map((h) => [0, 2, 4].map((k) => parseInt(h.slice(k, k + 2), 16)));
  return Array.from({ length: 256 }, (_, k) => {
    const t = (k / 255) * (colors.length - 1);
    const i = Math.min(Math.floor(t), colors.length - 2);
    return colors[i].map((c, j) => Math.round(c + (colors[i + 1][j] - c) * (t - i)));
  });
}
const TABLES = { false: table(VIRIDIS), true: table(DIVERGING) };

// The next of 1, 2, 5, 10, 20, …
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((m) => m * power >= least);
}

// Round ticks between two ends, about `count` of them.
function linearTicks(low, high, count) {
  const step = roundStep((0.999 * (high - low)) / Math.max(1, count));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) ticks.push(k * step);
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const name = (v) => {
    if (Math.abs(v) < step * 1e-6) return "0";
    if (largest < 1e-3 || largest >= 1e6) return scientific(v, places + Math.floor(Math.log10(Math.abs(v)) + 1e-9));
    return v.toFixed(places).replace("-", "−");
  };
  return ticks.map((value) => ({ value, text: name(value) }));
}

function logTicks(low, high, count) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(2, count)));
  const ticks = [];
  const factors = last - first < 2 ? [1, 2, 5] : [1];
  for (let e = first - 1; e <= last; e++) {
    for (const f of factors) {
      const value = f * 10 ** e;
      if (value < low * 0.999 || value > high * 1.001 || (f === 1 && (e - first) % every)) continue;
      const small = e > -4 && e < 5;
      ticks.push({ value, text: small ? String(+value.toPrecision(1)) : (f > 1 ? f + "×" : "") + "10" + superscript(e) });
    }
  }
  return ticks;
}

// From values to pixels. Without given ends, the ends are round.
function axis(values, low, high, scale, from, to, count, round = true) {
  const log = scale === "log";
  let a = low ?? Infinity;
  let b = high ?? -Infinity;
  for (const v of values) {
    if (!Number.isFinite(v) || (log && v <= 0)) continue;
    if (low == null && v < a) a = v;
    if (high == null && v > b) b = v;
  }
  if (!Number.isFinite(a)) a = Number.isFinite(b) ? (log ? b / 10 : b - 1) : log ? 0.1 : 0;
  if (!Number.isFinite(b)) b = log ? a * 10 : a + 1;
  if (!(b > a)) [a, b] = log ? [a / 2, a * 2] : [a - (Math.abs(a) || 1) / 2, a + (Math.abs(a) || 1) / 2];
  if (round && !log) {
    const ticks = linearTicks(a, b, count);
    const step = ticks.length > 1 ? ticks[1].value - ticks[0].value : 0;
    if (step && low == null) a = Math.floor(a / step + 1e-6) * step;
    if (step && high == null) b = Math.ceil(b / step - 1e-6) * step;
  } else if (round) {
    if (low == null) a /= 1.25;
    if (high == null) b *= 1.25;
  }
  const f = log ? Math.log : (v) => v;
  const slope = (to - from) / (f(b) - f(a));
  const place = (v) => (log && v <= 0 ? NaN : from + (f(v) - f(a)) * slope);
  return { low: a, high: b, place, ticks: (log ? logTicks : linearTicks)(a, b, count) };
}

// -- views: one for each kind of panel --------------------------------------------------------------------------------

class NumberView {
  constructor(panel) {
    const part = (name) => (this[name] = make("span", { class: `ax-${name}` }));
    const name = make("span", { class: "ax-name" }, panel.name);
    const left = make("span", {}, part("value"), " ", part("unit"), " ", part("measured"));
    this.right = make("span", {}, part("predicted"), " ", part("formula"));
    const pair = make("span", { class: "ax-pair" }, left, " ", this.right);
    this.node = make("div", { class: "ax-number", role: "status", "aria-atomic": "true", "data-panel": panel.name, "data-kind": panel.kind }, name, " ", pair);
  }

  update(panel) {
    const { value, unit, predicted } = panel;
    say(this.value, value);
    say(this.unit, unit);
    say(this.predicted, predicted ?? "");
    say(this.measured, predicted ? "measured" : "");
    say(this.formula, predicted ? "predicted" : "");
    this.right.hidden = !predicted;
  }
}

class PlotView {
  constructor(panel) {
    const id = unique();
    this.label = make("p", { class: "ax-label" });
    this.legend = make("p", { class: "ax-legend", "aria-hidden": "true" });
    this.base = shape("g");
    this.cursorLayer = shape("g", { class: "ax-cursor" });
    this.svg = shape("svg", { "aria-hidden": "true", focusable: "false" }, this.base, this.cursorLayer);
    this.plot = make("div", { class: "ax-plot", tabindex: "0", role: "application", "aria-describedby": id }, this.svg);
    this.readout = make("p", { class: "ax-readout", id, "aria-live": "polite", "aria-atomic": "true" });
    const name = make("p", { class: "ax-name" }, panel.name);
    const head = make("div", { class: "ax-head" }, name, this.label, this.legend);
    this.node = make("div", { class: "ax-panel", "data-panel": panel.name, "data-kind": panel.kind }, head, this.plot, this.readout);
    this.cursor = null; // where the pointer or the keyboard is
    this.pinned = null; // where a click or the keyboard left it
    this.listen();
  }

  listen() {
    const spot = (event) => {
      const box = this.plot.getBoundingClientRect();
      return this.pick(event.clientX - box.left, event.clientY - box.top);
    };
    this.plot.addEventListener("pointermove", (event) => this.point(spot(event) ?? this.pinned));
    this.plot.addEventListener("pointerdown", (event) => {
      this.pinned = spot(event);
      this.point(this.pinned);
    });
    this.plot.addEventListener("pointerleave", () => this.point(this.pinned));
    this.plot.addEventListener("focus", () => {
      if (this.pinned || !this.plot.matches(":focus-visible")) return;
      this.pinned = this.first();
      this.point(this.pinned);
    });
    this.plot.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Escape") this.pinned = null;
      else {
        const next = this.pinned ? this.move(event.key, this.pinned) : event.key.startsWith("Arrow") ? this.first() : null;
        if (!next) return;
        this.pinned = next;
      }
      event.preventDefault();
      this.point(this.pinned);
    });
  }

  point(cursor) {
    this.cursor = cursor;
    this.cursorLayer.replaceChildren(...(cursor ? this.mark(cursor) : []));
    say(this.readout, cursor ? this.read(cursor) : this.hint);
    this.readout.classList.toggle("is-hint", !cursor);
  }

  update(panel) {
    this.panel = panel;
    this.take();
    this.layout();
  }

  layout() {
    this.width ||= Math.floor(this.plot.clientWidth);
    if (!this.width || !this.panel) return;
    this.plot.setAttribute("aria-label", this.describe());
    say(this.label, this.caption());
    this.base.replaceChildren(...this.draw(this.width));
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("height", this.height);
    if (this.pinned) this.pinned = this.keep(this.pinned);
    this.point(this.cursor ? this.keep(this.cursor) : null);
  }

  // Names along the bottom: level, or slanted where words do not fit.
  nameAxis(names, left, cell, y, xlabel, width) {
    const texts = names.map((n) => short(n));
    const level = fit(texts, cell, true);
    const slanted = level.step > 1 && cell > LEAST + 1 && names.some((n) => n.length > 1 && !/^[−-]?[\d.]+$/.test(n));
    const { size, step, ranks } = slanted ? { size: Math.min(FONT, cell - 1), step: 1, ranks: 1 } : level;
    const out = texts.flatMap((text, k) => {
      if (k % step) return [];
      const x = left + (k + 0.5) * cell;
      const slant = { transform: `rotate(-40 ${x + 3} ${y + 13})`, "text-anchor": "end", x: x + 4, y: y + 14 };
      return [word(text, size, slanted ? slant : { "text-anchor": "middle", x, y: y + 5 + size + (k % ranks) * (size + 1) })];
    });
    const depth = !names.some(Boolean) ? 4 : slanted ? (widest(texts) * 0.66 * size) / FONT + 18 : 9 + ranks * (FONT + 1);
    if (xlabel) out.push(shape("text", { class: "ax-title", x: left + width / 2, y: y + depth + 13, "text-anchor": "middle" }, xlabel));
    this.height = y + depth + (xlabel ? 19 : 2);
    return out;
  }

  numberAxis(x, left, width, y, xlabel) {
    const out = [];
    let last = -Infinity;
    for (const { value, text } of x.ticks) {
      const at = x.place(value);
      const half = textWidth(text) / 2;
      if (at - half < last + 8 || at > left + width + 1) continue;
      last = at + half;
      out.push(shape("line", { class: "ax-tick", x1: at, x2: at, y1: y, y2: y + 4 }));
      out.push(shape("text", { x: at, y: y + 17, "text-anchor": "middle" }, text));
    }
    if (xlabel) out.push(shape("text", { class: "ax-title", x: left + width / 2, y: y + 35, "text-anchor": "middle" }, xlabel));
    this.height = y + (xlabel ? 42 : 24);
    return out;
  }

  valueAxis(y, left, width) {
    const out = [];
    for (const { value, text } of y.ticks) {
      const at = y.place(value);
      out.push(shape("line", { class: "ax-grid", x1: left, x2: left + width, y1: at, y2: at }));
      out.push(shape("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, text));
    }
    return out;
  }

  frame(values, low, high, scale, W) {
    const top = 8;
    const tall = narrow.matches ? clamp(W * 0.4, 110, 150) : clamp(W * 0.56, 170, 240);
    const y = axis(values, low, high, scale, top + tall, top, 5);
    const left = Math.ceil(widest(y.ticks.map((t) => t.text)) + 8);
    return { top, bottom: top + tall, left, wide: W - left - 12, y };
  }

  swatches(series, styles, offset = 0) {
    const named = series.map((name, k) => [name, styles[k], k + offset]).filter(([name]) => name);
    this.legend.replaceChildren(
      ...named.map(([name, style, k]) => {
        const mark = style === "points" ? shape("circle", { cx: 11, cy: 6, r: 3.6, class: `ax-s${k % 6}` }) : shape("path", { d: "M1 6H21", class: `ax-curve ax-s${k % 6} is-${style}` });
        return make("span", {}, shape("svg", { width: 22, height: 12 }, mark), name);
      }),
    );
  }
}

// How names fit where each has `pitch` pixels: in smaller type; letters in two ranks; else only some.
function fit(names, pitch, across) {
  const letters = names.every((n) => n.length < 2);
  const need = across ? widest(names) / FONT : 1; // pixels, of one pixel of type
  const size = (ranks) => Math.min(FONT, (ranks * pitch - (letters || !across ? 1 : 6)) / need);
  for (const ranks of letters && names.length <= 24 ? [1, 2] : [1]) if (size(ranks) >= LEAST) return { size: size(ranks), step: 1, ranks };
  return { size: FONT, step: roundStep(Math.ceil((need * FONT + (across ? 8 : 2)) / pitch)), ranks: 1 };
}

const word = (text, size, attributes) => shape("text", { style: `font-size: ${size}px`, ...attributes }, text);

class HeatMapView extends PlotView {
  role = "heat map";
  hint = "Point at a cell, or use arrow keys.";

  constructor(panel) {
    super(panel);
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.plot.prepend(this.canvas);
    this.gradient = unique();
  }

  take() {
    this.values = numbers(this.panel.values);
    this.size = [this.panel.rows.length, this.panel.columns.length];
    this.paint();
  }

  paint() {
    const [rows, columns] = this.size;
    const { low, high, diverging } = this.panel;
    const colors = TABLES[diverging];
    const scale = 255 / (high - low);
    this.canvas.width = columns;
    this.canvas.height = rows;
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    this.values.forEach((value, k) => {
      if (!Number.isFinite(value)) return; // transparent: the hatching behind shows
      image.data.set([...colors[clamp(Math.round((value - low) * scale), 0, 255)], 255], 4 * k);
    });
    context.putImageData(image, 0, 0);
  }

  caption() { return this.panel.unit; }

  describe() {
    const [rows, columns] = this.size;
    return `${this.panel.name}: ${rows} × ${columns}, ${this.panel.ylabel} down, ${this.panel.xlabel} across`;
  }

  draw(W) {
    const [rows, columns] = this.size;
    const { low, high, xlabel, ylabel } = this.panel;
    const names = this.panel.rows.map((n) => short(n));
    const bar = linearTicks(low, high, 4);
    const right = Math.ceil(24 + widest(bar.map((t) => t.text)) + 5);
    const top = 7;
    let left, wide, tall, down;
    for (const ranks of [1, 2]) {
      left = Math.ceil((ylabel ? 20 : 0) + ranks * (widest(names) + 2) + 6);
      wide = Math.max(60, W - left - right);
      tall = clamp((wide * rows) / columns, Math.min(90, rows * 30), narrow.matches ? 224 : Math.max(wide, 200));
      down = fit(names, tall / rows, false);
      if (down.ranks <= ranks) break;
    }
    const cw = wide / columns;
    const ch = tall / rows;
    this.box = { left, top, wide, tall, cw, ch };
    Object.assign(this.canvas.style, { left: `${left}px`, top: `${top}px`, width: `${wide}px`, height: `${tall}px` });
    const out = [];
    if (cw >= 9 && ch >= 9) {
      let lines = "";
      for (let k = 1; k < columns; k++) lines += `M${left + k * cw} ${top}v${tall}`;
      for (let k = 1; k < rows; k++) lines += `M${left} ${top + k * ch}h${wide}`;
      out.push(shape("path", { class: "ax-cells", d: lines }));
    }
    names.forEach((name, k) => {
      const x = left - 6 - (k % down.ranks) * (widest(names) + 2);
      const y = top + (k + 0.5) * ch + down.size / (name === "␣" ? 8 : 3); // it hangs below the line
      if (k % down.step === 0) out.push(word(name, down.size, { x, y, "text-anchor": "end" }));
    });
    const middle = top + tall / 2;
    if (ylabel) out.push(shape("text", { class: "ax-title", x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, ylabel));
    out.push(...this.nameAxis(this.panel.columns, left, cw, top + tall, xlabel, wide));
    out.push(...this.colorBar(left + wide + 12, top, tall, bar));
    return out;
  }

  colorBar(x, top, tall, ticks) {
    const { low, high, diverging } = this.panel;
    const stops = Array.from({ length: 17 }, (_, k) => shape("stop", { offset: k / 16, "stop-color": `rgb(${TABLES[diverging][Math.round((k * 255) / 16)]})` }));
    const gradient = shape("linearGradient", { id: this.gradient, x1: 0, x2: 0, y1: 1, y2: 0 }, ...stops);
    const out = [gradient, shape("rect", { x, y: top, width: 10, height: tall, rx: 2, fill: `url(#${this.gradient})` })];
    for (const { value, text } of ticks) {
      const at = top + tall * (1 - (value - low) / (high - low));
      out.push(shape("text", { x: x + 14, y: clamp(at + 4, top + 9, top + tall), "text-anchor": "start" }, text));
    }
    return out;
  }

  pick(x, y) {
    const { left, top, cw, ch } = this.box;
    const [rows, columns] = this.size;
    const i = Math.floor((y - top) / ch);
    const j = Math.floor((x - left) / cw);
    return i >= 0 && j >= 0 && i < rows && j < columns ? [i, j] : null;
  }

  first() { return [0, 0]; }
  keep([i, j]) { return [clamp(i, 0, this.size[0] - 1), clamp(j, 0, this.size[1] - 1)]; }

  move(key, [i, j]) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9], PageUp: [-1e9, 0], PageDown: [1e9, 0] };
    const step = steps[key];
    return step && this.keep([i + step[0], j + step[1]]);
  }

  mark([i, j]) {
    const { left, top, cw, ch } = this.box;
    const place = { x: left + j * cw - 0.5, y: top + i * ch - 0.5, width: cw + 1, height: ch + 1, rx: 1.5 };
    return [shape("rect", { class: "ax-halo", ...place }), shape("rect", { class: "ax-ring", ...place })];
  }

  read([i, j]) {
    const { xlabel, ylabel, rows, columns, unit } = this.panel;
    return `${ylabel} ${rows[i]}, ${xlabel} ${columns[j]}: ${withUnit(textOf(this.panel.values, i * columns.length + j), unit)}`;
  }
}

// The path through points; a gap where there is none.
function trace(xs, ys) {
  let pen = "M";
  return ys.reduce((path, y, k) => {
    const gap = !Number.isFinite(y);
    const step = gap ? "" : `${pen}${xs[k].toFixed(1)} ${clamp(y, -4000, 4000).toFixed(1)}`;
    pen = gap ? "M" : "L";
    return path + step;
  }, "");
}

// What lines, bars and histograms share: one cursor that runs along the horizontal axis.
class ChartView extends PlotView {
  hint = "Point at a bar, or use arrow keys.";

  center(k) { return this.box.left + (k + 0.5) * this.cell; }

  pick(x, y) {
    if (!this.box || x < this.box.left - 12 || x > this.box.left + this.box.wide + 12 || y > this.box.bottom + 24) return null;
    let best = 0;
    for (let k = 1; k < this.count; k++) if (Math.abs(this.center(k) - x) < Math.abs(this.center(best) - x)) best = k;
    return best + 1; // never 0, so that a cursor is true
  }

  first() { return 1; }
  keep(cursor) { return clamp(cursor, 1, this.count); }

  move(key, cursor) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -1e9, End: 1e9 }[key];
    return step && this.keep(cursor + step);
  }

  caption() { return titled(this.panel.ylabel, this.panel.unit); }

  clip(...children) {
    const { left, top, wide, bottom } = this.box;
    return shape("svg", { x: left - 5, y: top - 5, width: wide + 10, height: bottom - top + 10, viewBox: `${left - 5} ${top - 5} ${wide + 10} ${bottom - top + 10}` }, ...children);
  }

  dot(x, y, k) {
    if (!Number.isFinite(y) || y < this.box.top - 1 || y > this.box.bottom + 1) return [];
    return [shape("circle", { class: `ax-dot ax-s${k % 6}`, cx: x, cy: y, r: 5 })];
  }

  band(k) {
    const { left, top, bottom } = this.box;
    return shape("rect", { class: "ax-band", x: left + k * this.cell, width: this.cell, y: top, height: bottom - top });
  }
}

class LinesView extends ChartView {
  role = "line chart";
  hint = "Point at a line, or use arrow keys.";

  take() {
    this.count = this.panel.x.values.length;
    this.swatches(this.panel.series, this.panel.styles);
  }

  describe() {
    const { xlabel, series } = this.panel;
    const names = series.filter(Boolean).join(", ");
    return `${this.panel.name}: ${names ? names + "; " : ""}${this.count} points${xlabel ? " over " + xlabel : ""}`;
  }

  draw(W) {
    const { low, high, xscale, yscale, xlabel, series, styles } = this.panel;
    const n = this.count;
    const [xs, ys] = [numbers(this.panel.x), numbers(this.panel.y)];
    const frame = this.frame(ys, low, high, yscale, W);
    const { left, wide, bottom, y } = (this.box = frame);
    const pad = n > 1 ? (styles.includes("points") ? 6 : 0) : wide / 2;
    const x = axis(xs, null, null, xscale, left + pad, left + wide - pad, clamp(wide / 55, 3, 7), false);
    this.px = xs.map(x.place);
    this.py = ys.map(y.place);
    const curves = [];
    series.forEach((_, s) => {
      const look = `ax-s${s % 6}`;
      const ys = this.py.slice(s * n, (s + 1) * n);
      const path = trace(this.px, ys);
      if (styles[s] === "points" || n === 1) curves.push(...ys.flatMap((y, k) => (Number.isFinite(y) ? [shape("circle", { class: look, cx: this.px[k], cy: clamp(y, -4000, 4000), r: n > 60 ? 2.2 : 3.4 })] : [])));
      if (styles[s] !== "points" && path) curves.push(shape("path", { class: `ax-curve ${look} is-${styles[s]}`, d: path }));
    });
    return [...this.valueAxis(y, left, wide), ...this.numberAxis(x, left, wide, bottom, xlabel), this.clip(...curves)];
  }

  center(k) { return this.px[k]; }

  mark(cursor) {
    const k = cursor - 1;
    const guide = shape("line", { class: "ax-guide", x1: this.px[k], x2: this.px[k], y1: this.box.top, y2: this.box.bottom });
    return [guide, ...this.panel.series.flatMap((_, s) => this.dot(this.px[k], this.py[s * this.count + k], s))];
  }

  read(cursor) {
    const k = cursor - 1;
    const { x, y, series, xlabel, ylabel, unit } = this.panel;
    const parts = series.map((name, s) => `${name || ylabel || "value"} ${withUnit(textOf(y, s * this.count + k), unit)}`);
    return `${xlabel || "x"} ${trim(textOf(x, k))}: ${parts.join(", ")}`;
  }
}

const trim = (text) => (text.includes(".") && !text.includes("×") ? text.replace(/\.?0+$/, "") : text);

class BarsView extends ChartView {
  role = "bar chart";

  take() { this.count = this.panel.names.length; }
  describe() { return `${this.panel.name}: ${this.count} bars`; }

  draw(W) {
    const { low, high, yscale, xlabel, names } = this.panel;
    const values = numbers(this.panel.values);
    const zero = yscale === "log" || low != null ? [] : [0];
    const { left, wide, bottom, y } = (this.box = this.frame([...values, ...zero], low, high, yscale, W));
    const cell = (this.cell = wide / this.count);
    const ground = yscale === "log" ? bottom : y.place(clamp(0, y.low, y.high));
    this.py = values.map(y.place);
    const bars = this.py.flatMap((at, k) => {
      if (!Number.isFinite(at)) return [];
      const gap = Math.min(cell * 0.18, 8);
      return [shape("rect", { class: "ax-s0", x: left + k * cell + gap, width: cell - 2 * gap, y: Math.min(at, ground), height: Math.max(Math.abs(ground - at), 0.75), rx: 1.5 })];
    });
    const line = shape("line", { class: "ax-tick", x1: left, x2: left + wide, y1: ground, y2: ground });
    return [...this.valueAxis(y, left, wide), this.clip(...bars), line, ...this.nameAxis(names, left, cell, bottom, xlabel, wide)];
  }

  mark(cursor) { return [this.band(cursor - 1)]; }

  read(cursor) {
    const { values, names, xlabel, unit } = this.panel;
    const name = names[cursor - 1];
    return `${xlabel ? xlabel + " " : ""}${name}: ${withUnit(textOf(values, cursor - 1), unit)}`;
  }
}

class HistogramView extends ChartView {
  role = "histogram";

  take() {
    this.count = this.panel.density.values.length;
    this.swatches(this.panel.series, this.panel.series.map(() => "line"), 1);
  }

  describe() {
    const { series, xlabel } = this.panel;
    return `${this.panel.name}: histogram of ${xlabel || "values"}, ${this.count} bars${series.length ? ", with " + series.join(", ") : ""}`;
  }

  draw(W) {
    const { xlabel, series } = this.panel;
    const n = this.count;
    const [edges, values, curves] = ["edges", "density", "curves"].map((name) => numbers(this.panel[name]));
    const { left, wide, bottom, y } = (this.box = this.frame([...values, ...curves], 0, null, "linear", W));
    const x = axis([edges[0], edges[n]], null, null, "linear", left, left + wide, clamp(wide / 55, 3, 7), false);
    const points = (this.points = curves.length / Math.max(1, series.length));
    this.cell = wide / n;
    this.cy = curves.map(y.place);
    const bars = values.map((v, k) => shape("rect", { class: "ax-s0 ax-bin", x: (left + k * this.cell + 0.4).toFixed(2), width: Math.max(this.cell - 0.8, 0.5).toFixed(2), y: y.place(v).toFixed(2), height: Math.max(0, bottom - y.place(v)).toFixed(2) }));
    const paths = series.map((_, s) => {
      const path = trace(Array.from({ length: points }, (_, k) => left + (k / (points - 1)) * wide), this.cy.slice(s * points, (s + 1) * points));
      return shape("path", { class: `ax-curve ax-s${(s + 1) % 6} is-line`, d: path });
    });
    return [...this.valueAxis(y, left, wide), this.clip(...bars, ...paths), ...this.numberAxis(x, left, wide, bottom, xlabel)];
  }

  middle(s, k) {
    const each = (this.points - 1) / this.count;
    return s * this.points + k * each + each / 2;
  }

  mark(cursor) {
    const k = cursor - 1;
    return [this.band(k), ...this.panel.series.flatMap((_, s) => this.dot(this.center(k), this.cy[this.middle(s, k)], s + 1))];
  }

  read(cursor) {
    const k = cursor - 1;
    const { edges, density, curves, series, xlabel, ylabel, unit } = this.panel;
    const parts = series.map((name, s) => `, ${name} ${withUnit(textOf(curves, this.middle(s, k)), unit)}`);
    return `${xlabel || "from"} ${textOf(edges, k)} to ${textOf(edges, k + 1)}: ${ylabel} ${withUnit(textOf(density, k), unit)}${parts.join("")}`;
  }
}

const VIEWS = { heat_map: HeatMapView, lines: LinesView, bars: BarsView, histogram: HistogramView, number: NumberView };

// All panels of one explorer. `update` draws a state; the nodes stay, and with them the focus and the cursor.
class Panels {
  constructor(root) {
    this.numbers = make("div", { class: "ax-numbers" });
    this.plots = make("div", { class: "ax-plots" });
    this.error = make("div", { class: "ax-error", role: "alert" });
    root.append(this.error, this.numbers, this.plots);
    this.root = root;
    this.views = new Map();
    this.observer = new ResizeObserver(() => {
      this.arrange();
      for (const view of this.views.values()) {
        const width = Math.floor(view.plot?.clientWidth ?? 0);
        if (width && width !== view.width) {
          view.width = width;
          view.layout();
        }
      }
    });
    this.observer.observe(root);
  }

  update(panels) {
    for (const panel of panels) {
      let view = this.views.get(panel.name);
      if (!view) {
        view = new VIEWS[panel.kind](panel);
        if (view.role) view.plot.setAttribute("aria-roledescription", view.role);
        (panel.kind === "number" ? this.numbers : this.plots).append(view.node);
        this.views.set(panel.name, view);
      }
    }
    this.arrange();
    for (const panel of panels) {
      const view = this.views.get(panel.name);
      if (view.shown !== panel) view.update(panel); // what a control does not change is not drawn again
      view.shown = panel;
    }
  }

  // One plot, or a phone on its side: what moves the plots stands beside them.
  arrange() {
    const plots = this.plots.children.length;
    this.root.classList.toggle("is-beside", plots === 1 || (plots > 1 && lying.matches));
  }

  fail(message, details) {
    this.error.replaceChildren();
    if (message) this.error.append(make("strong", {}, message));
    if (details) this.error.append(make("details", {}, make("summary", {}, "Traceback"), make("pre", {}, details)));
    this.root.classList.toggle("is-stale", Boolean(message));
  }
}

// -- the static page --------------------------------------------------------------------------------------------------

// One control of a page; `chosen` is called with the index of an option.
function control(spec, chosen) {
  const id = unique();
  const label = make("label", { for: id, class: "ax-control-name" }, spec.label);
  const box = make("div", { class: `ax-control is-${spec.kind}`, "data-control": spec.name });
  if (spec.kind === "slider") {
    const input = make("input", { id, type: "range", min: 0, max: spec.labels.length - 1, step: 1 });
    const output = make("output", { for: id, "aria-live": "off" });
    input.addEventListener("input", () => chosen(+input.value));
    box.append(label, output, input);
    const put = (k) => {
      input.value = k;
      input.setAttribute("aria-valuetext", spec.labels[k]);
      say(output, spec.labels[k]);
      input.style.setProperty("--ax-done", `${(100 * k) / Math.max(1, spec.labels.length - 1)}%`);
    };
    return { box, put };
  }
  if (spec.kind === "select") {
    const input = make("select", { id }, ...spec.labels.map((text, k) => make("option", { value: k }, text)));
    input.addEventListener("change", () => chosen(+input.value));
    box.append(label, input);
    return { box, put: (k) => (input.value = k) };
  }
  if (spec.kind === "check") {
    const input = make("input", { id, type: "checkbox" });
    input.addEventListener("change", () => chosen(+input.checked));
    label.prepend(input);
    box.append(label);
    return { box, put: (k) => (input.checked = Boolean(k)) };
  }
  const buttons = spec.labels.map((text) => make("button", { type: "button" }, text));
  buttons.forEach((b, j) => b.addEventListener("click", () => chosen(j)));
  box.append(make("span", { class: "ax-control-name", id }, spec.label));
  box.append(make("div", { class: "ax-buttons", role: "group", "aria-labelledby": id }, ...buttons));
  return { box, put: (k) => buttons.forEach((b, j) => b.setAttribute("aria-pressed", String(j === k))) };
}

class PageExplorer {
  constructor(figure, header) {
    this.header = header;
    this.choice = header.controls.map((c) => c.start);
    const root = make("div", { class: "ax-live" });
    this.controls = header.controls.map((spec, k) =>
      control(spec, (index) => {
        this.choice[k] = index;
        this.redraw();
      }),
    );
    figure.querySelector(".attntut-picture").after(root);
    if (this.controls.length) {
      const reset = make("button", { type: "button", class: "ax-reset" }, "Reset");
      reset.addEventListener("click", () => this.reset());
      if (this.controls.length > 1) figure.querySelector(".attntut-title").after(reset);
      root.append(make("div", { class: "ax-controls" }, ...this.controls.map((c) => c.box)));
    }
    figure.classList.add("is-live");
    this.panels = new Panels(root);
    this.redraw();
  }

  // Where the state is on the grid; the last control varies fastest.
  get index() { return this.header.controls.reduce((at, c, k) => at * c.labels.length + this.choice[k], 0); }

  // Choose the option of one control by its place; the same as moving it.
  set(name, index) {
    const k = this.header.controls.findIndex((c) => c.name === name);
    if (!(k >= 0 && index >= 0 && index < this.header.controls[k].labels.length)) throw new RangeError(`no option ${index} of ${name}`);
    this.choice[k] = index;
    this.redraw();
  }

  reset() {
    this.choice = this.header.controls.map((c) => c.start);
    this.redraw();
  }

  redraw() {
    this.controls.forEach((c, k) => c.put(this.choice[k]));
    this.panels.update(this.header.panels.map(({ states, of }) => states[of[this.index]]));
  }
}

async function upgrade(figure) {
  if (figure.dataset.upgraded) return;
  figure.dataset.upgraded = "true";
  if (typeof DecompressionStream === "undefined") {
    const advice = "The controls need a browser of 2023 or later: Chrome, Edge, Firefox 113 or Safari 16.4. The picture shows where they start.";
    figure.append(make("p", { class: "attntut-caption" }, advice));
    return;
  }
  const data = JSON.parse(figure.querySelector(".attntut-data").textContent);
  figure.explorer = new PageExplorer(figure, await unpack(data));
}

// Every explorer of the page comes to life shortly before it comes into sight.
const awake = (entries) => entries.filter((e) => e.isIntersecting).forEach(({ target }) => upgrade(target));
const near = new IntersectionObserver(awake, { rootMargin: "600px" });
document.querySelectorAll("figure.attntut-explorer").forEach((figure) => near.observe(figure));

// -- Jupyter ----------------------------------------------------------------------------------------------------------

function render({ model, el }) {
  el.classList.add("attntut-explorer", "is-live");
  el.dataset.lmSuppressShortcuts = "true"; // the arrow keys are ours, not the notebook's
  const root = make("div", { class: "ax-live" });
  el.append(root);
  const panels = new Panels(root);
  const draw = () => {
    const state = model.get("state");
    panels.fail(state.error, state.traceback);
    panels.update(state.panels ?? []);
  };
  model.on("change:state", draw);
  draw();
  return () => {
    model.off("change:state", draw);
    panels.observer.disconnect();
  };
}

export default { render };
