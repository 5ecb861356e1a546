"use strict";

const FIELD_KEYS = {
  plane: [["error", "error, 0 to 1"], ["exact", "exact field"], ["learned", "learned field"], ["rows", "rows of the data"]],
  cloud: [["exact", "exact field"], ["learned", "learned field"]],
  line: [["error", "error, 0 to 1"], ["rows", "rows of the data"]],
};

// Both fields in one flat picture: an error map, arrows of both, and rows of the data as points.
class Compare {
  constructor(kind, data, flowData) {
    Object.assign(this, { kind, data, flow: flowData });
    this.canvas = document.getElementById("field");
    this.times = data.times;
    for (const name of ["arrows", "error", "weight", "rows", "places"]) this[name] = data[name] && decode(data[name]);
    this.arrows = this.arrows?.map((v) => 2 * v - 1);
    this.places = this.places?.map((v) => 2 * v - 0.5);
    this.shown = { error: true, exact: true, learned: true, rows: kind === "line" };
    this.axes = [0, 1];
    this.keys();
    new ResizeObserver(() => this.draw()).observe(this.canvas.parentElement);
  }

  keys() {
    const box = document.getElementById("fieldKeys");
    const has = { error: this.error, exact: this.arrows && (this.kind === "cloud" || this.error), learned: this.arrows, rows: this.rows };
    for (const [name, text] of FIELD_KEYS[this.kind]) {
      if (!has[name]) continue;
      const input = document.createElement("input");
      Object.assign(input, { type: "checkbox", checked: this.shown[name], id: `show-${name}` });
      input.addEventListener("change", () => {
        this.shown[name] = input.checked;
        this.draw();
      });
      box.append(element("label", name, input, element("i", name === "error" ? "ramp" : ""), element("b", "", text)));
    }
    if (!this.error) return;
    if (!has.rows) box.append(element("span", "", element("i", "ramp"), element("b", "", "error, 0 to 1")));
  }

  seek(t) {
    this.t = t;
    this.draw();
  }

  // The arrays at time t, linear between the times at hand.
  at(name) {
    const frames = new Frames(this.times, this[name]);
    return frames.at(this.t, new Float32Array(frames.width));
  }

  ends() {
    if (this.kind === "cloud") return this.axes.map((axis) => this.flow.ends[axis]);
    const [a, b, c, d] = this.flow.extent;
    return [[a, b], [c, d]];
  }

  draw() {
    const box = this.canvas.parentElement;
    const width = box.clientWidth;
    if (!width || this.t === undefined) return;
    const [across, along] = this.ends();
    const ratio = (along[1] - along[0]) / (across[1] - across[0]);
    const height = Math.round(width * (this.kind === "plane" && ratio > 0.5 && ratio < 1.6 ? ratio : 0.82));
    const pixel = pixelRatio();
    const [w, h] = [Math.round(width * pixel), Math.round(height * pixel)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(pixel, 0, 0, pixel, 0, 0);
    pen.clearRect(0, 0, width, height);
    const unit = rem() / 16;
    const margin = { left: 40 * unit, bottom: 34 * unit, top: 6, right: 6 };
    this.place = (u, v) => [
      margin.left + u * (width - margin.left - margin.right), height - margin.bottom - v * (height - margin.top - margin.bottom),
    ];
    this.colours = theme();
    for (const mark of document.querySelectorAll("i.ramp")) mark.style.background = ramp(this.colours);
    pen.save();
    const [left, floor] = this.place(0, 0);
    const [right, top] = this.place(1, 1);
    pen.beginPath();
    pen.rect(left, top, right - left, floor - top);
    pen.clip();
    if (this.kind !== "cloud" && this.error && this.shown.error) this.drawMap(pen);
    if (this.rows && this.shown.rows) this.drawRows(pen);
    if (this.arrows) this.drawArrows(pen);
    pen.restore();
    this.frame(pen, across, along, [left, top, right, floor], unit);
  }

  drawMap(pen) {
    const n = this.data.grid;
    const whole = this.kind === "line";
    const error = whole ? this.error : this.at("error");
    const weight = whole ? this.weight : this.at("weight");
    const image = new ImageData(n, n);
    const { map } = this.colours;
    const last = map.length / 4 - 1;
    for (let k = 0; k < n * n; k++) {
      const from = 4 * Math.round(Math.sqrt(error[k]) * last);
      const to = 4 * ((n - 1 - Math.floor(k / n)) * n + k % n);
      image.data.set([map[from], map[from + 1], map[from + 2], 255 * weight[k]], to);
    }
    const small = document.createElement("canvas");
    Object.assign(small, { width: n, height: n });
    small.getContext("2d").putImageData(image, 0, 0);
    const half = 0.5 / (n - 1);
    const [left, top] = this.place(-half, 1 + half);
    const [right, floor] = this.place(1 + half, -half);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, left, top, right - left, floor - top);
    if (whole) {
      const [x0, y] = this.place(0, this.t);
      pen.strokeStyle = colour("--text");
      pen.setLineDash([3, 3]);
      line(pen, x0, y, this.place(1, 0)[0], y);
      pen.setLineDash([]);
    }
  }

