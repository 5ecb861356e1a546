"use strict";

const SECONDS = 7;
const NODES = 80;
const COUNTS = { particles: 400, pathlines: 100, arrows: 17, listed: 5 };
const NODES_IN_TIME = { shown: 24, lab: 64 };
const OUTSIDE = -9;
const TAIL = { pieces: 5, span: 0.1 };
const TAP = { pixels: 5, reach: 20 };
const FROM_ABOVE = { azimuth: 0, elevation: Math.PI / 2 - 0.001, zoom: 1.3, shift: [0, 0] };
// Height of the box while drawing: as good as flat, so that a point shows where it was placed.
const THIN = 0.01;
const SOURCE_PEAK = 1 / (2 * Math.PI);
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const SHOWN = ["particles", "pathlines", "arrows", "points", "lab"];
const FIRST_DRAWING = [
  [-2.2, 1.2], [-1.9, 1.7], [-1.4, 1.9], [-0.9, 1.6], [-0.6, 1.1], [2.2, 1.2], [1.9, 1.7], [1.4, 1.9], [0.9, 1.6],
  [0.6, 1.1], [-2.4, -0.9], [-1.9, -1.5], [-1.3, -1.95], [-0.65, -2.2], [0, -2.3], [0.65, -2.2], [1.3, -1.95],
  [1.9, -1.5], [2.4, -0.9],
];

const PATH_WORDS = {
  linear: "\u03bc\u209c = t x\u2081, \u03c3\u209c = (1 \u2212 t) + t \u03c3\u2098\u1d62\u2099: straight lines at constant speed, the most natural choice.",
  cosine: "\u03b1 = sin(\u03c0t/2), \u03c3 = cos(\u03c0t/2): a quarter circle, so that \u03b1\u00b2 + \u03c3\u00b2 stays 1.",
  variance_preserving: "The path of a diffusion model: long near the source, and most of the change shortly before the data.",
};
const SOLVER_WORDS = {
  euler: "x + h v\u209c(x): one call of the field a step; halving h halves the error.",
  midpoint: "Looks at the field half a step ahead: two calls a step; halving h quarters the error.",
  heun: "Averages the field at both ends of the step: two calls; halving h quarters the error.",
  rk4: "Four calls a step; halving h divides the error by sixteen.",
};

// Numbers of data points and widths that the sliders stop at.
function countStops(most) {
  const stops = [];
  for (let n = 1; n < most; n = Math.max(n + 1, Number((n * 1.06).toPrecision(2)))) stops.push(n);
  return [...stops, most];
}

const SIGMA_STOPS = Array.from({ length: 101 }, (_, k) => Number((0.02 * 47.5 ** (k / 100)).toPrecision(2)));

// Numbers in [0, 1] from three characters each, 18 bits.
function decode18(text) {
  const digit = (k) => DIGITS.indexOf(text[k]);
  return Float64Array.from({ length: text.length / 3 }, (_, k) => (
    (4096 * digit(3 * k) + 64 * digit(3 * k + 1) + digit(3 * k + 2)) / 262143));
}

function pairs(flat) {
  return Array.from({ length: flat.length / 2 }, (_, k) => [flat[2 * k], flat[2 * k + 1]]);
}

// Two numbers a line, whatever stands between them; lines that hold words are left out and counted.
function parsePoints(text) {
  const rows = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const read = rows.map((line) => line.split(/[\s,;]+/).filter(Boolean).map(Number));
  const points = read.filter((row) => row.length === 2 && row.every(Number.isFinite));
  return { points, skipped: rows.length - points.length };
}

function thousandth(v) {
  return Math.round(1000 * v) / 1000;
}

function plain(v, digits = 3) {
  return label(Number(v.toPrecision(digits)));
}

