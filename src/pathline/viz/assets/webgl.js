"use strict";

// Heights between which a surface goes from clear to opaque.
const FADE = [0.012, 0.11];

const SURFACE_VERTEX = `#version 300 es
uniform mat4 camera;
uniform vec3 size;
uniform vec3 light;
uniform vec3 view;
uniform vec3 shade;
uniform highp sampler2D heights;
out float height;
out vec2 lit;
float at(ivec2 p) { return texelFetch(heights, clamp(p, ivec2(0), textureSize(heights, 0) - 1), 0).r; }
void main() {
  ivec2 n = textureSize(heights, 0);
  ivec2 p = ivec2(gl_VertexID % n.x, gl_VertexID / n.x);
  height = at(p);
  vec2 rise = vec2(at(p + ivec2(1, 0)) - at(p - ivec2(1, 0)), at(p + ivec2(0, 1)) - at(p - ivec2(0, 1)));
  vec3 normal = normalize(vec3(-0.5 * rise * vec2(n - 1) * size.z / size.xy, 1.0));
  float gloss = pow(max(dot(normal, normalize(light + view)), 0.0), 24.0) * smoothstep(0.1, 0.4, height);
  lit = vec2(shade.x + shade.y * max(dot(normal, light), 0.0), shade.z * gloss);
  gl_Position = camera * vec4(vec2(p) / vec2(n - 1), height, 1.0);
}`;

