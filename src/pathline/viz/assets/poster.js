"use strict";

// The surface as a plain drawing on a 2-D canvas over the stage: it is there long before WebGL is, in the same place.
// `z` are n x n heights in [0, 1]. Returns the canvas; it is for the caller to remove.
function drawPoster(stage, camera, size, theme, z, n) {
  const { clientWidth: width, clientHeight: height } = stage;
  const pixel = pixelRatio();
  const canvas = Object.assign(document.createElement("canvas"), { width: width * pixel, height: height * pixel });
  canvas.className = "poster";
  canvas.setAttribute("aria-hidden", "true");
  stage.append(canvas);
  const pen = canvas.getContext("2d");
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const matrix = camera.matrix(size, width / height, margins(rem, width, height, false));
  const place = (u, v, h) => {
    const [x, y] = project(matrix, [u, v, h]);
    return [(x + 1) / 2 * canvas.width, (1 - y) / 2 * canvas.height];
  };
  const trace = (corners) => {
    pen.beginPath();
    corners.forEach((corner, k) => (k ? pen.lineTo(...corner) : pen.moveTo(...corner)));
    pen.closePath();
  };
  pen.strokeStyle = `rgb(${theme.edge.slice(0, 3).join(" ")} / ${theme.edge[3] / 255})`;
  trace([place(0, 0, 0), place(1, 0, 0), place(1, 1, 0), place(0, 1, 0)]);
  pen.stroke();
  const { back } = camera.axes();
  const order = (towards) => Array.from({ length: n - 1 }, (_, k) => (towards > 0 ? k : n - 2 - k));
  for (const j of order(back[1])) {
    for (const i of order(back[0])) {
      const at = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
      const heights = at.map(([x, y]) => z[y * n + x]);
      const top = Math.max(...heights);
      if (top < 0.02) continue;
      const middle = (heights[0] + heights[1] + heights[2] + heights[3]) / 4;
      const slope = (heights[0] + heights[3] - heights[1] - heights[2]) * n / 40;
      const colour = 4 * Math.round(clamp(middle, 0, 1) * (theme.map.length / 4 - 1));
      const rgb = theme.map.slice(colour, colour + 3);
      const light = clamp(0.95 - 0.12 * slope, 0.7, 1.1);
      pen.globalAlpha = clamp((middle - 0.012) / 0.1, 0, 1);
      pen.fillStyle = pen.strokeStyle = `rgb(${Array.from(rgb, (v) => v * light).join(" ")})`;
      trace(at.map(([x, y], k) => place(x / (n - 1), y / (n - 1), heights[k])));
      pen.fill();
      if (pen.globalAlpha === 1) pen.stroke();
    }
  }
  return canvas;
}
