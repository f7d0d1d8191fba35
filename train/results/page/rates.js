const AXES = {
  "validation/loss": { title: "final validation loss", unit: "nats", log: false },
  logit_max: { title: "max attention logit", unit: "", log: true },
  entropy_final: { title: "attention entropy at the end", unit: "nats", log: true, least: data.charts.entropy.least },
};

/** Groups the indices of ended runs by arm, then by size. */
function byArm() {
  const found = data.arms.map(() => new Map());
  for (let i = 0; i < count; i++) {
    if (!data.ended[i] || data.runs["optimizer.lr"]?.[i] == null) continue;
    const sizes = found[data.armOf[i]];
    if (!sizes.has(data.size[i])) sizes.set(data.size[i], []);
    sizes.get(data.size[i]).push(i);
  }
  return found;
}

/** Returns a series of the metric over LR: median over seeds, min-max band, crosses where runs diverged, rings where they were stopped. */
function rateSeries(runs, size, metric) {
  const lr = data.runs["optimizer.lr"];
  const values = data.runs[metric];
  const known = runs.filter((i) => values[i] != null);
  const xs = [...new Set(known.map((i) => lr[i]))].sort((a, b) => a - b);
  const at = xs.map((x) => known.filter((i) => lr[i] === x));
  const ys = at.map((group) => median(group.map((i) => values[i])));
  const spread = at.some((group) => group.length > 1);
  const place = data.sizes.findIndex(([n]) => n === size);
  const [light, dark] = data.shades[data.sizes.length];
  return {
    label: `N = ${sizeText(size)}`,
    x: xs,
    y: ys,
    points: true,
    colour: [light[place], dark[place]],
    at,
    band: spread
      ? [at.map((g) => Math.min(...g.map((i) => values[i]))), at.map((g) => Math.max(...g.map((i) => values[i])))]
      : null,
    crosses: known.filter((i) => data.runs.state[i] === "diverged").map((i) => [lr[i], values[i]]),
    rings: known.filter((i) => data.runs.state[i] === "stopped").map((i) => [lr[i], values[i]]),
    more: (j) =>
      (at[j].some((i) => data.runs.state[i] === "diverged") ? " diverged" : "") +
      (at[j].some((i) => data.runs.state[i] === "stopped") ? " stopped early" : "") +
      (at[j].length > 1 ? ` (median of ${at[j].length})` : ""),
  };
}

function drawRates(choose) {
  const arms = byArm();
  const grid = [...new Set(data.runs["optimizer.lr"]?.filter((v) => v != null))].sort((a, b) => a - b);
  if (grid.length < 2 || !arms.some((sizes) => sizes.size)) return;
  $("rates").hidden = false;
  const draw = () => {
    const [metric, bySize] = [picked("metric"), picked("panels") === "size"];
    const zoom = newZoom();
    const panelsOf = bySize ? sizePanels(arms, metric) : armPanels(arms, metric);
    const lines = panelsOf.map(([, series]) => series);
    const ys = lines.flat().flatMap((s) => [...s.y, ...(s.band ? s.band.flat() : [])]);
    const guides = rateGuides(metric, ys, lines.flat());
    const floors = lines.map((series) =>
      metric === "validation/loss" ? floorsOf(series.flatMap((s) => s.at.flat())) : [],
    );
    const near = floors.map((found) => found.filter(isNear(ys)));
    const values = [...ys, ...[...guides, ...near.flat()].map(([level]) => level)];
    const panels = panelsOf.map(([title, series], i) => {
      const panel = ratePanel(title, series, metric, { grid, values, guides: [...guides, ...near[i]], choose, zoom });
      if (bySize) panel.append(make("div", { class: "legend" }, ...seriesLegend(series)));
      panel.append(...farNotes(floors[i], near[i]));
      return panel;
    });
    $("rate-charts").replaceChildren(...panels);
    $("sizes").hidden = bySize;
  };
  const [light, dark] = data.shades[data.sizes.length];
  const entries = data.sizes.map(([, text], i) => [`N = ${text}`, [light[i], dark[i]], null, "both"]);
  const quiet = ["var(--quiet)", "var(--quiet)"];
  if (data.runs.state.includes("diverged")) entries.push(["diverged", quiet, null, "cross"]);
  if (data.runs.state.some((state, i) => state === "stopped" && data.ended[i]))
    entries.push(["stopped early (estimate)", quiet, null, "ring"]);
  $("sizes").replaceChildren(...legend(entries));
  for (const metric of Object.keys(AXES)) {
    if (data.runs[metric]?.some((v) => v != null)) radio("metric", metric, AXES[metric].title, draw);
  }
  radio("panels", "arm", "an arm", draw);
  radio("panels", "size", "a size", draw);
  $("panels").hidden = arms.length < 2;
  draw();
}

const picked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

/** Adds a radio button to the field set of that name. The first one is checked. */
function radio(name, value, text, changed) {
  const input = make("input", { type: "radio", name, value });
  input.checked = !$(name).querySelector("input");
  input.onchange = changed;
  $(name).append(make("label", {}, input, text));
}

/** Returns [title, series] for each arm, with a line for each size. */
function armPanels(arms, metric) {
  const ascending = (sizes) => [...sizes.keys()].sort((a, b) => a - b);
  return arms
    .map((sizes, i) => [data.arms[i], ascending(sizes).map((n) => rateSeries(sizes.get(n), n, metric))])
    .filter(([, series]) => series.length);
}

