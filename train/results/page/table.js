const HINTS = [
  "Tick two runs to see in which config fields they differ.",
  "Tick a second run to see in which config fields the two differ.",
  "Tick another run to compare it with the last one ticked.",
];

/** The table of runs: sorts by any column, filters, opens a run, and compares the configs of two. */
class RunTable {
  constructor(open) {
    this.open = open;
    this.head = $("table").tHead;
    this.body = $("table").tBodies[0];
    this.order = data.runs.run.map((_, i) => i);
    this.rows = this.order.map(tableRow);
    const searched = data.columns.filter((c) => c.kind === "words" && c.key !== "state");
    this.texts = this.order.map((i) => searched.map((c) => data.runs[c.key][i]).join(" ").toLowerCase());
    this.picked = [];
    this.sorted = null;
    const columns = firstColumns();
    const corner = make("th", { scope: "col" }, make("span", { class: "unseen" }, "compare"));
    this.head.append(make("tr", {}, corner, ...data.columns.map((column) => this.header(column))));
    this.body.replaceChildren(...this.rows);
    this.body.onclick = (event) => this.clicked(event);
    this.body.onkeydown = (event) => this.pressed(event);
    $("filter").oninput = () => this.filter();
    stateBoxes(() => this.filter());
    for (const column of data.columns) this.columnBox(column, columns.has(column.key));
    this.hint();
    this.filter();
  }

  header({ key, kind, title, about }) {
    const button = make("button", { type: "button", title: about }, title);
    const header = make("th", { scope: "col", class: kind === "words" ? null : "number" }, button);
    button.onclick = () => this.sort(key, header);
    return header;
  }

  /** Adds a checkbox that shows or hides a column. */
  columnBox({ key, title }, shown) {
    const input = make("input", { type: "checkbox", value: key });
    const place = data.columns.findIndex((column) => column.key === key) + 1;
    const show = () => {
      for (const row of [this.head.rows[0], ...this.rows]) row.cells[place].hidden = !input.checked;
    };
    input.checked = shown;
    input.onchange = show;
    if (!shown) show();
    $("columns").querySelector("fieldset").append(make("label", {}, input, title));
  }

  visible() {
    return [...this.body.rows].filter((row) => !row.hidden);
  }

  /** Makes the row the only one that the Tab key reaches. */
  enter(row) {
    for (const other of this.rows) {
      if (other === row || other.tabIndex === 0)
        other.tabIndex = other.querySelector("input").tabIndex = other === row ? 0 : -1;
    }
  }

  sort(key, header) {
    const up = !(this.sorted?.key === key && this.sorted.up);
    this.sorted = { key, up };
    const values = data.runs[key];
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    this.order.sort((a, b) => {
      const [x, y] = [values[a] ?? null, values[b] ?? null];
      // Missing values come last in both directions. Ties keep the order of the sweep.
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (up ? compare(x, y) : compare(y, x)) || a - b;
    });
    for (const other of this.head.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    this.body.replaceChildren(...this.order.map((i) => this.rows[i]));
  }

  filter() {
    const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = new Set([...$("states").querySelectorAll("input:not(:checked)")].map((input) => input.value));
    this.rows.forEach((row, i) => {
      row.hidden = off.has(data.runs.state[i]) || !wanted.every((word) => this.texts[i].includes(word));
    });
    const shown = this.visible();
    $("count").textContent =
      shown.length === count ? `${count} run${count === 1 ? "" : "s"}` : `${shown.length} of ${count} runs`;
    if (!shown.some((row) => row.tabIndex === 0)) this.enter(shown[0]);
  }

  /** Toggles run i for comparison and keeps the last two runs picked. */
  pick(i) {
    const { picked } = this;
    if (picked.includes(i)) picked.splice(picked.indexOf(i), 1);
    else picked.push(i);
    if (picked.length > 2) picked.shift();
    this.rows.forEach((row, j) => {
      row.querySelector("input").checked = picked.includes(j);
    });
    $("difference").hidden = true;
    if (picked.length === 2) showDifference(...picked);
    this.hint();
  }

  hint() {
    $("hint").textContent = count > 1 ? HINTS[this.picked.length] : "";
  }

  choose(i) {
    const row = this.rows[i];
    for (const other of this.body.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    this.open(i);
    // A chart can choose a run that the filter hides.
    if (row.hidden) return;
    this.enter(row);
    const box = $("runs-scroll");
    const top = row.offsetTop - box.scrollTop;
    if (top < this.head.offsetHeight || top > box.clientHeight - row.offsetHeight)
      box.scrollTop += top - box.clientHeight / 2;
  }

  clicked(event) {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    if (event.target.closest(".pick")) {
      if (event.target.tagName !== "INPUT") event.preventDefault();
      this.pick(Number(row.dataset.run));
    } else if (!String(getSelection())) this.choose(Number(row.dataset.run));
  }

  pressed(event) {
    const row = event.target.closest("tbody tr");
    const shown = this.visible();
    const at = shown.indexOf(row);
    const last = shown.length - 1;
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: last, PageUp: at - 10, PageDown: at + 10 }[event.key];
    if (to !== undefined) {
      const next = shown[Math.max(0, Math.min(last, to))];
      this.enter(next);
      next.focus();
    } else if (event.key === "Enter" || (event.key === " " && event.target === row)) this.choose(Number(row.dataset.run));
    else if (event.key === "x") this.pick(Number(row.dataset.run));
    else return;
    event.preventDefault();
  }
}

/** Returns the keys of the columns to show at first: those with values, and on a phone those of them that fit. */
function firstColumns() {
  const keys = data.columns.map(({ key }) => key).filter((key) => data.runs[key].some((v) => v != null));
  if (innerWidth >= 600) return new Set(keys);
  const varies = (key) => new Set(data.runs[key]).size > 1;
  const alike = data.runs.state.every((state) => state === "finished") ? [] : ["state"];
  const wanted = [...alike, "N", "arm", "optimizer.lr", "seed"].filter((key) => data.runs[key] && varies(key));
  if (!wanted.length) wanted.push("run");
  return new Set([...wanted, "validation/loss", ...(wanted.includes("arm") ? [] : ["logit_max"])]);
}

function tableRow(i) {
  const name = data.runs.run[i];
  const box = make("input", { type: "checkbox", tabindex: -1, "aria-label": `compare ${name}` });
  const cells = data.columns.map(({ key, kind }) => {
    const value = data.runs[key][i];
    const look =
      key === "state"
        ? { diverged: "open", failed: "fail", finished: "quiet" }[value]
        : kind === "words"
          ? null
          : "number";
    const text = kind === "size" ? sizeText(value) : KINDS[kind](value);
    // Where it is narrow, names of arms break after their signs.
    const parts = key === "arm" ? text.split(/(?<=[=:,_])/).flatMap((part) => [part, make("wbr")]) : [text];
    return make("td", { class: look, "data-key": key }, ...parts);
  });
  return make("tr", { tabindex: -1, "data-run": i }, make("td", { class: "pick" }, box), ...cells);
}

function stateBoxes(changed) {
  const states = [...new Set(data.runs.state)];
  // A sweep in progress has many runs that say nothing yet.
  const folded = states.length > 1 ? "missing" : null;
  $("states").hidden = states.length < 2;
  for (const state of states) {
    const input = make("input", { type: "checkbox", value: state });
    input.checked = state !== folded;
    input.onchange = changed;
    $("states").append(make("label", {}, input, `${state} ${data.runs.state.filter((s) => s === state).length}`));
  }
}
