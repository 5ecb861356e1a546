"use strict";

// The exact flow of finitely many points in the plane, without a page: x_t = alpha x_1 + std x_0 with x_0 from N(0, I)
// and x_1 one of the points, each as likely as the others. `law` is {path, sigmaMin, n, xs, ys}, with Float64Arrays.

const HALF_PI = Math.PI / 2;
const VP = { least: 0.1, most: 20 };
// A kernel this many deviations away is below 1e-8 of its peak, which no picture shows.
const REACH = 6.1;

const PATHS = {
  linear(t, sigmaMin) {
    return { alpha: t, alphaRate: 1, std: (1 - t) + sigmaMin * t, stdRate: sigmaMin - 1 };
  },
  cosine(t, sigmaMin) {
    const [alpha, sigma] = [Math.sin(HALF_PI * t), Math.sin(HALF_PI * (1 - t))];
    return widened(alpha, sigma * sigma, HALF_PI * sigma, -HALF_PI * alpha * sigma, sigmaMin);
  },
  variance_preserving(t, sigmaMin) {
    const [left, spread] = [1 - t, VP.most - VP.least];
    const toEnd = 0.25 * left * left * spread + 0.5 * left * VP.least;
    const fromStart = 0.25 * t * (1 + left) * spread + 0.5 * t * VP.least;
    const whole = -Math.expm1(-0.25 * spread - 0.5 * VP.least);
    const alpha = Math.exp(-toEnd) * -Math.expm1(-fromStart) / whole;
    const rate = Math.exp(-toEnd) * (0.5 * left * spread + 0.5 * VP.least) / whole;
    return widened(alpha, -Math.expm1(-toEnd) / whole * (1 + alpha), rate, -alpha * rate, sigmaMin);
  },
};

// The path of data N(x_i, sigmaMin^2 I): std^2 = sigma^2 + (alpha sigmaMin)^2; `pull` is sigma times its rate.
function widened(alpha, variance, alphaRate, pull, sigmaMin) {
  const std = Math.sqrt(variance + (alpha * sigmaMin) ** 2);
  return { alpha, alphaRate, std, stdRate: (pull + alpha * alphaRate * sigmaMin ** 2) / std };
}

// exp(-u) for 0 <= u <= 37 to 1e-10 of its value, from a table of sixteenths and a short series.
const SIXTEENTHS = Float64Array.from({ length: 640 }, (_, k) => Math.exp(-k / 16));

function decay(u) {
  const k = (u * 16) | 0;
  const r = u - k / 16;
  return SIXTEENTHS[k] * (1 - r * (1 - r * (1 / 2 - r * (1 / 6 - r * (1 / 24 - r / 120)))));
}

function pathAt(law, t) {
  return PATHS[law.path](t, law.sigmaMin);
}

// Points [[x, y], ...] as a law; neighbours in the plane are neighbours in the arrays, and `order` says which is which.
function makeLaw(points, path, sigmaMin) {
  const cell = (v) => Math.min(Math.max(Math.floor((v + 8) * 64), 0), 1023);
  const key = points.map(([x, y]) => spread(cell(x)) + 2 * spread(cell(y)));
  const order = Array.from(points.keys()).sort((a, b) => key[a] - key[b] || a - b);
  const pick = (axis) => Float64Array.from(order, (i) => points[i][axis]);
  return { path, sigmaMin, n: points.length, xs: pick(0), ys: pick(1), order };
}

// The ten bits of a number with a free place between each and the next.
function spread(v) {
  let out = 0;
  for (let bit = 0; bit < 10; bit++) out += ((v >> bit) & 1) * 4 ** bit;
  return out;
}

// Weights of the points given x_t = (x, y), their mean, and the log-density there.
function posterior(law, t, x, y) {
  const { n, xs, ys } = law;
  const { alpha, std } = pathAt(law, t);
  const weights = new Float64Array(n);
  let most = -Infinity;
  for (let i = 0; i < n; i++) {
    const [dx, dy] = [x - alpha * xs[i], y - alpha * ys[i]];
    weights[i] = -(dx * dx + dy * dy) / (2 * std * std);
    if (weights[i] > most) most = weights[i];
  }
  let [sum, mx, my] = [0, 0, 0];
  for (let i = 0; i < n; i++) {
    weights[i] = Math.exp(weights[i] - most);
    sum += weights[i];
    mx += weights[i] * xs[i];
    my += weights[i] * ys[i];
  }
  for (let i = 0; i < n; i++) weights[i] /= sum;
  return { weights, mean: [mx / sum, my / sum], logDensity: most + Math.log(sum / n / (2 * Math.PI * std * std)) };
}

