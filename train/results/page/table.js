/** The table of runs: sorts by any column, filters, opens a run, picks two for comparison. */
function runTable(open) {
  const [head, body] = [$("table").tHead, $("table").tBodies[0]];
  const columns = data.columns;
  const order = data.runs.run.map((_, i) => i);
  const text = order.map((i) =>
    columns
      .filter((c) => c.kind === "words" && c.key !== "state")
      .map((c) => data.runs[c.key][i])
      .join(" ")
      .toLowerCase(),
  );
  const rows = order.map((i) => tableRow(i, columns));
  const picked = [];
  let sorted = null;

  const visible = () => [...body.rows].filter((row) => !row.hidden);
  const enter = (row) => {
    for (const other of rows) if (other.tabIndex === 0) reachable(other, false);
    if (row) reachable(row, true);
  };
  const reachable = (row, yes) => {
    row.tabIndex = yes ? 0 : -1;
    row.querySelector("input").tabIndex = yes ? 0 : -1;
  };
  const place = () => body.replaceChildren(...order.map((i) => rows[i]));

  function sort(key, header) {
    const up = !(sorted?.key === key && sorted.up);
    sorted = { key, up };
    const values = data.runs[key];
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    order.sort((a, b) => {
      const [x, y] = [values[a] ?? null, values[b] ?? null];
      // What is missing comes last in both directions; equal ones stay in the sweep's order.
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (up ? compare(x, y) : compare(y, x)) || a - b;
    });
    for (const other of head.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    place();
  }

  function filter() {
    const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = new Set([...$("states").querySelectorAll("input:not(:checked)")].map((input) => input.value));
    rows.forEach((row, i) => {
      row.hidden = off.has(data.runs.state[i]) || !wanted.every((word) => text[i].includes(word));
    });
    const shown = visible();
    $("count").textContent =
      shown.length === count ? `${count} run${count === 1 ? "" : "s"}` : `${shown.length} of ${count} runs`;
    if (!shown.some((row) => row.tabIndex === 0)) enter(shown[0]);
  }

  function pick(i) {
    if (picked.includes(i)) picked.splice(picked.indexOf(i), 1);
    else picked.push(i);
    if (picked.length > 2) picked.shift();
    rows.forEach((row, j) => {
      row.querySelector("input").checked = picked.includes(j);
    });
    $("difference").hidden = true;
    if (picked.length === 2) showDifference(...picked);
    hint();
  }

  function hint() {
    const texts = [
      "Tick two runs to see in which config fields they differ.",
      "Tick a second run to see in which config fields the two differ.",
      "Tick another run to compare it with the last one ticked.",
    ];
    $("hint").textContent = count > 1 ? texts[picked.length] : "";
  }

  function choose(i) {
    for (const row of body.querySelectorAll("[aria-current]")) row.removeAttribute("aria-current");
    rows[i].setAttribute("aria-current", "true");
    open(i);
    // A chart can choose a run that the filter hides.
    if (rows[i].hidden) return;
    enter(rows[i]);
    const box = $("runs-scroll");
    const top = rows[i].offsetTop - box.scrollTop;
    if (top < head.offsetHeight || top > box.clientHeight - rows[i].offsetHeight)
      box.scrollTop += top - box.clientHeight / 2;
  }

  const titles = columns.map((column) => {
    const button = make("button", { type: "button", title: column.about }, column.title);
    const header = make("th", { scope: "col", class: column.kind === "words" ? null : "number" }, button);
    button.onclick = () => sort(column.key, header);
    return header;
  });
  head.append(make("tr", {}, make("th", { scope: "col" }, make("span", { class: "unseen" }, "compare")), ...titles));
  place();
  const rowOf = (event) => event.target.closest("tbody tr");
  body.onclick = (event) => {
    const row = rowOf(event);
    if (!row) return;
    if (event.target.closest(".pick")) {
      if (event.target.tagName !== "INPUT") event.preventDefault();
      pick(Number(row.dataset.run));
    } else if (!String(getSelection())) choose(Number(row.dataset.run));
  };
  body.onkeydown = (event) => {
    const row = rowOf(event);
    const shown = visible();
    const at = shown.indexOf(row);
    const to = {
      ArrowUp: at - 1,
      ArrowDown: at + 1,
      Home: 0,
      End: shown.length - 1,
      PageUp: at - 10,
      PageDown: at + 10,
    }[event.key];
    if (to !== undefined) {
      const next = shown[Math.max(0, Math.min(shown.length - 1, to))];
      enter(next);
      next.focus();
    } else if (event.key === "Enter" || (event.key === " " && event.target === row)) choose(Number(row.dataset.run));
    else if (event.key === "x") pick(Number(row.dataset.run));
    else return;
    event.preventDefault();
  };
  $("filter").oninput = filter;
  stateBoxes(filter);
  hint();
  filter();
  return choose;
}

function tableRow(i, columns) {
  const name = data.runs.run[i];
  const box = make("input", { type: "checkbox", tabindex: -1, "aria-label": `compare ${name}` });
  const cells = columns.map(({ key, kind }) => {
    const value = data.runs[key][i];
    const look =
      key === "state"
        ? { diverged: "open", failed: "fail", finished: "quiet" }[value]
        : kind === "words"
          ? null
          : "number";
    return make("td", { class: look, "data-key": key }, kind === "size" ? sizeText(value) : KINDS[kind](value));
  });
  return make("tr", { tabindex: -1, "data-run": i }, make("td", { class: "pick" }, box), ...cells);
}

function stateBoxes(changed) {
  const states = [...new Set(data.runs.state)];
  $("states").hidden = states.length < 2;
  for (const state of states) {
    const input = make("input", { type: "checkbox", value: state });
    input.checked = true;
    input.onchange = changed;
    $("states").append(make("label", {}, input, `${state} ${data.runs.state.filter((s) => s === state).length}`));
  }
}
