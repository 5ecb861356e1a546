"use strict";

// The same layers seen from above on a 2-D canvas, for browsers without WebGL2: the surface is a heat map.
class FlatRenderer {
  constructor(canvas) {
    this.name = "canvas";
    this.flat = true;
    this.context = canvas.getContext("2d");
    this.picture = document.createElement("canvas");
  }

  draw(layers, frame) {
    this.context.clearRect(0, 0, frame.width, frame.height);
    this.place = (u, v) => {
      const [x, y] = project(frame.camera, [u, v, 0]);
      return [(x + 1) / 2 * frame.width, (1 - y) / 2 * frame.height];
    };
    for (const layer of layers) this[layer.kind](layer, frame);
  }

  surface({ nx, ny, z }, { theme }) {
    Object.assign(this.picture, { width: nx, height: ny });
    const pen = this.picture.getContext("2d");
    const image = pen.createImageData(nx, ny);
    const colours = theme.map.length / 4 - 1;
    for (let k = 0; k < z.length; k++) {
      const from = 4 * Math.round(clamp(z[k], 0, 1) * colours);
      const to = 4 * ((ny - 1 - Math.floor(k / nx)) * nx + k % nx);
      image.data.set(theme.map.subarray(from, from + 3), to);
      image.data[to + 3] = 255 * clamp((z[k] - 0.004) / 0.1, 0, 1);
    }
    pen.putImageData(image, 0, 0);
    const [left, top] = this.place(-0.5 / (nx - 1), 1 + 0.5 / (ny - 1));
    const [right, bottom] = this.place(1 + 0.5 / (nx - 1), -0.5 / (ny - 1));
    this.context.drawImage(this.picture, left, top, right - left, bottom - top);
  }

  points({ xyz, rgba, diameter }, { theme, pixel, scale }) {
    const { context } = this;
    if (!xyz.length) return;
    const radius = diameter * pixel * scale / 2;
    const path = new Path2D();
    for (let k = 0; k < xyz.length; k += 3) {
      const [x, y] = this.place(xyz[k], xyz[k + 1]);
      path.moveTo(x + radius, y);
      path.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fillStyle = css(rgba, 0);
    context.strokeStyle = `rgb(${theme.rim.map((v) => 255 * v).join(" ")})`;
    context.lineWidth = pixel * scale;
    context.fill(path);
    context.stroke(path);
  }

  strokes(layer, frame) {
    this.lines(layer, frame);
  }

  // Neighbouring segments of one colour are drawn as one path.
  lines({ xyz, rgba, width = 1 }, { pixel }) {
    const { context } = this;
    context.lineWidth = pixel * width;
    let style = null;
    for (let k = 0; k < xyz.length / 3; k += 2) {
      const next = css(rgba, 4 * k);
      if (next !== style) {
        if (style) context.stroke();
        context.beginPath();
        context.strokeStyle = style = next;
      }
      context.moveTo(...this.place(xyz[3 * k], xyz[3 * k + 1]));
      context.lineTo(...this.place(xyz[3 * k + 3], xyz[3 * k + 4]));
    }
    if (style) context.stroke();
  }
}

function css(rgba, at) {
  return `rgb(${rgba[at]} ${rgba[at + 1]} ${rgba[at + 2]} / ${rgba[at + 3] / 255})`;
}
