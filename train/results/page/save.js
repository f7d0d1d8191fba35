const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "paint-order"];
const FONT = "Helvetica, Arial, sans-serif";

/** Returns the buttons that save a figure; each function returns the text of its file. */
function saveButtons(title, files) {
  const name = `${document.title}-${title}`.replace(/[^\w.=-]+/g, "_");
  return Object.entries(files).map(([ending, text]) => {
    const button = make("button", { type: "button", "aria-label": `save ${title} as ${ending}` }, ending.toUpperCase());
    button.onclick = () => {
      const address = URL.createObjectURL(new Blob([text()], { type: ending === "svg" ? "image/svg+xml" : "text/csv" }));
      make("a", { href: address, download: `${name}.${ending}` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    };
    return button;
  });
}

/** Returns an SVG file of drawings, each [node, x, y], below a title, in the colours of the screen. */
function svgFile(title, width, height, drawings) {
  const style = getComputedStyle(document.body);
  const root = svg("svg", {
    xmlns: "http://www.w3.org/2000/svg",
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    "font-family": FONT,
  });
  root.append(
    svg("rect", { width, height, fill: style.backgroundColor }),
    svg("text", { x: 6, y: 16, "font-size": 13, fill: style.color }, title),
    ...drawings.map(([node, x, y]) => svg("g", { transform: `translate(${x} ${y})` }, node)),
  );
  return new XMLSerializer().serializeToString(root);
}

/** Copies a drawing on the page with its styles as attributes, without what isn't visible. */
function still(node) {
  const copy = node.cloneNode(false);
  if (node.nodeType !== Node.ELEMENT_NODE) return copy;
  const style = getComputedStyle(node);
  for (const name of ["class", "style", "aria-hidden"]) copy.removeAttribute(name);
  if (["path", "line", "circle", "text"].includes(node.localName)) {
    for (const name of DRAWN) if (style[name] && style[name] !== "none") copy.setAttribute(name, style[name]);
    if (style.fill === "none") copy.setAttribute("fill", "none");
  }
  copy.append(...[...node.childNodes].filter((child) => child.getAttribute?.("visibility") !== "hidden").map(still));
  return copy;
}

/** Returns a line chart as it is on the page, with its title above and the names of its series below. */
function chartSvg(title, plot, spec) {
  const drawn = plot.firstChild;
  const [, , width, height] = drawn.getAttribute("viewBox").split(" ").map(Number);
  const groups = new Map([...drawn.querySelectorAll("[data-series]")].map((g) => [g.dataset.series, g]));
  const drawings = [[still(drawn), 0, 24]];
  let [x, y] = [MARGIN.left, height + 36];
  for (const { label, dash, loose } of spec.series.length > 1 ? spec.series : []) {
    const needed = 36 + 6.2 * label.length;
    if (x > MARGIN.left && x + needed > width) [x, y] = [MARGIN.left, y + 16];
    const stroke = getComputedStyle(groups.get(label)).color;
    const fill = getComputedStyle(document.body).color;
    const line = svg("path", { d: "M0,-4L20,-4", stroke, "stroke-width": 1.6, "stroke-dasharray": dash });
    const key = loose ? svg("circle", { cx: 10, cy: -4, r: 3, fill: stroke }) : line;
    drawings.push([svg("g", {}, key, svg("text", { x: 25, "font-size": 11, fill }, label)), x, y]);
    x += needed;
  }
  drawings[0][0].setAttribute("width", width);
  return svgFile(title, width, y + 8, drawings);
}

/** Returns heatmaps one below the other, each [label, canvas, height in pixels], as images without smoothing. */
function heatmapSvg(title, strips, scaleText) {
  const fill = getComputedStyle(document.body).color;
  let y = 0;
  const drawings = strips.map(([label, canvas, height]) => {
    const image = { href: canvas.toDataURL(), x: 60, width: 580, height, preserveAspectRatio: "none" };
    const text = svg("text", { x: 6, y: height / 2 + 4, "font-size": 11, fill }, label);
    const group = svg("g", {}, text, svg("image", { ...image, "image-rendering": "pixelated" }));
    y += height + 3;
    return [group, 0, 28 + y - height - 3];
  });
  drawings.push([svg("text", { x: 60, y: 12, "font-size": 11, fill }, scaleText), 0, 28 + y]);
  return svgFile(title, 650, y + 50, drawings);
}

const csvCell = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
const csv = (rows) => rows.map((row) => `${row.map((v) => csvCell(v ?? "")).join(",")}\n`).join("");

/** Formats a value that the page holds in 16 bits with the digits it has. */
const digits = (values, i) => (values instanceof Float32Array ? Number(values[i].toPrecision(5)) : values[i]);

/** Returns the points of a line chart, one a row, with the ends of its band or bars. */
function chartCsv(spec) {
  const rows = spec.series.flatMap((series) =>
    Array.from(series.x, (x, i) => {
      const bar = series.bars?.find(([at]) => at === x)?.slice(1);
      return [series.label, x, digits(series.y, i), ...(bar || series.band?.map((edge) => edge[i]) || [])];
    }),
  );
  const spread = rows.some((row) => row.length > 3) ? ["low", "high"] : [];
  return csv([["series", spec.x.label, spec.y.label || spec.title, ...spread], ...rows]);
}
