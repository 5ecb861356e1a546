"use strict";

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const SECONDS = 7;
const NOWHERE = -9;
const TAIL = { pieces: 6, span: 0.12 };

// Numbers in [0, 1] from two characters each, 12 bits.
function decode(text) {
  const digit = new Uint8Array(128);
  for (let k = 0; k < 64; k++) digit[ALPHABET.charCodeAt(k)] = k;
  const values = new Float32Array(text.length / 2);
  for (let k = 0; k < values.length; k++) {
    values[k] = (64 * digit[text.charCodeAt(2 * k)] + digit[text.charCodeAt(2 * k + 1)]) / 4095;
  }
  return values;
}

// Frames of `width` numbers at increasing times, linear between them.
class Frames {
  constructor(times, values) {
    this.times = times;
    this.values = values;
    this.width = values.length / times.length;
  }

  at(t, out) {
    const { times, values, width } = this;
    let i = 0;
    while (i < times.length - 2 && times[i + 1] < t) i++;
    const share = clamp((t - times[i]) / (times[i + 1] - times[i]), 0, 1);
    const [a, b] = [i * width, (i + 1) * width];
    for (let k = 0; k < width; k++) out[k] = values[a + k] + share * (values[b + k] - values[a + k]);
    return out;
  }
}

// Time, its slider and its button; `show(t)` draws, `run(on)` keeps calling `advance(seconds)` while on.
class Player {
  constructor() {
    this.t = 0;
    this.playing = false;
    this.followers = [];
  }

  seek(t) {
    this.t = clamp(t, 0, 1);
    this.show(this.t);
    const text = `t = ${this.t.toFixed(2)}`;
    const slider = document.getElementById("time");
    const clock = document.getElementById("clock");
    if (clock.textContent !== text) {
      slider.value = this.t;
      slider.style.setProperty("--share", `${100 * this.t}%`);
      slider.setAttribute("aria-valuetext", text);
      clock.textContent = text;
    }
    for (const follow of this.followers) follow(this.t);
  }

  play(on) {
    if (on && this.t >= 1) this.seek(0);
    this.playing = on;
    const button = document.getElementById("play");
    button.classList.toggle("playing", on);
    button.setAttribute("aria-label", on ? "Pause" : "Play");
    this.run(on);
  }

  advance(seconds) {
    this.seek(this.t + seconds / SECONDS);
    if (this.t >= 1) this.play(false);
    return this.playing;
  }

  listen() {
    const slider = document.getElementById("time");
    slider.addEventListener("input", () => {
      this.play(false);
      this.seek(Number(slider.value));
    });
    document.getElementById("play").addEventListener("click", () => this.play(!this.playing));
    document.getElementById("reset")?.addEventListener("click", () => this.key("0"));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const { target } = event;
      if (["BUTTON", "SUMMARY", "INPUT"].includes(target.tagName) && target !== slider && event.key === " ") return;
      if (target.tagName === "SELECT" || (target === slider && event.key.startsWith("Arrow"))) return;
      if (event.key === " ") this.play(!this.playing);
      else if (!this.key(event.key, target)) return;
      event.preventDefault();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.repaint();
      this.seek(this.t);
    });
  }
}

class Flow extends Player {
  constructor(data) {
    super();
    const stage = document.querySelector(".stage");
    const tall = stage.clientHeight > stage.clientWidth;
    const home = { azimuth: 0.62, elevation: tall ? 0.7 : 0.56 };
    this.rise = tall ? 1.1 : 0.8;
    this.scene = new Scene(stage, { size: this.box(data), home, theme: theme() });
    this.load(data);
    this.listen();
    this.seek(0);
  }

  box({ extent: [xmin, xmax, ymin, ymax], rise = this.rise }) {
    const ratio = (xmax - xmin) / (ymax - ymin);
    const shape = ratio > 1 / 3 && ratio < 3 ? [Math.min(ratio, 1), Math.min(1 / ratio, 1)] : [1, 1];
    return [2 * shape[0], 2 * shape[1], rise];
  }

