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

/**
 * Returns the map from values to pixels, its inverse, and the ends of the axis: those of axis.range, or of the values
 * with some room around them. A log axis shows values of axis.least (or 0) and below at its lower end; `zeros` is the
 * label of that end.
 */
function scale(values, axis, from, to) {
  const least = axis.log ? axis.least || 0 : -Infinity;
  let shown = values.filter((v) => Number.isFinite(v) && v > least);
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
  const zeros = values.some((v) => v <= least) ? `\u2264 ${tick(least)}` : null;
  const start = axis.range ? at(axis.range[0]) : at(low) - (axis.zero ? 0 : zeros ? 0.15 : room) * span;
  const end = axis.range ? at(axis.range[1]) : at(high) + room * span;
  const map = (v) => (v <= least ? from : from + ((at(v) - start) / (end - start)) * (to - from));
  const back = axis.log ? Math.exp : (v) => v;
  const value = (pixel) => back(start + ((pixel - from) / (to - from)) * (end - start));
  return { map, value, zeros, low: back(start), high: back(end) };
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
 * x, y: {log, least, zero, room, label, ticks, text, values: further values to make room for}
 * series: [{label, x, y, colour: [light, dark], dash, faint, points, hollow, loose: points without a line,
 *   band: [low, high], bars: [[x, low, high]], crosses: [[x, y]], rings: [[x, y]], more(index): text after the value in the tooltip}]
 * guides: [[y, text]], marks: [[x, text]]
 * heading(x): the tooltip's heading
 * choose(series, x): called on a click
 * zoom: the range of x that it shares with other charts
 */
function lineChart(spec) {
  const plot = make("div", { class: "plot", tabindex: 0, role: "img", "aria-label": `${spec.title}. ${spec.about}` });
  const unit = spec.unit ? make("span", {}, ` (${spec.unit})`) : "";
  const title = `${spec.title}${spec.unit ? ` (${spec.unit})` : ""}`;
  const zoom = spec.zoom || newZoom();
  const reset = make("button", { type: "button", hidden: "" }, "reset zoom");
  reset.onclick = () => zoomTo(zoom, null);
  const save = saveButtons(title, { svg: () => chartSvg(title, plot, spec), csv: () => chartCsv(spec) });
  const tools = make("div", { class: "tools" }, reset, ...save);
  let drawn = 0;
  const draw = () => {
    reset.hidden = !zoom.range;
    if (drawn) drawChart(plot, spec, zoom, drawn);
  };
  zoom.charts.push(draw);
  lazily(plot, (width) => {
    drawn = width;
    draw();
  });
  return make("figure", { class: "chart" }, make("figcaption", {}, spec.title, unit), tools, plot);
}

function drawChart(plot, spec, zoom, width) {
  const height = spec.height || Math.round(Math.min(230, Math.max(170, width * 0.55)));
  const { range } = zoom;
  const inside = (v) => !range || (v >= range[0] && v <= range[1]);
  const xs = [...new Set(spec.series.flatMap((s) => Array.from(s.x)))].sort((a, b) => a - b);
  const xAxis = { room: 0.02, ...spec.x, range };
  const x = scale([...xs, ...(spec.x.values || [])], xAxis, MARGIN.left, width - MARGIN.right);
  const shown = spec.series.flatMap((s) =>
    [s.y, ...(s.band || [])].flatMap((ys) => Array.from(ys).filter((_, i) => inside(s.x[i]))),
  );
  const yAxis = range ? { ...spec.y, zero: false } : spec.y;
  const y = scale([...shown, ...((!range && spec.y.values) || [])], yAxis, height - MARGIN.bottom, MARGIN.top);
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
  for (const [step, text] of (spec.marks || []).filter(([at]) => inside(at))) {
    const at = x.map(step);
    const late = at > width * 0.6;
    root.append(
      svg("line", { class: "guide", x1: at, x2: at, y1: MARGIN.top, y2: height - MARGIN.bottom }),
      svg("text", { x: at + (late ? -4 : 4), y: MARGIN.top + 9, "text-anchor": late ? "end" : "start" }, text),
    );
  }
  const [w, h] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  const view = { x: MARGIN.left, y: MARGIN.top, width: w, height: h };
  const clip = { ...view, viewBox: Object.values(view).join(" "), overflow: "hidden" };
  root.append(svg(range ? "svg" : "g", range ? clip : {}, ...spec.series.map((s) => drawSeries(s, x.map, y.map))));
  const cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  root.append(cursor);
  plot.replaceChildren(root);
  if (xs.length) follow(plot, spec, x, y, cursor, xs.filter(inside), zooming(plot, spec, zoom, x, xs, width, h));
}

function axes(root, spec, x, y, width, height) {
  const base = height - MARGIN.bottom;
  for (const value of (spec.y.log ? logTicks : linearTicks)(y.low, y.high, Math.max(3, Math.round(height / 45)))) {
    const at = y.map(value);
    if (y.zeros && at > base - 12) continue;
    root.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }),
      svg("text", { x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, tick(value)),
    );
  }
  if (y.zeros) root.append(svg("text", { x: MARGIN.left - 6, y: base + 3.5, "text-anchor": "end" }, y.zeros));
  const ticks =
    spec.x.ticks?.filter((v) => v >= x.low && v <= x.high) ||
    (spec.x.log ? logTicks : linearTicks)(x.low, x.high, Math.max(3, Math.round(width / 75)));
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
  if (!series.loose) {
    const look = { class: series.faint ? "line faint" : "line", "stroke-dasharray": series.dash };
    group.append(svg("path", { ...look, d: through(xs, ys) }));
  }
  if (series.points || xs.length === 1) {
    xs.forEach((cx, i) => {
      if (Number.isFinite(ys[i]))
        group.append(svg("circle", { cx, cy: ys[i], r: 2.6, class: series.hollow ? "hollow" : null }));
    });
  }
  for (const [bar, low, high] of series.bars || [])
    group.append(svg("path", { d: `M${x(bar)},${y(low)}L${x(bar)},${y(high)}` }));
  for (const [cx, cy] of series.rings || [])
    group.append(svg("circle", { cx: x(cx), cy: y(cy), r: 4, class: "hollow" }));
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
function follow(plot, spec, x, y, cursor, xs, zoom) {
  const places = xs.map(x.map);
  let at = -1;
  const show = (i, screenY) => {
    if (!(i in xs)) return;
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
  plot.onpointermove = (event) => {
    show(nearest(places, event.clientX - plot.getBoundingClientRect().left), event.clientY);
    zoom.moved(event);
  };
  plot.onpointerleave = leave;
  plot.onblur = leave;
  plot.onkeydown = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") leave();
    if (zoom.key(event, at < 0 ? (places[0] + places.at(-1)) / 2 : places[at])) event.preventDefault();
    if (move === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(xs.length - 1, at < 0 && move === 1 ? 0 : at + move)));
  };
  plot.onclick = (event) => {
    if (!spec.choose || zoom.dragged()) return;
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

/** Returns the items of a legend from [label, colour, dash, kind, hollow]; kind is line, point, ring, cross or both. */
function legend(entries) {
  return entries.map(([label, colour, dash, kind, hollow]) => {
    const group = paint(svg("g"), ...colour);
    if (kind === "cross") group.append(svg("path", { class: "cross", d: "M7,1l8,8m0,-8l-8,8" }));
    else {
      const ring = kind === "ring";
      if (kind !== "point" && !ring) group.append(svg("path", { d: "M0,5L22,5", "stroke-dasharray": dash }));
      const look = { r: ring ? 4 : 2.6, class: hollow || ring ? "hollow" : null };
      if (kind !== "line") group.append(svg("circle", { cx: 11, cy: 5, ...look }));
    }
    return make(
      "span",
      { class: "legend-item" },
      svg("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, group),
      label,
    );
  });
}
