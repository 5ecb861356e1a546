"use strict";

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