// The map holds a colour for each height, and in alpha the distance to the nearest contour.
const SURFACE_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D map;
uniform vec4 ink;
in float height;
in vec2 lit;
out vec4 colour;
void main() {
  vec4 base = texture(map, vec2(height, 0.5));
  float pixels = base.a / (16.0 * max(fwidth(height), 1e-4));
  vec3 rgb = mix(base.rgb * lit.x + lit.y, ink.rgb, ink.a * (1.0 - clamp(pixels - 0.4, 0.0, 1.0)));
  float fade = clamp((height - ${FADE[0]}) / ${FADE[1] - FADE[0]}, 0.0, 1.0);
  colour = vec4(rgb, 1.0) * (fade * fade * (3.0 - 2.0 * fade));
}`;

const MARK_VERTEX = `#version 300 es
uniform mat4 camera;
uniform float diameter;
uniform float distance;
uniform float lift;
layout(location = 0) in vec3 position;
layout(location = 1) in vec4 rgba;
out vec4 paint;
void main() {
  gl_Position = camera * vec4(position, 1.0);
  gl_PointSize = diameter * distance / gl_Position.w;
  gl_Position.z -= lift * gl_Position.w;
  paint = rgba;
}`;

// Strokes are drawn as one rectangle each: every corner knows its own end, the other end and its side.
const STROKE_VERTEX = `#version 300 es
uniform mat4 camera;
uniform float width;
uniform float lift;
uniform vec2 screen;
layout(location = 0) in vec3 position;
layout(location = 1) in vec3 other;
layout(location = 2) in float corner;
layout(location = 3) in vec4 rgba;
layout(location = 4) in float shore;
out vec4 paint;
out float side;
void main() {
  gl_Position = camera * vec4(position, 1.0);
  vec4 end = camera * vec4(other, 1.0);
  vec2 along = (end.xy / end.w - gl_Position.xy / gl_Position.w) * screen;
  float size = length(along);
  vec2 across = size > 1e-6 ? vec2(-along.y, along.x) / size : vec2(0.0);
  gl_Position.xy += across * corner * (0.5 * width + 0.5) * 2.0 / screen * gl_Position.w;
  gl_Position.z -= lift * gl_Position.w;
  paint = rgba;
  side = shore;
}`;

const STROKE_FRAGMENT = `#version 300 es
precision highp float;
uniform float width;
in vec4 paint;
in float side;
out vec4 colour;
void main() {
  float a = paint.a * clamp(0.5 * width + 0.5 - abs(side) * (0.5 * width + 0.5), 0.0, 1.0);
  colour = vec4(paint.rgb * a, a);
}`;

// A line is one device pixel wide: where pixels are small it is drawn more strongly.
const MARK_FRAGMENT = `#version 300 es
precision highp float;
uniform float diameter;
uniform float pixel;
uniform vec3 rim;
in vec4 paint;
out vec4 colour;
void main() {
  vec4 c = paint;
  if (diameter > 0.0) {
    float r = 2.0 * length(gl_PointCoord - 0.5);
    float edge = 2.4 / diameter;
    c.rgb = mix(c.rgb, rim, smoothstep(0.72 - edge, 0.72 + edge, r));
    c.a *= 1.0 - smoothstep(1.0 - edge, 1.0, r);
  } else {
    c.a = min(c.a * max(pixel, 1.0), 1.0);
  }
  colour = vec4(c.rgb * c.a, c.a);
}`;

// Draws layers {kind: "surface" | "points" | "lines" | "strokes", ...} with WebGL2; null where there is none.
class WebglRenderer {
  static create(canvas) {
    const trial = document.createElement("canvas").getContext("webgl2");
    if (!trial) return null;
    const slow = drawnBySoftware(trial);
    const gl = canvas.getContext("webgl2", { antialias: !slow });
    return gl && new WebglRenderer(canvas, gl, slow);
  }

  constructor(canvas, gl, slow) {
    this.name = "webgl2";
    this.gl = gl;
    this.slow = slow;
    this.begin();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.begin());
  }

  begin() {
    const { gl } = this;
    this.buffers = new Map();
    this.surfaceProgram = this.program(SURFACE_VERTEX, SURFACE_FRAGMENT);
    this.markProgram = this.program(MARK_VERTEX, MARK_FRAGMENT);
    this.strokeProgram = this.program(STROKE_VERTEX, STROKE_FRAGMENT);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  program(...sources) {
    const { gl } = this;
    const program = gl.createProgram();
    sources.forEach((source, i) => {
      const shader = gl.createShader(i ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    });
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      throw new Error(gl.getProgramInfoLog(program));
    }
    const count = gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS);
    const names = Array.from({ length: count }, (_, k) => gl.getActiveUniform(program, k).name);
    return { program, at: Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)])) };
  }

  draw(layers, frame) {
    const { gl } = this;
    if (gl.isContextLost()) return;
    gl.viewport(0, 0, frame.width, frame.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    for (const layer of layers) {
      if (!this.buffers.has(layer)) this.buffers.set(layer, this.room(layer.kind));
      if (layer.kind === "surface") this.drawSurface(layer, this.buffers.get(layer), frame);
      else if (layer.kind === "strokes") this.drawStrokes(layer, this.buffers.get(layer), frame);
      else this.drawMarks(layer, this.buffers.get(layer), frame);
    }
  }

  room(kind) {
    if (kind === "surface") return this.texture();
    return kind === "strokes" ? this.rectangles() : this.arrays();
  }

  texture() {
    const { gl } = this;
    const make = (unit) => {
      const texture = gl.createTexture();
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      for (const name of ["MIN_FILTER", "MAG_FILTER"]) {
        gl.texParameteri(gl.TEXTURE_2D, gl[`TEXTURE_${name}`], unit ? gl.LINEAR : gl.NEAREST);
      }
      for (const name of ["WRAP_S", "WRAP_T"]) gl.texParameteri(gl.TEXTURE_2D, gl[`TEXTURE_${name}`], gl.CLAMP_TO_EDGE);
      return texture;
    };
    return { heights: make(0), map: make(1), faces: gl.createBuffer(), array: gl.createVertexArray(), version: -1 };
  }

  drawSurface(layer, buffer, { camera, size, theme, light, view }) {
    const { gl, surfaceProgram: { program, at } } = this;
    gl.useProgram(program);
    gl.bindVertexArray(buffer.array);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, buffer.map);
    if (buffer.theme !== theme || buffer.levels !== layer.levels) {
      const map = withContours(theme.map, layer.levels);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, map.length / 4, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, map);
      Object.assign(buffer, { theme, levels: layer.levels });
    }
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, buffer.heights);
    if (buffer.version !== layer.version) {
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.R32F, layer.nx, layer.ny, 0, gl.RED, gl.FLOAT, layer.z);
      const faces = visibleFaces(layer);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer.faces);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.DYNAMIC_DRAW);
      Object.assign(buffer, { version: layer.version, count: faces.length });
    }
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniform3fv(at.size, size);
    gl.uniform3fv(at.light, light);
    gl.uniform3fv(at.view, view);
    gl.uniform3fv(at.shade, theme.shade);
    gl.uniform4fv(at.ink, theme.contour);
    gl.uniform1i(at.heights, 0);
    gl.uniform1i(at.map, 1);
    gl.drawElements(gl.TRIANGLES, buffer.count, gl.UNSIGNED_INT, 0);
  }

  arrays() {
    const { gl } = this;
    const buffer = { array: gl.createVertexArray(), xyz: gl.createBuffer(), rgba: gl.createBuffer(), version: -1 };
    gl.bindVertexArray(buffer.array);
    [[buffer.xyz, 3, gl.FLOAT, false], [buffer.rgba, 4, gl.UNSIGNED_BYTE, true]].forEach(([name, n, type, unit], i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, name);
      gl.enableVertexAttribArray(i);
      gl.vertexAttribPointer(i, n, type, unit, 0, 0);
    });
    return buffer;
  }

  rectangles() {
    const { gl } = this;
    const make = () => gl.createBuffer();
    const buffer = { array: gl.createVertexArray(), corners: make(), rgba: make(), faces: make(), room: 0, version: -1 };
    gl.bindVertexArray(buffer.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer.corners);
    [[0, 3, 0], [1, 3, 12], [2, 1, 24], [4, 1, 28]].forEach(([at, n, from]) => {
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, n, gl.FLOAT, false, 32, from);
    });
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer.rgba);
    gl.enableVertexAttribArray(3);
    gl.vertexAttribPointer(3, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    return buffer;
  }

  drawStrokes(layer, buffer, { camera, width, height, pixel }) {
    const { gl, strokeProgram: { program, at } } = this;
    const count = layer.xyz.length / 6;
    if (!count) return;
    gl.useProgram(program);
    gl.bindVertexArray(buffer.array);
    if (buffer.version !== layer.version) this.uploadStrokes(layer, buffer, count);
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniform1f(at.width, layer.width * pixel);
    gl.uniform1f(at.lift, layer.lift);
    gl.uniform2f(at.screen, width, height);
    gl.drawElements(gl.TRIANGLES, 6 * count, gl.UNSIGNED_INT, 0);
  }

  uploadStrokes(layer, buffer, count) {
    const { gl } = this;
    const { corners, rgba } = cornersOf(layer, count);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer.corners);
    gl.bufferData(gl.ARRAY_BUFFER, corners, gl.DYNAMIC_DRAW);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer.rgba);
    gl.bufferData(gl.ARRAY_BUFFER, rgba, gl.DYNAMIC_DRAW);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer.faces);
    if (buffer.room < count) {
      const faces = Uint32Array.from({ length: 6 * count }, (_, k) => 4 * Math.floor(k / 6) + [0, 1, 2, 1, 3, 2][k % 6]);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
      buffer.room = count;
    }
    buffer.version = layer.version;
  }

  upload(layer, buffer) {
    const { gl } = this;
    if (buffer.version === layer.version) return;
    for (const name of ["xyz", "rgba"]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer[name]);
      gl.bufferData(gl.ARRAY_BUFFER, layer[name], gl.DYNAMIC_DRAW);
    }
    buffer.version = layer.version;
  }

  drawMarks(layer, buffer, { camera, distance, theme, pixel, scale }) {
    const { gl, markProgram: { program, at } } = this;
    gl.useProgram(program);
    gl.bindVertexArray(buffer.array);
    this.upload(layer, buffer);
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniform1f(at.distance, distance);
    gl.uniform1f(at.diameter, layer.kind === "points" ? layer.diameter * pixel * scale : 0);
    gl.uniform1f(at.lift, layer.lift);
    gl.uniform1f(at.pixel, pixel);
    gl.uniform3fv(at.rim, theme.rim);
    gl.drawArrays(layer.kind === "points" ? gl.POINTS : gl.LINES, 0, layer.xyz.length / 3);
  }
}

// Four corners a line: own end, other end, the side seen along the line from there, and the side as such.
function cornersOf({ xyz, rgba }, count) {
  const corners = new Float32Array(32 * count);
  const from = new Uint32Array(rgba.buffer, rgba.byteOffset, 2 * count);
  const colours = new Uint32Array(4 * count);
  for (let k = 0; k < count; k++) {
    for (let corner = 0; corner < 4; corner++) {
      const [own, other] = corner < 2 ? [6 * k, 6 * k + 3] : [6 * k + 3, 6 * k];
      const shore = corner % 2 ? 1 : -1;
      const at = 32 * k + 8 * corner;
      for (let axis = 0; axis < 3; axis++) {
        corners[at + axis] = xyz[own + axis];
        corners[at + 3 + axis] = xyz[other + axis];
      }
      corners[at + 6] = corner < 2 ? shore : -shore;
      corners[at + 7] = shore;
      colours[4 * k + corner] = from[2 * k + (corner < 2 ? 0 : 1)];
    }
  }
  return { corners, rgba: new Uint8Array(colours.buffer) };
}

function drawnBySoftware(gl) {
  const masked = gl.getParameter(gl.RENDERER);
  const info = masked === "WebKit WebGL" && gl.getExtension("WEBGL_debug_renderer_info");
  const name = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : masked;
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

// Two triangles for each cell that rises high enough to be seen.
function visibleFaces({ nx, ny, z }) {
  const faces = new Uint32Array(6 * (nx - 1) * (ny - 1));
  let k = 0;
  for (let y = 0; y < ny - 1; y++) {
    for (let x = 0; x < nx - 1; x++) {
      const [a, b, c, d] = [y * nx + x, y * nx + x + 1, (y + 1) * nx + x, (y + 1) * nx + x + 1];
      if (Math.max(z[a], z[b], z[c], z[d]) <= FADE[0]) continue;
      for (const corner of [a, b, c, b, d, c]) faces[k++] = corner;
    }
  }
  return faces.subarray(0, k);
}

function withContours(map, levels, size = 1024) {
  const out = new Uint8Array(4 * size);
  const last = map.length / 4 - 1;
  for (let k = 0; k < size; k++) {
    const height = k / (size - 1);
    const near = Math.min(...levels.map((level) => Math.abs(height - level)));
    const from = 4 * Math.round(height * last);
    out.set([map[from], map[from + 1], map[from + 2], 255 * Math.min(16 * near, 1)], 4 * k);
  }
  return out;
}
