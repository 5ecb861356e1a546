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

class Flow {
  constructor(data) {
    const [xmin, xmax, ymin, ymax] = data.extent;
    this.data = data;
    this.t = 0;
    this.playing = false;
    this.density = new Frames(data.times, decode(data.density));
    // Particles are stored over a frame of twice the extent, so that those outside it stay true.
    this.particles = new Frames(data.times, decode(data.particles).map((v) => 2 * v - 0.5));
    this.count = this.particles.width / 2;
    this.heights = new Float32Array(this.density.width);
    this.tail = Array.from({ length: TAIL.pieces + 1 }, () => new Float32Array(2 * this.count));
    const ratio = (xmax - xmin) / (ymax - ymin);
    const shape = ratio > 1 / 3 && ratio < 3 ? [Math.min(ratio, 1), Math.min(1 / ratio, 1)] : [1, 1];
    const stage = document.querySelector(".stage");
    const tall = stage.clientHeight > stage.clientWidth;
    const size = [2 * shape[0], 2 * shape[1], tall ? 1.1 : 0.8];
    const home = { azimuth: 0.62, elevation: tall ? 0.7 : 0.56 };
    this.scene = new Scene(stage, { size, home, theme: theme() });
    this.build();
    this.listen();
    this.seek(0);
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

  // Colours of this theme, vertex by vertex.
  paint() {
    const { scene: { theme }, count } = this;
    this.dots.rgba = repeat([theme.particle], count);
    const fading = Array.from({ length: TAIL.pieces }, (_, k) => {
      const [r, g, b, a] = theme.tail;
      return [r, g, b, Math.round(a * (1 - k / TAIL.pieces) ** 1.5)];
    });
    this.tails.rgba = repeat(fading, 2 * count);
    const stops = COLOUR_STOPS[theme.name].map((_, k, all) => {
      const at = 4 * Math.round(k / (all.length - 1) * 255);
      return `rgb(${theme.map.slice(at, at + 3).join(" ")})`;
    });
    document.querySelector(".bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  }

  seek(t) {
    this.t = clamp(t, 0, 1);
    this.ground.set(this.density.at(this.t, this.heights));
    this.tail.forEach((xy, k) => this.particles.at(Math.max(this.t - k * TAIL.span / TAIL.pieces, 0), xy));
    const nodes = this.tail.map((xy) => this.lay(xy));
    const shown = nodes[0].filter((u, k) => k % 3 === 0 && u !== NOWHERE).length;
    this.dots.set(nodes[0]);
    this.tails.set(segments(nodes));
    const text = `t = ${this.t.toFixed(2)}`;
    const slider = document.getElementById("time");
    slider.value = this.t;
    slider.style.setProperty("--share", `${100 * this.t}%`);
    slider.setAttribute("aria-valuetext", text);
    document.getElementById("clock").textContent = text;
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

  play(on) {
    if (on && this.t >= 1) this.seek(0);
    this.playing = on;
    this.scene.tick = on ? (seconds) => this.advance(seconds) : null;
    const button = document.getElementById("play");
    button.classList.toggle("playing", on);
    button.setAttribute("aria-label", on ? "Pause" : "Play");
    this.scene.invalidate();
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
    document.getElementById("reset").addEventListener("click", () => this.scene.key("0"));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const { target } = event;
      if (target.tagName === "BUTTON" && event.key === " ") return;
      if (target === slider && event.key.startsWith("Arrow")) return;
      if (event.key === " ") this.play(!this.playing);
      else if (!this.scene.key(event.key)) return;
      event.preventDefault();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.scene.setTheme(theme());
      this.paint();
      this.seek(this.t);
    });
  }
}

// Heights and densities of the lines drawn on the surface: 1, 2, 5, 10, ... as far as they can be told apart.
function densityLevels(peak) {
  const levels = [];
  for (let power = Math.floor(Math.log10(peak)); levels.length < 6; power--) {
    for (const m of [5, 2, 1]) {
      const value = Number(`${m}e${power}`);
      const height = Math.sqrt(value / peak);
      if (height < 0.15) return levels;
      if (height <= 1) levels.push([height, value]);
    }
  }
  return levels;
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

function repeat(colours, times) {
  const out = new Uint8Array(4 * colours.length * times);
  colours.forEach((colour, i) => {
    for (let k = 0; k < times; k++) out.set(colour, 4 * (i * times + k));
  });
  return out;
}

// The colours that the style sheet gives to what is drawn.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const bytes = (name) => style.getPropertyValue(name).match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
  const name = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  return {
    name, map: colourMap(COLOUR_STOPS[name]), grid: bytes("--grid"), edge: bytes("--edge"),
    contour: bytes("--contour").map((v) => v / 255), particle: bytes("--particle"), tail: bytes("--tail"),
    shade: name === "dark" ? [0.66, 0.4, 0.12] : [0.79, 0.24, 0.08],
    rim: bytes("--rim").slice(0, 3).map((v) => v / 255),
  };
}

const flow = new Flow(JSON.parse(document.getElementById("data").textContent));
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
if (still) flow.seek(1);
flow.scene.frame(performance.now());
const firstPicture = performance.now();
if (!still) flow.play(true);

window.pathline = {
  get t() { return flow.t; },
  get playing() { return flow.playing; },
  get camera() {
    const { azimuth, elevation, zoom, shift } = flow.scene.camera;
    return { azimuth, elevation, zoom, shift };
  },
  get drawn() { return flow.scene.drawn; },
  get quality() { return flow.scene.quality; },
  get renderer() { return flow.scene.renderer.name; },
  particle: (k) => Array.from(flow.dots.xyz.slice(3 * k, 3 * k + 3)),
  seek: (t) => flow.seek(t),
  play: (on) => flow.play(on),
  firstPicture,
};
