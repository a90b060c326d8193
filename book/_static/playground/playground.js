// The playground's page: controls, curves and maps. A worker trains; what is chosen stands in the address.
(() => {
  "use strict";
  const root = document.querySelector(".playground");
  if (!root) return;
  const data = attntutData, engine = attntutEngine(), LETTERS = "ABC";
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // ----- what is chosen --------------------------------------------------------------------------------------------------

  const SHARED = { task: "digits", depth: 2, width: 32, heads: 4, seed: 1 };
  const OWN = {
    scheme: "xavier_normal", query_key: null, value_output: null, feed_forward: null, embedding: null, positions: "learned",
    position_scale: null, norm: "pre", qk_norm: false, soft_cap: null, optimizer: "adam", lr: 0.002, warmup: 0,
  };
  const CHOICES = {
    task: { digits: "digits, 16 patches", recall: "recall a value by its key", previous: "the previous character" },
    depth: data.sizes.n_layers, width: data.sizes.d_model, heads: data.sizes.n_heads,
    norm: { pre: "before each branch (pre)", post: "after each sum (post)", none: "none" },
    positions: { learned: "learned", sinusoidal: "sinusoidal", none: "none" },
    optimizer: { adam: "Adam", sgd: "SGD" },
    lr: [0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3], warmup: [0, 10, 50, 100, 200],
    soft_cap: { "": "none", 2: "2", 5: "5", 20: "20" }, position_scale: { "": "as the scheme has it", 0.02: "0.02", 0.1: "0.1", 0.3: "0.3", 1: "1", 3: "3" },
  };
  const GROUPS = { query_key: "query, key", value_output: "value, output", feed_forward: "feed-forward", embedding: "embedding" };
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
    const known = runs.length && runs.every(isKnown) && data.tasks[shared.task] && ["depth", "width", "heads"].every((each) => CHOICES[each].includes(shared[each]));
    return known ? { shared, runs } : null;
  }

  const read = (text, usual) => (typeof usual === "boolean" ? text === "true" : Number.isFinite(+text) && text !== "" ? +text : text);
  const isKnown = (own) => data.schemes[own.scheme] && own.norm in CHOICES.norm && own.positions in CHOICES.positions && own.optimizer in CHOICES.optimizer
    && own.lr > 0 && own.warmup >= 0 && Object.keys(GROUPS).every((each) => own[each] === null || own[each] > 0);

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

  function restart() {
    history.replaceState(null, "", `#${written(state)}`);
    root.classList.add("is-waiting");
    send({ settings: settings(), playing, shown });
  }

  // ----- building blocks of the page --------------------------------------------------------------------------------------

  const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
  const svg_ = (name, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
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
    for (const [key, text] of options(choices)) list.append(make("option", { value: key, selected: `${key}` === `${value ?? ""}` }, text));
    if (value !== null && ![...list.options].some((each) => each.selected && each.value === `${value}`)) {
      list.append(make("option", { value, selected: true }, `${value}`)); // it came with the address
    }
    return make("label", { class: "pg-field" }, make("span", {}, label), list);
  }

  const digits = (value, places = 2) => {
    if (value === null || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return "∞";
    if (value === 0) return "0";
    return Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(1).replace("e+", " · 10^").replace("e-", " · 10^−") : `${+value.toPrecision(places)}`;
  };

  // ----- the controls ------------------------------------------------------------------------------------------------------

  const view = {}; // the parts that change
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
    const list = presets.map((each) => [each.id, each.title]);
    root.replaceChildren(
      make("div", { class: "pg-top" },
        select("A question to start with", [["", "— your own —"], ...list].reduce((o, [k, v]) => ({ ...o, [k]: v }), {}), id, open, { "data-name": "preset" }),
        view.notes),
      make("div", { class: "pg-bar", role: "group", "aria-label": "Training" }, view.play,
        button("One step (s)", "Step", () => send({ steps: 1, playing: false })),
        button("Back to the start (r)", "Reset", () => { playing = false; restart(); }),
        button("Other weights and batches (n)", "New seed", () => { shared.seed += 1; restart(); }), view.step),
      make("div", { class: "pg-shared", role: "group", "aria-label": "For all runs" },
        ...Object.keys(SHARED).slice(0, 4).map((name) => select(name, CHOICES[name], shared[name], change(name), { "data-name": name }))),
      make("div", { class: "pg-curves" }, view.loss.node, view.tests.node),
      view.shown,
      make("div", { class: "pg-runs" }, ...view.runs.map((each) => each.node),
        state.runs.length < 3 ? button("Add a run", "+ Add a run beside", () => { state.runs.push({ ...state.runs.at(-1) }); build(); restart(); }, { class: "pg-add" }) : ""),
    );
    if (last && last.runs.length === state.runs.length) draw();
  }

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
    const letter = LETTERS[i], scheme = data.schemes[own.scheme], gain = gains(own);
    const change = (name) => (value) => {
      own[name] = value === "" ? null : read(value, OWN[name]);
      if (name === "scheme") {
        for (const group of Object.keys(GROUPS)) own[group] = null;
        own.norm = data.schemes[own.scheme].architecture[state.shared.depth - 1].norm ?? own.norm;
      }
      build();
      restart();
      root.querySelectorAll(".pg-run")[i].querySelector(`[data-name="${name}"]`)?.focus();
    };
    const field = (label, name) => select(label, CHOICES[name], own[name], change(name), { "data-name": name });
    const schemeList = make("select", { "data-name": "scheme", onchange: (event) => change("scheme")(event.target.value) });
    for (const family of new Set(Object.values(data.schemes).map((each) => each.family))) {
      const names = Object.keys(data.schemes).filter((name) => data.schemes[name].family === family);
      schemeList.append(make("optgroup", { label: family }, ...names.map((name) => make("option", { value: name, selected: name === own.scheme }, name))));
    }
    const sliders = Object.entries(GROUPS).map(([group, label]) => slider(group, label, own, gain, i));
    const wants = scheme.architecture[state.shared.depth - 1], needs = Object.entries(scheme.needs);
    const lacking = wants.norm && wants.norm !== own.norm ? `It needs ${needs[0][0]}, because ${needs[0][1]}.` : "";
    const found = {
      numbers: make("p", { class: "pg-numbers" }), words: make("p", { class: "pg-words" }), maps: make("div", { class: "pg-maps" }),
      layers: make("table", { class: "pg-layers" }),
    };
    const details = make("details", { open: view.opened?.[i] ?? false, ontoggle: (event) => ((view.opened ??= [])[i] = event.target.open) },
      make("summary", {}, "Architecture and optimizer"),
      make("div", { class: "pg-more" }, field("norm", "norm"), field("positions", "positions"), field("their size", "position_scale"), field("soft-cap", "soft_cap"),
        field("optimizer", "optimizer"), field("rate", "lr"), field("warm-up steps", "warmup"),
        make("label", { class: "pg-check" }, make("input", { type: "checkbox", "data-name": "qk_norm", checked: own.qk_norm, onchange: (event) => change("qk_norm")(`${event.target.checked}`) }), "QK-norm")));
    const node = make("div", { class: `pg-run pg-run-${i}`, role: "group", "aria-label": `Run ${letter}` },
      make("div", { class: "pg-head" }, make("span", { class: "pg-swatch", "aria-hidden": "true" }, letter),
        make("label", { class: "pg-field" }, make("span", {}, "start"), schemeList),
        state.runs.length > 1 ? button(`Remove run ${letter}`, "×", () => { state.runs.splice(i, 1); build(); restart(); }, { class: "pg-remove", "aria-label": `Remove run ${letter}` }) : ""),
      make("p", { class: "pg-why" }, lacking || scheme.why), make("p", { class: "pg-unit" }, "size of the weights, σ√fan_in"), ...sliders, details, found.numbers, found.words, found.maps,
      make("div", { class: "pg-scroll", tabindex: "0", role: "region", "aria-label": `Run ${letter}, layer by layer` }, found.layers));
    return { node, ...found };
  }

  /** The gain of each group as the scheme has it. */
  function gains(own) {
    const { task, depth, width, heads } = state.shared, about = data.tasks[task];
    const model = new engine.Transformer({ ...about, task, d_model: width, n_heads: heads, n_layers: depth, norm: "none", positions: "learned" }, 1);
    return engine.gains(model, data, own.scheme);
  }

  const LOWEST = -6; // powers of 2; the end of the slider stands for 0, too
  function slider(group, label, own, gain, i) {
    const value = own[group] ?? gain[group], output = make("output", {});
    const place = value > 0 ? Math.max(LOWEST, Math.min(5, Math.log2(value))) : LOWEST;
    const input = make("input", { type: "range", min: LOWEST, max: 5, step: "any", value: place, "data-name": group });
    const paint = (now) => {
      output.textContent = digits(now);
      input.setAttribute("aria-valuetext", `${digits(now)} over the root of fan-in`);
    };
    input.addEventListener("input", () => {
      own[group] = +(2 ** (Math.round(4 * input.value) / 4)).toPrecision(3);
      paint(own[group]);
      node.classList.add("is-set");
      view.notes.textContent = "";
      restart();
    });
    input.addEventListener("keydown", (event) => { // a quarter of a power of 2 with each key
      const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      input.value = Math.round(4 * input.value + way) / 4;
      input.dispatchEvent(new Event("input"));
    });
    const back = button(`As ${own.scheme} has it`, "↺", () => { own[group] = null; build(); restart(); }, { class: "pg-back", "aria-label": `${label}: as ${own.scheme} has it` });
    const node = make("div", { class: `pg-slider${own[group] === null ? "" : " is-set"}` }, make("label", {}, make("span", {}, label), input), output, back);
    paint(value);
    return node;
  }

  // ----- what is drawn -----------------------------------------------------------------------------------------------------

  function plot(title, about, isLogarithmic) {
    const lines = LETTERS.split("").map((_, i) => svg_("polyline", { class: `pg-line pg-run-${i}`, fill: "none" }));
    const ticks = svg_("g", { class: "pg-ticks" }), svg = svg_("svg", { viewBox: "0 0 320 150", role: "img", "aria-label": title }, ticks, ...lines);
    const node = make("figure", { class: "pg-plot" }, make("figcaption", {}, make("b", {}, title), ` ${about}`), svg);
    return { node, lines, ticks, svg, isLogarithmic, title };
  }

  const LEFT = 40, RIGHT = 316, TOP = 6, BOTTOM = 128;
  function paintPlot({ lines, ticks, svg, isLogarithmic, title }, curves) {
    const all = curves.flat(), steps = Math.max(50, ...all.map(([step]) => step)), values = all.map(([, value]) => value).filter(Number.isFinite);
    let low = 0, high = 1;
    if (isLogarithmic) {
      low = Math.max(1e-3, Math.min(1, ...values)) * 0.8;
      high = Math.min(1e6, Math.max(3, ...values)) * 1.1;
    }
    const scale = (v) => (isLogarithmic ? Math.log(Math.max(low, Math.min(high, v)) / low) / Math.log(high / low) : v);
    const x = (step) => LEFT + (RIGHT - LEFT) * (step / steps), y = (value) => BOTTOM - (BOTTOM - TOP) * scale(value);
    curves.forEach((curve, i) => lines[i].setAttribute("points", curve.filter(([, v]) => Number.isFinite(v)).map(([s, v]) => `${x(s).toFixed(1)},${y(v).toFixed(1)}`).join(" ")));
    lines.slice(curves.length).forEach((line) => line.setAttribute("points", ""));
    const each = high / low < 50 ? [1, 2, 5] : [1], powers = [-3, -2, -1, 0, 1, 2, 3, 4, 5, 6];
    const round = powers.flatMap((power) => each.map((first) => +(first * 10 ** power).toPrecision(1)));
    const marks = isLogarithmic ? round.filter((v) => v >= low && v <= high) : [0, 0.5, 1];
    ticks.replaceChildren(
      ...marks.flatMap((v) => [svg_("path", { d: `M${LEFT} ${y(v)}H${RIGHT}` }), svg_("text", { x: LEFT - 5, y: y(v) + 4, "text-anchor": "end" }, isLogarithmic ? `${v}` : `${100 * v} %`)]),
      ...[0, 0.5, 1].map((part) => svg_("text", { x: x(part * steps), y: BOTTOM + 17, "text-anchor": ["start", "middle", "end"][2 * part] }, part === 1 ? `step ${steps}` : `${Math.round(part * steps)}`)));
    const ends = curves.map((curve, i) => `${LETTERS[i]} ${digits(curve.at(-1)?.[1] ?? NaN)}`).join(", ");
    svg.setAttribute("aria-label", `${title} at step ${last.step}: ${ends}`);
  }

  function draw() {
    if (!last || last.runs.length !== state.runs.length) return;
    root.classList.remove("is-waiting");
    paintPlay();
    view.step.textContent = `step ${last.step}${playing && last.speed ? ` · ${digits(last.speed)} steps/s` : ""} · seed ${state.shared.seed}`;
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
    words.replaceChildren(...(start ? ["At the start: ", ...sentence(start)] : ["At the start: nothing is wrong."]), ...(now ? [make("br"), "Now: ", ...sentence(now)] : []));
    words.dataset.severity = (now ?? start)?.severity ?? "none";
    paintMaps(run, maps, i);
    paintLayers(run, layers);
  }

  /** A finding, linked to the chapter that treats it. */
  function sentence({ name, severity, layers, quantity, value, threshold, chapter }) {
    const where = layers.length > 1 ? `blocks ${layers.map((l) => l + 1).join(", ")}` : `block ${layers[0] + 1}`;
    const limit = threshold === value ? "" : ` (limit ${digits(threshold)})`;
    return [`${severity}: `, make("a", { href: `${document.documentElement.dataset.content_root}${chapter}` }, name), ` in ${where}. ${quantity}: ${digits(value)}${limit}.`];
  }

  function paintMaps({ maps }, node, i) {
    const { depth, heads } = state.shared, T = data.tasks[state.shared.task].seq_len, size = T * T;
    if (node.childElementCount !== depth * heads) {
      node.style.setProperty("--heads", heads);
      node.replaceChildren(...Array.from({ length: depth * heads }, () => make("figure", {}, make("canvas", { width: T, height: T, role: "img" }), make("figcaption", {}))));
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
      figure.lastChild.textContent = k === 0 ? `${keys} keys` : keys;
      canvas.setAttribute("aria-label", `Block ${Math.floor(k / heads) + 1}, head ${(k % heads) + 1}: a token hears ${keys} of ${T}`);
    });
  }

  function paintLayers({ seen }, table) {
    const most = Math.sqrt(2 * Math.log(data.tasks[state.shared.task].seq_len)), columns = seen.layers.length;
    const rows = [
      [`std of the logits (limit ${digits(most)})`, seen.layers.map((each) => each.logit_std)],
      ["entropy, share of ln n", seen.layers.map((each) => each.entropy_share)],
      ["gradient of query over value", seen.layers.map((each) => each.ratio_query)],
      ["RMS of the stream", seen.stream.slice(1).map((each) => each.rms)],
      ["token cosine", seen.stream.slice(1).map((each) => each.token_cosine)],
    ];
    table.replaceChildren(
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "block"), ...Array.from({ length: columns }, (_, l) => make("th", { scope: "col" }, `${l + 1}`)))),
      make("tbody", {}, ...rows.map(([name, values]) => make("tr", {}, make("th", { scope: "row" }, name), ...values.map((each) => make("td", {}, digits(each)))))));
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
    view.shown.replaceChildren(picture, make("p", {}, `The maps below are those of this test input: a row for each token that asks, a column for each that is heard. ${
      name === "digits" ? "Its class" : name === "recall" ? "The value of the last key" : "The character before the last"} is ${says(asked)}; ${answers}.`),
      button("Maps of another test input", "Another input", () => { shown += 1; send({ shown }); view.shown.lastChild.focus(); }));
  }

  // ----- what a screen reader hears: what the reader did, and what happens, not every step ------------------------------------

  const live = document.querySelector(".pg-live");
  let said = "";
  const say = (words) => { live.textContent = words; };
  function announce() {
    const ill = last.runs.flatMap((run, i) => (run.diverged === null ? [] : [`Run ${LETTERS[i]} diverged at step ${run.diverged}.`])).join(" ");
    const sum = last.runs.map((run, i) => `${LETTERS[i]}: loss ${digits(run.loss)}, accuracy ${Math.round(100 * run.accuracy)} percent`).join("; ");
    const words = playing ? `Training. ${ill}` : `Step ${last.step}. ${sum}. ${ill}`;
    if (words !== said) say((said = words));
  }

  // ----- keys, the address, and the tab ------------------------------------------------------------------------------------------

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, summary, a")) return;
    const act = { " ": () => toggle(), s: () => send({ steps: 1, playing: false }), r: () => { playing = false; restart(); }, n: () => { state.shared.seed += 1; restart(); } }[event.key];
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
  new MutationObserver(() => last && draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] }); // maps are painted anew
  const pace = () => worker.postMessage({ data, interval: still.matches ? 1000 : 200 });
  still.addEventListener("change", pace);
  pace();
  if (!follow()) choose(presets[0].state, presets[0].id);
})();