class Explore {
  constructor({ sets, start }) {
    this.sets = Object.fromEntries(sets.map((set) => [set.id, set]));
    this.start = start;
    this.state = {
      data: start, n: Math.min(1000, this.sets[start].count), sigma: 0.1, path: "linear", t: 0, particles: true,
      pathlines: false, arrows: false, points: false, lab: false, pin: null, solver: "euler", steps: 8, draw: false,
    };
    this.stage = document.querySelector(".stage");
    this.drawing = FIRST_DRAWING.map((point) => [...point]);
    this.undoStack = [];
    this.playing = false;
    this.at = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (item) => [item.id, item]));
    for (const set of sets) this.at["data-set"].append(new Option(set.label, set.id));
    this.density = new Float64Array(NODES * NODES);
    this.heights = new Float32Array(NODES * NODES);
    this.starts = normals(2 * COUNTS.particles, 7);
    this.read();
    const tall = this.stage.clientHeight > 0.9 * this.stage.clientWidth;
    this.home = { azimuth: 0.62, elevation: tall ? 0.7 : 0.56 };
    this.size = [2, 2, tall ? 1.1 : 0.8];
  }

  // A still picture of the surface, which shows until the live one is there.
  poster(nodes = 57) {
    this.settle();
    this.syncLaw();
    const density = new Float64Array(nodes * nodes);
    const peak = this.law ? densityGrid(this.law, this.state.t, this.half, nodes, density, this.half / nodes) : 1;
    const heights = density.map((p) => Math.sqrt(p / Math.max(peak, SOURCE_PEAK)));
    const camera = new Camera(this.home);
    Object.assign(camera, this.camera);
    const size = this.state.draw ? [...this.size.slice(0, 2), THIN] : this.size;
    this.still = drawPoster(this.stage, camera, size, this.colours(), heights, nodes);
  }

  begin() {
    this.build();
    this.listen();
    this.change();
    this.scene.frame(performance.now());
    this.still?.remove();
  }

  // What is shown, as a set of points in the units of the flow: N(0, I) at t = 0.
  get set() {
    const set = this.sets[this.state.data];
    if (set.id === "drawn") return { ...set, all: this.drawing, count: this.drawing.length };
    if (!set.all) set.all = set.packed ? pairs(decode18(set.packed).map((v) => (2 * v - 1) * set.range)) : set.exact;
    return set;
  }

  get sigmaMin() {
    return this.set.sigma ?? this.state.sigma;
  }

  get half() {
    return this.set.half;
  }

  build() {
    const colours = this.colours();
    this.scene = new Scene(this.stage, { size: this.size, home: this.home, theme: colours });
    const { scene } = this;
    if (this.camera) Object.assign(scene.camera, scene.camera.flat ? { zoom: this.camera.zoom } : this.camera);
    scene.axes = new Axes(scene, document.querySelector(".labels"), {
      x: { name: "", ticks: [] }, y: { name: "", ticks: [] }, z: { name: "density (\u221a scale)", ticks: [] },
    });
    this.ground = scene.surface(NODES, NODES, []);
    this.layers = {
      pathlines: scene.strokes(1.4), tails: scene.lines(0.004), arrows: scene.strokes(1.6, 0.006),
      gaps: scene.strokes(1.2, 0.006), links: scene.strokes(1.3, 0.5), points: scene.points(4.6, 0.006),
      particles: scene.points(5.5, 0.007), lab: scene.points(6, 0.008), reached: scene.points(8.5, 0.5),
      pin: scene.points(12, 0.5), hand: scene.points(9, 0.5), cross: scene.strokes(2, 0.5),
    };
    this.at.peak.parentElement.querySelector(".bar").style.background = ramp(colours);
    scene.grab = (event) => this.press(event);
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    const bytes = (name) => style.getPropertyValue(name).match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
    const own = ["data", "lab", "arrow", "path", "ahead"].map((name) => [`${name}Ink`, bytes(`--${name}`)]);
    return { ...theme(), ...Object.fromEntries(own) };
  }

  // The settings changed: everything is worked out again.
  change() {
    this.settle();
    this.syncLaw();
    this.flights = null;
    this.syncControls();
    this.refresh();
    this.remember();
  }

  // Settings that do not fit the data are made to fit.
  settle() {
    const { state, set } = this;
    state.n = set.exact ? 1 : Math.max(1, Math.min(state.n, set.count));
    if (state.draw !== (state.data === "drawn" && state.draw)) state.draw = false;
    document.body.classList.toggle("drawing", state.draw);
    if (this.scene?.size[2]) this.scene.size = state.draw ? [...this.size.slice(0, 2), THIN] : this.size;
  }

  syncLaw() {
    const { state, set } = this;
    const points = set.all.slice(0, state.n);
    this.chosen = points;
    this.law = points.length ? makeLaw(points, state.path, this.sigmaMin) : null;
  }

  // One recomputation of the picture's density; returns the milliseconds of script that it took.
  recompute() {
    const begin = performance.now();
    this.syncLaw();
    this.sculpt();
    return performance.now() - begin;
  }

  // The surface at this t. Its scale is the larger of the density's peak and the source's, so that no bump is cut off.
  sculpt() {
    const { law, density, heights, state, half, ground } = this;
    const step = 2 * half / (NODES - 1);
    if (law) this.peak = densityGrid(law, state.t, half, NODES, density, 0.55 * step);
    else this.peak = sourceOnly(half, density);
    const top = Math.max(this.peak, SOURCE_PEAK);
    const area = this.set.scale[0] * this.set.scale[1];
    for (let k = 0; k < heights.length; k++) heights[k] = Math.sqrt(density[k] / top);
    if (this.top !== top || this.area !== area) {
      Object.assign(this, { top, area });
      const levels = densityLevels(top / area);
      this.scene.axes.retick("z", levels.map(([height, value]) => [height, label(value)]));
      ground.levels = levels.map(([height]) => height);
    }
    ground.set(heights);
  }

  refresh() {
    this.sculpt();
    this.syncTime();
    this.marks();
    this.pump();
  }

  seek(t) {
    this.state.t = clamp(t, 0, 1);
    this.refresh();
    if (!this.playing) this.remember();
  }

  // Places (x, y, x, y, ...) on the surface; those beside the box are left out of the picture.
  lay(places, out = new Float32Array(places.length / 2 * 3)) {
    const { half, ground } = this;
    for (let k = 0; k < places.length / 2; k++) {
      const [u, v] = [(places[2 * k] / half + 1) / 2, (places[2 * k + 1] / half + 1) / 2];
      const inside = u >= 0 && u <= 1 && v >= 0 && v <= 1;
      out[3 * k] = inside ? u : OUTSIDE;
      out[3 * k + 1] = inside ? v : OUTSIDE;
      out[3 * k + 2] = inside ? ground.height(u, v) : OUTSIDE;
    }
    return out;
  }

  marks() {
    this.markPoints();
    this.markArrows();
    this.markFlights();
    this.markPin();
    this.markCross();
  }

  markPoints() {
    const { state, layers, scene: { theme: ink } } = this;
    const points = this.lay(state.points || state.draw ? this.chosen.flat() : []);
    for (const name of ["points", "hand"]) {
      const shown = (name === "hand") === state.draw ? points : new Float32Array();
      layers[name].set(shown, repeat([ink.dataInk], shown.length / 3));
    }
  }

  markArrows() {
    const { state, layers, law, half, ground, scene: { theme: ink } } = this;
    if (!state.arrows || !law) return layers.arrows.set(new Float32Array(), new Uint8Array());
    const n = COUNTS.arrows;
    const along = Array.from({ length: n }, (_, k) => ((2 * k + 1) / n - 1) * half);
    const places = Float64Array.from(along.flatMap((y) => along.flatMap((x) => [x, y])));
    const flow = new Float64Array(places.length);
    velocities(law, state.t, places, flow, 0, n * n);
    const lines = new Float32Array(12 * n * n);
    const colours = repeat([ink.arrowInk], 6 * n * n);
    const longest = 1.7 * half / n;
    for (let k = 0; k < n * n; k++) {
      const [x, y, vx, vy] = [places[2 * k], places[2 * k + 1], flow[2 * k], flow[2 * k + 1]];
      const speed = Math.hypot(vx, vy);
      const size = longest * Math.tanh(0.45 * speed / longest * 0.5) / (speed || 1);
      const height = ground.height((x / half + 1) / 2, (y / half + 1) / 2);
      lines.set(arrow(x, y, size * vx, size * vy), 12 * k);
      for (let end = 0; end < 6; end++) colours[4 * (6 * k + end) + 3] = 60 + 180 * clamp(4 * height, 0, 1);
    }
    return layers.arrows.set(this.lay(lines), colours);
  }

  // Curves of the exact particles and of the solver's, as far as they are worked out; until then the last ones stay.
  markFlights() {
    const { state, layers, scene: { theme: ink } } = this;
    const empty = [new Float32Array(), new Uint8Array()];
    const wanted = state.particles || state.pathlines || state.lab;
    const shown = wanted && this.law ? this.flown() : null;
    const dots = shown && (state.particles || state.lab) ? this.lay(shown.places) : empty[0];
    layers.particles.set(dots, repeat([ink.particle], dots.length / 3));
    layers.tails.set(...(dots.length && !state.pathlines && !state.lab ? this.tails(shown.exact, dots) : empty));
    layers.pathlines.set(...(shown && state.pathlines ? this.curves(shown.exact) : empty));
    const lab = state.lab && shown && this.labPlaces ? this.lay(this.labPlaces) : empty[0];
    layers.lab.set(lab, repeat([ink.labInk], lab.length / 3));
    layers.gaps.set(...(lab.length ? joined(dots, lab, ink.labInk) : empty));
    this.sayLab();
  }

  // The exact flight and its places at t: the newest one that has come so far, else the one before; null for neither.
  flown() {
    const { flights, state: { t } } = this;
    const places = new Float64Array(2 * COUNTS.particles);
    this.labPlaces = flights?.lab?.at(t, new Float64Array(2 * COUNTS.particles)) ?? null;
    const exact = [flights?.exact, this.shown?.exact].find((flight) => flight?.at(t, places));
    this.shown = exact ? { exact, places } : null;
    return this.shown;
  }

  tails(flight, dots) {
    const { tail } = this.scene.theme;
    const count = dots.length / 3;
    const xyz = new Float32Array(TAIL.pieces * count * 6).fill(OUTSIDE);
    const rgba = new Uint8Array(TAIL.pieces * count * 8);
    let from = dots;
    const places = new Float64Array(2 * count);
    for (let piece = 0; piece < TAIL.pieces; piece++) {
      const to = this.lay(flight.at(Math.max(this.state.t - (piece + 1) * TAIL.span / TAIL.pieces, 0), places));
      const alpha = tail[3] * (1 - piece / TAIL.pieces) ** 1.5;
      for (let k = 0; k < count; k++) {
        const at = piece * count + k;
        if (from[3 * k] !== OUTSIDE && to[3 * k] !== OUTSIDE) {
          xyz.set(from.subarray(3 * k, 3 * k + 3), 6 * at);
          xyz.set(to.subarray(3 * k, 3 * k + 3), 6 * at + 3);
        }
        for (const end of [0, 4]) rgba.set([tail[0], tail[1], tail[2], alpha], 8 * at + end);
      }
      from = to;
    }
    return [xyz, rgba];
  }

  // Whole pathlines: bright up to t, faint from there on.
  curves(flight) {
    const { scene: { theme: ink }, state } = this;
    const { times } = flight;
    const count = COUNTS.pathlines;
    const layers = Array.from({ length: flight.ready }, (_, k) => this.lay(flight.states[k].subarray(0, 2 * count)));
    const now = new Float64Array(2 * COUNTS.particles);
    const here = flight.at(state.t, now) && this.lay(now.subarray(0, 2 * count));
    const [xyz, rgba] = [[], []];
    for (let k = 0; k + 1 < layers.length; k++) {
      const split = times[k] < state.t && state.t < times[k + 1] && here;
      const pieces = split ? [[layers[k], here, true], [here, layers[k + 1], false]]
        : [[layers[k], layers[k + 1], times[k + 1] <= state.t]];
      for (const [from, to, passed] of pieces) {
        const colour = passed ? ink.pathInk : ink.aheadInk;
        for (let i = 0; i < 3 * count; i += 3) {
          if (from[i] === OUTSIDE || to[i] === OUTSIDE) continue;
          xyz.push(from[i], from[i + 1], from[i + 2], to[i], to[i + 1], to[i + 2]);
          rgba.push(...colour, ...colour);
        }
      }
    }
    return [Float32Array.from(xyz), Uint8Array.from(rgba)];
  }

  markPin() {
    const { state: { pin, t }, law, layers, scene: { theme: ink } } = this;
    const empty = [new Float32Array(), new Uint8Array()];
    if (!pin || !law) {
      for (const name of ["links", "reached", "pin"]) layers[name].set(...empty);
      return this.sayPin(null);
    }
    const found = posterior(law, t, ...pin);
    const most = found.weights.reduce((a, b) => Math.max(a, b));
    const share = (i) => Math.sqrt(found.weights[i] / most);
    const kept = Array.from(found.weights.keys()).filter((i) => share(i) > 0.03);
    const foot = this.lay(pin);
    const head = [foot[0], foot[1], Math.min(foot[2] + 0.12, 1.1)];
    const ends = this.lay(kept.flatMap((i) => [law.xs[i], law.ys[i]]));
    const strength = clamp(24 / kept.length, 0.2, 0.8);
    const alpha = (i, least) => least + (255 - least) * share(i);
    const [links, colours] = [[...foot, ...head], [...ink.arrowInk, ...ink.arrowInk]];
    kept.forEach((i, k) => {
      if (ends[3 * k] === OUTSIDE || foot[0] === OUTSIDE) return;
      const rgb = ink.dataInk.slice(0, 3);
      links.push(...foot, ends[3 * k], ends[3 * k + 1], ends[3 * k + 2]);
      colours.push(...rgb, strength * alpha(i, 12), ...rgb, strength * alpha(i, 12));
    });
    layers.links.set(Float32Array.from(links), Uint8Array.from(colours));
    layers.reached.set(ends, Uint8Array.from(kept.flatMap((i) => [...ink.dataInk.slice(0, 3), alpha(i, 30)])));
    layers.pin.set(Float32Array.from(head), Uint8Array.from(ink.arrowInk));
    return this.sayPin(found);
  }

  sayPin(found) {
    const { at, state, law, set } = this;
    const box = at["pin-text"];
    if (!found) return box.replaceChildren();
    const order = Array.from(found.weights.keys()).sort((a, b) => found.weights[b] - found.weights[a]);
    let [mass, reachable] = [0, 0];
    while (mass < 0.99 && reachable < order.length) mass += found.weights[order[reachable++]];
    const [n, m] = [law.n, reachable].map((v) => v.toLocaleString("en"));
    const rest = law.n - reachable;
    const [vx, vy] = velocityAt(law, state.t, ...state.pin);
    const area = set.scale[0] * set.scale[1];
    const first = paragraph(["b", m], ` of ${n} data points hold 99 % of p(x\u2081 | x\u209c).`);
    const words = rest === 0
      ? "From here every destination is still feasible."
      : "The already passed time and taken path has rendered the other destinations infeasible.";
    const numbers = `p\u209c(x) = ${plain(Math.exp(found.logDensity) / area)}, `
      + `v\u209c(x) = (${plain(vx * set.scale[0])}, ${plain(vy * set.scale[1])})`;
    const list = document.createElement("ol");
    const listed = order.slice(0, COUNTS.listed).filter((i) => found.weights[i] > 5e-4);
    for (const i of listed) list.append(weightRow(this.unscaled(law.xs[i], law.ys[i]), found.weights[i]));
    return box.replaceChildren(first, paragraph(words), paragraph(numbers), list);
  }

  unscaled(x, y) {
    const { shift, scale } = this.set;
    return [x * scale[0] + shift[0], y * scale[1] + shift[1]];
  }

  sayLab() {
    const { state, at, flights } = this;
    if (!state.lab || !flights?.lab) {
      at["lab-text"].replaceChildren();
      return;
    }
    const { exact, lab } = flights;
    const calls = state.steps * SOLVERS[state.solver].b.length;
    if (!lab.done || !exact.done) {
      at["lab-text"].textContent = "working \u2026";
      return;
    }
    this.error = distance(lab.states.at(-1), exact.states.at(-1));
    const now = this.shown && this.labPlaces ? plain(distance(this.labPlaces, this.shown.places), 2) : "0";
    at["lab-text"].replaceChildren("Error at t = 1: ", bold(plain(this.error)),
      ` (root mean square distance to the exact particles), with ${calls} calls of the field each. Now: ${now}.`);
  }

  // Works on the flights a few milliseconds at a time, and shows what is ready.
  pump() {
    const { state, law } = this;
    if (!law || !(state.particles || state.pathlines || state.lab)) return;
    if (!this.flights) {
      const nodes = state.lab ? NODES_IN_TIME.lab : NODES_IN_TIME.shown;
      const exact = new Flight(law, this.starts, fineTimes(nodes), "rk4");
      const lab = state.lab ? new Flight(law, this.starts, evenTimes(state.steps), state.solver) : null;
      this.flights = { exact, lab };
    }
    if (this.flights.exact.done && (this.flights.lab?.done ?? true)) return;
    this.working ??= setTimeout(() => this.work(), 0);
  }

  work() {
    this.working = null;
    if (!this.flights) return;
    const { exact, lab } = this.flights;
    const until = performance.now() + (this.playing ? 6 : 24);
    const before = exact.ready;
    if (exact.run(until)) lab?.run(until);
    const finished = exact.done && (lab?.done ?? true);
    const reached = exact.times[before - 1] <= this.state.t && exact.ready > before;
    if (finished || (reached && !this.playing && this.shown?.exact !== exact)) this.markFlights();
    this.pump();
  }

  play(on) {
    if (on && this.state.t >= 1) this.seek(0);
    this.playing = on;
    this.scene.tick = on ? (seconds) => this.advance(seconds) : null;
    this.at.play.classList.toggle("playing", on);
    this.at.play.setAttribute("aria-label", on ? "Pause" : "Play");
    for (const name of ["pin-text", "lab-text"]) this.at[name].setAttribute("aria-live", on ? "off" : "polite");
    this.scene.invalidate();
    if (!on) this.remember();
  }

  advance(seconds) {
    this.seek(this.state.t + seconds / SECONDS);
    if (this.state.t >= 1) this.play(false);
    return this.playing;
  }

  syncTime() {
    const { at, state: { t } } = this;
    const text = `t = ${t.toFixed(2)}`;
    const peak = label(Number((this.top / this.area).toPrecision(2)));
    if (at.peak.textContent !== peak) at.peak.textContent = peak;
    if (at.clock.textContent === text) return;
    at.time.value = t;
    at.time.style.setProperty("--share", `${100 * t}%`);
    at.time.setAttribute("aria-valuetext", text);
    at.clock.textContent = text;
  }

  // Shows the settings on the controls.
  syncControls() {
    const { at, state, set } = this;
    at["data-set"].value = state.data;
    at["data-help"].textContent = set.about;
    this.stops = countStops(set.count || 1);
    const n = set.count ? state.n : 0;
    const words = n === 1 ? "1" : n.toLocaleString("en");
    slide(at.count, this.stops.length - 1, nearest(this.stops, state.n), `N = ${words}`, Boolean(set.exact) || set.count < 2);
    at["count-value"].textContent = `N = ${words}`;
    const sigma = plain(this.sigmaMin, 2);
    slide(at.sigma, 100, nearest(SIGMA_STOPS, this.sigmaMin), sigma, Boolean(set.sigma));
    at["sigma-value"].textContent = set.sigma ? "1/\u221a2" : sigma;
    at.path.value = state.path;
    at["path-help"].textContent = PATH_WORDS[state.path];
    for (const name of SHOWN) at[name].checked = state[name];
    for (const [axis, name] of [[0, "pin-x"], [1, "pin-y"]]) {
      if (document.activeElement !== at[name]) at[name].value = state.pin ? this.pinText(axis) : "";
    }
    at.solver.value = state.solver;
    at["solver-help"].textContent = SOLVER_WORDS[state.solver];
    slide(at.steps, 50, state.steps, String(state.steps), false);
    at["steps-value"].textContent = state.steps;
    at.draw.setAttribute("aria-pressed", state.draw);
    at.draw.textContent = state.draw ? "Done drawing" : "Draw your own data";
    at.tools.hidden = !state.draw;
    at.undo.disabled = !this.undoStack.length;
    at["key-particles"].classList.toggle("on", state.particles || state.lab);
    at["key-points"].classList.toggle("on", state.points || state.draw || Boolean(state.pin));
    at["key-lab"].classList.toggle("on", state.lab);
    at.python.value = this.python();
    this.syncAxes();
  }

  pinText(axis) {
    return thousandth(this.unscaled(...this.state.pin)[axis]);
  }

  syncAxes() {
    const { scene: { axes }, set, half } = this;
    ["x", "y"].forEach((axis, i) => {
      const [low, high] = [-half, half].map((v) => v * set.scale[i] + set.shift[i]);
      const marks = ticks(low, high, 5).map((v) => [(v - low) / (high - low), label(v)]);
      axes.retick(axis, marks, set.columns[i]);
    });
    this.scene.invalidate();
  }

  listen() {
    const { at, state, scene } = this;
    const on = (id, event, action) => at[id].addEventListener(event, () => action(at[id]));
    on("time", "input", ({ value }) => {
      this.play(false);
      this.seek(Number(value));
    });
    on("play", "click", () => this.play(!this.playing));
    on("reset", "click", () => this.turnBack());
    on("data-set", "change", ({ value }) => this.choose(value));
    on("count", "input", ({ value }) => this.apply({ n: this.stops[value] }));
    on("sigma", "input", ({ value }) => this.apply({ sigma: SIGMA_STOPS[value] }));
    on("path", "change", ({ value }) => this.apply({ path: value }));
    on("solver", "change", ({ value }) => this.apply({ solver: value, lab: true }));
    on("steps", "input", ({ value }) => this.apply({ steps: Number(value), lab: true }));
    for (const name of SHOWN) on(name, "change", ({ checked }) => this.apply({ [name]: checked }));
    for (const name of ["pin-x", "pin-y"]) on(name, "input", () => this.typePin());
    on("pin-clear", "click", () => this.apply({ pin: null }));
    on("draw", "click", () => this.drawMode(!state.draw));
    on("undo", "click", () => this.undo());
    on("clear", "click", () => this.edit([]));
    on("use", "click", () => this.paste(at.paste.value));
    on("csv", "click", () => save("points.csv", this.csv(), "text/csv"));
    on("json", "click", () => save("pathline.json", this.json(), "application/json"));
    on("copy", "click", () => this.copy());
    document.addEventListener("keydown", (event) => this.key(event));
    scene.canvas.addEventListener("pointermove", (event) => this.drag(event));
    scene.canvas.addEventListener("pointerup", (event) => this.release(event));
    scene.canvas.addEventListener("wheel", () => this.remember());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      scene.setTheme(this.colours());
      document.querySelector(".bar").style.background = ramp(scene.theme);
      this.marks();
    });
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) === this.written) return;
      this.read();
      if (!scene.camera.flat) Object.assign(scene.camera, this.home, { zoom: 1, shift: [0, 0] }, this.camera);
      this.change();
    });
  }

  apply(changes) {
    Object.assign(this.state, changes);
    this.change();
  }

  choose(id) {
    if (id !== "drawn" && this.state.draw) this.drawMode(false);
    const { count } = this.sets[id];
    const n = id === "drawn" ? this.drawing.length : count < this.state.n || this.state.n === 1 ? Math.min(1000, count) : this.state.n;
    this.apply({ data: id, n, pin: null });
    if (id === "drawn") this.drawMode(true);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey) {
      if (event.key === "z" && this.state.draw && !/TEXTAREA|INPUT/.test(event.target.tagName)) this.undo();
      return;
    }
    const { target, key } = event;
    if (event.altKey || target.closest("input, select, textarea") || (target.tagName === "BUTTON" && /^( |Enter)$/.test(key))) return;
    if (key === " ") this.play(!this.playing);
    else if (this.state.draw && target === this.scene.canvas && this.nudge(event)) this.markCross();
    else if (this.scene.key(key)) this.remember();
    else return;
    event.preventDefault();
  }

  turnBack() {
    this.scene.camera.reset();
    if (this.state.draw) this.lookDown();
    this.scene.invalidate();
    this.remember();
  }

  // The place under the pointer, in the units of the flow.
  under(event) {
    const place = this.scene.under(event.offsetX, event.offsetY, this.state.draw ? null : this.ground);
    return place && place.map((v) => thousandth((2 * v - 1) * this.half));
  }

  press(event) {
    this.pressed = { x: event.offsetX, y: event.offsetY, id: event.pointerId, time: event.timeStamp };
    if (!this.state.draw || event.button > 0) return false;
    this.before = this.drawing.map((point) => [...point]);
    this.touch(event);
    return true;
  }

  touch(event) {
    const place = this.under(event);
    if (!place) return;
    const tool = document.querySelector("[name=tool]:checked").value;
    const near = this.closest(event);
    if (tool === "erase") {
      if (near >= 0) this.redraw(this.drawing.filter((_, k) => k !== near));
    } else if (near >= 0) this.held = near;
    else if (tool === "place" && this.drawing.length < 2000) {
      this.held = this.drawing.length;
      this.redraw([...this.drawing, place]);
    }
  }

  drag(event) {
    if (!this.before || !this.scene.held || event.pointerId !== this.pressed?.id) {
      if (event.buttons) this.remember();
      return;
    }
    const tool = document.querySelector("[name=tool]:checked").value;
    const place = this.under(event);
    if (tool === "erase") this.touch(event);
    else if (place && this.held >= 0) this.redraw(this.drawing.map((point, k) => (k === this.held ? place : point)));
  }

  release(event) {
    const { pressed, before } = this;
    Object.assign(this, { pressed: null, before: null, held: -1 });
    if (before) {
      if (JSON.stringify(before) !== JSON.stringify(this.drawing)) this.undoStack.push(before);
      this.syncControls();
      return;
    }
    if (!pressed || pressed.id !== event.pointerId || event.button > 0) return;
    const moved = Math.hypot(event.offsetX - pressed.x, event.offsetY - pressed.y);
    const place = moved < TAP.pixels && event.timeStamp - pressed.time < 600 && this.under(event);
    if (place) this.apply({ pin: place });
  }

  // Index of the drawn point within reach of the pointer, or -1.
  closest(event) {
    const { clientWidth: width, clientHeight: height } = this.scene.canvas;
    let [best, least] = [-1, TAP.reach];
    const laid = this.lay(this.drawing.flat());
    this.drawing.forEach((_, k) => {
      const [x, y] = project(this.scene.matrix, laid.subarray(3 * k, 3 * k + 3));
      const away = Math.hypot((x + 1) / 2 * width - event.offsetX, (1 - y) / 2 * height - event.offsetY);
      if (away < least) [best, least] = [k, away];
    });
    return best;
  }

  drawMode(on) {
    const { scene, state } = this;
    const { azimuth, elevation, zoom, shift } = scene.camera;
    if (on && !state.draw) this.seen = { azimuth, elevation, zoom, shift };
    if (on) this.lookDown();
    else if (!scene.camera.flat) Object.assign(scene.camera, { zoom: 1, shift: [0, 0] }, this.seen ?? this.home);
    this.cross = null;
    if (on) this.play(false);
    if (on) Object.assign(state, { t: 1, data: "drawn", n: this.drawing.length || 1, pin: null });
    this.apply({ draw: on });
  }

  lookDown() {
    if (!this.scene.camera.flat) Object.assign(this.scene.camera, FROM_ABOVE);
  }

  redraw(points) {
    this.drawing = points;
    this.state.n = Math.max(points.length, 1);
    this.change();
  }

  edit(points) {
    this.undoStack.push(this.drawing);
    this.redraw(points);
  }

  undo() {
    if (this.undoStack.length) this.redraw(this.undoStack.pop());
  }

  paste(text) {
    const { points, skipped } = parsePoints(text);
    const say = this.at["paste-text"];
    if (!points.length) {
      say.textContent = "No line holds two numbers: write one x, y in a line.";
      return;
    }
    const kept = points.slice(0, 2000).map((point) => point.map(thousandth));
    this.edit(kept);
    const outside = kept.filter((point) => point.some((v) => Math.abs(v) > this.half)).length;
    const said = [`${kept.length} points.`];
    if (skipped) said.push(`${skipped} lines without two numbers were left out.`);
    if (points.length > kept.length) said.push("Those after the first 2,000 were left out.");
    if (outside) said.push(`${outside} lie beside the picture.`);
    say.textContent = said.join(" ");
  }

  // A cross that the keyboard moves while drawing; returns whether the key was one of its own.
  nudge(event) {
    const step = event.shiftKey ? 0.5 : 0.1;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves) {
      const [x, y] = this.cross ?? [0, 0];
      this.cross = [x + moves[event.key][0], y + moves[event.key][1]].map((v) => thousandth(clamp(v, -this.half, this.half)));
    } else if (event.key === "Enter") this.edit([...this.drawing, this.cross ?? [0, 0]]);
    else if (/^(Delete|Backspace)$/.test(event.key)) this.eraseAt(this.cross ?? [0, 0]);
    else return false;
    return true;
  }

  eraseAt([x, y]) {
    const away = this.drawing.map((point) => Math.hypot(point[0] - x, point[1] - y));
    const near = away.indexOf(Math.min(...away));
    if (near >= 0) this.edit(this.drawing.filter((_, k) => k !== near));
  }

  markCross() {
    const { layers, cross, half, scene: { theme: ink } } = this;
    if (!this.state.draw || !cross) return layers.cross.set(new Float32Array(), new Uint8Array());
    const size = 0.04 * half;
    const [x, y] = cross;
    return layers.cross.set(this.lay([x - size, y, x + size, y, x, y - size, x, y + size]), repeat([ink.arrowInk], 4));
  }

  typePin() {
    const [x, y] = ["pin-x", "pin-y"].map((name) => this.at[name].value);
    const { shift, scale } = this.set;
    const place = [x, y].map((v, i) => (Number(v) - shift[i]) / scale[i]);
    if (x !== "" && y !== "" && place.every(Number.isFinite)) this.apply({ pin: place });
  }

  csv() {
    const rows = this.chosen.map(([x, y]) => this.unscaled(x, y).join(","));
    return [this.set.columns.map(quoted).join(","), ...rows, ""].join("\n");
  }

  json() {
    const { state, set } = this;
    const { path, t, pin, solver, steps } = state;
    return JSON.stringify({
      data: set.label, columns: set.columns, shift: set.shift, scale: set.scale, points: this.chosen,
      path, sigma_min: this.sigmaMin, t, pin, solver, steps,
    }, null, 1);
  }

  python() {
    const { state, set } = this;
    const sigma = set.sigma ? "0.5 ** 0.5" : String(this.sigmaMin);
    const points = this.pythonPoints();
    const numpy = points.some((line) => line.includes("np.")) ? ["import numpy as np"] : [];
    const toy = points.some((line) => line.includes("toy(")) ? ["from pathline.data.toy import toy"] : [];
    const field = state.path === "linear"
      ? [`path = pl.AffinePath(pl.schedules.linear(${sigma}))`, "field = pl.EmpiricalField(path, points)"]
      : [`path = pl.AffinePath(pl.schedules.${state.path}())`,
        `variances = torch.full((len(points),), (${sigma}) ** 2, dtype=torch.float64)`,
        "field = pl.GaussianMixtureField(path, points, variances)"];
    return [
      ...numpy, "import matplotlib.pyplot as plt", "import torch", "", "import pathline as pl", ...toy, "",
      ...points, ...field, "",
      `axis = torch.linspace(-${this.half}, ${this.half}, ${NODES}, dtype=torch.float64)`,
      "places = torch.cartesian_prod(axis, axis).flip(1)",
      `density = field.log_prob(places, torch.tensor(${state.t}, dtype=torch.float64)).exp().reshape(${NODES}, ${NODES})`,
      `plt.axes(projection="3d").plot_surface(*torch.meshgrid(axis, axis, indexing="xy"), density.sqrt(), cmap="viridis")`,
      "plt.show()", "",
    ].join("\n");
  }

  // Lines that make the tensor `points`, in the units of the flow.
  pythonPoints() {
    const { set, state, chosen } = this;
    if (set.toy) {
      const draw = `toy("${set.id}").sample(${set.count}, torch.Generator().manual_seed(0), torch.float64)`;
      return [`points = ${draw}[:${state.n}]`];
    }
    if (chosen.length <= 60) {
      const rows = chosen.map(([x, y]) => `[${x}, ${y}]`).join(", ");
      return [`points = torch.tensor([${rows}], dtype=torch.float64)`];
    }
    const read = `np.loadtxt("points.csv", delimiter=",", skiprows=1)`;
    return set.id === "drawn" ? [`points = torch.from_numpy(${read})  # "Points as CSV"`]
      : [`points = (${read} - ${numbers(set.shift)}) / ${numbers(set.scale)}  # "Points as CSV"`,
        "points = torch.from_numpy(points)"];
  }

  copy() {
    const { python, copy } = this.at;
    python.focus();
    python.select();
    const done = navigator.clipboard?.writeText(python.value) ?? Promise.reject(new Error("no clipboard"));
    const say = (text) => {
      copy.textContent = text;
      setTimeout(() => (copy.textContent = "Copy Python"), 1500);
    };
    done.then(() => say("Copied"), () => say("Selected"));
  }

  // The state as the address' fragment, once things have come to rest.
  remember() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.write(), 300);
  }

  write() {
    const { state, scene: { camera } } = this;
    const words = new URLSearchParams({
      data: state.data, n: state.n, path: state.path, sigma: state.sigma, t: thousandth(state.t),
      show: SHOWN.filter((name) => state[name]).join(" "), solver: state.solver, steps: state.steps,
    });
    if (state.pin) words.set("pin", state.pin.map(thousandth).join(" "));
    if (state.data === "drawn") words.set("points", this.drawing.map((point) => point.join(" ")).join(","));
    if (state.draw) words.set("draw", "1");
    else if (!camera.flat) {
      words.set("view", [camera.azimuth, camera.elevation, camera.zoom, ...camera.shift].map(thousandth).join(" "));
    }
    this.written = words.toString();
    try {
      history.replaceState(null, "", `#${this.written}`);
    } catch {
      this.written = "";
    }
  }

  // Takes what the fragment says, as far as it makes sense.
  read() {
    const words = new URLSearchParams(location.hash.slice(1));
    const { state } = this;
    const list = (name) => (words.get(name) ?? "").split(" ").map(Number);
    const number = (name, low, high) => {
      const value = words.has(name) ? Number(words.get(name)) : NaN;
      if (value >= low && value <= high) state[name] = value;
    };
    const one = (name, known) => {
      if (known.includes(words.get(name))) state[name] = words.get(name);
    };
    const { points } = parsePoints((words.get("points") ?? "").replaceAll(",", "\n"));
    if (points.length) this.drawing = points.slice(0, 2000);
    one("data", Object.keys(this.sets));
    one("path", Object.keys(PATHS));
    one("solver", Object.keys(SOLVERS));
    number("n", 1, 2000);
    number("sigma", 0.02, 0.95);
    number("t", 0, 1);
    number("steps", 1, 50);
    [state.n, state.steps] = [Math.round(state.n), Math.round(state.steps)];
    if (words.has("show")) for (const name of SHOWN) state[name] = words.get("show").split(" ").includes(name);
    if (words.has("pin") && list("pin").length === 2 && list("pin").every(Number.isFinite)) state.pin = list("pin");
    state.draw = words.has("draw");
    const [azimuth, elevation, zoom, ...shift] = list("view");
    const whole = shift.length === 2 && [azimuth, elevation, zoom, ...shift].every(Number.isFinite);
    this.camera = whole ? { azimuth, elevation: clamp(elevation, 0.06, 1.569), zoom: clamp(zoom, 0.6, 6), shift } : null;
    if (state.draw) this.camera = FROM_ABOVE;
  }
}

