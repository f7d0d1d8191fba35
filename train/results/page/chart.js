const MARGIN = { left: 46, right: 24, top: 8, bottom: 34 };
const DASHES = [null, "6 3", "1.5 3", "7 3 1.5 3"];

/** Returns about `wanted` evenly spaced round values between low and high. */
function linearTicks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** Returns powers of ten between low and high, with multiples of 2 and 5 if the range is short. */
function logTicks(low, high, wanted) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks(low, high, wanted);
  const parts = decades < 2.2 && wanted > 3 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / wanted));
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    if (e % every === 0) for (const m of parts) found.push(m * 10 ** e);
  }
  return found.filter((t) => t >= low * 0.999 && t <= high * 1.001);
}

/** Returns the map from values to pixels, with some room around the range of the values, and the ends of the axis. */
function scale(values, axis, from, to) {
  let shown = values.filter((v) => Number.isFinite(v) && (!axis.log || v > 0));
  if (!shown.length) shown = [1];
  let low = axis.zero ? 0 : shown.reduce((a, b) => Math.min(a, b));
  let high = shown.reduce((a, b) => Math.max(a, b));
  if (low === high)
    [low, high] = axis.log
      ? [low / 1.5, high * 1.5]
      : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const room = axis.room ?? 0.04;
  const at = axis.log ? Math.log : (v) => v;
  const span = at(high) - at(low);
  const start = at(low) - (axis.zero ? 0 : room * span);
  const end = at(high) + room * span;
  const map = (v) => (axis.log && v <= 0 ? NaN : from + ((at(v) - start) / (end - start)) * (to - from));
  const back = axis.log ? Math.exp : (v) => v;
  return { map, low: back(start), high: back(end) };
}

/** Returns the SVG path through the points, with gaps at non-finite values. */
function through(xs, ys) {
  let text = "";
  let pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (Number.isFinite(ys[i])) {
      text += `${pen}${xs[i].toFixed(1)},${ys[i].toFixed(1)}`;
      pen = "L";
    } else pen = "M";
  }
  return text;
}

/**
 * Returns a figure with a line chart. The spec has:
 * title, unit, about: the text alternative
 * x, y: {log, zero, room, label, ticks, text, values: further values to make room for}
 * series: [{label, x, y, colour: [light, dark], dash, faint, points, hollow, band: [low, high], bars: [[x, low, high]],
 *   crosses: [[x, y]], more(index): text after the value in the tooltip}]
 * guides: [[y, text]], marks: [[x, text]]
 * heading(x): the tooltip's heading
 * choose(series, x): called on a click
 */
function lineChart(spec) {
  const plot = make("div", { class: "plot", tabindex: 0, role: "img", "aria-label": `${spec.title}. ${spec.about}` });
  const unit = spec.unit ? make("span", {}, ` (${spec.unit})`) : "";
  const figure = make("figure", {}, make("figcaption", {}, spec.title, unit), plot);
  lazily(plot, (width) => drawChart(plot, spec, width));
  return figure;
}

function drawChart(plot, spec, width) {
  const height = spec.height || Math.round(Math.min(230, Math.max(170, width * 0.55)));
  const all = (key) => spec.series.flatMap((s) => Array.from(s[key]));
  const bands = spec.series.flatMap((s) => (s.band ? s.band.flat() : []));
  const x = scale(
    [...all("x"), ...(spec.x.values || [])],
    { room: 0.02, ...spec.x },
    MARGIN.left,
    width - MARGIN.right,
  );
  const y = scale([...all("y"), ...bands, ...(spec.y.values || [])], spec.y, height - MARGIN.bottom, MARGIN.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
  axes(root, spec, x, y, width, height);
  for (const [level, text] of spec.guides || []) {
    if (level >= y.low && level <= y.high) {
      const at = y.map(level);
      root.append(
        svg("line", { class: "guide", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }),
        // Only a short label fits into the margin, where it can't cover data.
        text.length > 3
          ? svg("text", { x: MARGIN.left + 3, y: at - 3 }, text)
          : svg("text", { x: width - MARGIN.right + 2, y: at + 3.5 }, text),
      );
    }
  }
  for (const [step, text] of spec.marks || []) {
    const at = x.map(step);
    const late = at > width * 0.6;
    root.append(
      svg("line", { class: "guide", x1: at, x2: at, y1: MARGIN.top, y2: height - MARGIN.bottom }),
      svg("text", { x: at + (late ? -4 : 4), y: MARGIN.top + 9, "text-anchor": late ? "end" : "start" }, text),
    );
  }
  for (const series of spec.series) root.append(drawSeries(series, x.map, y.map));
  const cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  root.append(cursor);
  plot.replaceChildren(root);
  follow(plot, spec, x, y, cursor);
}

function axes(root, spec, x, y, width, height) {
  const base = height - MARGIN.bottom;
  for (const value of (spec.y.log ? logTicks : linearTicks)(y.low, y.high, Math.max(3, Math.round(height / 45)))) {
    const at = y.map(value);
    root.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }),
      svg("text", { x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, tick(value)),
    );
  }
  const ticks =
    spec.x.ticks || (spec.x.log ? logTicks : linearTicks)(x.low, x.high, Math.max(3, Math.round(width / 75)));
  for (const value of ticks) {
    const at = x.map(value);
    root.append(
      svg("line", { class: "axis", x1: at, x2: at, y1: base, y2: base + 4 }),
      svg("text", { x: at, y: base + 15, "text-anchor": "middle" }, (spec.x.text || tick)(value)),
    );
  }
  root.append(
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: base, y2: base }),
    svg("text", { x: (MARGIN.left + width - MARGIN.right) / 2, y: base + 30, "text-anchor": "middle" }, spec.x.label),
  );
}

