"use strict";

// Colour maps with even steps in lightness between a few stops [lightness, chroma, hue in degrees] of OKLCH
// (Ottosson, "A perceptual color space for image processing"). Lightness only rises or only falls, so the order
// of the colours survives colour blindness and grey print; the first stop is the one nearest to the page.
const COLOUR_STOPS = {
  dark: [[0.25, 0.07, 285], [0.42, 0.13, 272], [0.59, 0.115, 225], [0.76, 0.13, 170], [0.93, 0.155, 106]],
  light: [[0.95, 0.02, 215], [0.81, 0.07, 218], [0.65, 0.105, 234], [0.48, 0.135, 264], [0.30, 0.125, 288]],
};

function oklab([lightness, chroma, hue]) {
  const angle = hue * Math.PI / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

function oklabToRgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
  ].map((v) => 255 * clamp(v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055, 0, 1));
}

// RGBA bytes of `size` colours, even in lightness.
function colourMap(stops, size = 256) {
  const labs = stops.map(oklab);
  const map = new Uint8Array(4 * size);
  for (let k = 0; k < size; k++) {
    const position = k / (size - 1) * (labs.length - 1);
    const i = Math.min(Math.floor(position), labs.length - 2);
    const rgb = oklabToRgb(labs[i].map((v, axis) => v + (position - i) * (labs[i + 1][axis] - v)));
    map.set([...rgb.map(Math.round), 255], 4 * k);
  }
  return map;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
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

// The colours of a theme's map as a CSS gradient.
function ramp({ name, map }) {
  const stops = COLOUR_STOPS[name].map((_, k, all) => {
    const at = 4 * Math.round(k / (all.length - 1) * 255);
    return `rgb(${map.slice(at, at + 3).join(" ")})`;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}