// The source alone, where there is no data point yet.
function sourceOnly(half, out) {
  const law = { path: "linear", sigmaMin: 0.5, n: 1, xs: Float64Array.of(0), ys: Float64Array.of(0) };
  return densityGrid(law, 0, half, NODES, out);
}

function arrow(x, y, dx, dy) {
  const [tipX, tipY] = [x + dx / 2, y + dy / 2];
  const barb = (side) => [tipX - 0.3 * dx - side * 0.2 * dy, tipY - 0.3 * dy + side * 0.2 * dx];
  return [x - dx / 2, y - dy / 2, tipX, tipY, ...barb(1), tipX, tipY, ...barb(-1), tipX, tipY];
}

function joined(from, to, [r, g, b]) {
  const [xyz, rgba] = [[], []];
  for (let k = 0; k < from.length; k += 3) {
    if (from[k] === OUTSIDE || to[k] === OUTSIDE) continue;
    xyz.push(from[k], from[k + 1], from[k + 2], to[k], to[k + 1], to[k + 2]);
    rgba.push(r, g, b, 200, r, g, b, 200);
  }
  return [Float32Array.from(xyz), Uint8Array.from(rgba)];
}

function nearest(stops, value) {
  return stops.reduce((best, stop, k) => (Math.abs(stop - value) < Math.abs(stops[best] - value) ? k : best), 0);
}

