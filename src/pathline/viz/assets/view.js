"use strict";

const CLOUD_GRID = 48;
const MEANINGS = {
  w2_sobol: "2-Wasserstein distance of low-discrepancy points, in the data's units",
  w2: "2-Wasserstein distance, in standard deviations",
  sliced_w2: "sliced 2-Wasserstein distance, in standard deviations",
  energy_distance: "energy distance, in standard deviations",
  c2st: "accuracy of a classifier told to tell them apart; 0.5 is best",
  log_likelihood: "mean over held-out rows, nats",
};

// Pictures on their way, each beside the nearest row of the training where the page holds one.
class Gallery extends Player {
  constructor({ times, shape, frames, nearest }) {
    super();
    this.shape = shape;
    this.frames = new Frames(times, decode(frames));
    this.values = new Float32Array(this.frames.width);
    const [count, height, width] = shape;
    const box = document.getElementById("gallery");
    box.hidden = false;
    box.classList.toggle("paired", Boolean(nearest));
    document.querySelector(".stage").hidden = true;
    document.getElementById("reset").hidden = true;
    document.querySelector(".surface").hidden = true;
    document.getElementById("count").textContent = count.toLocaleString("en");
    document.getElementById("counted").textContent = "samples";
    document.querySelector(".dot").hidden = true;
    const rows = nearest && decode(nearest);
    this.pictures = Array.from({ length: count }, (_, k) => {
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Sample ${k + 1}`);
      const figure = element("figure", "", canvas);
      if (rows) {
        const other = Object.assign(document.createElement("canvas"), { width, height });
        other.setAttribute("role", "img");
        other.setAttribute("aria-label", `The training row nearest to sample ${k + 1}`);
        this.paint(other, rows, k);
        figure.append(other);
      }
      box.append(figure);
      return canvas;
    });
    this.listen();
    this.seek(0);
  }

  paint(canvas, values, k) {
    const [, height, width, channels] = this.shape;
    const image = new ImageData(width, height);
    const size = height * width;
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * values[(k * size + i) * channels + (channels === 3 ? c : 0)];
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  show(t) {
    this.frames.at(t, this.values);
    this.pictures.forEach((canvas, k) => this.paint(canvas, this.values, k));
  }

  run(on) {
    cancelAnimationFrame(this.pending);
    if (!on) return;
    let last = performance.now();
    const step = (now) => {
      const seconds = clamp((now - last) / 1000, 0, 0.1);
      last = now;
      if (this.advance(seconds)) this.pending = requestAnimationFrame(step);
    };
    this.pending = requestAnimationFrame(step);
  }

  repaint() {}

  key() {
    return false;
  }
}

// Two axes of a cloud as the data of a plane, with a kernel estimate of the density of its particles.
function projected(cloud, values, i, j) {
  const { axes, times, ends } = cloud;
  const width = axes.length;
  const particles = new Float32Array(values.length / width * 2);
  for (let k = 0; k < particles.length / 2; k++) {
    particles[2 * k] = values[k * width + i];
    particles[2 * k + 1] = values[k * width + j];
  }
  const count = particles.length / 2 / times.length;
  const frames = times.map((_, k) => estimate(particles.subarray(2 * k * count, 2 * (k + 1) * count), CLOUD_GRID));
  const area = (ends[i][1] - ends[i][0]) * (ends[j][1] - ends[j][0]);
  const peak = Math.max(...frames.map((frame) => frame.reduce((a, b) => Math.max(a, b), 0)));
  const density = new Float32Array(CLOUD_GRID ** 2 * times.length);
  frames.forEach((frame, k) => density.set(frame.map((v) => Math.sqrt(v / peak)), k * CLOUD_GRID ** 2));
  return { columns: [axes[i], axes[j]], times, extent: [...ends[i], ...ends[j]], grid: CLOUD_GRID, peak: peak / area, density, particles };
}

// Gaussian kernels of half the width of Scott's rule, which is made for one hill, on an even grid over the unit square.
function estimate(xy, n) {
  const count = xy.length / 2;
  const widths = [0, 1].map((axis) => {
    const own = Array.from({ length: count }, (_, k) => xy[2 * k + axis]);
    const mean = own.reduce((a, b) => a + b, 0) / count;
    const spread = Math.sqrt(own.reduce((a, b) => a + (b - mean) ** 2, 0) / count);
    return Math.max(0.6 * spread * count ** (-1 / 6), 0.6 / n);
  });
  const out = new Float32Array(n * n);
  const [ex, ey] = [new Float32Array(n), new Float32Array(n)];
  for (let k = 0; k < count; k++) {
    for (let i = 0; i < n; i++) {
      ex[i] = Math.exp(-0.5 * ((i / (n - 1) - xy[2 * k]) / widths[0]) ** 2);
      ey[i] = Math.exp(-0.5 * ((i / (n - 1) - xy[2 * k + 1]) / widths[1]) ** 2);
    }
    for (let y = 0; y < n; y++) {
      if (ey[y] < 1e-6) continue;
      for (let x = 0; x < n; x++) out[y * n + x] += ey[y] * ex[x];
    }
  }
  const scale = 1 / (2 * Math.PI * widths[0] * widths[1] * count);
  return out.map((v) => v * scale);
}

function cloudFlow(cloud, compare) {
  const values = decode(cloud.particles).map((v) => 2 * v - 0.5);
  const made = new Flow(projected(cloud, values, 0, 1));
  const picks = ["across", "along"].map((id) => document.getElementById(id));
  picks.forEach((pick, k) => {
    cloud.axes.forEach((name, i) => pick.add(new Option(name, i, i === k, i === k)));
    pick.addEventListener("change", () => {
      const [i, j] = picks.map((each) => Number(each.value));
      made.swap(projected(cloud, values, i, j));
      if (compare) {
        compare.axes = [i, j];
        compare.draw();
      }
    });
  });
  const form = document.getElementById("axes");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  return made;
}

function show(id) {
  const card = document.getElementById(id);
  card.hidden = false;
  return card.querySelector(".chart");
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function three(value) {
  return value === null ? "\u2013" : label(Number(value.toPrecision(3)));
}

function drawCurves({ times, of, toy, r2, floor, train, held_out: heldOut, above }) {
  const time = { name: "time t", low: 0, high: 1 };
  const most = Math.max(...floor, ...train, ...(heldOut ?? []), ...(above ?? []));
  const low = Math.max(-1, Math.min(0, ...r2));
  const first = chart(show("r2"), {
    x: time, y: { low, high: 1 }, lines: [{ name: "R\u00b2(t)", look: "learned", x: times, y: r2 }],
    say: `R squared goes from ${three(r2[0])} near t = 0 by ${three(r2[10])} halfway to ${three(r2.at(-1))} near t = 1.`,
  });
  const name = toy ? "model, fresh points" : "model, training rows";
  const lines = [{ name, look: "learned", x: times, y: train }];
  if (heldOut) lines.push({ name: "model, held-out rows", look: "third", x: times, y: heldOut });
  const bands = [];
  if (toy) bands.push({ name: "floor of the law", look: "exact", x: times, low: floor, high: above });
  else lines.push({ name: "floor of the training rows", look: "exact dashed", x: times, y: floor });
  const second = chart(show("overTime"), {
    x: time, y: { low: 0, high: 1.05 * most }, lines, bands,
    say: `Loss per dimension over time: ${lines.map((l) => `${l.name} ${three(mean(l.y))} on average`).join(", ")}.`,
  });
  document.getElementById("floors").textContent = toy
    ? `No field has less loss than the floor of the law. It lies within the band: below is the exact field of ${of} on its own points, above on others.`
    : `The floor is the loss of the exact field of ${of}, which would generate those rows and nothing else. A model that generalises stays above it.`;
  return [first, second];
}

function drawLog(log, curves) {
  const steps = log.map(([step]) => step);
  const loss = log.map(([, value]) => value);
  const lines = [
    { name: "batches", look: "learned thin faint", x: steps, y: loss },
    { name: "their moving average", look: "learned", x: steps, y: smooth(loss, Math.ceil(loss.length / 20)) },
  ];
  const bands = [];
  const ends = [0, steps.at(-1)];
  let least = Math.min(...loss);
  if (curves) {
    const [low, high] = [mean(curves.floor), mean(curves.above ?? curves.floor)];
    least = Math.min(least, low);
    if (curves.toy) bands.push({ name: `floor of the law, ${three(low)} to ${three(high)}`, look: "exact", x: ends, low: [low, low], high: [high, high] });
    else lines.push({ name: `floor of the training rows, ${three(low)}`, look: "exact dashed", x: ends, y: [low, low] });
  }
  const sorted = [...loss].sort((a, b) => a - b);
  const most = Math.min(sorted.at(-1), 2.2 * sorted[Math.floor(0.6 * loss.length)]);
  chart(show("training"), {
    x: { name: "step", low: 0, high: ends[1], say: (v) => v.toLocaleString("en") }, lines, bands,
    y: { low: Math.max(0, least - 0.25 * (most - least)), high: 1.05 * most },
    say: `Loss per dimension over ${ends[1]} steps, from ${three(loss[0])} to ${three(loss.at(-1))}.`,
  });
}

// Mean of the values within `reach` of each.
function smooth(values, reach) {
  return values.map((_, k) => mean(values.slice(Math.max(k - reach, 0), k + reach + 1)));
}

function tellMemory(found) {
  const [verdict, evidence] = ["verdict", "evidence"].map((id) => document.getElementById(id));
  if (typeof found === "string") {
    verdict.textContent = found;
    return;
  }
  const percent = (v) => `${(100 * v).toFixed(1)}%`;
  verdict.textContent = found.verdict === null ? "Too few rows were held out to tell."
    : found.verdict ? "Yes, more than chance would have it." : "No sign of it.";
  verdict.classList.toggle("bad", found.verdict === true);
  evidence.textContent = `Of ${found.samples} samples ${percent(found.share)} have a held-out row as the nearest of all ` +
    `${(found.train + found.held_out).toLocaleString("en")} rows; had the ${found.held_out.toLocaleString("en")} held-out rows been ` +
    `drawn anew, it would be ${percent(found.share_range[0])} to ${percent(found.share_range[1])} (99% of random splits; p = ${three(found.p)}). ` +
    `The median sample is ${three(found.ratio)} times as far from the nearest training row as from the nearest held-out one; ` +
    `random splits give ${three(found.ratio_range[0])} to ${three(found.ratio_range[1])}.`;
}

function tellMeasures(measures) {
  if (!measures.length) return;
  document.getElementById("quality").hidden = false;
  const rows = measures.map(([name, value, floor, se, n]) => {
    const said = MEANINGS[name] ? [name.replaceAll("_", " "), element("small", "", MEANINGS[name])] : name.replaceAll("_", " ");
    return [said, three(value), three(floor), three(se), n > 1 ? n.toLocaleString("en") : "\u2013"];
  });
  table(document.getElementById("measures"), ["", "value", "floor", "std. error", "rows"], rows);
}

const HINTS = {
  plane: "Height and colour are the learned density, \u221a scale; points are samples with their pathlines. Drag to turn, scroll to zoom, space to play.",
  line: "Height is the learned density of each value over time: the bell of the source at one end, the data at the other. Drag to turn, scroll to zoom.",
  cloud: "Height is a kernel estimate from the samples in the two axes above; points are samples with their pathlines. Drag to turn, scroll to zoom.",
};

const data = JSON.parse(document.getElementById("data").textContent);
const compare = data.field && new Compare(data.kind, data.field, data.flow);
const flow = data.kind === "pictures" ? new Gallery(data.flow)
  : data.kind === "cloud" ? cloudFlow(data.flow, compare) : new Flow(data.flow);
document.getElementById("hint").textContent = HINTS[data.kind] ?? (data.flow.nearest
  ? "Each sample on its way from noise, and beside it the row of the training that is nearest to its end."
  : "Each sample on its way from noise.");
if (compare) {
  document.getElementById("compare").hidden = false;
  document.getElementById("compared").textContent = compare.arrows && !compare.error
    ? "The learned field at this time. The exact one is drawn from rows of the data, which this page leaves out."
    : `The exact field is that of ${data.field.of}. The error |v \u2212 u| is in standard deviations of the exact velocity, shown where the exact path has its points.`;
  flow.followers.push((t) => compare.seek(t));
}
const marks = data.curves ? drawCurves(data.curves) : [];
flow.followers.push((t) => marks.forEach((mark) => mark(t)));
if (data.log.length > 1) drawLog(data.log, data.curves);
tellMemory(data.memory);
tellMeasures(data.measures);
document.getElementById("settings").append(
  ...data.settings.map(([name, value]) => element("div", "", element("dt", "", name), element("dd", "", value))),
);
flow.seek(0);

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
if (still) flow.seek(1);
flow.scene?.frame(performance.now());
const firstPicture = performance.now();
if (!still) flow.play(true);

window.pathline = {
  get t() { return flow.t; },
  get playing() { return flow.playing; },
  get camera() {
    const { azimuth, elevation, zoom, shift } = flow.scene.camera;
    return { azimuth, elevation, zoom, shift };
  },
  get renderer() { return flow.scene?.renderer.name; },
  seek: (t) => flow.seek(t),
  play: (on) => flow.play(on),
  firstPicture,
};
