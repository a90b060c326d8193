// Runs side by side: what trains them in a worker, and what is wrong with each in the words of attntut.diagnose.
function attntutRuns(engine) {
  "use strict";
  const { Transformer, Optimizer, initialize, dataOf, batches, statistics, sumOf, rms, norm } = engine;

  // ----- what is wrong: faults of attntut.diagnose, by their names, thresholds and what each explains -------------------

  /** Findings, worst first: `{ fault, severity, name, place, quantity, value, threshold }`. `isFresh`: nothing was learned. */
  function diagnose(model, data, seen, isFresh) {
    const { config, blocks } = model, { seq_len: T, d_model: d, n_layers: L } = config, found = [];
    const limits = (fault) => data.faults[fault].thresholds;
    const add = (fault, layers, value, threshold, severity = data.faults[fault].severity) =>
      found.push({ fault, layers, order: layers.at(-1), value, threshold, severity });
    const variance = seen.stream.slice(1).map((each) => each.rms ** 2);
    const isZero = (linear) => linear.weight.value.every((each) => each === 0);
    const every = blocks.map((_, l) => l);

    seen.layers.forEach((layer, l) => {
      const { attention } = blocks[l], zero = [attention.query, attention.key].filter(isZero), { query, value } = layer.gradients;
      if (!Number.isFinite(layer.logit_std + seen.stream[l + 1].rms)) return add("not finite", [l], 1, 0);
      const rounding = ({ logit_max: most }, ulps) => Math.max(ulps * 2 ** -23 * Math.max(1, most), 2 ** -24 * most);
      const flat = (fault) => layer.heads.filter((h) => h.entropy > 0 && h.logit_std <= rounding(h, limits(fault).ulps));
      for (const fault of ["attention uniform (zero weights)", "attention uniform (tokens alike)"]) {
        if ((zero.length > 0) !== fault.includes("zero") || !flat(fault).length) continue;
        const lowest = Math.min(...flat(fault).map((h) => h.logit_std));
        add(fault, [l], lowest, rounding(flat(fault)[0], limits(fault).ulps), zero.length === 2 ? "error" : undefined);
      }
      const perHead = (linear) => linear.weight.value.length / config.n_heads;
      const alike = (linear) => !isZero(linear) && linear.weight.value.every((w, i, all) => w === all[i % perHead(linear)]);
      const entropies = layer.heads.map((h) => h.entropy), apart = Math.max(...entropies) - Math.min(...entropies);
      if (config.n_heads > 1 && alike(attention.query) && alike(attention.key) && apart <= limits("heads identical").apart * Math.log(T)) {
        add("heads identical", [l], 1, config.n_heads);
      }
      if (isFresh) {
        const { keys_at_least: fewest, largest } = limits("logits too large"), freezing = Math.sqrt(2 * Math.log(T));
        const spread = (linear) => rms(linear.weight.value) * Math.sqrt(d);
        const usual = config.qk_norm ? 0 : spread(attention.query) * spread(attention.key) * attention.scale * Math.sqrt(attention.dHead);
        const isScaled = attention.scale <= 1.01 * attention.dHead ** -0.5; // else that is the cause
        const isElse = !config.qk_norm && isScaled && usual < Math.min(freezing, layer.logit_std / 2);
        const ill = layer.heads.map((h) => h.logit_std).filter((each) => each > freezing);
        if (T >= fewest && layer.logit_std > freezing && !(isElse && layer.max_weight < largest) && ill.length) {
          add("logits too large", [l], Math.max(...ill), freezing);
        }
      } else if (layer.logit_max > limits("logits too large (trained)").largest) {
        add("logits too large (trained)", [l], layer.logit_max, limits("logits too large (trained)").largest);
      }
      const most = limits("entropy collapsed").share_of_rows, average = sumOf(seen.layers, (each) => each.saturated) / L;
      if (layer.saturated > most && (isFresh || average > most)) add("entropy collapsed", [l], layer.saturated, most);
      const cap = config.soft_cap, near = limits("soft-cap reached").share_of_cap;
      if (cap && layer.logit_max > near * cap) add("soft-cap reached", [l], layer.logit_max / cap, near);
      if (Object.values(layer.gradients).every((each) => each === 0) && isZero(attention.value) && isZero(attention.output)) {
        add("no gradient (zero weights)", [l], 0, 0);
      } else if (query === 0 && value > 0) add("gradients vanishing", [l], 0, 0, "error");
    });

    const apart = seen.stream.slice(1).map((each) => 1 - each.token_cosine);
    const normed = config.norm !== "none" && Math.max(...variance) <= 1 + 2 * L;
    if (isFresh && L > 2 && !normed && variance.every((each) => each > 0 && each < Infinity)) {
      const factors = variance.slice(1).map((each, l) => each / variance[l]), limit = limits("stream growing").variance_a_block;
      const falling = [...factors].sort((a, b) => b - a), rate = factors.reduce((a, b) => a * b, 1) ** (1 / factors.length);
      const jumps = falling[0] > limit * Math.max(1, falling[1] ?? 0);
      if (jumps) add("stream jumping", [factors.indexOf(falling[0]) + 1], falling[0], limit);
      else if (rate > limit) add("stream growing", every, rate, limit);
    }
    const collapse = limits("rank collapsing"), floor = 1e-6;
    if (isFresh && L > 1 && apart[0] > 10 * floor) {
      const end = apart.findIndex((each) => each <= floor), last = end < 0 ? L - 1 : end;
      const rate = (Math.max(apart[last], floor) / apart[0]) ** (1 / last);
      const isCollapse = last > 0 && apart[last] < collapse.alike && rate < collapse.left_a_block;
      if (isCollapse) add("rank collapsing", every, rate, collapse.left_a_block);
    }
    const slowly = limits("rank collapsing (slowly)"), ratio = seen.layers.at(-1).ratio_query;
    if (L > 2 && apart[0] > 10 * slowly.alike && apart.at(-1) < slowly.alike && ratio < slowly.gradient_ratio) {
      add("rank collapsing (slowly)", every, apart.at(-1), slowly.alike);
    }
    return reported(found, data.faults);
  }

  /** A cause hides its consequences; several layers with one fault are one finding, that of the worst layer. */
  function reported(found, faults) {
    const name = (fault) => fault.split(" (")[0], hides = (cause, other) => {
      const { explains, spreads } = faults[cause.fault];
      if (!explains.includes(other.fault) && !explains.includes(name(other.fault))) return false;
      return (spreads && other.order >= cause.order) || cause.layers.some((l) => other.layers.includes(l));
    };
    const kept = found.filter((each) => !found.some((cause) => hides(cause, each))), order = ["error", "warning", "note"];
    const size = (value) => Math.log(Math.max(Math.abs(value), 1e-300)), excess = (f) => Math.abs(size(f.value) - size(f.threshold));
    const merged = [...new Set(kept.map((each) => name(each.fault)))].map((one) => {
      const same = kept.filter((each) => name(each.fault) === one), layers = [...new Set(same.flatMap((f) => f.layers))];
      const worst = same.reduce((a, b) => (excess(b) > excess(a) ? b : a)), { quantity, chapter } = faults[worst.fault];
      const severity = order.find((each) => same.some((f) => f.severity === each));
      return { ...worst, severity, name: one, layers, rank: order.indexOf(severity), quantity, chapter };
    });
    return merged.sort((a, b) => a.rank - b.rank || a.order - b.order);
  }

  // ----- runs side by side, and the worker that trains them --------------------------------------------------------------

  const EVERY = 50; // steps between two looks at the test set
  const POINTS = 300; // of a curve: when there are twice as many, every other one is dropped

  /** Fewer points of a curve, once there are many. */
  const thinned = (curve) => (curve.length < 2 * POINTS ? curve : curve.filter((_, i) => i % 2 === 0));

  /** One start, trained. `own`: `start`, the norm and other parts of the architecture, positions, the optimizer. */
  class Run {
    constructor(data, settings, own, batch) {
      const { task, d_model, n_heads, n_layers, seed } = settings, about = data.tasks[task];
      const names = ["seq_len", "d_input", "vocab_size", "n_classes", "pooling", "is_causal"];
      const given = { task, d_model, n_heads, n_layers, norm: own.norm, soft_cap: own.soft_cap, positions: own.positions };
      const wants = data.schemes[own.start.scheme].architecture[n_layers - 1];
      const config = { ...wants, ...given, position_scale: own.position_scale ?? 1, qk_norm: own.qk_norm || wants.qk_norm };
      for (const name of names) config[name] = about[name];
      this.model = new Transformer(config, batch);
      initialize(this.model, data, { ...own.start, position: own.position_scale }, seed);
      this.optimizer = new Optimizer(this.model.parameters, own);
      Object.assign(this, { data, config, step: 0, every: 1, curve: [], tests: [], loss: NaN, accuracy: NaN, diverged: null });
    }

    /** One update; a loss or a gradient that is no number ends the run, with the weights from before. */
    train({ x, y, B }, isSeen) {
      if (this.diverged !== null) return;
      const { loss } = this.model.loss(x, y, B), size = norm(this.model.parameters.gradients);
      this.loss = loss;
      if (isSeen) this.look();
      if (!Number.isFinite(loss) || !Number.isFinite(size)) {
        this.diverged = this.step;
        return;
      }
      this.optimizer.step();
      if (this.step % this.every === 0) this.curve.push([this.step, loss]);
      const fewer = thinned(this.curve);
      if (fewer !== this.curve) [this.curve, this.every] = [fewer, 2 * this.every];
      this.step += 1;
    }

    /** Statistics and findings of the last batch; those of the start are kept. */
    look() {
      this.seen = statistics(this.model);
      this.findings = diagnose(this.model, this.data, this.seen, this.step === 0);
      this.atStart ??= this.findings;
    }

    /** Accuracy on the test inputs. */
    evaluate(parts) {
      if (this.diverged !== null) return;
      const results = parts.map(({ x, y, B }) => this.model.loss(x, y, B, false));
      this.accuracy = sumOf(results, (each) => each.right) / sumOf(results, (each) => each.scored);
      this.tests = thinned([...this.tests, [this.step, this.accuracy]]);
    }

    /** The attention maps of one input, (L, H, T, T), and the answer. */
    maps({ x, y, B }) {
      const { seq_len: T, n_heads: H, n_classes } = this.config, size = H * T * T;
      const logits = this.model.forward(x, B), maps = new Float32Array(this.model.blocks.length * size);
      this.model.blocks.forEach(({ attention }, l) => maps.set(attention.weights.subarray(0, size), l * size));
      const row = logits.subarray((y.length - 1) * n_classes, y.length * n_classes);
      return { maps, answer: row.indexOf(Math.max(...row)) };
    }

    /** What the page shows of it. */
    snapshot(input) {
      const { step, curve, tests, loss, accuracy, diverged, seen, atStart, findings } = this;
      return { step, curve, tests, loss, accuracy, diverged, seen, atStart, findings, ...this.maps(input) };
    }
  }

  /** Several runs on the same batches; those of `before` that would start alike, and have not yet, are kept. */
  class Session {
    constructor(data, settings, before = null, batch = 32) {
      const shared = JSON.stringify({ ...settings, runs: null }), isAlike = before?.shared === shared;
      const fresh = isAlike && before.step === 0 ? before.runs : []; // as a slider is being moved, one run changes
      const set = (this.set = isAlike ? before.set : dataOf(data.tasks[settings.task])), order = () => batches(set.n_train, batch, settings.seed);
      const tested = Array.from({ length: set.n - set.n_train }, (_, i) => set.n_train + i);
      const parts = Math.ceil(tested.length / batch); // each with something of every class, by which images are sorted
      this.tests = Array.from({ length: parts }, (_, part) => set.take(tested.filter((_, i) => i % parts === part)));
      this.tested = tested;
      this.order = order();
      this.step = 0;
      this.shared = shared;
      this.probe = set.take(order().next().value); // the first batch, to look at the start
      this.runs = settings.runs.map((own) => {
        const given = JSON.stringify(own), same = fresh.findIndex((each) => each.given === given);
        if (same >= 0) return fresh.splice(same, 1)[0];
        const run = Object.assign(new Run(data, settings, own, batch), { given });
        run.evaluate(this.tests.slice(0, 2)); // a part of them: this must be quick
        run.loss = run.model.loss(this.probe.x, this.probe.y, batch).loss;
        run.look();
        return run;
      });
    }

    /** One step of all runs; `isSeen`: with statistics. */
    advance(isSeen) {
      const batch = this.set.take(this.order.next().value);
      for (const run of this.runs) run.train(batch, isSeen);
      this.step += 1;
      if (this.step % EVERY === 0) for (const run of this.runs) run.evaluate(this.tests);
    }

    get isOver() {
      return this.runs.every((run) => run.diverged !== null);
    }

    /** What the page shows; `shown` is the number of a test input. */
    snapshot(shown) {
      const input = this.set.take([this.tested[(37 * shown) % this.tested.length]]);
      return { step: this.step, isOver: this.isOver, input, runs: this.runs.map((run) => run.snapshot(input)) };
    }
  }

  /** In a worker: train for a moment, tell, listen. Messages: `data`, `settings`, `playing`, `steps`, `shown`, `interval`. */
  function serve(worker) {
    let data, session, playing = false, shown = 0, interval = 200, told = 0, count = 0, busy = 0, timer = null;
    const tell = (number) => {
      const speed = busy ? (1000 * count) / busy : 0;
      worker.postMessage({ ...session.snapshot(shown), playing, speed, number });
      if (busy > 1000) [count, busy] = [count / 2, busy / 2]; // the last seconds count most
      told = performance.now();
    };
    const turn = () => {
      const start = performance.now();
      let isDue = false;
      do {
        isDue = performance.now() - told > interval;
        session.advance(isDue);
        count += 1;
      } while (!isDue && !session.isOver && performance.now() - start < 30);
      busy += performance.now() - start;
      if (session.isOver) playing = false;
      if (isDue || !playing) tell();
      timer = playing ? setTimeout(turn, 0) : null;
    };
    worker.onmessage = ({ data: message }) => {
      data = message.data ?? data;
      shown = message.shown ?? shown;
      interval = message.interval ?? interval;
      if (message.settings) [session, count, busy] = [new Session(data, message.settings, session), 0, 0];
      for (let step = 0; step < (message.steps ?? 0) && !session.isOver; step++) session.advance(true);
      if ("playing" in message) playing = message.playing && !session.isOver;
      if (playing && timer === null) timer = setTimeout(turn, 0);
      if (!playing && timer !== null) timer = clearTimeout(timer) ?? null;
      if (session) tell(message.number);
    };
  }

  return { Run, Session, diagnose, serve };
}

if (typeof module === "object") module.exports = attntutRuns; // for the tests in Node
