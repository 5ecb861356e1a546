"use strict";

// A small 3-D scene in a box: surfaces, points and lines in the unit cube (u, v, height), axes with labels, and an
// orbit camera that answers to drag, wheel, pinch and keys. It draws only when something has changed.
class Scene {
  constructor(stage, { size, home, theme }) {
    this.stage = stage;
    this.canvas = stage.querySelector("canvas");
    this.renderer = WebglRenderer.create(this.canvas) ?? new FlatRenderer(this.canvas);
    const flat = Boolean(this.renderer.flat);
    this.size = flat ? [size[0], size[1], 0] : size;
    this.camera = new Camera(flat ? { azimuth: 0, elevation: Math.PI / 2, flat } : home);
    this.theme = theme;
    this.layers = [];
    this.quality = 1;
    this.drawn = 0;
    this.frame = this.frame.bind(this);
    this.listen();
    this.canvas.addEventListener("webglcontextrestored", () => this.invalidate());
    new ResizeObserver(() => {
      this.axes?.measure();
      this.invalidate();
    }).observe(stage);
  }

  // Heights in [0, 1] on an nx by ny grid over the floor, row by row from v = 0, with contours at `levels`. Drawn at
  // twice the resolution where the machine is fast.
  surface(nx, ny, levels) {
    const fine = !this.renderer.slow;
    const layer = { kind: "surface", nx: fine ? 2 * nx - 1 : nx, ny: fine ? 2 * ny - 1 : ny, levels, version: 0 };
    layer.z = new Float32Array(layer.nx * layer.ny);
    layer.set = (z) => {
      if (fine) refine(z, nx, ny, layer.z);
      else layer.z.set(z);
      this.changed(layer);
    };
    layer.height = (u, v) => bilinear(layer.z, layer.nx, layer.ny, u, v);
    return this.add(layer);
  }

  // `diameter` in CSS pixels; `lift` draws marks in front of a surface that they lie on.
  points(diameter, lift = 0.004) {
    return this.marks({ kind: "points", diameter, lift });
  }

  lines(lift = 0) {
    return this.marks({ kind: "lines", lift });
  }

  // Lines `width` CSS pixels wide.
  strokes(width, lift = 0.004) {
    return this.marks({ kind: "strokes", width, lift });
  }

  marks(options) {
    const layer = { ...options, xyz: new Float32Array(), rgba: new Uint8Array(), version: 0 };
    layer.set = (xyz, rgba = layer.rgba) => {
      Object.assign(layer, { xyz, rgba });
      this.changed(layer);
    };
    return this.add(layer);
  }

  add(layer) {
    this.layers.push(layer);
    return layer;
  }

  changed(layer) {
    layer.version += 1;
    this.invalidate();
  }

  setTheme(theme) {
    this.theme = theme;
    this.invalidate();
  }

  invalidate() {
    this.pending ??= requestAnimationFrame(this.frame);
  }

  // `tick(seconds)` runs before each drawing while it is set; it returns whether it wants another frame.
  frame(now) {
    cancelAnimationFrame(this.pending);
    this.pending = null;
    clearTimeout(this.idle);
    const elapsed = this.last === undefined ? 0 : clamp((now - this.last) / 1000, 0, 0.1);
    const running = this.tick?.(elapsed);
    this.last = running ? now : undefined;
    this.pace(elapsed);
    this.draw(this.quality);
    if (running) this.invalidate();
    else if (this.renderer.slow || this.quality < 1) this.idle = setTimeout(() => this.draw(this.restQuality()), 250);
  }

  // Slow machines draw fewer pixels while the picture moves, and more of them once it rests.
  pace(elapsed) {
    this.seconds = elapsed ? 0.92 * (this.seconds ?? 0.016) + 0.08 * elapsed : undefined;
    if (!(this.seconds > 0.034) || this.quality < 0.6) return;
    this.quality *= 0.8;
    this.seconds = 0.016;
  }

