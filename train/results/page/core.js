"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const count = data.runs.run.length;

/** Creates an HTML element with attributes (null ones are left out) and children (nodes or text). */
function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) if (value != null) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Decodes base64 text into little-endian 24-bit words. */
function words(text) {
  const bytes = atob(text);
  const found = new Uint32Array(bytes.length / 3);
  for (let i = 0, j = 0; i < found.length; i++, j += 3) {
    found[i] = bytes.charCodeAt(j) | (bytes.charCodeAt(j + 1) << 8) | (bytes.charCodeAt(j + 2) << 16);
  }
  return found;
}

/** Decodes steps: each word is its step plus one. */
const steps = (text) => Array.from(words(text), (word) => word - 1);

/** Decodes numbers: each word is the upper 24 bits of a float32. */
const numbers = (text) => new Float32Array(words(text).map((word) => word << 8).buffer);

/** Formats a measured number with three decimals or digits, or with an exponent if very large or small. */
function short(value) {
  if (value == null || Number.isNaN(value)) return "-";
  const size = Math.abs(value);
  if (size >= 1e-2 && size < 100) return value.toFixed(3);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return power(value.toExponential(2));
  return String(Number(value.toPrecision(3)));
}

/** Formats a count with all its digits. */
const whole = (value) => (value == null ? "-" : value.toLocaleString("en-US"));

/** Formats a configured number, such as a learning rate, without rounding. */
const exact = (value) => (value == null ? "-" : tick(value));

const rounded = (value) => (value == null ? "-" : whole(Math.round(value)));
const KINDS = { words: (value) => value || "-", whole, rounded, exact, measured: short, size: whole };

/** Formats an axis tick with as few digits as possible. */
function tick(value) {
  const size = Math.abs(value);
  return size >= 1e4 || (size < 1e-3 && size > 0) ? power(value.toExponential()) : String(Number(value.toPrecision(6)));
}

const power = (text) => text.replace(/\.?0*e\+?/, "e");

/** Formats a parameter count like size_label in train/cli/format.py: 98304 -> 98k. */
function sizeText(n) {
  if (n == null) return "-";
  for (const [unit, scale] of [
    ["B", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ]) {
    if (n >= 0.9995 * scale) return (n / scale).toFixed(n < 9.95 * scale ? 1 : 0) + unit;
  }
  return n.toFixed(0);
}

/** Formats a step on an axis. */
const stepText = (step) => (step >= 1e6 ? `${tick(step / 1e6)}M` : step >= 1e4 ? `${tick(step / 1e3)}k` : String(step));

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Sets the colours of an element for light and dark backgrounds. */
function paint(element, light, dark) {
  element.classList.add("series");
  element.style.setProperty("--light", light);
  element.style.setProperty("--dark", dark);
  return element;
}

/** Calls draw(width) once the element is near the viewport, and again when its width changes. */
function lazily(host, draw) {
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (host.clientWidth && host.clientWidth !== width) draw((width = host.clientWidth));
  });
  const seen = new IntersectionObserver(
    (entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        seen.disconnect();
        resized.observe(host);
      }
    },
    { rootMargin: "400px" },
  );
  seen.observe(host);
}

/** Shows a tooltip at a point of the viewport, with a heading and rows of [label, value, colour: [light, dark]]. */
function showTip(x, y, heading, rows) {
  const tip = $("tip");
  tip.replaceChildren(
    make("strong", {}, heading),
    ...rows.map(([label, value, from]) => {
      const row = make("div", {}, make("span", {}, label), make("span", {}, value));
      if (from) paint(row, from[0], from[1]);
      return row;
    }),
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth - 6 ? x - box.width - 14 : x + 14;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${Math.max(6, Math.min(y + 12, innerHeight - box.height - 6))}px`;
}

const hideTip = () => {
  $("tip").hidden = true;
};
addEventListener("scroll", hideTip, { passive: true, capture: true });