function densityAt(law, t, x, y) {
  return Math.exp(posterior(law, t, x, y).logDensity);
}

function velocityAt(law, t, x, y) {
  const out = new Float64Array(2);
  velocities(law, t, Float64Array.of(x, y), out, 0, 1);
  return Array.from(out);
}

// The exact field at the places from..to of `states` (x, y, x, y, ...): the mean over the posterior of the conditional
// velocities (stdRate / std) (x - alpha x_1) + alphaRate x_1.
function velocities(law, t, states, out, from, to) {
  const { n, xs, ys } = law;
  const { alpha, alphaRate, std, stdRate } = pathAt(law, t);
  const [scale, rate] = [1 / (2 * std * std), stdRate / std];
  if (!law.scratch || law.scratch.length < n) law.scratch = new Float64Array(n);
  const { scratch } = law;
  for (let k = from; k < to; k++) {
    const [x, y] = [states[2 * k], states[2 * k + 1]];
    let least = Infinity;
    for (let i = 0; i < n; i++) {
      const dx = x - alpha * xs[i];
      const dy = y - alpha * ys[i];
      const square = dx * dx + dy * dy;
      scratch[i] = square;
      if (square < least) least = square;
    }
    const far = least + 37 / scale;
    let sum = 0;
    let mx = 0;
    let my = 0;
    for (let i = 0; i < n; i++) {
      if (scratch[i] > far) continue;
      const w = decay((scratch[i] - least) * scale);
      sum += w;
      mx += w * xs[i];
      my += w * ys[i];
    }
    mx /= sum;
    my /= sum;
    out[2 * k] = rate * (x - alpha * mx) + alphaRate * mx;
    out[2 * k + 1] = rate * (y - alpha * my) + alphaRate * my;
  }
}

// p_t on nodes x nodes places of the square [-half, half]^2, row by row from the least y. A Gaussian is a product of one
// in x and one in y, so that n points cost 2 n rows of exponentials and n small outer products. `least` is the smallest
// deviation to draw, for grids too coarse for a sharper one. Returns the largest value.
function densityGrid(law, t, half, nodes, out, least = 0) {
  const { n, xs, ys } = law;
  const { alpha, std } = pathAt(law, t);
  const width = Math.max(std, least);
  const across = new Float64Array(4 * nodes);
  const along = new Float64Array(4 * nodes);
  const span = new Int32Array(4);
  out.fill(0);
  for (let first = 0; first < n; first += 4) {
    span.set([nodes, 0, nodes, 0]);
    across.fill(0);
    along.fill(0);
    const last = Math.min(first + 4, n);
    for (let i = first; i < last; i++) {
      kernel(alpha * xs[i], width, half, nodes, across, (i - first) * nodes, span, 0);
      kernel(alpha * ys[i], width, half, nodes, along, (i - first) * nodes, span, 2);
    }
    addProducts(across, along, nodes, span, out);
  }
  const factor = 1 / (2 * Math.PI * width * width * n);
  let peak = 0;
  for (let k = 0; k < out.length; k++) {
    out[k] *= factor;
    if (out[k] > peak) peak = out[k];
  }
  return peak;
}

// exp(-(x - centre)^2 / (2 std^2)) at the nodes within reach: from the nearest node outwards each value is the last one
// times a ratio that itself shrinks by a constant. Widens span[at], span[at + 1] to the nodes written.
function kernel(centre, std, half, nodes, out, start, span, at) {
  const step = 2 * half / (nodes - 1);
  const [begin, end] = [Math.max(Math.ceil((centre - REACH * std + half) / step), 0),
    Math.min(Math.floor((centre + REACH * std + half) / step), nodes - 1)];
  if (begin > end) return;
  const middle = Math.min(Math.max(Math.round((centre + half) / step), begin), end);
  const scale = 1 / (2 * std * std);
  const offset = middle * step - half - centre;
  const value = Math.exp(-offset * offset * scale);
  const shrink = Math.exp(-2 * step * step * scale);
  out[start + middle] = value;
  let [g, ratio] = [value, Math.exp(-(2 * offset + step) * step * scale)];
  for (let k = middle + 1; k <= end; k++, ratio *= shrink) out[start + k] = g *= ratio;
  [g, ratio] = [value, Math.exp((2 * offset - step) * step * scale)];
  for (let k = middle - 1; k >= begin; k--, ratio *= shrink) out[start + k] = g *= ratio;
  if (begin < span[at]) span[at] = begin;
  if (end > span[at + 1]) span[at + 1] = end;
}

