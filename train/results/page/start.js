/** Returns the index of the run named in the URL's hash, or -1. */
function runInAddress() {
  const found = /^#run=(.*)$/.exec(location.hash);
  try {
    return found ? data.runs.run.indexOf(decodeURIComponent(found[1])) : -1;
  } catch {
    return -1;
  }
}

/** Returns the index of the run on display. */
const chosen = () => Number($("table").querySelector("[aria-current]").dataset.run);

/** Returns the run to show first: the one in the URL, else the one with curves and the largest attention logit. */
function first() {
  const logits = data.runs.logit_max || [];
  const better = (v, i, best) => v != null && $(`run-${i}`) && (best < 0 || v > logits[best]);
  const most = logits.reduce((best, v, i) => (better(v, i, best) ? i : best), -1);
  return Math.max(0, runInAddress() >= 0 ? runInAddress() : most);
}

let ready = false;
const table = new RunTable((i) => {
  showRun(i);
  if (!ready) return;
  if (data.runs.run[i] !== data.runs.run[runInAddress()]) location.replace(`#run=${encodeURIComponent(data.runs.run[i])}`);
  // On a phone the curves are below the visible part of the page.
  if (innerWidth < 600) $("run").scrollIntoView();
});
$("runs").hidden = count === 1;
requestAnimationFrame(() => setTimeout(() => performance.mark("runs painted")));
drawSensitivity();
drawRates((i) => {
  table.choose(i);
  $("run").scrollIntoView({ block: "start" });
});
// The elements with the curves follow this script, so wait for them.
addEventListener("DOMContentLoaded", () => {
  table.choose(first());
  ready = true;
});
addEventListener("hashchange", () => {
  // A run in two arms has two rows of one name, and the address means the one on display.
  const i = runInAddress();
  if (i >= 0 && data.runs.run[i] !== data.runs.run[chosen()]) table.choose(i);
});