  drawRows(pen) {
    pen.fillStyle = colour("--rows");
    const step = this.kind === "line" ? 1 : 2;
    for (let k = 0; k < this.rows.length; k += step) {
      const [x, y] = this.place(this.rows[k], step === 1 ? 0.985 : this.rows[k + 1]);
      pen.beginPath();
      if (step === 1) pen.rect(x, y, 1, 7);
      else pen.arc(x, y, 1.6, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  // Arrows are stored as [time, field, place, axis]; the learned field comes first.
  drawArrows(pen) {
    const arrows = this.at("arrows");
    const cloud = this.kind === "cloud";
    const places = cloud ? this.at("places") : null;
    const width = cloud ? this.flow.axes.length : 2;
    const fields = !cloud && !this.error ? 1 : 2;
    const count = arrows.length / fields / width;
    const length = cloud ? 0.2 : 0.15;
    const weight = !cloud && this.weight ? this.at("weight") : null;
    const errors = cloud ? this.at("error") : null;
    for (const [field, name] of [[1, "exact"], [0, "learned"]].slice(2 - fields)) {
      if (!this.shown[name]) continue;
      pen.strokeStyle = pen.fillStyle = colour(`--${name}`);
      pen.lineWidth = field ? 3.4 : 1.5;
      for (let k = 0; k < count; k++) {
        const [u, v] = cloud ? this.axes.map((axis) => places[k * width + axis]) : this.spot(k);
        const [du, dv] = this.axes.map((axis) => arrows[(field * count + k) * width + axis] * length);
        pen.globalAlpha = weight ? clamp(0.12 + this.near(weight, u, v), 0, 1) : 0.9;
        arrow(pen, this.place(u, v), this.place(u + du, v + dv), field ? 6.5 : 4);
      }
      pen.globalAlpha = 1;
    }
    if (cloud) this.drawDots(pen, places, errors, width);
  }

  drawDots(pen, places, errors, width) {
    const { map } = this.colours;
    const last = map.length / 4 - 1;
    errors.forEach((error, k) => {
      const [x, y] = this.place(...this.axes.map((axis) => places[k * width + axis]));
      const at = 4 * Math.round(Math.sqrt(error) * last);
      pen.fillStyle = `rgb(${map[at]} ${map[at + 1]} ${map[at + 2]})`;
      pen.strokeStyle = colour("--text");
      pen.lineWidth = 0.75;
      pen.beginPath();
      pen.arc(x, y, 3.6, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
    });
  }

  spot(k) {
    const n = this.data.side;
    return [(k % n + 1) / (n + 1), (Math.floor(k / n) + 1) / (n + 1)];
  }

  near(weight, u, v) {
    const n = this.data.grid;
    return weight[Math.round(v * (n - 1)) * n + Math.round(u * (n - 1))];
  }

  frame(pen, across, along, [left, top, right, floor], unit) {
    pen.strokeStyle = colour("--line");
    pen.lineWidth = 1;
    pen.strokeRect(left + 0.5, top + 0.5, right - left - 1, floor - top - 1);
    pen.fillStyle = colour("--soft");
    pen.font = `${12 * unit}px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "center";
    for (const v of ticks(...across, 5)) pen.fillText(label(v), this.place((v - across[0]) / (across[1] - across[0]), 0)[0], floor + 15 * unit);
    pen.textAlign = "right";
    for (const v of ticks(...along, 4)) pen.fillText(label(v), left - 6, this.place(0, (v - along[0]) / (along[1] - along[0]))[1] + 4);
    const names = this.kind === "cloud" ? this.axes.map((axis) => this.flow.axes[axis]) : this.flow.columns;
    pen.textAlign = "center";
    pen.fillStyle = colour("--text");
    pen.fillText(short(names[0], 40), (left + right) / 2, floor + 30 * unit);
    pen.save();
    pen.translate(11 * unit, (top + floor) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(short(names[1], 30), 0, 0);
    pen.restore();
    this.canvas.setAttribute("aria-label", `Learned and exact field over ${names[0]} and ${names[1]} at t = ${this.t.toFixed(2)}`);
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}\u2026` : text;
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function arrow(pen, from, to, head) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(dx, dy);
  if (length < 1) return;
  const [ux, uy] = [dx / length, dy / length];
  const size = Math.min(head, length);
  line(pen, ...from, to[0] - 0.7 * size * ux, to[1] - 0.7 * size * uy);
  pen.beginPath();
  pen.moveTo(...to);
  pen.lineTo(to[0] - size * ux + 0.5 * size * uy, to[1] - size * uy - 0.5 * size * ux);
  pen.lineTo(to[0] - size * ux - 0.5 * size * uy, to[1] - size * uy + 0.5 * size * ux);
  pen.fill();
}
