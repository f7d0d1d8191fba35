/** A run's place in the address, so that a link can point at it. */
function runInAddress() {
  const found = /^#run=(.*)$/.exec(location.hash);
  try {
    return found ? data.runs.run.indexOf(decodeURIComponent(found[1])) : -1;
  } catch {
    return -1;
  }
}

/** The run that is shown now. */
const chosen = () => Number($("table").querySelector("[aria-current]").dataset.run);

/** The run shown first: the one in the address, else of those with curves the one with the largest attention logit. */
function first() {
  const logits = data.runs.logit_max || [];
  const better = (v, i, best) => v != null && $(`run-${i}`) && (best < 0 || v > logits[best]);
  const most = logits.reduce((best, v, i) => (better(v, i, best) ? i : best), -1);
  return Math.max(0, runInAddress() >= 0 ? runInAddress() : most);
}

let ready = false;
const choose = runTable((i) => {
  showRun(i);
  if (!ready) return;
  if (i !== runInAddress()) location.replace(`#run=${encodeURIComponent(data.runs.run[i])}`);
  // On a phone the curves are out of sight below the table.
  if (innerWidth < 600) $("run").scrollIntoView();
});
$("runs").hidden = count === 1;
requestAnimationFrame(() => setTimeout(() => performance.mark("runs painted")));
drawSensitivity();
drawRates((i) => {
  choose(i);
  $("run").scrollIntoView({ block: "start" });
});
// The curves come after this script.
addEventListener("DOMContentLoaded", () => {
  choose(first());
  ready = true;
});
addEventListener("hashchange", () => {
  if (runInAddress() >= 0 && runInAddress() !== chosen()) choose(runInAddress());
});
