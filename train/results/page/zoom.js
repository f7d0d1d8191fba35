/** Returns what a group of charts shares: the range of x, or null for all of it, and the functions that redraw them. */
const newZoom = () => ({ range: null, charts: [] });

function zoomTo(zoom, range) {
  zoom.range = range;
  hideTip();
  for (const draw of zoom.charts) draw();
}

/** Zooms to the pixels [left, right], unless fewer than two of the chart's points are there. All points: no zoom. */
function zoomToPixels(zoom, x, xs, left, right) {
  const range = [x.value(left), x.value(right)];
  const within = xs.filter((v) => v >= range[0] && v <= range[1]).length;
  if (within === xs.length) zoomTo(zoom, null);
  else if (within > 1) zoomTo(zoom, range);
}

/** Shows the chart's x range `factor` times as large, with the pixel `centre` in its middle where the data allows. */
function zoomBy(zoom, x, xs, width, factor, centre) {
  const half = (width - MARGIN.left - MARGIN.right) / (2 * factor);
  const [first, last] = [x.map(xs[0]), x.map(xs.at(-1))];
  const middle = Math.max(first + half, Math.min(last - half, centre));
  zoomToPixels(zoom, x, xs, 2 * half >= last - first ? first - 1 : middle - half, middle + half);
}

/**
 * Lets the mouse drag over a range to zoom into it, and a double click or tap zoom in and out again. `xs` are all
 * ascending x. Returns what the plot's other handlers need:
 * moved(pixel): marks the range dragged over; key(event, pixel): zooms by +, - and 0, and returns whether it did;
 * dragged(): whether the click that follows belongs to a drag
 */
function zooming(plot, spec, zoom, x, xs, width, box) {
  const mark = svg("rect", { class: "selection", y: MARGIN.top, height: box, visibility: "hidden" });
  plot.firstChild.append(mark);
  const pixel = (event) =>
    Math.max(MARGIN.left, Math.min(width - MARGIN.right, event.clientX - plot.getBoundingClientRect().left));
  let from = null;
  let dragged = false;
  plot.onpointerdown = (event) => {
    dragged = false;
    // A finger that is drawn over a chart reads its values instead.
    if (event.pointerType !== "mouse" || event.button !== 0) return;
    from = pixel(event);
    plot.setPointerCapture(event.pointerId);
  };
  plot.onpointerup = (event) => {
    const [start, end] = [from, pixel(event)];
    from = null;
    mark.setAttribute("visibility", "hidden");
    if (dragged) zoomToPixels(zoom, x, xs, Math.min(start, end), Math.max(start, end));
  };
  plot.ondblclick = (event) => {
    if (zoom.range) zoomTo(zoom, null);
    else if (!spec.choose) zoomBy(zoom, x, xs, width, 4, pixel(event));
  };
  return {
    moved(event) {
      if (from === null) return;
      const to = pixel(event);
      dragged ||= Math.abs(to - from) > 5;
      if (!dragged) return;
      mark.setAttribute("x", Math.min(from, to));
      mark.setAttribute("width", Math.abs(to - from));
      mark.setAttribute("visibility", "visible");
    },
    key(event, at) {
      const factor = { "+": 2, "=": 2, "-": 0.5 }[event.key];
      if (factor) zoomBy(zoom, x, xs, width, factor, at);
      else if (event.key === "0") zoomTo(zoom, null);
      return Boolean(factor) || event.key === "0";
    },
    dragged: () => dragged,
  };
}
