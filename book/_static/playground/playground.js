// The playground's page: controls, curves and maps. A worker trains; what is chosen stands in the address.
(() => {
  "use strict";
  const root = document.querySelector(".playground");
  if (!root) return;
  const data = attntutData, engine = attntutEngine(), LETTERS = "ABC";
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // ----- what is chosen --------------------------------------------------------------------------------------------------

  const { shared: SHARED, own: OWN } = data.defaults;
  const CHOICES = {
    task: { digits: "digits, 16 patches", recall: "recall a value by its key", previous: "the previous character" },
    depth: data.sizes.n_layers, width: data.sizes.d_model, heads: data.sizes.n_heads,
    norm: { pre: "before each branch (pre)", post: "after each sum (post)", none: "none" },
    positions: { learned: "learned", sinusoidal: "sinusoidal", none: "none" },
    optimizer: { adam: "Adam", sgd: "SGD" },
    lr: [0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3], warmup: [0, 10, 50, 100, 200],
    soft_cap: { "": "none", 2: "2", 5: "5", 20: "20" },
    position_scale: { "": "as the scheme has it", 0.02: "0.02", 0.1: "0.1", 0.3: "0.3", 1: "1", 3: "3" },
  };
  const LABELS = { query_key: "query, key", value_output: "value, output", feed_forward: "feed-forward", embedding: "embedding" };
  let state, seenNumber = 0, last = null, shown = 0, playing = false, resumes = false;

  /** The state that an address names, like `task=digits&a=xavier_normal~query_key:8~norm:post&b=…`; null if it names none. */
  function parsed(text) {
    const given = new URLSearchParams(text), shared = { ...SHARED }, runs = [];
    for (const name of Object.keys(SHARED)) if (given.has(name)) shared[name] = read(given.get(name), SHARED[name]);
    for (const letter of LETTERS.toLowerCase()) {
      if (!given.has(letter)) continue;
      const [scheme, ...settings] = given.get(letter).split("~"), own = { ...OWN, scheme };
      for (const [name, value] of settings.map((each) => each.split(":"))) if (name in OWN) own[name] = read(value, OWN[name]);
      runs.push(own);
    }
    const fits = ["depth", "width", "heads"].every((each) => CHOICES[each].includes(shared[each])) && data.tasks[shared.task];
    return fits && runs.length && runs.every(isKnown) ? { shared, runs } : null;
  }

  function read(text, usual) {
    if (typeof usual === "boolean") return text === "true";
    return text !== "" && Number.isFinite(+text) ? +text : text;
  }

  const isKnown = (own) => data.schemes[own.scheme] && ["norm", "positions", "optimizer"].every((each) => own[each] in CHOICES[each])
    && own.lr > 0 && own.warmup >= 0
    && [...Object.keys(LABELS), "position_scale", "soft_cap"].every((each) => own[each] === null || own[each] > 0);

  function written({ shared, runs }) {
    const parts = Object.keys(SHARED).filter((name) => shared[name] !== SHARED[name]).map((name) => `${name}=${shared[name]}`);
    runs.forEach((own, i) => {
      const differs = Object.keys(OWN).filter((name) => name !== "scheme" && own[name] !== OWN[name] && own[name] !== null);
      parts.push(`${LETTERS[i].toLowerCase()}=${[own.scheme, ...differs.map((name) => `${name}:${own[name]}`)].join("~")}`);
    });
    return parts.join("&");
  }

  /** What the engine gets. */
  function settings() {
    const { task, depth, width, heads, seed } = state.shared;
    const runs = state.runs.map(({ scheme, query_key, value_output, feed_forward, embedding, ...own }) =>
      ({ ...own, start: { scheme, query_key, value_output, feed_forward, embedding } }));
    return { task, n_layers: depth, d_model: width, n_heads: heads, seed, runs };
  }

  // ----- the worker ------------------------------------------------------------------------------------------------------

  const source = `${attntutEngine}\n${attntutRuns}\nattntutRuns(attntutEngine()).serve(self);`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  let number = 0, waits = null;
  worker.onmessage = ({ data: message }) => {
    seenNumber = Math.max(seenNumber, message.number ?? 0);
    if (waits && seenNumber === number) send(waits);
    if (seenNumber < number) return; // it answers what was asked before
    last = message;
    playing = message.playing;
    requestAnimationFrame(draw);
  };
  worker.onerror = (event) => say(`The playground has stopped: ${event.message}`);

  /** Ask the worker; while it works on what was asked before, the last question waits. */
  function send(message) {
    if (number > seenNumber) {
      waits = { ...waits, ...message };
      return;
    }
    waits = null;
    number += 1;
    worker.postMessage({ ...message, number });
  }

  const address = () => history.replaceState(null, "", `#${written(state)}`);
  let writes = null;

  /** `isMoving`: a slider is; browsers refuse an address that changes many times a second. */
  function restart(isMoving = false) {
    last = null;
    clearTimeout(writes);
    if (isMoving) writes = setTimeout(address, 300);
    else address();
    root.classList.add("is-waiting");
    send({ settings: settings(), playing, shown });
  }

  // ----- building blocks of the page --------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
  const shape = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }
  const options = (choices) => (Array.isArray(choices) ? choices.map((each) => [each, `${each}`]) : Object.entries(choices));

  function select(label, choices, value, onchange, extra = {}) {
    const list = make("select", { ...extra, onchange: (event) => onchange(event.target.value) });
    for (const [key, text] of options(choices)) {
      list.append(make("option", { value: key, selected: `${key}` === `${value ?? ""}` }, text));
    }
    if (value !== null && list.value !== `${value}`) {
      list.append(make("option", { value, selected: true }, `${value}`)); // it came with the address
    }
    return make("label", { class: "pg-field" }, make("span", {}, label), list);
  }

  const digits = (value, places = 2) => {
    if (value === null || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return "∞";
    if (value === 0) return "0";
    if (Math.abs(value) < 1e4 && Math.abs(value) >= 1e-3) return `${+value.toPrecision(places)}`;
    return value.toExponential(1).replace(/e[+]?/, "e").replace("-", "−");
  };

  // ----- the controls ------------------------------------------------------------------------------------------------------

  const view = {}, opened = []; // the parts that change; which details are open
  const presets = [...document.querySelectorAll(".pg-preset")].map((button) => {
    const section = button.closest("section"), title = section.querySelector("h2, h3").firstChild.textContent;
    return { id: section.id, title, button, section, state: button.dataset.state };
  });

  function choose(text, id = "") {
    const found = parsed(text);
    if (!found) return false;
    state = found;
    playing = false;
    build(id);
    restart();
    return true;
  }

  function button(label, text, onclick, extra = {}) {
    return make("button", { type: "button", title: label, ...extra, onclick }, text);
  }

  function build(id = "") {
    const preset = presets.find((each) => each.id === id), { shared } = state;
    const change = (name) => (value) => {
      shared[name] = read(value, SHARED[name]);
      build();
      restart();
      root.querySelector(`[data-name="${name}"]`)?.focus();
    };
    view.play = button("Play (space)", "▶ Play", () => toggle(), { class: "pg-play" });
    view.step = make("span", { class: "pg-step" });
    view.notes = make("p", { class: "pg-question" }, preset ? text(preset) : "");
    view.loss = plot("Loss", "of each batch, in nats", true);
    view.tests = plot("Test accuracy", "share of the answers that are right", false);
    view.shown = make("div", { class: "pg-input" });
    view.runs = state.runs.map(runOf);
    const choice = (name) => select(name, CHOICES[name], shared[name], change(name), { "data-name": name });
    const questions = { "": "— your own —", ...Object.fromEntries(presets.map((each) => [each.id, each.title])) };
    const add = () => { state.runs.push({ ...state.runs.at(-1) }); build(); restart(); };
    root.replaceChildren(
      make("div", { class: "pg-top" }, select("A question to start with", questions, id, open, { "data-name": "preset" }), view.notes),
      make("div", { class: "pg-bar", role: "group", "aria-label": "Training" },
        view.play,
        button("One step (s)", "Step", oneStep),
        button("Back to the start (r)", "Reset", reset),
        button("Other weights and batches (n)", "New seed", newSeed),
        view.step),
      make("div", { class: "pg-shared", role: "group", "aria-label": "For all runs" },
        ...["task", "depth", "width", "heads"].map(choice)),
      make("div", { class: "pg-curves" }, view.loss.node, view.tests.node),
      view.shown,
      make("div", { class: "pg-runs" },
        ...view.runs.map((each) => each.node),
        ...(state.runs.length < 3 ? [button("Add a run", "+ Add a run beside", add, { class: "pg-add" })] : [])),
    );
  }

  const oneStep = () => send({ steps: 1, playing: false });
  const reset = () => { playing = false; restart(); };
  const newSeed = () => { state.shared.seed += 1; restart(); };
  const text = ({ section }) => section.querySelector("p").textContent;

  function open(id) {
    const preset = presets.find((each) => each.id === id);
    if (!preset) return;
    choose(preset.state, id);
    root.querySelector('[data-name="preset"]').focus();
  }

  function toggle(wanted = !playing) {
    playing = wanted;
    send({ playing });
    paintPlay();
  }
  const paintPlay = () => { view.play.textContent = playing ? "❚❚ Pause" : "▶ Play"; };

  /** The controls and results of one run. */
  function runOf(own, i) {
    const letter = LETTERS[i];
    const change = (name) => (value) => {
      own[name] = value === "" ? null : read(value, OWN[name]);
      if (name === "scheme") {
        for (const group of Object.keys(LABELS)) own[group] = null;
        own.norm = data.schemes[own.scheme].architecture[state.shared.depth - 1].norm ?? own.norm;
      }
      build();
      restart();
      root.querySelectorAll(".pg-run")[i].querySelector(`[data-name="${name}"]`)?.focus();
    };
    const field = (label, name) => select(label, CHOICES[name], own[name], change(name), { "data-name": name });
    const scheme = data.schemes[own.scheme], wants = scheme.architecture[state.shared.depth - 1].norm;
    const needs = Object.entries(scheme.needs).map(([need, reason]) => `${own.scheme} needs ${need}, because ${reason}.`);
    const gain = gains(own), gone = `Remove run ${letter}`, remove = () => { state.runs.splice(i, 1); build(); restart(); };
    const found = {
      numbers: make("p", { class: "pg-numbers" }), words: make("p", { class: "pg-words" }),
      maps: make("div", { class: "pg-maps" }), layers: make("table", { class: "pg-layers" }),
    };
    const isNormed = make("input", {
      type: "checkbox", "data-name": "qk_norm", checked: own.qk_norm, onchange: (event) => change("qk_norm")(`${event.target.checked}`),
    });
    const isOpen = (opened[i] ??= false), keep = (event) => { opened[i] = event.target.open; };
    const node = make("div", { class: `pg-run pg-run-${i}`, role: "group", "aria-label": `Run ${letter}` },
      make("div", { class: "pg-head" },
        make("span", { class: "pg-swatch", "aria-hidden": "true" }, letter),
        make("label", { class: "pg-field" }, make("span", {}, "start"), schemeList(own, change("scheme"))),
        ...(state.runs.length > 1 ? [button(gone, "×", remove, { class: "pg-remove", "aria-label": gone })] : [])),
      make("p", { class: "pg-why" }, wants && wants !== own.norm ? needs.join(" ") : scheme.why),
      make("p", { class: "pg-unit" }, "size of the weights, σ√fan_in"),
      ...Object.entries(LABELS).map(([group, label]) => slider(group, label, own, gain)),
      make("details", { open: isOpen, ontoggle: keep },
        make("summary", {}, "Architecture and optimizer"),
        make("div", { class: "pg-more" },
          field("norm", "norm"), field("positions", "positions"), field("their size", "position_scale"), field("soft-cap", "soft_cap"),
          field("optimizer", "optimizer"), field("rate", "lr"), field("warm-up steps", "warmup"),
          make("label", { class: "pg-check" }, isNormed, "QK-norm"))),
      found.numbers, found.words, found.maps,
      make("div", { class: "pg-scroll", tabindex: "0", role: "region", "aria-label": `Run ${letter}, layer by layer` }, found.layers));
    return { node, ...found };
  }

  /** The schemes by their families. */
  function schemeList(own, onchange) {
    const all = Object.entries(data.schemes), families = [...new Set(all.map(([, each]) => each.family))];
    const option = ([name]) => make("option", { value: name, selected: name === own.scheme }, name);
    const group = (family) => make("optgroup", { label: family }, ...all.filter(([, each]) => each.family === family).map(option));
    return make("select", { "data-name": "scheme", onchange: (event) => onchange(event.target.value) }, ...families.map(group));
  }

  /** The gain of each group as the scheme has it. */
  function gains(own) {
    const { task, depth, width, heads } = state.shared, about = data.tasks[task];
    const config = { ...about, task, d_model: width, n_heads: heads, n_layers: depth, norm: "none", positions: "learned" };
    const model = new engine.Transformer(config, 1);
    return engine.gains(model, data, own.scheme);
  }

  const LOWEST = -6; // powers of 2; the end of the slider stands for 0, too
  function slider(group, label, own, gain) {
    const value = own[group] ?? gain[group], output = make("output", {});
    const place = value > 0 ? Math.max(LOWEST, Math.min(5, Math.log2(value))) : LOWEST;
    const input = make("input", { type: "range", min: LOWEST, max: 5, step: "any", value: place, "data-name": group });
    const paint = (now) => {
      output.textContent = digits(now);
      input.setAttribute("aria-valuetext", `${digits(now)} over the root of fan-in`);
    };
    input.addEventListener("input", () => {
      const wanted = +(2 ** (Math.round(4 * input.value) / 4)).toPrecision(3);
      if (wanted === own[group]) return;
      paint((own[group] = wanted));
      node.classList.add("is-set");
      view.notes.textContent = "";
      restart(true);
    });
    input.addEventListener("keydown", (event) => { // a quarter of a power of 2 with each key
      const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      input.value = Math.round(4 * input.value + way) / 4;
      input.dispatchEvent(new Event("input"));
    });
    const usual = `${label}: as ${own.scheme} has it`, forget = () => { own[group] = null; build(); restart(); };
    const node = make("div", { class: `pg-slider${own[group] === null ? "" : " is-set"}` },
      make("label", {}, make("span", {}, label), input), output, button(usual, "↺", forget, { class: "pg-back", "aria-label": usual }));
    paint(value);
    return node;
  }

  // ----- what is drawn -----------------------------------------------------------------------------------------------------

  function plot(title, about, isLogarithmic) {
    const lines = [0, 1, 2].map((i) => shape("polyline", { class: `pg-line pg-run-${i}`, fill: "none" }));
    const ticks = shape("g", { class: "pg-ticks" });
    const svg = shape("svg", { viewBox: "0 0 320 150", role: "img", "aria-label": title }, ticks, ...lines);
    const node = make("figure", { class: "pg-plot" }, make("figcaption", {}, make("b", {}, title), ` ${about}`), svg);
    return { node, lines, ticks, svg, isLogarithmic, title };
  }

  const LEFT = 40, RIGHT = 316, TOP = 6, BOTTOM = 128;

  /** The ends of the axis of values, and its marks: shares from 0 to 1, or losses, by powers of ten. */
  function axisOf(values, isLogarithmic) {
    if (!isLogarithmic) return { y: (v) => BOTTOM - (BOTTOM - TOP) * v, marks: [0, 0.5, 1], name: (v) => `${100 * v} %` };
    const low = Math.max(1e-3, Math.min(1, ...values)) * 0.8, high = Math.min(1e6, Math.max(3, ...values)) * 1.1;
    const first = high / low < 50 ? [1, 2, 5] : [1], powers = [-3, -2, -1, 0, 1, 2, 3, 4, 5, 6];
    const marks = powers.flatMap((power) => first.map((each) => +(each * 10 ** power).toPrecision(1)));
    const share = (v) => Math.log(Math.max(low, Math.min(high, v)) / low) / Math.log(high / low);
    return { y: (v) => BOTTOM - (BOTTOM - TOP) * share(v), marks: marks.filter((v) => v >= low && v <= high), name: (v) => `${v}` };
  }

  function paintPlot({ lines, ticks, svg, isLogarithmic, title }, curves) {
    const finite = curves.map((curve) => curve.filter(([, value]) => Number.isFinite(value))), all = finite.flat();
    const steps = Math.max(50, ...all.map(([step]) => step)), axis = axisOf(all.map(([, value]) => value), isLogarithmic);
    const x = (step) => LEFT + (RIGHT - LEFT) * (step / steps);
    const text = (at, y, anchor, words) => shape("text", { x: at, y, "text-anchor": anchor }, words);
    lines.forEach((line, i) => {
      line.setAttribute("points", (finite[i] ?? []).map(([step, v]) => `${x(step).toFixed(1)},${axis.y(v).toFixed(1)}`).join(" "));
    });
    ticks.replaceChildren(
      ...axis.marks.map((v) => shape("path", { d: `M${LEFT} ${axis.y(v)}H${RIGHT}` })),
      ...axis.marks.map((v) => text(LEFT - 5, axis.y(v) + 4, "end", axis.name(v))),
      text(LEFT, BOTTOM + 17, "start", "0"), text(x(steps / 2), BOTTOM + 17, "middle", `${Math.round(steps / 2)}`),
      text(RIGHT, BOTTOM + 17, "end", `step ${steps}`));
    const ends = finite.map((curve, i) => `${LETTERS[i]} ${digits(curve.at(-1)?.[1] ?? NaN)}`).join(", ");
    svg.setAttribute("aria-label", `${title} at step ${last.step}: ${ends}`);
  }

  function draw() {
    if (!last) return;
    root.classList.remove("is-waiting");
    paintPlay();
    const speed = playing && last.speed ? ` · ${digits(last.speed)} steps/s` : "";
    view.step.textContent = `step ${last.step}${speed} · seed ${state.shared.seed}`;
    paintPlot(view.loss, last.runs.map((run) => (run.curve.length ? run.curve : [[0, run.loss]])));
    paintPlot(view.tests, last.runs.map((run) => run.tests));
    paintInput();
    last.runs.forEach((run, i) => paintRun(run, view.runs[i], i));
    announce();
  }

  function paintRun(run, { numbers, words, maps, layers }, i) {
    numbers.textContent = run.diverged === null
      ? `loss ${digits(run.loss)} · test accuracy ${Math.round(100 * run.accuracy)} %`
      : `diverged at step ${run.diverged}: the loss or a gradient is no number. The weights are those before that step.`;
    numbers.classList.toggle("is-ill", run.diverged !== null);
    const start = run.atStart[0], now = run.step > 0 ? run.findings[0] : null;
    words.replaceChildren("At the start: ", ...(start ? sentence(start) : ["nothing is wrong."]));
    if (now) words.append(make("br"), "Now: ", ...sentence(now));
    words.dataset.severity = (now ?? start)?.severity ?? "none";
    paintMaps(run, maps, i);
    paintLayers(run, layers);
  }

  /** A finding, linked to the chapter that treats it. */
  function sentence({ name, severity, layers, quantity, value, threshold, chapter }) {
    const where = layers.length > 1 ? `blocks ${layers.map((l) => l + 1).join(", ")}` : `block ${layers[0] + 1}`;
    const limit = threshold === value ? "" : ` (limit ${digits(threshold, 3)})`;
    const href = `${document.documentElement.dataset.content_root}${chapter}`;
    return [`${severity}: `, make("a", { href }, name), ` in ${where}. ${quantity}: ${digits(value)}${limit}.`];
  }

  function paintMaps({ maps }, node, i) {
    const { depth, heads } = state.shared, T = data.tasks[state.shared.task].seq_len, size = T * T;
    if (node.childElementCount !== depth * heads) {
      node.style.setProperty("--heads", heads);
      const figure = () => make("figure", {}, make("canvas", { width: T, height: T, role: "img" }), make("figcaption"));
      node.replaceChildren(...Array.from({ length: depth * heads }, figure));
    }
    const color = getComputedStyle(node).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    [...node.children].forEach((figure, k) => {
      const map = maps.subarray(k * size, (k + 1) * size), canvas = figure.firstChild, image = new ImageData(T, T);
      let heard = 0;
      for (let j = 0; j < size; j++) {
        image.data.set([...color, 255 * Math.sqrt(map[j])], 4 * j);
        if (map[j] > 0) heard -= map[j] * Math.log(map[j]) / T;
      }
      if (canvas.width !== T) [canvas.width, canvas.height] = [T, T];
      canvas.getContext("2d").putImageData(image, 0, 0);
      const keys = digits(Math.exp(heard));
      figure.lastChild.textContent = k === 0 ? `${keys} ${keys === "1" ? "key" : "keys"}` : keys;
      canvas.setAttribute("aria-label", `Block ${Math.floor(k / heads) + 1}, head ${(k % heads) + 1}: a token hears ${keys} of ${T}`);
    });
  }

  function paintLayers({ seen }, table) {
    const most = Math.sqrt(2 * Math.log(data.tasks[state.shared.task].seq_len));
    const rows = [
      [`std of the logits (limit ${digits(most, 3)})`, seen.layers.map((each) => each.logit_std)],
      ["entropy, share of ln n", seen.layers.map((each) => each.entropy_share)],
      ["gradient of query over value", seen.layers.map((each) => each.ratio_query)],
      ["RMS of the stream", seen.stream.slice(1).map((each) => each.rms)],
      ["token cosine", seen.stream.slice(1).map((each) => each.token_cosine)],
    ];
    const head = ["block", ...seen.layers.map((_, l) => `${l + 1}`)].map((each) => make("th", { scope: "col" }, each));
    const cells = (values) => values.map((each) => make("td", {}, digits(each)));
    const row = ([name, values]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells(values));
    table.replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows.map(row)));
  }

  /** The test input whose maps are shown, and what each run says of it. */
  function paintInput() {
    const { input: { x, y } } = last, task = data.tasks[state.shared.task], name = state.shared.task;
    const letter = (token) => (task.alphabet[token] ?? "?").replace(" ", "␣").replace("\n", "⏎");
    const asked = y.at(-1), says = (answer) => (name === "digits" ? `${answer}` : `“${letter(answer)}”`);
    let picture;
    if (name === "digits") {
      picture = make("canvas", { width: 8, height: 8, role: "img", "aria-label": `A handwritten ${asked}` });
      const image = new ImageData(8, 8), ink = getComputedStyle(root).color.match(/[\d.]+/g).slice(0, 3).map(Number);
      x.forEach((value, i) => {
        const patch = i >> 2, row = 2 * (patch >> 2) + ((i & 3) >> 1), column = 2 * (patch & 3) + (i & 1);
        image.data.set([...ink, (255 * (value * task.std + task.mean)) / 16], 4 * (8 * row + column));
      });
      picture.getContext("2d").putImageData(image, 0, 0);
    } else picture = make("code", {}, Array.from(x, letter).join(name === "recall" ? " " : ""));
    const answers = last.runs.map((run, i) => `${LETTERS[i]} says ${says(run.answer)}`).join(", ");
    const what = { digits: "Its class", recall: "The value of the last key", previous: "The character before the last" }[name];
    const about = "The maps below are those of this test input: a row for each token that asks, a column for each that is heard.";
    const another = () => { shown += 1; send({ shown }); view.shown.lastChild.focus(); };
    view.shown.replaceChildren(picture, make("p", {}, `${about} ${what} is ${says(asked)}; ${answers}.`),
      button("Maps of another test input", "Another input", another));
  }

  // ----- what a screen reader hears: what the reader did, and what happens, not every step ------------------------------------

  const live = document.querySelector(".pg-live");
  let said = "";
  const say = (words) => { live.textContent = words; };
  function announce() {
    const tell = (run, i) => (run.diverged === null ? "" : `Run ${LETTERS[i]} diverged at step ${run.diverged}. `);
    const sum = (run, i) => `${LETTERS[i]}: loss ${digits(run.loss)}, accuracy ${Math.round(100 * run.accuracy)} percent`;
    const ill = last.runs.map(tell).join("");
    const words = playing ? `Training. ${ill}` : `Step ${last.step}. ${last.runs.map(sum).join("; ")}. ${ill}`;
    if (words !== said) say((said = words));
  }

  // ----- keys, the address, and the tab ------------------------------------------------------------------------------------------

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input:not([type=range])")) return;
    if (event.key === " " && event.target.closest("button, summary")) return; // it presses them
    const act = { " ": () => toggle(), s: oneStep, r: reset, n: newSeed }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  for (const { button: each, id } of presets) {
    each.hidden = false;
    each.addEventListener("click", () => {
      open(id);
      toggle(true);
      root.scrollIntoView();
      view.play.focus({ preventScroll: true });
    });
  }
  const follow = () => {
    const text = decodeURIComponent(location.hash.slice(1)), preset = presets.find((each) => each.id === text);
    if (!preset) return choose(text);
    root.scrollIntoView();
    return choose(preset.state, preset.id);
  };
  addEventListener("hashchange", follow);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) [resumes, playing] = [playing, false];
    else [resumes, playing] = [false, resumes || playing];
    send({ playing });
  });
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] }); // maps are painted anew
  const pace = () => worker.postMessage({ data, interval: still.matches ? 1000 : 200 });
  still.addEventListener("change", pace);
  pace();
  if (!follow()) choose(presets[0].state, presets[0].id);
})();
