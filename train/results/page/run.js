const CALM = ["var(--faint)", "var(--faint)"];
const STRONG = ["var(--text)", "var(--text)"];
const ACCENT = ["var(--accent)", "var(--accent)"];
const LOOKS = {
  batch: { colour: CALM, faint: true },
  "running median": { colour: STRONG },
  validation: { colour: ACCENT, points: true },
};

/** Shows the facts, curves, heatmaps and config of run i. */
function showRun(i) {
  const element = $(`run-${i}`);
  if (!element && document.readyState === "loading") return;
  const run = element ? JSON.parse(element.textContent) : { x: [], curves: {}, heads: {} };
  const stepLists = run.x.map(steps);
  $("run").hidden = false;
  $("run-title").textContent = count > 1 ? data.runs.run[i] : "Curves";
  $("run-facts").textContent = data.columns
    .filter(({ key }) => key !== "run" && data.runs[key][i] != null && data.runs[key][i] !== "")
    .map(({ key, title, kind }) => (kind === "words" ? "" : `${title} `) + KINDS[kind](data.runs[key][i]))
    .join(" \u00b7 ");
  const charts = Object.keys(data.charts).filter((key) => run.curves[key]);
  const why = element ? "No metrics were recorded." : "This page does not include the curves of this run.";
  const zoom = newZoom();
  const nothing = make("p", { class: "note" }, why);
  $("run-charts").replaceChildren(
    ...(charts.length ? charts.map((key) => runChart(i, key, run, stepLists, zoom)) : [nothing]),
  );
  $("run-heads").replaceChildren(
    ...Object.keys(data.heatmaps)
      .map((kind) => run.heads[kind] && heatmaps(kind, run.heads[kind], stepLists))
      .filter(Boolean),
  );
  showBlocks(run);
  showConfig(i);
}

const isBlock = (label) => label.startsWith("block ");

function showBlocks(run) {
  const blocks = (run.curves.logit || run.curves.entropy || run.curves.gradient || []).map(([label]) => label);
  const entries = blocks.map((label, j) => [label, blockColour(j, blocks.length), null, "line"]);
  // With many blocks, the first, middle and last are enough to read the colour scale.
  const few = entries.length > 12 ? [0, entries.length >> 1, entries.length - 1].map((j) => entries[j]) : entries;
  $("blocks").replaceChildren(...legend(few));
}

function blockColour(j, n) {
  const [light, dark] = data.shades[n] || [data.viridis, data.viridis];
  const place = data.shades[n] ? j : Math.round(((n - 1 - j) / Math.max(1, n - 1)) * 0.7 * (data.viridis.length - 1));
  return [light[place], dark[place]];
}

function runChart(i, key, run, stepLists, zoom) {
  const chart = data.charts[key];
  const own = run.curves[key];
  const series = own.map(([label, at, packed], j) => ({
    label,
    x: stepLists[at],
    y: numbers(packed),
    ...(LOOKS[label] ||
      (isBlock(label)
        ? { colour: blockColour(j, own.length) }
        : own.length > 1
          ? { colour: [data.shades[3][0][j], data.shades[3][1][j]], dash: DASHES[j] }
          : { colour: STRONG })),
  }));
  // A line between the losses before and after training would look like a course of the loss.
  for (const s of series) s.loose = s.label === "validation" && s.x.length < 3;
  const ys = series.flatMap((s) => Array.from(s.y));
  const floors = key === "loss" ? floorsOf([i]) : [];
  const near = floors.filter(isNear(ys));
  const guides =
    key === "logit" ? logitGuides(ys) : key === "gradient" && Math.min(...ys) < 10 ? [[1, "\u03b5"]] : near;
  const broken = data.runs.diverged_step?.[i] ?? run.broken;
  const figure = lineChart({
    title: chart.title,
    unit: chart.unit,
    about: series.map(curveText).join("; ") + ".",
    x: { label: "step", room: 0.01, text: stepText },
    y: { log: chart.log, least: chart.least, zero: chart.zero, values: guides.map(([v]) => v) },
    series,
    guides,
    heading: (step) => `step ${whole(step)}`,
    zoom,
    marks: broken == null ? [] : [[broken, "diverged"]],
  });
  if (own.length > 1 && !isBlock(own[0][0])) {
    figure.append(
      make(
        "div",
        { class: "legend" },
        ...legend(series.map((s) => [s.label, s.colour, s.dash, s.loose ? "point" : s.points ? "both" : "line"])),
      ),
    );
  }
  figure.append(...farNotes(floors, near));
  figure.dataset.chart = key;
  return figure;
}

/** Returns the text alternative of a curve. */
function curveText({ label, x, y }) {
  const values = Array.from(y);
  const most = values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
  const least = values.reduce((best, v, i) => (v < values[best] ? i : best), 0);
  const at = (i) => `${short(values[i])} at step ${whole(x[i])}`;
  return `${label}: ${at(0)}, ${at(x.length - 1)}, largest ${at(most)}, smallest ${at(least)}`;
}

/** Shows every config field of run i. */
function showConfig(i) {
  const own = Object.entries(data.varying).map(([key, { values, of }]) => [key, values[of[i]]]);
  const rows = [...own, ...Object.entries(data.same)]
    .filter(([, value]) => value !== "not set")
    .sort(([a], [b]) => (a < b ? -1 : 1));
  $("run-config")
    .querySelector("tbody")
    .replaceChildren(
      ...rows.map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, value))),
    );
}

/** Shows the config fields in which runs a and b differ. */
function showDifference(a, b) {
  const table = $("difference-table");
  const rows = Object.entries(data.varying)
    .filter(([, { of }]) => of[a] !== of[b])
    .map(([key, { values, of }]) =>
      make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, values[of[a]]), make("td", {}, values[of[b]])),
    );
  const none = make("tr", {}, make("td", { colspan: 3 }, "The configs are the same."));
  const head = ["field", data.runs.run[a], data.runs.run[b]].map((text) => make("th", { scope: "col" }, text));
  table.tHead.replaceChildren(make("tr", {}, ...head));
  table.tBodies[0].replaceChildren(...(rows.length ? rows : [none]));
  $("difference").hidden = false;
}