  restQuality() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    return this.renderer.slow ? clamp(Math.sqrt(4e6 / (width * height)) / pixelRatio(), 1, 2) : 1;
  }

  draw(quality) {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !height) return;
    const pixel = pixelRatio() * quality;
    const [w, h] = [Math.round(width * pixel), Math.round(height * pixel)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    const margin = margins(this.axes?.rem ?? 16, width, height, this.camera.flat);
    this.matrix = this.camera.matrix(this.size, width / height, margin);
    this.placeAxes(width, height);
    const { right, up, back } = this.camera.axes();
    const light = unit([0, 0, 0.7].map((v, i) => v - 0.55 * right[i] + 0.5 * up[i] + 0.25 * back[i]));
    this.renderer.draw(this.layers, {
      width: w, height: h, camera: this.matrix, distance: this.camera.distance, size: this.size, theme: this.theme,
      light, view: back, pixel, scale: Math.sqrt(this.camera.zoom) * clamp(Math.min(width, height) / 640, 0.6, 1.6),
    });
    this.drawn += 1;
  }

  placeAxes(width, height) {
    const view = [...this.matrix, width, height, this.axes?.rem, this.theme.name].join();
    if (this.axes && (view !== this.view || this.axes.stale)) {
      this.axes.place(this, width, height);
      this.axes.stale = false;
    }
    this.view = view;
  }

  listen() {
    const { canvas } = this;
    const pointers = new Map();
    const at = (x, y) => [2 * x / canvas.clientWidth - 1, 1 - 2 * y / canvas.clientHeight];
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.held = pointers.size === 0 && this.grab?.(event);
      pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointermove", (event) => {
      const before = [...pointers.values()];
      const from = pointers.get(event.pointerId);
      if (!from) return;
      const to = [event.offsetX, event.offsetY];
      pointers.set(event.pointerId, to);
      if (before.length === 1 && this.held) return;
      if (before.length === 1) this.camera.turn((to[0] - from[0]) * 0.008, (to[1] - from[1]) * 0.008);
      if (before.length === 2) this.pinch(before, [...pointers.values()], at);
      this.invalidate();
    });
    canvas.addEventListener("wheel", (event) => {
      if (window.parent !== window && document.activeElement !== canvas) return;
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
      this.camera.zoomBy(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.0015)), at(event.offsetX, event.offsetY));
      this.invalidate();
    }, { passive: false });
  }

  // Where a place on the canvas, in CSS pixels, lies over the box: [u, v] of the first layer of `ground` or of the floor
  // that the line of sight meets; null beside the box.
  under(x, y, ground) {
    const { canvas: { clientWidth: width, clientHeight: height }, matrix } = this;
    const [px, py] = [2 * x / width - 1, 1 - 2 * y / height];
    const hit = (h) => onLevel(matrix, px, py, h);
    const inside = ([u, v]) => u >= 0 && u <= 1 && v >= 0 && v <= 1;
    for (let k = 96; ground && this.size[2] && k > 0; k--) {
      const place = hit(k / 96);
      if (inside(place) && ground.height(...place) >= k / 96) return place;
    }
    return inside(hit(0)) ? hit(0) : null;
  }

  pinch(before, after, at) {
    const spread = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const middle = ([a, b]) => at((a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    const [from, to] = [middle(before), middle(after)];
    this.camera.zoomBy(spread(after) / spread(before), to);
    this.camera.pan(to[0] - from[0], to[1] - from[1]);
  }

  // Answers arrows, + - and 0; returns whether the key was one of its own.
  key(key) {
    const { camera } = this;
    const actions = {
      ArrowLeft: () => camera.turn(-0.12, 0), ArrowRight: () => camera.turn(0.12, 0),
      ArrowUp: () => camera.turn(0, -0.08), ArrowDown: () => camera.turn(0, 0.08),
      "+": () => camera.zoomBy(1.15), "=": () => camera.zoomBy(1.15), "-": () => camera.zoomBy(1 / 1.15),
      "0": () => camera.reset(),
    };
    actions[key]?.();
    this.invalidate();
    return key in actions;
  }
}

// Axes along the box's floor and one upright, each {name, ticks: [[position in 0..1, text], ...]}. Labels are text
// elements in `box`, laid along the edges that face the viewer.
class Axes {
  constructor(scene, box, { x, y, z }) {
    this.lines = scene.lines();
    this.spec = { x, y, z };
    this.labels = [];
    this.box = box;
    for (const [axis, { name }] of Object.entries(this.spec)) this.add(axis, name, "name", axis === "z" ? 1 : 0.5);
    for (const [axis, { ticks }] of Object.entries(this.spec)) {
      for (const [at, text] of ticks) this.add(axis, text, "tick", at);
    }
    this.measure();
  }

  add(axis, text, kind, at) {
    const element = document.createElement("span");
    element.className = kind;
    element.textContent = text;
    this.box.append(element);
    this.labels.push({ axis, element, kind, at });
  }

  // Gives an axis other ticks; names of columns change with `name`.
  retick(axis, ticks, name = this.spec[axis].name) {
    const mine = this.labels.filter((item) => item.axis === axis);
    const [[title], old] = [mine.filter((item) => item.kind === "name"), mine.filter((item) => item.kind === "tick")];
    this.spec[axis] = { name, ticks };
    const moved = old.length === ticks.length && old.every((item, k) => item.element.textContent === ticks[k][1]);
    if (title.element.textContent === name && moved) old.forEach((item, k) => (item.at = ticks[k][0]));
    else {
      title.element.textContent = name;
      for (const item of old) item.element.remove();
      this.labels = this.labels.filter((item) => !old.includes(item));
      for (const [at, text] of ticks) this.add(axis, text, "tick", at);
      this.measure();
    }
    this.stale = true;
  }

  place(scene, width, height) {
    const pixels = (p) => {
      const [x, y] = project(scene.matrix, p);
      return [(x + 1) / 2 * width, (1 - y) / 2 * height];
    };
    const { back } = scene.camera.axes();
    const near = [back[0] > 0 ? 1 : 0, back[1] > 0 ? 1 : 0];
    const corners = [[0, 0], [1, 0], [1, 1], [0, 1]];
    const left = corners.reduce((a, b) => (pixels([...b, 0])[0] < pixels([...a, 0])[0] ? b : a));
    const edges = {
      x: (s) => [s, near[1], 0],
      y: (s) => [near[0], s, 0],
      z: (s) => [...left, s],
    };
    const upright = scene.size[2] > 0 ? clamp((1.35 - scene.camera.elevation) / 0.15, 0, 1) : 0;
    this.draw(scene, edges.z, upright);
    const middle = pixels([0.5, 0.5, 0]);
    const taken = [];
    const pad = this.rem / 4;
    for (const item of this.labels) {
      const { axis, element, kind } = item;
      const [x, y] = pixels(edges[axis](item.at));
      const out = axis === "z" ? [-1, 0] : outward(pixels(edges[axis](0)), pixels(edges[axis](1)), middle);
      const reach = (Math.abs(out[0]) * item.width + Math.abs(out[1]) * item.height) / 2;
      const gap = reach + this.rem * (kind === "tick" ? 0.3 : 2.1);
      const corner = [x + out[0] * gap - item.width / 2, y + out[1] * gap - item.height / 2];
      if (axis === "z" && kind === "name") corner.splice(0, 2, x - item.width / 2, y - 1.7 * this.rem);
      corner[0] = clamp(corner[0], pad, width - item.width - pad);
      const area = [corner[0] - pad, corner[1], corner[0] + item.width + pad, corner[1] + item.height];
      const free = !taken.some((other) => overlap(area, other));
      if (free) taken.push(area);
      element.style.opacity = free ? (axis === "z" ? upright : 1) : 0;
      element.style.transform = `translate(${corner[0]}px, ${corner[1]}px)`;
    }
  }

  // Text has another size after a zoom or a change of font.
  measure() {
    this.rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    for (const item of this.labels) {
      [item.width, item.height] = [item.element.offsetWidth, item.element.offsetHeight];
    }
  }

  draw({ theme }, upright, opacity) {
    const { x, y } = this.spec;
    const segments = [];
    const edge = theme.edge;
    const inner = (ticks) => ticks.map(([at]) => at).filter((at) => at > 0.001 && at < 0.999);
    for (const at of inner(x.ticks)) segments.push([[at, 0, 0], [at, 1, 0], theme.grid]);
    for (const at of inner(y.ticks)) segments.push([[0, at, 0], [1, at, 0], theme.grid]);
    const corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]];
    corners.forEach((corner, i) => segments.push([corner, corners[(i + 1) % 4], edge]));
    const faint = [...edge.slice(0, 3), edge[3] * opacity];
    segments.push([upright(0), upright(1), faint]);
    this.lines.xyz = Float32Array.from(segments.flatMap(([a, b]) => [...a, ...b]));
    this.lines.rgba = Uint8Array.from(segments.flatMap(([, , c]) => [...c, ...c]));
    this.lines.version += 1;
  }
}

