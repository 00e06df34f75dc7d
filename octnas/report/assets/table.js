"use strict";
// The table of networks: sorting, filtering, selecting, and latency of the chosen device.

const table = document.getElementById("networks");

function sortBy(column, descending) {
  const body = table.tBodies[0];
  const value = (row) => {
    const cell = row.cells[column];
    const text = cell.dataset.value;
    return cell.dataset.kind === "number" ? (text === "" ? null : Number(text)) : text;
  };
  const rows = [...body.rows].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    // Missing values come last in both directions.
    if (left === null || right === null) return (left === null) - (right === null);
    const order = typeof left === "number" ? left - right : left.localeCompare(right);
    return descending ? -order : order;
  });
  body.append(...rows);
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function setLatency(cell, seconds, p95) {
  const said = seconds === null ? "not measured" : `${(1e3 * seconds).toFixed(3)}`;
  cell.textContent = seconds !== null && p95 === "predicted" ? `${said} predicted` : said;
  cell.dataset.value = seconds === null ? "" : String(seconds);
}

function showLatency() {
  const device = model.devices[state.device];
  if (table === null || device === undefined) return;
  for (const cell of table.querySelectorAll("[data-latency]")) {
    const id = cell.closest("tr").dataset.id;
    const [median, p95] = device.measured[id] || [null, null];
    const predicted = device.predicted[id] ?? null;
    if (cell.dataset.latency === "p95") setLatency(cell, p95 ?? null, "");
    else if (median !== null) setLatency(cell, median, "");
    else setLatency(cell, predicted, "predicted");
  }
  document.getElementById("table-device").textContent = `Latency per batch, in ms: ${device.name}.`;
}

function markRows() {
  if (table === null) return;
  for (const row of table.tBodies[0].rows) {
    const chosen = state.selected.includes(row.dataset.id);
    row.classList.toggle("selected", chosen);
    row.cells[0].querySelector("button").setAttribute("aria-pressed", String(chosen));
  }
}

if (table !== null) {
  const choice = document.getElementById("sort");
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    choice.append(new Option(head.textContent, String(column)));
    head.querySelector("button").addEventListener("click", () => {
      sortBy(column, head.getAttribute("aria-sort") === "ascending");
      choice.value = String(column);
    });
  });
  const direction = document.getElementById("descending");
  const sortChosen = () => { if (choice.value !== "") sortBy(Number(choice.value), direction.checked); };
  choice.addEventListener("change", sortChosen);
  direction.addEventListener("change", sortChosen);
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) shown += 1;
    }
    document.getElementById("shown").textContent = `${shown} of ${table.tBodies[0].rows.length} networks`;
  });
  for (const row of table.tBodies[0].rows) {
    row.cells[0].querySelector("button").addEventListener("click", () => toggle(row.dataset.id));
  }
  state.listeners.push(markRows, showLatency);
}