/** Returns [title, series] for each size, with a line for each arm. */
function sizePanels(arms, metric) {
  const line = (n) => (sizes, i) =>
    sizes.has(n) ? [{ ...rateSeries(sizes.get(n), n, metric), label: data.arms[i], ...armLook(i) }] : [];
  return data.sizes.map(([n, text]) => [`N = ${text}`, arms.flatMap(line(n))]).filter(([, series]) => series.length);
}

/** Returns the colour and dash of the arm in place i. */
function armLook(i) {
  const colour = `var(--arm${i % 8})`;
  return { colour: [colour, colour], dash: DASHES[(i + Math.floor(i / 8)) % 4], hollow: i % 2 === 1 };
}

const seriesLegend = (series) => legend(series.map((s) => [s.label, s.colour, s.dash, "both", s.hollow]));

/** Returns the chart of an arm or size. `values` are those of all panels, so that the charts share their y range. */
function ratePanel(title, series, metric, { grid, values, guides, choose, zoom }) {
  const axis = AXES[metric];
  const range = (s) =>
    s.y.length ? `${s.label} from ${short(Math.min(...s.y))} to ${short(Math.max(...s.y))}` : s.label;
  return lineChart({
    title: title || axis.title,
    unit: title ? [axis.title, axis.unit].filter(Boolean).join(", ") : axis.unit,
    about: `${axis.title} against peak learning rate: ${series.map(range).join("; ")}. See the table of runs.`,
    x: { log: true, label: "peak learning rate", values: grid, ticks: sparse(grid), room: 0.04 },
    y: { ...axis, values, label: axis.title },
    series,
    zoom,
    guides,
    heading: (lr) => `LR ${exact(lr)}`,
    choose: (chosen, x) => choose(chosen.at[chosen.x.indexOf(x)][0]),
  });
}

function rateGuides(metric, values, lines) {
  if (metric === "logit_max") return logitGuides(values);
  if (metric !== "validation/loss" || !lines.some((s) => s.crosses.length)) return [];
  const starts = data["validation/loss_init"].filter((v, i) => v != null && data.ended[i]);
  // Runs on different data start at losses that have no line in common.
  return Math.max(...starts) - Math.min(...starts) <= data.init_alike ? [[median(starts), "loss at init"]] : [];
}

/** Returns the floors that the runs share, as [nats, name]. */
function floorsOf(runs) {
  return Object.entries(data.floors).flatMap(([name, of]) => {
    const known = runs.map((i) => of[i]).filter((level) => level != null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    return known.length && high - low <= data.alike ? [[(low + high) / 2, name]] : [];
  });
}

/** Returns a filter for levels that leave the data at least two fifths of the chart's height. */
function isNear(values) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = 1.5 * (high - low);
  return ([level]) => level >= low - room && level <= high + room;
}

/** Returns a note for the floors that a chart has no room for. */
function farNotes(floors, near) {
  const far = floors.filter((floor) => !near.includes(floor));
  const text = far.map(([level, name]) => `${name} ${short(level)}`).join(", ");
  return far.length ? [make("p", { class: "note" }, `Outside the chart: ${text}`)] : [];
}

/** Returns the published logit thresholds within a factor of 3 of the data, as in the figures. */
function logitGuides(values) {
  const top = values.reduce((a, b) => Math.max(a, b), 0);
  return data.guides.filter((level) => level < 3 * top).map((level) => [level, power(level.toExponential())]);
}

function drawSensitivity() {
  if (!data.sensitivity.length) return;
  $("rates").hidden = false;
  const arms = data.arms.filter((arm) => data.sensitivity.some(([of]) => of === arm));
  const series = arms.map((arm) => {
    const rows = data.sensitivity.filter(([of]) => of === arm).sort((a, b) => a[1] - b[1]);
    return {
      label: arm || "all runs",
      x: rows.map((r) => r[1]),
      y: rows.map((r) => r[2]),
      points: true,
      ...armLook(data.arms.indexOf(arm)),
      bars: rows.filter((r) => r[3] != null).map((r) => [r[1], r[2] - r[3], r[2] + r[3]]),
      more: (j) => (rows[j][3] == null ? "" : ` \u00b1 ${short(rows[j][3])}`),
    };
  });
  const sizes = (s) =>
    `${s.label}: ${s.x.map((n, j) => `${short(s.y[j])}${s.more(j)} at N = ${sizeText(n)}`).join(", ")}`;
  const ends = series.flatMap((s) => s.bars.flatMap(([, low, high]) => [low, high]));
  const log = [...ends, ...series.flatMap((s) => s.y)].every((v) => v > 0);
  const figure = lineChart({
    title: "LR sensitivity against size",
    unit: "nats",
    about: `${series.map(sizes).join("; ")}.`,
    x: {
      log: true,
      room: 0.08,
      label: "parameters N, without embedding and head",
      ticks: sparse([...new Set(data.sensitivity.map((r) => r[1]))].sort((a, b) => a - b)),
      text: sizeText,
    },
    y: { log, zero: !log && ends.every((v) => v >= 0), room: 0.12, values: ends },
    series,
    heading: (n) => `N = ${sizeText(n)}`,
  });
  figure.append(make("div", { class: "legend" }, ...seriesLegend(series)));
  $("sensitivity-charts").append(figure);
}

/** Keeps those of ascending values whose labels don't overlap on a log axis. */
function sparse(values) {
  const kept = [];
  for (const value of values) {
    if (!kept.length || Math.log(value / kept.at(-1)) > 0.1 * Math.log(values.at(-1) / values[0])) kept.push(value);
  }
  return kept;
}
