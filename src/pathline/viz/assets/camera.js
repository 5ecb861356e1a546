"use strict";

const FOCAL = 5.5;

// An orbit camera around the unit cube, which is drawn as a box of `size` world units.
// The eye sits at `azimuth` (0 looks along +y) and `elevation` above the floor, in radians; `shift` moves the
// picture in units of half the screen, so that a zoom keeps the point under the pointer in place.
class Camera {
  constructor(home) {
    this.home = home;
    this.reset();
  }

  reset() {
    Object.assign(this, { zoom: 1, shift: [0, 0], flat: false }, this.home);
  }

  turn(right, up) {
    if (this.flat) return;
    this.azimuth -= right;
    this.elevation = clamp(this.elevation + up, 0.06, Math.PI / 2 - 0.001);
  }

  zoomBy(factor, at = [0, 0]) {
    const zoom = clamp(this.zoom * factor, 0.6, 6);
    const room = Math.max(zoom - 1, 0);
    this.shift = this.shift.map((s, i) => clamp(at[i] - (at[i] - s) * zoom / this.zoom, -room, room));
    this.zoom = zoom;
  }

  pan(x, y) {
    const room = Math.max(this.zoom - 1, 0);
    this.shift = [clamp(this.shift[0] + x, -room, room), clamp(this.shift[1] + y, -room, room)];
  }

  axes() {
    const [sa, ca] = [Math.sin(this.azimuth), Math.cos(this.azimuth)];
    const [se, ce] = [Math.sin(this.elevation), Math.cos(this.elevation)];
    return { right: [ca, sa, 0], up: [-sa * se, ca * se, ce], back: [sa * ce, -ca * ce, se] };
  }

  // Column-major matrix from the unit cube to clip space; `margin` is the free border as a share of half the screen.
  matrix(size, aspect, margin) {
    const { right, up, back } = this.axes();
    const { distance, rise } = this.fit(size, aspect, margin);
    this.distance = distance;
    const [near, far] = [Math.max(distance - 2.5, 0.05), distance + 2.5];
    const row = (v, offset) => [...v.map((c, i) => c * size[i]), offset - dot(v, size) / 2];
    const w = row(back.map((v) => -v), distance);
    const across = row(right.map((v) => v * FOCAL * this.zoom / aspect), 0);
    const along = row(up.map((v) => v * FOCAL * this.zoom), 0);
    const depth = w.map((v) => v * (far + near) / (far - near));
    depth[3] -= 2 * far * near / (far - near);
    const [x, y] = [this.shift[0], this.shift[1] - rise * this.zoom];
    const rows = [across.map((v, i) => v + x * w[i]), along.map((v, i) => v + y * w[i]), depth, w];
    return new Float32Array([0, 1, 2, 3].flatMap((i) => rows.map((r) => r[i])));
  }

  // Least distance at which the outline stays inside the margins, and how far above the middle it is then centred.
  fit(size, aspect, margin) {
    const { right, up, back } = this.axes();
    const points = this.outline(size).map((p) => [dot(right, p) / aspect, dot(up, p), dot(back, p)]);
    const view = (distance) => {
      const [x, y] = [0, 1].map((i) => points.map((p) => FOCAL * p[i] / (distance - p[2])));
      const [top, bottom] = [Math.max(...y), Math.min(...y)];
      const inside = Math.max(...x) <= 1 - margin[0] && (top - bottom) / 2 <= 1 - margin[1];
      return { inside, rise: (top + bottom) / 2 };
    };
    let [low, high] = [2, 200];
    for (let k = 0; k < 24; k++) {
      const middle = Math.sqrt(low * high);
      if (view(middle).inside) high = middle;
      else low = middle;
    }
    return { distance: high, rise: view(high).rise };
  }

  // What must stay on the screen: all that the floor's corners sweep, so that turning never changes the scale, and
  // the top less wide, since only the upright axis reaches it far from the middle, and that one stays at the side.
  outline(size) {
    const [x, y, z] = size.map((v) => v / 2);
    if (this.flat) return [[-x, -y, 0], [x, y, 0], [-x, y, 0], [x, -y, 0]];
    const radius = Math.hypot(x, y);
    const angles = Array.from({ length: 24 }, (_, k) => k * Math.PI / 12);
    const ring = (r, h) => angles.map((angle) => [r * Math.cos(angle), r * Math.sin(angle), h]);
    return [...ring(radius, -z), ...ring(0.5 * radius, z)];
  }
}

function dot(a, b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}
