"use strict";

// Plain checks of exact.js without a browser: node tests/viz/exact.test.cjs
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

const file = path.join(__dirname, "../../src/pathline/viz/assets/exact.js");
const names = "PATHS makeLaw posterior densityAt velocityAt velocities densityGrid Flight evenTimes fineTimes distance normals";
const exact = vm.runInThisContext(`(() => {${fs.readFileSync(file, "utf8")}; return { ${names.replaceAll(" ", ", ")} }; })()`);

const points = Array.from({ length: 37 }, (_, k) => [2 * Math.cos(2.4 * k), 1.5 * Math.sin(2.4 * k) + 0.01 * k]);
const law = (name, sigmaMin = 0.2) => exact.makeLaw(points, name, sigmaMin);
const paths = Object.keys(exact.PATHS);

function rates() {
  for (const name of paths) {
    for (const t of [0.1, 0.5, 0.9]) {
      const h = 1e-5;
      const [a, b, c] = [t - h, t, t + h].map((s) => exact.PATHS[name](s, 0.2));
      assert.ok(Math.abs((c.alpha - a.alpha) / (2 * h) - b.alphaRate) < 1e-7, `${name} alpha`);
      assert.ok(Math.abs((c.std - a.std) / (2 * h) - b.stdRate) < 1e-7, `${name} std`);
    }
    const [start, end] = [0, 1].map((t) => exact.PATHS[name](t, 0.2));
    assert.ok(Math.abs(start.alpha) + Math.abs(start.std - 1) + Math.abs(end.alpha - 1) + Math.abs(end.std - 0.2) < 1e-12);
  }
}

function gridIsDensity() {
  const out = new Float64Array(41 * 41);
  for (const name of paths) {
    for (const t of [0, 0.4, 0.95, 1]) {
      const peak = exact.densityGrid(law(name), t, 4, 41, out);
      assert.equal(peak, out.reduce((a, b) => Math.max(a, b)));
      for (let k = 0; k < out.length; k += 13) {
        const [x, y] = [-4 + 0.2 * (k % 41), -4 + 0.2 * Math.floor(k / 41)];
        assert.ok(Math.abs(out[k] - exact.densityAt(law(name), t, x, y)) < 1e-8 * peak, `${name} ${t}`);
      }
    }
  }
}

function massIsOne() {
  const out = new Float64Array(121 * 121);
  exact.densityGrid(law("cosine"), 0.6, 6, 121, out);
  assert.ok(Math.abs(out.reduce((a, b) => a + b) * 0.01 - 1) < 1e-5);
}

function posteriorIsBayes() {
  const { weights, mean } = exact.posterior(law("linear"), 0.7, 0.5, -0.3);
  assert.ok(Math.abs(weights.reduce((a, b) => a + b) - 1) < 1e-12);
  assert.ok(Math.hypot(...mean) < 3);
  const near = exact.posterior(law("linear", 0.01), 1, ...points[5]);
  assert.ok(near.weights[law("linear").order.indexOf(5)] > 0.999);
  const far = exact.posterior(law("linear"), 0.7, 80, 80);
  assert.ok(far.weights.every(Number.isFinite) && Number.isFinite(far.logDensity));
}

function continuity() {
  const [t, x, y, h] = [0.5, 0.7, -0.4, 1e-3];
  for (const name of paths) {
    const p = (s, a, b) => exact.densityAt(law(name), s, a, b);
    const flux = (a, b, axis) => p(t, a, b) * exact.velocityAt(law(name), t, a, b)[axis];
    const rate = (p(t + h, x, y) - p(t - h, x, y)) / (2 * h);
    const out = (flux(x + h, y, 0) - flux(x - h, y, 0) + flux(x, y + h, 1) - flux(x, y - h, 1)) / (2 * h);
    assert.ok(Math.abs(rate + out) < 1e-4 * Math.abs(rate), `${name}: ${rate} ${out}`);
  }
}

function ordersOfConvergence() {
  const starts = exact.normals(200, 3);
  const end = (times, solver) => {
    const flight = new exact.Flight(law("linear", 0.5), starts, times, solver);
    flight.run();
    return flight.states.at(-1);
  };
  const true_ = end(exact.fineTimes(400), "rk4");
  for (const [solver, order] of [["euler", 1], ["midpoint", 2], ["heun", 2], ["rk4", 4]]) {
    const [coarse, fine] = [20, 40].map((n) => exact.distance(end(exact.evenTimes(n), solver), true_));
    const found = Math.log2(coarse / fine);
    assert.ok(Math.abs(found - order) < 0.35, `${solver}: ${found}`);
  }
}

function oneGaussianMovesStraight() {
  const single = exact.makeLaw([[2, 1]], "linear", Math.SQRT1_2);
  const flight = new exact.Flight(single, Float64Array.of(0.3, -1), exact.fineTimes(20), "euler");
  flight.run();
  const place = flight.at(0.5, new Float64Array(2));
  const std = 0.5 + 0.5 * Math.SQRT1_2;
  assert.ok(Math.hypot(place[0] - 1 - 0.3 * std, place[1] - 0.5 + std) < 1e-12);
}

function flightsComeInPieces() {
  const flight = new exact.Flight(law("linear"), exact.normals(400, 1), exact.evenTimes(10), "rk4");
  assert.equal(flight.at(0.5, new Float64Array(400)), null);
  flight.chunk = 7;
  flight.run(0);
  assert.ok(!flight.done);
  flight.run();
  const whole = new exact.Flight(law("linear"), exact.normals(400, 1), exact.evenTimes(10), "rk4");
  whole.run();
  assert.deepEqual(flight.states.at(-1), whole.states.at(-1));
}

function normalsAreNormal() {
  const z = exact.normals(20000, 5);
  const mean = z.reduce((a, b) => a + b) / z.length;
  const variance = z.reduce((a, b) => a + b * b) / z.length;
  assert.ok(Math.abs(mean) < 0.04 && Math.abs(variance - 1) < 0.06);
}

const checks = [rates, gridIsDensity, massIsOne, posteriorIsBayes, continuity, ordersOfConvergence,
  oneGaussianMovesStraight, flightsComeInPieces, normalsAreNormal];
for (const check of checks) check();
console.log(`${checks.length} checks passed`);