// out += the sum of four outer products, inside the span.
function addProducts(across, along, nodes, [left, right, low, high], out) {
  for (let j = low; j <= high; j++) {
    const a = along[j];
    const b = along[nodes + j];
    const c = along[2 * nodes + j];
    const d = along[3 * nodes + j];
    const row = j * nodes;
    for (let k = left; k <= right; k++) {
      out[row + k] += a * across[k] + b * across[nodes + k] + c * across[2 * nodes + k] + d * across[3 * nodes + k];
    }
  }
}

// Explicit Runge-Kutta methods: each stage is at time c, from a combination of the stages before it.
const SOLVERS = {
  euler: { c: [0], a: [[]], b: [1] },
  midpoint: { c: [0, 1 / 2], a: [[], [1 / 2]], b: [0, 1] },
  heun: { c: [0, 1], a: [[], [1]], b: [1 / 2, 1 / 2] },
  rk4: { c: [0, 1 / 2, 1 / 2, 1], a: [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], b: [1 / 6, 1 / 3, 1 / 3, 1 / 6] },
};

function evenTimes(steps) {
  return Float64Array.from({ length: steps + 1 }, (_, k) => k / steps);
}

// Nodes that lie closer together towards t = 1, where the field of finitely many points turns sharply.
function fineTimes(steps) {
  return Float64Array.from({ length: steps + 1 }, (_, k) => (k === steps ? 1 : 1 - (1 - k / steps) ** 2));
}

// States of all particles at each of `times`, worked out a few at a time: `run(until)` goes on until performance.now()
// reaches it and says whether all is done; `ready` is how many of the times have their states.
class Flight {
  constructor(law, starts, times, solver) {
    Object.assign(this, { law, times, solver: SOLVERS[solver], count: starts.length / 2 });
    this.states = [Float64Array.from(starts)];
    this.stages = this.solver.b.map(() => new Float64Array(starts.length));
    this.place = new Float64Array(starts.length);
    this.ready = 1;
    this.next = 0;
    this.chunk = Math.max(1, Math.floor(3e4 / law.n));
  }

  get done() {
    return this.ready === this.times.length;
  }

  run(until = Infinity) {
    while (!this.done) {
      this.step();
      if (performance.now() > until) break;
    }
    return this.done;
  }

  step() {
    const { times, ready, next, count } = this;
    if (next === 0) this.states.push(new Float64Array(2 * count));
    const end = Math.min(next + this.chunk, count);
    this.move(times[ready - 1], times[ready], this.states[ready - 1], this.states[ready], next, end);
    this.next = end === count ? 0 : end;
    if (end === count) this.ready += 1;
  }

  move(t, s, before, after, from, to) {
    const { law, stages, place, solver: { a, b, c } } = this;
    const h = s - t;
    for (let stage = 0; stage < b.length; stage++) {
      combine(before, stages, a[stage], h, place, from, to);
      velocities(law, t + c[stage] * h, place, stages[stage], from, to);
    }
    combine(before, stages, b, h, after, from, to);
  }

  // Places at time t, straight between the nodes; null while they are not worked out.
  at(t, out) {
    const { times, states } = this;
    let k = 0;
    while (k < times.length - 2 && times[k + 1] < t) k++;
    if (k + 1 >= this.ready) return null;
    const share = Math.min(Math.max((t - times[k]) / (times[k + 1] - times[k]), 0), 1);
    const [a, b] = [states[k], states[k + 1]];
    for (let i = 0; i < out.length; i++) out[i] = a[i] + share * (b[i] - a[i]);
    return out;
  }
}

function combine(before, stages, shares, h, out, from, to) {
  for (let k = 2 * from; k < 2 * to; k++) {
    let sum = 0;
    for (let j = 0; j < shares.length; j++) sum += shares[j] * stages[j][k];
    out[k] = before[k] + h * sum;
  }
}

// Root mean square distance between two sets of places.
function distance(a, b) {
  let sum = 0;
  for (let k = 0; k < a.length; k++) sum += (a[k] - b[k]) ** 2;
  return Math.sqrt(sum / (a.length / 2));
}

// Standard normal numbers, the same ones for the same seed.
function normals(count, seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let v = Math.imul(state ^ (state >>> 15), state | 1);
    v ^= v + Math.imul(v ^ (v >>> 7), v | 61);
    return (((v ^ (v >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  const one = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float64Array.from({ length: count }, one);
}
