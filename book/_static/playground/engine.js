// A small Transformer that trains in the page: what attntut.transformer, attntut.train and attntut.measure do, in float32.
//
// Names are those of the package, and of the parameters of its `Transformer`; a comment gives each array's shape.
// B: sequences, T: tokens, N = B·T, d: d_model, H: heads. A sum is kept in double precision until it is stored.
// The whole file is one function, so that the page can hand its text to a worker, also where it was opened from a disk.
function attntutEngine() {
  "use strict";

  // ----- matrices -----------------------------------------------------------------------------------------------------

  /** A matrix in an array: entry (i, j) is `data[offset + i * down + j * right]`. */
  const matrix = (data, rows, columns, offset = 0, down = columns, right = 1) => ({ data, rows, columns, offset, down, right });
  const transposed = (m) => matrix(m.data, m.columns, m.rows, m.offset, m.right, m.down);

  /** C += factor · A B, in tiles of 4 × 4 numbers, which a processor can hold. */
  function multiply(A, B, C, factor = 1) {
    const a = A.data, b = B.data, c = C.data, K = A.columns, ak = A.right, bk = B.down;
    const rows = C.rows - (C.rows % 4), columns = C.columns - (C.columns % 4);
    const a1 = A.down, a2 = 2 * a1, a3 = 3 * a1, b1 = B.right, b2 = 2 * b1, b3 = 3 * b1;
    for (let i = 0; i < rows; i += 4) {
      for (let j = 0; j < columns; j += 4) {
        let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
        let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
        for (let k = 0, p = A.offset + i * a1, q = B.offset + j * b1; k < K; k++, p += ak, q += bk) {
          const x0 = a[p], x1 = a[p + a1], x2 = a[p + a2], x3 = a[p + a3];
          const y0 = b[q], y1 = b[q + b1], y2 = b[q + b2], y3 = b[q + b3];
          s00 += x0 * y0; s01 += x0 * y1; s02 += x0 * y2; s03 += x0 * y3;
          s10 += x1 * y0; s11 += x1 * y1; s12 += x1 * y2; s13 += x1 * y3;
          s20 += x2 * y0; s21 += x2 * y1; s22 += x2 * y2; s23 += x2 * y3;
          s30 += x3 * y0; s31 += x3 * y1; s32 += x3 * y2; s33 += x3 * y3;
        }
        let r = C.offset + i * C.down + j * C.right;
        const r1 = r + C.right, r2 = r1 + C.right, r3 = r2 + C.right, next = C.down;
        c[r] += factor * s00; c[r1] += factor * s01; c[r2] += factor * s02; c[r3] += factor * s03;
        c[r + next] += factor * s10; c[r1 + next] += factor * s11; c[r2 + next] += factor * s12; c[r3 + next] += factor * s13;
        r += 2 * next;
        const t1 = r1 + 2 * next, t2 = r2 + 2 * next, t3 = r3 + 2 * next;
        c[r] += factor * s20; c[t1] += factor * s21; c[t2] += factor * s22; c[t3] += factor * s23;
        c[r + next] += factor * s30; c[t1 + next] += factor * s31; c[t2 + next] += factor * s32; c[t3 + next] += factor * s33;
      }
    }
    for (let i = 0; i < C.rows; i++) { // what no tile covers
      for (let j = i < rows ? columns : 0; j < C.columns; j++) {
        let sum = 0;
        for (let k = 0, p = A.offset + i * a1, q = B.offset + j * b1; k < K; k++, p += ak, q += bk) sum += a[p] * b[q];
        c[C.offset + i * C.down + j * C.right] += factor * sum;
      }
    }
  }

  // ----- layers: forward(x, N) keeps what backward(gradient, dx, N) needs, which adds to dx and to the parameters' gradients

  class Linear {
    constructor(parameters, name, fanIn, fanOut, rows) {
      this.fanIn = fanIn;
      this.fanOut = fanOut;
      this.weight = parameters.add(`${name}.weight`, fanOut, fanIn);
      this.bias = parameters.add(`${name}.bias`, fanOut);
      this.y = new Float32Array(rows * fanOut);
    }

    forward(x, N) {
      const { fanIn, fanOut, y } = this;
      this.x = x;
      for (let n = 0; n < N; n++) y.set(this.bias.value, n * fanOut);
      multiply(matrix(x, N, fanIn), transposed(matrix(this.weight.value, fanOut, fanIn)), matrix(y, N, fanOut));
      return y;
    }

    backward(dy, dx, N) {
      const { fanIn, fanOut } = this, gradient = matrix(dy, N, fanOut), db = this.bias.gradient;
      multiply(transposed(gradient), matrix(this.x, N, fanIn), matrix(this.weight.gradient, fanOut, fanIn));
      for (let n = 0, i = 0; n < N; n++) for (let o = 0; o < fanOut; o++) db[o] += dy[i++];
      if (dx) multiply(gradient, matrix(this.weight.value, fanOut, fanIn), matrix(dx, N, fanIn));
    }
  }

  /** A row of a table for each integer token. */
  class Embedding {
    constructor(parameters, name, vocabSize, d, rows) {
      this.d = d;
      this.weight = parameters.add(`${name}.weight`, vocabSize, d);
      this.y = new Float32Array(rows * d);
    }

    forward(tokens, N) {
      this.tokens = tokens;
      const { d, y, weight } = this;
      for (let n = 0; n < N; n++) for (let i = 0; i < d; i++) y[n * d + i] = weight.value[tokens[n] * d + i];
      return y;
    }

    backward(dy, dx, N) {
      const { d, tokens, weight } = this;
      for (let n = 0; n < N; n++) for (let i = 0; i < d; i++) weight.gradient[tokens[n] * d + i] += dy[n * d + i];
    }
  }

  /** LayerNorm of rows of width d; without `center`, RMSNorm, which has no shift. */
  class Norm {
    constructor(parameters, name, d, rows, center = true) {
      this.d = d;
      this.center = center;
      this.eps = center ? 1e-5 : 1e-6;
      this.weight = parameters.add(`${name}.weight`, d);
      this.bias = center ? parameters.add(`${name}.bias`, d) : null;
      this.y = new Float32Array(rows * d);
      this.unit = new Float32Array(rows * d); // before gain and shift
      this.inverse = new Float32Array(rows); // 1 / scale of each row
    }

    forward(x, N) {
      const { d, y, unit, inverse, center } = this, gain = this.weight.value, shift = this.bias?.value;
      for (let n = 0, start = 0; n < N; n++, start += d) {
        let mean = 0, square = 0;
        if (center) for (let i = 0; i < d; i++) mean += x[start + i] / d;
        for (let i = 0; i < d; i++) square += (x[start + i] - mean) ** 2 / d;
        const factor = 1 / Math.sqrt(square + this.eps);
        inverse[n] = factor;
        for (let i = 0; i < d; i++) {
          unit[start + i] = (x[start + i] - mean) * factor;
          y[start + i] = unit[start + i] * gain[i] + (center ? shift[i] : 0);
        }
      }
      return y;
    }

    backward(dy, dx, N) {
      const { d, unit, inverse, center } = this, gain = this.weight.value;
      for (let n = 0, start = 0; n < N; n++, start += d) {
        let mean = 0, along = 0; // of the gradient before the gain: its mean, and its mean product with the row
        for (let i = 0; i < d; i++) {
          const g = dy[start + i];
          this.weight.gradient[i] += g * unit[start + i];
          if (center) {
            this.bias.gradient[i] += g;
            mean += g * gain[i] / d;
          }
          along += g * gain[i] * unit[start + i] / d;
        }
        for (let i = 0; i < d; i++) dx[start + i] += inverse[n] * (dy[start + i] * gain[i] - mean - unit[start + i] * along);
      }
    }
  }

  class Attention {
    constructor(parameters, name, config, batch) {
      const { seq_len: T, d_model: d, n_heads: H } = config, rows = batch * T;
      Object.assign(this, { T, d, H, dHead: d / H, cap: config.soft_cap, causal: config.is_causal });
      this.scale = config.scale ?? (d / H) ** -0.5;
      for (const role of ["query", "key", "value", "output"]) this[role] = new Linear(parameters, `${name}.${role}`, d, d, rows);
      if (config.qk_norm) {
        const part = `${name}.parts.qk_norm`;
        this.norms = ["query_norm", "key_norm"].map((each) => new Norm(parameters, `${part}.${each}`, this.dHead, rows * H, false));
      }
      this.logits = new Float32Array(rows * H * T); // (B, H, T, T), what the softmax receives before the mask
      this.weights = new Float32Array(rows * H * T);
      this.heads = new Float32Array(rows * d);
      this.back = Array.from({ length: 6 }, () => new Float32Array(rows * d));
      this.dWeights = new Float32Array(T * T);
    }

    /** Head h of sequence b in an array (N, d): (T, d_head). */
    head(data, b, h) {
      return matrix(data, this.T, this.dHead, b * this.T * this.d + h * this.dHead, this.d);
    }

    map(data, b, h) {
      return matrix(data, this.T, this.T, (b * this.H + h) * this.T * this.T);
    }

    forward(x, N) {
      const { T, H, cap } = this;
      let q = this.query.forward(x, N), k = this.key.forward(x, N);
      const v = this.value.forward(x, N);
      if (this.norms) [q, k] = [this.norms[0].forward(q, N * H), this.norms[1].forward(k, N * H)]; // head by head
      Object.assign(this, { q, k, v });
      this.logits.fill(0, 0, N * H * T);
      this.heads.fill(0, 0, N * this.d);
      for (let b = 0; b < N / T; b++) {
        for (let h = 0; h < H; h++) {
          const logits = this.map(this.logits, b, h), weights = this.map(this.weights, b, h);
          multiply(this.head(q, b, h), transposed(this.head(k, b, h)), logits, this.scale);
          const s = this.logits, end = logits.offset + T * T;
          if (cap) for (let i = logits.offset; i < end; i++) s[i] = cap * Math.tanh(s[i] / cap);
          for (let t = 0; t < T; t++) this.softmax(logits.offset + t * T, this.causal ? t + 1 : T);
          multiply(weights, this.head(v, b, h), this.head(this.heads, b, h));
        }
      }
      return this.output.forward(this.heads, N);
    }

    /** One row, of which the first `seen` keys may be seen. */
    softmax(start, seen) {
      const { logits, weights, T } = this;
      let largest = -Infinity, total = 0;
      for (let j = start; j < start + seen; j++) largest = Math.max(largest, logits[j]);
      for (let j = start; j < start + seen; j++) total += weights[j] = Math.exp(logits[j] - largest);
      for (let j = start; j < start + seen; j++) weights[j] /= total;
      weights.fill(0, start + seen, start + T);
    }

    backward(dy, dx, N) {
      const { T, H, cap, dWeights, q, k, v } = this, [dHeads, dq, dk, dv, before, beforeKey] = this.back;
      for (const each of this.back) each.fill(0, 0, N * this.d);
      this.output.backward(dy, dHeads, N);
      const dLogits = matrix(dWeights, T, T);
      for (let b = 0; b < N / T; b++) {
        for (let h = 0; h < H; h++) {
          const weights = this.map(this.weights, b, h), a = this.weights, start = weights.offset;
          dWeights.fill(0);
          multiply(this.head(dHeads, b, h), transposed(this.head(v, b, h)), dLogits);
          multiply(transposed(weights), this.head(dHeads, b, h), this.head(dv, b, h));
          for (let t = 0; t < T * T; t += T) { // through the softmax: diag(a) − a aᵀ
            let along = 0;
            for (let j = t; j < t + T; j++) along += dWeights[j] * a[start + j];
            for (let j = t; j < t + T; j++) dWeights[j] = a[start + j] * (dWeights[j] - along);
          }
          if (cap) for (let i = 0; i < T * T; i++) dWeights[i] *= 1 - (this.logits[start + i] / cap) ** 2;
          multiply(dLogits, this.head(k, b, h), this.head(dq, b, h), this.scale);
          multiply(transposed(dLogits), this.head(q, b, h), this.head(dk, b, h), this.scale);
        }
      }
      let dQuery = dq, dKey = dk;
      if (this.norms) {
        this.norms[0].backward(dq, dQuery = before, N * H);
        this.norms[1].backward(dk, dKey = beforeKey, N * H);
      }
      this.query.backward(dQuery, dx, N);
      this.key.backward(dKey, dx, N);
      this.value.backward(dv, dx, N);
    }
  }

  class FeedForward {
    constructor(parameters, name, d, dFF, rows) {
      this.first = new Linear(parameters, `${name}.0`, d, dFF, rows);
      this.second = new Linear(parameters, `${name}.2`, dFF, d, rows);
      this.active = new Float32Array(rows * dFF);
      this.dActive = new Float32Array(rows * dFF);
    }

    forward(x, N) {
      const h = this.first.forward(x, N), size = N * this.first.fanOut;
      for (let i = 0; i < size; i++) this.active[i] = Math.max(0, h[i]); // ReLU; NaN stays NaN
      return this.second.forward(this.active, N);
    }

    backward(dy, dx, N) {
      const { active, dActive } = this, size = N * this.first.fanOut;
      this.second.backward(dy, dActive.fill(0, 0, size), N);
      for (let i = 0; i < size; i++) if (!(active[i] > 0)) dActive[i] = 0;
      this.first.backward(dActive, dx, N);
    }
  }

  /** A branch added to the stream: pre: x + f(LN x), post: LN(x + f(x)), none: x + f(x). */
  class Residual {
    constructor(config, branch, norm, rows) {
      const skip = config.skip_scale ?? 1, scale = config.residual_scale ?? 1;
      Object.assign(this, { branch, norm, skip, scale, kind: config.norm, d: config.d_model });
      [this.y, this.dBranch, this.dInner] = Array.from({ length: 3 }, () => new Float32Array(rows * config.d_model));
    }

    forward(x, N) {
      const { y, skip, scale } = this, size = N * this.d;
      const f = this.branch.forward(this.kind === "pre" ? this.norm.forward(x, N) : x, N);
      for (let i = 0; i < size; i++) y[i] = skip * x[i] + scale * f[i];
      return this.kind === "post" ? this.norm.forward(y, N) : y;
    }

    /** Turns the gradient of what is handed on, `d`, into that of what came in. */
    backward(d, N) {
      const { dBranch, dInner, skip, scale, kind, norm } = this, size = N * this.d;
      dInner.fill(0, 0, size);
      if (kind === "post") {
        norm.backward(d, dInner, N);
        d.set(dInner.subarray(0, size));
        dInner.fill(0, 0, size);
      }
      for (let i = 0; i < size; i++) {
        dBranch[i] = scale * d[i];
        d[i] *= skip;
      }
      if (kind !== "pre") return this.branch.backward(dBranch, d, N);
      this.branch.backward(dBranch, dInner, N);
      norm.backward(dInner, d, N);
    }
  }

  // ----- the model ------------------------------------------------------------------------------------------------------

  /** Parameters by name, side by side in one array, and their gradients in another. */
  class Parameters {
    constructor() {
      this.all = [];
    }

    add(name, rows, columns = 1) {
      const parameter = { name, rows, columns, size: rows * columns };
      this.all.push(parameter);
      return parameter;
    }

    allocate() {
      const size = this.all.reduce((sum, each) => sum + each.size, 0);
      [this.values, this.gradients] = [new Float32Array(size), new Float32Array(size)];
      let start = 0;
      for (const each of this.all) {
        each.value = this.values.subarray(start, start + each.size);
        each.gradient = this.gradients.subarray(start, (start += each.size));
        if (/norm\.weight$/.test(each.name)) each.value.fill(1);
      }
    }
  }

  /** Blocks between an embedding and a linear readout; `config` as in `TransformerConfig`, ReLU, learned biases. */
  class Transformer {
    constructor(config, batch = 32) {
      this.config = config = { d_ff: 4 * config.d_model, ...config };
      const { seq_len: T, d_model: d } = config, rows = batch * T, parameters = (this.parameters = new Parameters());
      this.embedding = config.vocab_size
        ? new Embedding(parameters, "embedding", config.vocab_size, d, rows)
        : new Linear(parameters, "embedding", config.d_input, d, rows);
      this.positions = config.positions === "learned" ? parameters.add("positions", T, d) : null;
      this.waves = config.positions === "sinusoidal" ? sinusoidalPositions(T, d, config.position_scale ?? 1) : null;
      const norm = (name) => (config.norm === "none" ? null : new Norm(parameters, name, d, rows));
      this.blocks = Array.from({ length: config.n_layers }, (_, l) => {
        const name = `blocks.${l}`, attention = new Attention(parameters, `${name}.attention`, config, batch);
        const feedForward = new FeedForward(parameters, `${name}.feed_forward`, d, config.d_ff, rows);
        const branches = [[attention, "attention_norm"], [feedForward, "feed_forward_norm"]];
        return { attention, branches: branches.map(([f, each]) => new Residual(config, f, norm(`${name}.${each}`), rows)) };
      });
      this.finalNorm = config.norm === "pre" ? norm("final_norm") : null;
      this.readout = new Linear(parameters, "readout", d, config.n_classes, config.pooling === "mean" ? batch : rows);
      parameters.allocate();
      [this.x, this.pooled, this.dPooled, this.d, this.dRead] = Array.from({ length: 5 }, () => new Float32Array(rows * d));
      this.dLogits = new Float32Array(this.readout.y.length);
      this.stream = []; // (N, d) each: the embedding, then what every block hands on
    }

    /** Logits of the classes, (B, n_classes) with mean pooling, else (B, T, n_classes); `x` is (B, T, d_input) or (B, T). */
    forward(x, B) {
      const { seq_len: T, d_model: d, pooling } = this.config, N = B * T, positions = this.waves ?? this.positions?.value;
      this.B = B;
      this.x.set(this.embedding.forward(x, N).subarray(0, N * d));
      if (positions) for (let i = 0; i < N * d; i++) this.x[i] += positions[i % (T * d)];
      this.stream = [this.x];
      for (const { branches } of this.blocks) {
        this.stream.push(branches.reduce((stream, each) => each.forward(stream, N), this.stream.at(-1)));
      }
      let read = this.stream.at(-1);
      if (this.finalNorm) read = this.finalNorm.forward(read, N);
      if (pooling !== "mean") return this.readout.forward(read, N);
      this.pooled.fill(0, 0, B * d);
      for (let n = 0; n < N; n++) for (let i = 0; i < d; i++) this.pooled[Math.floor(n / T) * d + i] += read[n * d + i] / T;
      return this.readout.forward(this.pooled, B);
    }

    /** Gradients of all parameters, from that of the logits. */
    backward(dLogits) {
      const { seq_len: T, d_model: d, pooling } = this.config, { B, dRead } = this, N = B * T;
      this.parameters.gradients.fill(0);
      dRead.fill(0, 0, N * d);
      this.d.fill(0, 0, N * d);
      const dLast = this.finalNorm ? dRead : this.d; // of what the readout reads, token by token
      if (pooling === "mean") {
        const dPooled = this.dPooled.fill(0, 0, B * d);
        this.readout.backward(dLogits, dPooled, B);
        for (let i = 0; i < N * d; i++) dLast[i] = dPooled[Math.floor(i / (T * d)) * d + (i % d)] / T;
      } else this.readout.backward(dLogits, dLast, N);
      if (this.finalNorm) this.finalNorm.backward(dRead, this.d, N);
      for (const { branches } of [...this.blocks].reverse()) for (const each of [...branches].reverse()) each.backward(this.d, N);
      if (this.positions) for (let i = 0; i < N * d; i++) this.positions.gradient[i % (T * d)] += this.d[i];
      this.embedding.backward(this.d, null, N);
    }

    /** Mean cross-entropy of the scored targets (−1: not scored), how many are right, and, if wanted, all gradients. */
    loss(x, targets, B, withGradients = true) {
      const C = this.config.n_classes, logits = this.forward(x, B), dLogits = this.dLogits;
      const scored = targets.reduce((count, target) => count + (target >= 0), 0);
      let loss = 0, right = 0;
      for (let n = 0; n < targets.length; n++) {
        const start = n * C, row = logits.subarray(start, start + C), target = targets[n];
        if (target < 0) {
          dLogits.fill(0, start, start + C);
          continue;
        }
        let largest = 0, total = 0;
        for (let c = 1; c < C; c++) if (row[c] > row[largest]) largest = c;
        for (let c = 0; c < C; c++) total += Math.exp(row[c] - row[largest]);
        loss += Math.log(total) + row[largest] - row[target];
        right += largest === target;
        for (let c = 0; c < C; c++) dLogits[start + c] = (Math.exp(row[c] - row[largest]) / total - (c === target)) / scored;
      }
      if (withGradients) this.backward(dLogits);
      return { loss: loss / scored, right, scored };
    }
  }

  function sinusoidalPositions(T, d, scale) {
    return Float32Array.from({ length: T * d }, (_, i) => {
      const channel = i % d, angle = Math.floor(i / d) * Math.exp(-2 * Math.floor(channel / 2) * Math.log(10000) / d);
      return scale * (channel % 2 ? Math.cos(angle) : Math.sin(angle));
    });
  }

  // ----- training ------------------------------------------------------------------------------------------------------

  /** SGD or Adam as in torch.optim; the rate rises to `lr` in `warmup` steps. */
  class Optimizer {
    constructor(parameters, { optimizer = "adam", lr, warmup = 0, betas = [0.9, 0.999], eps = 1e-8 }) {
      Object.assign(this, { parameters, kind: optimizer, lr, warmup, betas, eps, t: 0 });
      [this.first, this.second] = [0, 0].map(() => new Float32Array(optimizer === "adam" ? parameters.values.length : 0));
    }

    step() {
      const { first, second, betas: [beta1, beta2], eps } = this, { values, gradients } = this.parameters;
      this.t += 1;
      const lr = this.lr * (this.warmup ? Math.min(1, this.t / this.warmup) : 1);
      if (this.kind === "sgd") {
        for (let i = 0; i < values.length; i++) values[i] -= lr * gradients[i];
        return;
      }
      const rate = lr / (1 - beta1 ** this.t), correction = Math.sqrt(1 - beta2 ** this.t);
      for (let i = 0; i < values.length; i++) {
        const g = gradients[i];
        first[i] += (1 - beta1) * (g - first[i]);
        second[i] = beta2 * second[i] + (1 - beta2) * g * g;
        values[i] -= rate * first[i] / (Math.sqrt(second[i]) / correction + eps);
      }
    }
  }

  // ----- initialization: laws by role, as the registry of attntut.init wrote them into the page's data -------------------

  /** Random numbers that depend on a text alone (sfc32). */
  function generator(text) {
    let a = 0x9e3779b9, b = 0x243f6a88, c = 0xb7e15162, count = 1;
    for (const letter of `${text}`) a = Math.imul(a ^ letter.codePointAt(0), 0x01000193); // FNV
    const bits = () => {
      const t = (a + b + count++) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = (((c << 21) | (c >>> 11)) + t) | 0;
      return t >>> 0;
    };
    const uniform = () => (bits() + 0.5) / 2 ** 32;
    const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
    for (let i = 0; i < 15; i++) bits();
    return { uniform, normal, below: (n) => Math.floor(uniform() * n) };
  }

  const LAWS = {
    constant: (parameter, [value]) => parameter.value.fill(value),
    normal: (parameter, [sigma], random) => parameter.value.forEach((_, i, w) => (w[i] = sigma * random.normal())),
    uniform: (parameter, [bound], random) => parameter.value.forEach((_, i, w) => (w[i] = bound * (2 * random.uniform() - 1))),
    truncnormal: (parameter, [sigma, cut], random) => parameter.value.forEach((_, i, w) => {
      let z = random.normal();
      while (Math.abs(z) > cut) z = random.normal();
      w[i] = sigma * z;
    }),
    identity({ value, columns }, [gain, noise = 0], random) {
      value.forEach((_, i) => (value[i] = (Math.floor(i / columns) === i % columns ? gain : 0) + noise * random.normal()));
    },
    fitted({ value, columns: d }, [, scale, sign, heads, role], random) { // mimetic: one side of a pair, head by head
      for (let h = 0, row = 0; h < heads; h++) {
        const { left, right } = factors(scale, sign, d, random), side = role === "query" || role === "value" ? left : right;
        for (let i = 0; i < d / heads; i++, row++) side[i].forEach((w, j) => (value[role === "output" ? j * d + row : row * d + j] = w));
      }
    },
    orthogonal({ value, rows, columns }, [gain], random) { // Gram–Schmidt on the rows, or the columns if there are fewer
      const [few, many, down, right] = rows <= columns ? [rows, columns, columns, 1] : [columns, rows, 1, columns];
      const vectors = [];
      for (let i = 0; i < few; i++) {
        let vector = Array.from({ length: many }, random.normal);
        for (const other of [...vectors, ...vectors]) { // twice, for rounding
          const along = other.reduce((sum, each, k) => sum + each * vector[k], 0);
          vector = vector.map((each, k) => each - along * other[k]);
        }
        const length = Math.hypot(...vector);
        vectors.push(vector.map((each) => each / length));
        vectors[i].forEach((each, k) => (value[i * down + k * right] = gain * each));
      }
    },
  };

  /** scale · (Z + sign I) = Σ left[i] right[i]ᵀ, the largest terms first: its singular vectors, by Jacobi's rotations. */
  function factors(scale, sign, d, random) {
    const unit = (i) => Float64Array.from({ length: d }, (_, k) => +(k === i)), ones = Array.from({ length: d }, (_, i) => unit(i));
    const columns = ones.map((one) => one.map((each) => scale * (random.normal() / Math.sqrt(d) + sign * each)));
    const dot = (a, b) => a.reduce((sum, each, k) => sum + each * b[k], 0);
    for (let sweep = 0; sweep < 10; sweep++) {
      for (let p = 0; p < d; p++) {
        for (let q = p + 1; q < d; q++) {
          const [a, b, along] = [dot(columns[p], columns[p]), dot(columns[q], columns[q]), dot(columns[p], columns[q])];
          if (Math.abs(along) < 1e-14 * Math.sqrt(a * b)) continue;
          const zeta = (b - a) / (2 * along), t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
          const cos = 1 / Math.hypot(1, t), sin = cos * t;
          for (const each of [columns, ones]) {
            const [x, y] = [each[p], each[q]];
            [each[p], each[q]] = [x.map((v, k) => cos * v - sin * y[k]), y.map((v, k) => cos * v + sin * x[k])];
          }
        }
      }
    }
    const terms = columns.map((column, i) => ({ size: norm(column), column, row: ones[i] })).sort((a, b) => b.size - a.size);
    return {
      left: terms.map(({ size, column }) => column.map((each) => each / Math.sqrt(size))),
      right: terms.map(({ size, row }) => row.map((each) => each * Math.sqrt(size))),
    };
  }

  const LAST = { 0: "feed_forward_in", 2: "feed_forward_out", embedding: "embedding", positions: "position", readout: "readout" };

  /** What a parameter is for: `{ role, layer, isBias }`, or null for the norms. */
  function roleOf({ name }) {
    if (/norm\./.test(name)) return null;
    const isBias = name.endsWith(".bias"), words = name.replace(/\.(weight|bias)$/, "").split("."), last = words.at(-1);
    return { role: LAST[last] ?? last, layer: words[0] === "blocks" ? +words[1] + 1 : 1, isBias };
  }

  /** Which slider sets the size of a role, if one does. */
  const groupOf = ({ groups }, { role }) => Object.keys(groups).find((each) => groups[each].includes(role));

  /** The law of a role in a scheme: `[kind, size, …]`. What it does not depend on has no axis. */
  function lawOf(data, scheme, { role, layer, isBias }, config) {
    const { axes, table } = data.schemes[scheme].laws[isBias ? `${role}.bias` : role] ?? { axes: [], table: ["constant", 0] }; // biases
    const place = { ...config, layer };
    return axes.reduce((node, axis) => node[place[axis]], table);
  }

  /** What a vector of variance 1 is multiplied by, σ√fan_in; of a table, the size of its entries. */
  function gainOf(law, { rows, columns }, isTable) {
    const [kind, size, cut] = law, root = isTable ? 1 : Math.sqrt(columns);
    if (kind === "constant") return 0;
    if (kind === "identity" || kind === "orthogonal") return (size / Math.sqrt(Math.max(rows, columns))) * root;
    const density = Math.exp(-(cut ** 2) / 2) / Math.sqrt(2 * Math.PI);
    if (kind === "truncnormal") return size * Math.sqrt(1 - (2 * cut * density) / erf(cut / Math.SQRT2)) * root;
    return size * (kind === "uniform" ? 3 ** -0.5 : 1) * root;
  }

  function erf(x) { // its series: enough for a cut of a few σ
    let sum = 0, term = x;
    if (x > 5) return 1;
    for (let n = 0; n < 120; n++, term *= -(x * x) / n) sum += term / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * sum;
  }

  /** Draw all parameters. `start` names a scheme, and for some groups the gain σ√fan_in that is set by hand. */
  function initialize(model, data, start, seed) {
    for (const parameter of model.parameters.all) {
      const place = roleOf(parameter);
      if (/query_norm/.test(parameter.name)) parameter.value.fill(data.schemes[start.scheme].query_gain ?? 1);
      if (!place) continue;
      const group = groupOf(data, place), isTable = isTableOf(model.config, place.role);
      let law = lawOf(data, start.scheme, place, model.config);
      if (!place.isBias && start[group] != null) law = ["normal", start[group] / (isTable ? 1 : Math.sqrt(parameter.columns))];
      if (place.role === "position" && start.position != null) law = ["normal", start.position];
      const drawn = law[0] === "fitted" ? parameter.name.replace(place.role, group) : parameter.name; // a pair is drawn as one
      LAWS[law[0]](parameter, law.slice(1), generator(`${seed} ${drawn}`)); // the same numbers for every scheme
    }
  }

  const isTableOf = (config, role) => role === "position" || (role === "embedding" && Boolean(config.vocab_size));

  /** The gain of each group as a scheme has it in the first block: where the sliders stand. */
  function gains(model, data, scheme) {
    const found = {};
    for (const parameter of model.parameters.all) {
      const place = roleOf(parameter);
      if (!place || place.isBias || place.layer > 1) continue;
      const gain = gainOf(lawOf(data, scheme, place, model.config), parameter, isTableOf(model.config, place.role));
      const group = groupOf(data, place) ?? place.role;
      found[group] = [...(found[group] ?? []), gain];
    }
    return Object.fromEntries(Object.entries(found).map(([group, each]) => [group, rms(each)]));
  }

  // ----- data -----------------------------------------------------------------------------------------------------------

  /** The inputs and targets of a task, from letters: 36 and more are the numbers 0, 1 …, and # a target that is not scored. */
  function dataOf(task) {
    const numbers = (text, n) => { // column by column
      const width = text.length / n;
      return Int32Array.from({ length: text.length }, (_, i) => text.charCodeAt((i % width) * n + Math.floor(i / width)) - 36);
    };
    const size = task.seq_len * (task.d_input ?? 1), n = task.inputs.length / size, perInput = task.targets.length / n;
    const targets = numbers(task.targets, n);
    let inputs = numbers(task.inputs, n);
    if (task.std) inputs = Float32Array.from(inputs, (pixel) => Math.fround(pixel - Math.fround(task.mean)) / Math.fround(task.std));
    const take = (rows) => {
      const x = new inputs.constructor(rows.length * size), y = new Int32Array(rows.length * perInput);
      rows.forEach((row, i) => {
        x.set(inputs.subarray(row * size, (row + 1) * size), i * size);
        y.set(targets.subarray(row * perInput, (row + 1) * perInput), i * perInput);
      });
      return { x, y, B: rows.length };
    };
    return { take, n_train: task.n_train, n };
  }

  /** Which inputs each batch holds, for ever: shuffled passes, incomplete batches left out. */
  function* batches(n, size, seed) {
    for (let pass = 0; ; pass++) {
      const random = generator(`${seed} pass ${pass}`), order = Array.from({ length: n }, (_, i) => i);
      for (let i = n - 1; i > 0; i--) {
        const j = random.below(i + 1);
        [order[i], order[j]] = [order[j], order[i]];
      }
      for (let start = 0; start + size <= n; start += size) yield order.slice(start, start + size);
    }
  }

  // ----- what is measured: as attntut.measure and attntut.diagnose do --------------------------------------------------

  const sumOf = (array, f) => array.reduce((sum, each) => sum + f(each), 0);
  const rms = (array) => Math.sqrt(sumOf(array, (each) => each * each) / array.length);
  const norm = (array) => Math.sqrt(sumOf(array, (each) => each * each));

  /** Mean cosine of two different tokens of a sequence; x is (B·T, d). */
  function tokenCosine(x, T, d) {
    const total = new Float64Array(d);
    let sum = 0, sequences = x.length / (T * d);
    for (let b = 0; b < sequences; b++) {
      total.fill(0);
      let own = 0;
      for (let t = 0; t < T; t++) {
        const token = x.subarray((b * T + t) * d, (b * T + t + 1) * d), length = Math.max(norm(token), 1e-12);
        for (let i = 0; i < d; i++) total[i] += token[i] / length;
        own += (norm(token) / length) ** 2;
      }
      sum += (sumOf(total, (each) => each * each) - own) / (T * (T - 1));
    }
    return sum / sequences;
  }

  /** One head of all sequences: mean over its rows; the spread is that of a row around its own mean. */
  function headStatistics({ logits, weights, T, H, causal }, B, h) {
    let square = 0, visible = 0, largest = 0, entropy = 0, share = 0, top = 0, saturated = 0, first = 0, choices = 0;
    for (let b = 0; b < B; b++) {
      for (let t = 0; t < T; t++) {
        const start = ((b * H + h) * T + t) * T, seen = causal ? t + 1 : T;
        let mean = 0, most = 0, spread = 0;
        for (let j = start; j < start + seen; j++) mean += logits[j] / seen;
        for (let j = start; j < start + seen; j++) {
          square += (logits[j] - mean) ** 2;
          largest = Math.max(largest, Math.abs(logits[j]));
          most = Math.max(most, weights[j]);
          if (weights[j] > 0) spread -= weights[j] * Math.log(weights[j]);
        }
        entropy += spread;
        visible += seen;
        top += most;
        first += weights[start];
        if (seen < 2) continue;
        choices += 1;
        share += spread / Math.log(seen);
        saturated += most > 0.99;
      }
    }
    const rows = B * T;
    return {
      logit_std: Math.sqrt(square / visible), logit_max: largest, entropy: entropy / rows, entropy_share: share / choices,
      max_weight: top / rows, saturated: saturated / choices, first: first / rows,
    };
  }

  /** What the last forward and backward pass did, block by block. */
  function statistics(model) {
    const { B, config: { seq_len: T, d_model: d, n_heads: H } } = model;
    const stream = model.stream.map((each) => {
      const x = each.subarray(0, B * T * d);
      return { rms: rms(x), token_cosine: tokenCosine(x, T, d) };
    });
    const layers = model.blocks.map(({ attention }) => {
      const heads = Array.from({ length: H }, (_, h) => headStatistics(attention, B, h));
      const mean = (name) => sumOf(heads, (each) => each[name]) / H;
      const roles = ["query", "key", "value", "output"];
      const gradients = Object.fromEntries(roles.map((role) => [role, norm(attention[role].weight.gradient)]));
      return {
        heads, gradients, ratio_query: gradients.query / gradients.value, logit_std: rms(heads.map((each) => each.logit_std)),
        entropy: mean("entropy"), entropy_share: mean("entropy_share"), saturated: mean("saturated"), max_weight: mean("max_weight"),
        logit_max: Math.max(...heads.map((each) => each.logit_max)),
      };
    });
    return { stream, layers };
  }

  return { Transformer, Optimizer, LAWS, initialize, gains, dataOf, batches, statistics, generator, sumOf, rms, norm };
}

if (typeof module === "object") module.exports = attntutEngine; // for the tests in Node