  // One frame of density stays as it is; particles are stored over twice the extent, so those outside stay true.
  load(data) {
    this.data = data;
    const heights = typeof data.density === "string" ? decode(data.density) : data.density;
    const whole = heights.length === data.grid ** 2;
    this.density = whole ? new Frames([0, 1], repeated(heights)) : new Frames(data.times, heights);
    const places = typeof data.particles === "string" ? decode(data.particles).map((v) => 2 * v - 0.5) : data.particles;
    this.particles = new Frames(data.times, places);
    this.count = this.particles.width / 2;
    this.heights = new Float32Array(this.density.width);
    this.tail = Array.from({ length: TAIL.pieces + 1 }, () => new Float32Array(2 * this.count));
    this.build();
  }

  build() {
    const { scene, data } = this;
    const [xmin, xmax, ymin, ymax] = data.extent;
    const levels = densityLevels(data.peak);
    const along = (low, high) => ticks(low, high, 5).map((v) => [(v - low) / (high - low), label(v)]);
    scene.axes = new Axes(scene, document.querySelector(".labels"), {
      x: { name: data.columns[0], ticks: along(xmin, xmax) },
      y: { name: data.columns[1], ticks: along(ymin, ymax) },
      z: { name: "density (\u221a scale)", ticks: levels.map(([height, value]) => [height, label(value)]) },
    });
    this.ground = scene.surface(data.grid, data.grid, levels.map(([height]) => height));
    this.tails = scene.lines(0.004);
    this.dots = scene.points(5.5, 0.006);
    this.paint();
    document.getElementById("peak").textContent = label(Number(data.peak.toPrecision(2)));
  }

  // Other data in the same scene.
  swap(data) {
    const { scene } = this;
    scene.layers.length = 0;
    document.querySelector(".labels").replaceChildren();
    const size = this.box(data);
    scene.size = scene.renderer.flat ? [size[0], size[1], 0] : size;
    scene.view = null;
    this.load(data);
    this.seek(this.t);
  }

  // Colours of this theme, vertex by vertex.
  paint() {
    const { scene, count } = this;
    const { theme } = scene;
    this.dots.rgba = repeat([theme.particle], count);
    const fading = Array.from({ length: TAIL.pieces }, (_, k) => {
      const [r, g, b, a] = theme.tail;
      return [r, g, b, Math.round(a * (1 - k / TAIL.pieces) ** 1.5)];
    });
    this.tails.rgba = repeat(fading, 2 * count);
    document.querySelector(".bar").style.background = ramp(scene.theme);
  }

  repaint() {
    this.scene.setTheme(theme());
    this.paint();
  }

  show(t) {
    this.ground.set(this.density.at(t, this.heights));
    this.tail.forEach((xy, k) => this.particles.at(Math.max(t - k * TAIL.span / TAIL.pieces, 0), xy));
    const nodes = this.tail.map((xy) => this.lay(xy));
    const shown = nodes[0].filter((u, k) => k % 3 === 0 && u !== NOWHERE).length;
    this.dots.set(nodes[0]);
    this.tails.set(segments(nodes));
    const [some, all] = [shown, this.count].map((n) => n.toLocaleString("en"));
    document.getElementById("count").textContent = shown < this.count ? `${some} of ${all}` : all;
  }

  // Points on the surface; those outside the extent are left out of the picture.
  lay(xy) {
    const xyz = new Float32Array(3 * this.count).fill(NOWHERE);
    for (let k = 0; k < this.count; k++) {
      const [u, v] = [xy[2 * k], xy[2 * k + 1]];
      if (u >= 0 && u <= 1 && v >= 0 && v <= 1) xyz.set([u, v, this.ground.height(u, v)], 3 * k);
    }
    return xyz;
  }

  run(on) {
    this.scene.tick = on ? (seconds) => this.advance(seconds) : null;
    this.scene.invalidate();
  }

  key(key) {
    return this.scene.key(key);
  }
}

function repeated(values) {
  const out = new Float32Array(2 * values.length);
  out.set(values);
  out.set(values, values.length);
  return out;
}

// Lines between each node and the next, where both are in the picture.
function segments(nodes) {
  const width = nodes[0].length;
  const out = new Float32Array((nodes.length - 1) * width * 2).fill(NOWHERE);
  let k = 0;
  for (let piece = 0; piece < nodes.length - 1; piece++) {
    const [from, to] = [nodes[piece], nodes[piece + 1]];
    for (let i = 0; i < width; i += 3, k += 6) {
      if (from[i] === NOWHERE || to[i] === NOWHERE) continue;
      for (let axis = 0; axis < 3; axis++) {
        out[k + axis] = from[i + axis];
        out[k + 3 + axis] = to[i + axis];
      }
    }
  }
  return out;
}
