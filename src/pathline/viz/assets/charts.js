"use strict";

const CHART = { height: 216, left: 44, right: 10, top: 12, bottom: 30 };

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Lines {name, look, x, y} and bands {name, look, x, low, high} over one pair of axes; `say` is the text for those
// who don't see the picture. Returns a function that marks one place across.
function chart(box, spec) {
  const keys = element("div", "keys");
  for (const { name, look, high } of [...spec.lines, ...(spec.bands ?? [])]) {
    const looks = ["dashed", "faint"].filter((each) => look.includes(each));
    const mark = element("i", [...looks, ...(high ? ["band"] : [])].join(" "));
    keys.append(element("span", look.split(" ")[0], mark, element("b", "", name)));
  }
  box.replaceChildren(svg("svg", {}), keys);
  let [width, place] = [0, null];
  const draw = () => {
    const wanted = Math.round(clamp(box.clientWidth / rem() * 16, 220, 900));
    if (wanted === width) return;
    width = wanted;
    box.replaceChildren(plot(spec, width, place), keys);
  };
  draw();
  new ResizeObserver(draw).observe(box);
  return (v) => {
    place = v;
    mark(box.querySelector(".now"), across(spec.x, width, v));
  };
}

function rem() {
  return parseFloat(getComputedStyle(document.documentElement).fontSize);
}

function across(x, width, v) {
  return CHART.left + (v - x.low) / (x.high - x.low) * (width - CHART.left - CHART.right);
}

function mark(line, at) {
  for (const [key, value] of Object.entries({ visibility: "visible", x1: at, x2: at })) line.setAttribute(key, value);
}

function plot({ x, y, lines, bands = [], say }, width, place) {
  const { height, left, right, top, bottom } = CHART;
  const over = (v) => across(x, width, v);
  const up = (v) => top + (1 - (clamp(v, y.low, y.high) - y.low) / (y.high - y.low)) * (height - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": say });
  for (const v of ticks(y.low, y.high, 4)) {
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: up(v), y2: up(v) }));
    picture.append(svg("text", { x: left - 7, y: up(v) + 4, "text-anchor": "end" }, label(v)));
  }
  for (const v of ticks(x.low, x.high, width < 300 ? 3 : 5)) {
    picture.append(svg("text", { x: over(v), y: height - bottom + 16, "text-anchor": "middle" }, x.say?.(v) ?? label(v)));
  }
  picture.append(svg("text", { x: width - right, y: height - 1, "text-anchor": "end" }, x.name));
  const point = (a, b) => `${over(a).toFixed(1)},${up(b).toFixed(1)}`;
  for (const { look, x: at, low, high } of bands) {
    const points = [...at.map((v, k) => point(v, high[k])), ...at.map((v, k) => point(v, low[k])).reverse()];
    picture.append(svg("polygon", { class: `filled ${look}`, points: points.join(" ") }));
  }
  for (const { look, x: at, y: values } of lines) {
    picture.append(svg("polyline", { class: `series ${look}`, points: at.map((v, k) => point(v, values[k])).join(" ") }));
  }
  const now = svg("line", { class: "now", y1: top, y2: height - bottom, visibility: "hidden" });
  if (place !== null) mark(now, over(place));
  picture.append(now);
  return picture;
}

function table(place, head, rows) {
  const cells = head.map((name, k) => element("th", k ? "number" : "", name));
  for (const cell of cells) cell.scope = "col";
  const body = document.createElement("tbody");
  for (const [name, ...values] of rows) {
    const first = element("th", "", ...[name].flat());
    first.scope = "row";
    body.append(element("tr", "", first, ...values.map((value) => element("td", "number", value))));
  }
  place.append(element("thead", "", element("tr", "", ...cells)), body);
}
