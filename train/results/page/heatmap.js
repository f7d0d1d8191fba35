const RAMP = data.viridis.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const POOLED = { max: "largest", min: "smallest" };

/** Returns a figure with a run's heatmaps of one kind: heads over steps, one strip per block, on one colour scale. */
function heatmaps(kind, entries, stepLists) {
  const spec = data.heatmaps[kind];
  // map.steps holds the first step of each column and then the last step of all.
  const maps = entries.map(([label, at, heads, stretch, packed]) => {
    const values = numbers(packed);
    return { label, heads, stretch, values, columns: values.length / heads, steps: stepLists[at] };
  });
  const finite = maps.flatMap((map) =>
    Array.from(map.values).filter((v) => Number.isFinite(v) && (!spec.log || v > (spec.least || 0))),
  );
  if (!finite.length) return null;
  const low = finite.reduce((a, b) => Math.min(a, b));
  const high = finite.reduce((a, b) => Math.max(a, b));
  const at = spec.log ? Math.log : (v) => v;
  // On a log scale, what is too small for it has the colour of the smallest value that isn't.
  const place = (v) => (spec.log && v <= low ? 0 : high > low ? (at(v) - at(low)) / (at(high) - at(low)) : 0.5);
  const rows = maps.reduce((sum, map) => sum + map.heads, 0);
  const grid = make("div", { class: "heat" });
  const strips = [];
  for (const map of maps) {
    const height = Math.max(3, Math.min(14, Math.floor(420 / rows)));
    const canvas = strip(map, spec, place, height);
    strips.push([map.label, canvas, height * map.heads]);
    grid.append(make("span", { class: "key" }, map.label), canvas);
  }
  const last = maps[0].steps;
  grid.append(
    make("span"),
    make(
      "div",
      { class: "ends key" },
      make("span", {}, `step ${whole(last[0])}`),
      make("span", {}, whole(last.at(-1))),
    ),
  );
  const bar = make("canvas", { width: RAMP.length, height: 1, "aria-hidden": "true" });
  pixels(
    bar,
    RAMP.map((_, i) => i / (RAMP.length - 1)),
  );
  const [{ stretch }] = maps;
  const note = stretch > 1 ? `, ${POOLED[spec.pool]} of ${stretch} watch steps per column` : "";
  const title = make("figcaption", {}, spec.title, make("span", {}, `${spec.unit ? ` (${spec.unit})` : ""}${note}`));
  const key = make("div", { class: "bar key" }, short(low), bar, `${short(high)}${spec.log ? ", log scale" : ""}`);
  const ends = `${short(low)} to ${short(high)}${spec.log ? ", log scale" : ""}, steps ${last[0]} to ${last.at(-1)}`;
  const save = saveButtons(spec.title, {
    svg: () => heatmapSvg(title.textContent, strips, ends),
    csv: () => heatmapCsv(maps, spec),
  });
  return make("figure", { class: "chart heads" }, title, make("div", { class: "tools" }, ...save), key, grid);
}

/** Returns the cells of heatmaps, one a row; `step` is the first of a column. */
function heatmapCsv(maps, spec) {
  const cells = maps.flatMap((map) =>
    Array.from(map.values, (v, i) => {
      const value = Number.isNaN(v) ? null : digits(map.values, i);
      return [map.label, Math.floor(i / map.columns), map.steps[i % map.columns], value];
    }),
  );
  return csv([["block", "head", "step", spec.title], ...cells]);
}

/** Paints values in [0, 1] row by row as pixels of the canvas. NaN stays transparent. */
function pixels(canvas, shares) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  shares.forEach((share, i) => {
    if (Number.isNaN(share)) return;
    const colour = RAMP[Math.round(Math.max(0, Math.min(1, share)) * (RAMP.length - 1))];
    image.data.set([...colour, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

function strip(map, spec, place, pixelsPerHead) {
  const columns = map.columns;
  const canvas = make("canvas", {
    width: columns,
    height: map.heads,
    tabindex: 0,
    role: "img",
    "aria-label": stripText(map, spec),
  });
  canvas.style.height = `${pixelsPerHead * map.heads}px`;
  pixels(canvas, Array.from(map.values, place));
  let cell = null;
  const show = (column, head, screenX, screenY) => {
    cell = [column, head];
    const value = map.values[head * columns + column];
    const from = whole(map.steps[column]);
    const until = whole(map.steps[column + 1]);
    const when = map.stretch > 1 ? `${POOLED[spec.pool]}, steps ${from} up to ${until}` : `step ${from}`;
    showTip(screenX, screenY, `${map.label}, head ${head}`, [
      [when, Number.isNaN(value) ? "not finite" : short(value)],
    ]);
  };
  const within = (share, size) => Math.max(0, Math.min(size - 1, Math.floor(share * size)));
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect();
    show(
      within((event.clientX - box.left) / box.width, columns),
      within((event.clientY - box.top) / box.height, map.heads),
      event.clientX,
      event.clientY,
    );
  };
  canvas.onpointerleave = canvas.onblur = hideTip;
  canvas.onkeydown = (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [column, head] = cell ? [cell[0] + move[0], cell[1] + move[1]] : [0, 0];
    const [i, j] = [Math.max(0, Math.min(columns - 1, column)), Math.max(0, Math.min(map.heads - 1, head))];
    const box = canvas.getBoundingClientRect();
    show(i, j, box.left + ((i + 0.5) / columns) * box.width, box.top + ((j + 1) / map.heads) * box.height);
  };
  return canvas;
}

/** Returns the text alternative of a strip. */
function stripText(map, spec) {
  const columns = map.columns;
  let [least, most] = [-1, -1];
  map.values.forEach((v, i) => {
    if (Number.isNaN(v)) return;
    if (least < 0 || v < map.values[least]) least = i;
    if (most < 0 || v > map.values[most]) most = i;
  });
  const where = (i) =>
    i < 0
      ? "none"
      : `${short(map.values[i])} in head ${Math.floor(i / columns)} at step ${whole(map.steps[i % columns])}`;
  return `${spec.title}, ${map.label}, ${map.heads} heads: largest ${where(most)}, smallest ${where(least)}.`;
}