// Room for the labels around the box, as shares of half the picture.
function margins(rem, width, height, flat) {
  const [side, end] = flat ? [7.6, 6.8] : [5.6, 3];
  return [Math.min(side * rem / width, 0.4), Math.min(end * rem / height, 0.4)];
}

function pixelRatio() {
  return Math.min(window.devicePixelRatio || 1, 2);
}

function overlap(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

// Unit vector on the screen, across the edge from a to b and away from the middle.
function outward(a, b, middle) {
  const across = [b[1] - a[1], a[0] - b[0]];
  const side = across[0] * ((a[0] + b[0]) / 2 - middle[0]) + across[1] * ((a[1] + b[1]) / 2 - middle[1]);
  const length = Math.hypot(...across) || 1;
  return across.map((v) => v * (side < 0 ? -1 : 1) / length);
}

function unit(v) {
  const length = Math.hypot(...v);
  return v.map((c) => c / length);
}

// Screen position in [-1, 1] of a point of the unit cube.
function project(matrix, [u, v, h]) {
  const row = (i) => matrix[i] * u + matrix[4 + i] * v + matrix[8 + i] * h + matrix[12 + i];
  const w = row(3);
  return [row(0) / w, row(1) / w];
}

// The place [u, v] at height h of the unit cube that is seen at (x, y) in [-1, 1].
function onLevel(matrix, x, y, h) {
  const row = (i, at) => [0, 4, 8, 12].map((k) => matrix[k + i] - at * matrix[k + 3]);
  const [a, b] = [row(0, x), row(1, y)];
  const [p, q] = [-(a[2] * h + a[3]), -(b[2] * h + b[3])];
  const det = a[0] * b[1] - a[1] * b[0];
  return [(p * b[1] - q * a[1]) / det, (a[0] * q - b[0] * p) / det];
}

// Doubles a grid's resolution by cubic interpolation; heights stay at or above zero.
function refine(z, nx, ny, out) {
  const wide = 2 * nx - 1;
  for (let y = 0; y < ny; y++) {
    for (let x = 0; x < nx; x++) out[2 * y * wide + 2 * x] = z[y * nx + x];
    doubled(out, 2 * y * wide, 2, nx);
  }
  for (let x = 0; x < wide; x++) doubled(out, x, 2 * wide, ny);
}

// Fills the gaps halfway between n values that lie `stride` apart.
function doubled(values, start, stride, n) {
  for (let k = 0; k < n - 1; k++) {
    const at = (i) => values[start + stride * clamp(i, 0, n - 1)];
    const middle = (9 * (at(k) + at(k + 1)) - at(k - 1) - at(k + 2)) / 16;
    values[start + stride * k + stride / 2] = Math.max(middle, 0);
  }
}

function bilinear(z, nx, ny, u, v) {
  if (!(u >= 0 && u <= 1 && v >= 0 && v <= 1)) return 0;
  const [x, y] = [u * (nx - 1), v * (ny - 1)];
  const [i, j] = [Math.min(Math.floor(x), nx - 2), Math.min(Math.floor(y), ny - 2)];
  const [a, b, k] = [x - i, y - j, j * nx + i];
  return (1 - b) * ((1 - a) * z[k] + a * z[k + 1]) + b * ((1 - a) * z[k + nx] + a * z[k + nx + 1]);
}

// Round numbers in [low, high], about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const n = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(n, 0) }, (_, k) => (first + k) * step);
}

function label(value) {
  const size = Math.abs(value);
  const far = size > 0 && (size >= 1e5 || size < 1e-4);
  const text = far ? value.toExponential(2).replace(/\.?0*e\+?/, "e") : String(Number(value.toPrecision(6)));
  return text.replaceAll("-", "\u2212");
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

function repeat(colours, times) {
  const out = new Uint8Array(4 * colours.length * times);
  colours.forEach((colour, i) => {
    for (let k = 0; k < times; k++) out.set(colour, 4 * (i * times + k));
  });
  return out;
}
