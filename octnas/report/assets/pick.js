"use strict";
// A recommendation for a device, precision, batch size and limit.

const form = document.getElementById("pick");
const VERDICTS = {
  better: "better", worse: "worse", noise: "no difference beyond the noise",
  one_seed: "no verdict with a single seed", no_spread: "no verdict without any spread over seeds",
};

function distinct(values) {
  return [...new Set(values)];
}

function fill(select, values, keep) {
  select.replaceChildren(...values.map((value) => new Option(String(value), String(value))));
  if (values.map(String).includes(keep)) select.value = keep;
}

function chooseDevice() {
  // Each choice narrows down the next ones.
  const how = (one) => `${one.precision}, ${one.backend}`;
  let left = model.devices;
  for (const [select, read] of [
    [form.elements.device, (one) => one.device],
    [form.elements.precision, how],
    [form.elements.batch, (one) => `${one.batch}, threads ${one.threads || "any"}`],
  ]) {
    fill(select, distinct(left.map(read)), select.value);
    left = left.filter((one) => read(one) === select.value);
  }
  state.device = model.devices.indexOf(left[0]);
}

function costOf(kind) {
  if (kind === "macs") return (id) => model.architectures[id].macs / 1e6;
  const device = model.devices[state.device];
  return (id) => {
    const seconds = device.measured[id] ? device.measured[id][0] : device.predicted[id];
    return seconds === undefined ? null : 1e3 * seconds;
  };
}

function recommend(kind, limit) {
  // Among found networks the supernet's score selects, so that val evaluates without selecting.
  const cost = costOf(kind);
  const offered = model.networks.filter((one) => one.offered);
  const known = offered.filter((one) => cost(one.id) !== null);
  const fits = known.filter((one) => cost(one.id) <= limit);
  const score = (one) => one.score ?? Infinity;
  const found = fits.filter((one) => one.found).sort((a, b) => score(a) - score(b))[0] || null;
  const others = fits.filter((one) => !one.found && (found === null || one.id !== found.id));
  const rest = fits.filter((one) => found === null || one.id !== found.id);
  const next = rest.sort((a, b) => b.top1 - a.top1)[0] || null;
  const verdicts = found === null ? [] : others.map((one) => found.against[one.id][0]);
  const won = verdicts.length > 0 && verdicts.every((one) => one === "better");
  const vanilla = fits.find((one) => one.role === "vanilla") || null;
  return { cost, found, next, won, vanilla, others, fits, unknown: offered.length - known.length };
}

function described(one, kind, cost) {
  const std = one.std === null ? "" : ` ± ${one.std.toFixed(1)}`;
  const seeds = `${one.seeds} seed${one.seeds === 1 ? "" : "s"}`;
  const device = model.devices[state.device];
  const guess = kind === "latency" && !device.measured[one.id] ? " predicted" : "";
  const unit = kind === "macs" ? "M MACs" : `ms${guess}`;
  return `${one.name}: ${one.top1.toFixed(1)}${std} % top-1 over ${seeds}, ${cost(one.id).toPrecision(4)} ${unit}`;
}

function against(one, other) {
  const found = one.against[other.id] || null;
  if (found === null) return "";
  const [verdict, points, half] = found;
  const interval = half === null ? "" : ` ± ${half.toFixed(2)}`;
  const sign = points < 0 ? "−" : "+";
  return ` Against ${other.name}: ${sign}${Math.abs(points).toFixed(2)}${interval} points, ${VERDICTS[verdict] || verdict}.`;
}

function command(one) {
  return make("code", `octnas export ${model.run} --architecture ${one.id} --to onnx`, "command");
}

function entry(title, one, kind, cost, more) {
  const block = make("div", undefined, "answer");
  block.append(make("h4", title), make("p", `${described(one, kind, cost)}.${more}`), command(one));
  return block;
}

function answer(kind, limit) {
  const { cost, found, next, won, vanilla, others, fits, unknown } = recommend(kind, limit);
  const parts = [];
  const say = (title, text) => parts.push(make("h3", title), make("p", text));
  if (!fits.length) {
    say("Keep what you have", "No trained network fits this limit.");
  } else if (won) {
    say(`Take ${found.name}`, `It beats each of the ${others.length} baselines within the limit, beyond the noise.`);
    parts.push(entry("Recommendation", found, kind, cost, ""));
    if (next) parts.push(entry("Runner-up", next, kind, cost, against(found, next)));
  } else {
    const fine = vanilla ? "The vanilla network fits this limit, and " : "";
    const why = found === null ? "no network that the search found fits it."
      : others.length ? "what the search found does not beat every baseline that fits."
        : "no trained baseline fits it, so the benefit of the search is unknown.";
    say("Keep what you have", (fine + why).replace(/^./, (letter) => letter.toUpperCase()));
    if (!vanilla) parts.push(make("p", "If the limit has to be met, these networks do:", "quiet"));
    if (found) parts.push(entry("Found by the search", found, kind, cost, next ? against(found, next) : ""));
    if (next) parts.push(entry(found ? "Most accurate of the others" : "Most accurate", next, kind, cost, ""));
  }
  if (unknown) {
    const verb = unknown === 1 ? "network has" : "networks have";
    parts.push(make("p", `${unknown} ${verb} no known latency on this device and cannot be recommended.`, "quiet"));
  }
  return parts;
}

function refresh() {
  if (model.devices.length) chooseDevice();
  const kind = form.elements.cost.value, limit = Number(form.elements.limit.value);
  form.querySelector("#unit").textContent = kind === "macs" ? "million MACs" : "ms per batch";
  const place = document.getElementById("answer");
  if (limit > 0) place.replaceChildren(...answer(kind, limit));
  else place.replaceChildren(make("p", "Enter a limit above 0.", "missing"));
  showLatency();
}

function startLimit(kind) {
  const costs = model.networks.filter((one) => one.found).map((one) => costOf(kind)(one.id));
  const most = Math.max(0, ...costs.filter((one) => one !== null));
  form.elements.limit.value = most ? String(Number((1.1 * most).toPrecision(3))) : "";
}

if (form !== null) {
  if (model.devices.length) chooseDevice();
  startLimit("macs");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.cost.addEventListener("change", () => startLimit(form.elements.cost.value));
  form.addEventListener("input", refresh);
  form.addEventListener("change", refresh);
  refresh();
}
if (model !== null) changed();
