"use strict";
// The selected networks: channels at half resolution by site, and multiply-adds by stage.

const STAGE_COLOURS = ["#3b8ede", "#2fa36b", "#d9a531", "#e4572e", "#9a7fd1", "#c06fb0", "#8a8a8a"];

function namesOf(id) {
  const names = model.networks.filter((one) => one.id === id).map((one) => one.name);
  const budgets = Object.keys(model.chosen).filter((name) => model.chosen[name] === id);
  if (names.length) return names.join("; ");
  return budgets.length ? `chosen, ${budgets.join("; ")}` : `candidate ${id}`;
}

function count(value) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= size) return `${(value / size).toPrecision(4)}${unit}`;
  }
  return String(value);
}

function effectCell(site, largest) {
  const cell = make("td", undefined, "effect");
  if (site.effect === null) {
    cell.textContent = site.searchable ? "unknown" : "fixed";
    return cell;
  }
  const [percent, std] = site.effect;
  const bar = make("span", undefined, percent < 0 ? "bar gain" : "bar");
  bar.style.width = `${Math.max(1, 56 * Math.abs(percent) / largest)}px`;
  const sign = percent < 0 ? "−" : "+";
  cell.append(bar, ` ${sign}${Math.abs(percent).toFixed(1)} ± ${std.toFixed(1)} %`);
  return cell;
}

function alphaCell(site, index, architecture) {
  if (!architecture.low) return make("td", "plain network", "quiet");
  const low = architecture.low[index], share = low / site.channels;
  const cell = make("td", `${low} of ${site.channels}`, "heat");
  cell.title = `${site.name}: α ${Number(share.toPrecision(3))}`;
  cell.style.background = `color-mix(in srgb, var(--low) ${Math.round(100 * share)}%, var(--high))`;
  cell.style.color = share > 0.5 ? "var(--on-low)" : "var(--ink)";
  return cell;
}

function sitesTable() {
  const table = make("table");
  const head = table.createTHead().insertRow();
  head.append(make("th", "site", "text"));
  for (const id of state.selected) head.append(make("th", namesOf(id), "text"));
  head.append(make("th", "sensitivity", "text"));
  const body = table.createTBody();
  const effects = model.sites.filter((site) => site.effect).map((site) => Math.abs(site.effect[0]));
  const largest = Math.max(1e-9, ...effects);
  model.sites.forEach((site, index) => {
    const row = body.insertRow();
    const name = make("th", site.name, "text");
    name.scope = "row";
    row.append(name);
    for (const id of state.selected) row.append(alphaCell(site, index, model.architectures[id]));
    row.append(effectCell(site, largest));
  });
  return table;
}

function stageBar(id) {
  const architecture = model.architectures[id];
  const block = make("div", undefined, "stages");
  const title = make("p", `${namesOf(id)}: ${count(architecture.macs)} MACs`);
  const remove = make("button", "remove", "remove");
  remove.type = "button";
  remove.addEventListener("click", () => toggle(id));
  title.append(" ", remove);
  block.append(title);
  if (!architecture.stages) {
    block.append(make("p", "A plain network of another shape; its stages are unknown.", "quiet"));
    return block;
  }
  const bar = make("div", undefined, "stagebar");
  const words = [];
  architecture.stages.forEach((macs, index) => {
    const share = macs / architecture.macs;
    const part = make("span");
    part.style.flexGrow = String(share);
    part.style.background = STAGE_COLOURS[index % STAGE_COLOURS.length];
    part.title = `${model.stages[index]}: ${(100 * share).toFixed(1)} %`;
    bar.append(part);
    const word = make("span", undefined, "stageword");
    const mark = make("span", "■", "mark");
    mark.style.color = STAGE_COLOURS[index % STAGE_COLOURS.length];
    word.append(mark, `${model.stages[index]} ${(100 * share).toFixed(1)} %`);
    words.push(word);
  });
  const legend = make("p", undefined, "quiet stagewords");
  legend.append(...words);
  block.append(bar, legend);
  return block;
}

function showSelected() {
  const place = document.getElementById("selected");
  if (place === null) return;
  place.replaceChildren();
  if (!state.selected.length) {
    place.append(make("p", "Nothing is selected: click a point of a figure or a name in the table.", "missing"));
    return;
  }
  const scroll = make("div", undefined, "scroll");
  scroll.tabIndex = 0;
  scroll.append(sitesTable());
  place.append(...state.selected.map(stageBar), scroll);
}

if (model !== null) {
  state.listeners.push(showSelected);
  const given = location.hash.slice(1).split(",").filter((id) => id in model.architectures);
  const chosen = [...new Set(Object.values(model.chosen))].filter((id) => id in model.architectures);
  state.selected = (given.length ? given : chosen).slice(0, MOST_SELECTED);
}