function slide(input, most, value, text, disabled) {
  Object.assign(input, { max: most, disabled });
  input.value = value;
  const low = Number(input.min);
  input.style.setProperty("--share", `${100 * (value - low) / Math.max(most - low, 1)}%`);
  input.setAttribute("aria-valuetext", text);
}

function bold(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}

// Text, and ["b", text] for bold text, as a paragraph.
function paragraph(...parts) {
  const element = document.createElement("p");
  element.append(...parts.map((part) => (Array.isArray(part) ? bold(part[1]) : part)));
  return element;
}

function weightRow([x, y], weight) {
  const row = document.createElement("li");
  const meter = Object.assign(document.createElement("meter"), { max: 1, value: weight });
  const share = `${weight > 0.0995 ? (100 * weight).toFixed(0) : (100 * weight).toFixed(1)} %`;
  meter.setAttribute("aria-label", "weight");
  row.append(`(${plain(x)}, ${plain(y)})`, meter, share);
  return row;
}

function quoted(name) {
  return /[",\r\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name;
}

function numbers(values) {
  return `np.array([${values.join(", ")}])`;
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const explore = new Explore(JSON.parse(document.getElementById("data").textContent));
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const given = new URLSearchParams(location.hash.slice(1)).has("t");
if (still && !given) explore.state.t = 1;
explore.poster();
const firstPicture = performance.now();
requestAnimationFrame(() => setTimeout(() => {
  explore.begin();
  if (!still && !given) explore.play(true);
  window.pathline = handle(performance.now());
}));

// What a script from outside, such as a test, may ask and do.
function handle(live) {
  return {
    get t() { return explore.state.t; },
    get playing() { return explore.playing; },
    get state() { return structuredClone(explore.state); },
    get points() { return structuredClone(explore.chosen); },
    get camera() {
      const { azimuth, elevation, zoom, shift } = explore.scene.camera;
      return { azimuth, elevation, zoom, shift };
    },
    get drawn() { return explore.scene.drawn; },
    get renderer() { return explore.scene.renderer.name; },
    density: (x, y) => densityAt(explore.law, explore.state.t, x, y),
    velocity: (x, y) => velocityAt(explore.law, explore.state.t, x, y),
    posterior(x, y) {
      const { order } = explore.law;
      const out = new Array(order.length);
      posterior(explore.law, explore.state.t, x, y).weights.forEach((weight, k) => (out[order[k]] = weight));
      return out;
    },
    apply: (changes) => explore.apply(changes),
    seek: (t) => explore.seek(t),
    play: (on) => explore.play(on),
    recompute: () => explore.recompute(),
    firstPicture,
    live,
  };
}