function drawSeries(series, x, y) {
  const group = paint(svg("g", { "data-series": series.label }), ...series.colour);
  const xs = Array.from(series.x, x);
  const ys = Array.from(series.y, y);
  if (series.band) {
    const [low, high] = series.band;
    const back = xs.map((_, i) => xs.length - 1 - i);
    const edge = `${through(xs, high.map(y))}${through(
      back.map((i) => xs[i]),
      back.map((i) => y(low[i])),
    ).replace("M", "L")}Z`;
    group.append(svg("path", { class: "band", d: edge }));
  }
  group.append(
    svg("path", { class: series.faint ? "line faint" : "line", d: through(xs, ys), "stroke-dasharray": series.dash }),
  );
  if (series.points || xs.length === 1) {
    xs.forEach((cx, i) => {
      if (Number.isFinite(ys[i]))
        group.append(svg("circle", { cx, cy: ys[i], r: 2.6, class: series.hollow ? "hollow" : null }));
    });
  }
  for (const [bar, low, high] of series.bars || [])
    group.append(svg("path", { d: `M${x(bar)},${y(low)}L${x(bar)},${y(high)}` }));
  for (const [cx, cy] of series.crosses || []) {
    const [a, b] = [x(cx), y(cy)];
    group.append(svg("path", { class: "cross", d: `M${a - 4},${b - 4}l8,8m0,-8l-8,8` }));
  }
  return group;
}

/** Returns the index of the entry of ascending xs that is nearest to value. */
function nearest(xs, value) {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= value) low = middle;
    else high = middle;
  }
  return Math.abs(xs[high] - value) < Math.abs(xs[low] - value) ? high : low;
}

/** Shows the values under the pointer, or under a cursor that the arrow keys move. */
function follow(plot, spec, x, y, cursor) {
  const xs = [...new Set(spec.series.flatMap((s) => Array.from(s.x)))].sort((a, b) => a - b);
  if (!xs.length) return;
  const places = xs.map(x.map);
  let at = -1;
  const show = (i, screenY) => {
    at = i;
    cursor.setAttribute("x1", places[i]);
    cursor.setAttribute("x2", places[i]);
    cursor.setAttribute("visibility", "visible");
    const rows = [];
    for (const series of spec.series) {
      const j = nearest(series.x, xs[i]);
      // A series without a point at this x shows a nearby one, within 12 pixels.
      if (Math.abs(x.map(series.x[j]) - places[i]) < 12) {
        rows.push([series.label, short(series.y[j]) + (series.more ? series.more(j) : ""), series.colour]);
      }
    }
    const box = plot.getBoundingClientRect();
    showTip(box.left + places[i], screenY ?? box.top + 20, spec.heading(xs[i]), rows);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  plot.onpointermove = (event) =>
    show(nearest(places, event.clientX - plot.getBoundingClientRect().left), event.clientY);
  plot.onpointerleave = leave;
  plot.onblur = leave;
  plot.onkeydown = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") leave();
    if (move === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(xs.length - 1, at < 0 && move === 1 ? 0 : at + move)));
  };
  plot.onclick = (event) => {
    if (!spec.choose) return;
    const box = plot.getBoundingClientRect();
    const i = nearest(places, event.clientX - box.left);
    const near = spec.series
      .map((series) => [series, Array.from(series.x).indexOf(xs[i])])
      .filter(([, j]) => j >= 0)
      .sort(
        ([a, i1], [b, i2]) =>
          Math.abs(y.map(a.y[i1]) - event.clientY + box.top) - Math.abs(y.map(b.y[i2]) - event.clientY + box.top),
      );
    if (near.length) spec.choose(near[0][0], xs[i]);
  };
}

/** Returns the items of a legend from [label, colour, dash, kind, hollow]; kind is line, point, cross or both. */
function legend(entries) {
  return entries.map(([label, colour, dash, kind, hollow]) => {
    const group = paint(svg("g"), ...colour);
    if (kind === "cross") group.append(svg("path", { class: "cross", d: "M7,1l8,8m0,-8l-8,8" }));
    else {
      if (kind !== "point") group.append(svg("path", { d: "M0,5L22,5", "stroke-dasharray": dash }));
      if (kind !== "line") group.append(svg("circle", { cx: 11, cy: 5, r: 2.6, class: hollow ? "hollow" : null }));
    }
    return make(
      "span",
      { class: "legend-item" },
      svg("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, group),
      label,
    );
  });
}
