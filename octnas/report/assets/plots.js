"use strict";
// The figures: drawn, given legends that wrap, switched between axes, and clicked.

const element = document.getElementById("model");
const model = element === null ? null : JSON.parse(element.textContent);
// What the user has chosen; listeners are called when it changes.
const state = { selected: [], device: 0, listeners: [] };
const MOST_SELECTED = 6;

// On a touch screen, dragging scrolls the page and does not zoom a figure.
const touch = !window.matchMedia("(hover: hover) and (pointer: fine)").matches;
const config = {
  responsive: true, displaylogo: false, showLink: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  displayModeBar: touch ? false : "hover",
};
const SYMBOLS = {
  star: "★", "star-open": "☆", diamond: "◆", "diamond-open": "◇", "triangle-up": "▲",
  "triangle-down": "▼", "triangle-left": "◀", "triangle-right": "▶", square: "■",
  "square-open": "□", x: "✖", "circle-open": "○",
};
const DASHES = { dash: "dashed", dot: "dotted", dashdot: "dashed", longdash: "dashed" };
const SELECTED = {
  mode: "markers", hoverinfo: "skip", showlegend: false, x: [], y: [], name: "selected",
  marker: { size: 24, symbol: "circle-open", color: "#d9a531", line: { width: 3 } },
};

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function plain(label) {
  // Names in figures are escaped for plotly; here they are text.
  return new DOMParser().parseFromString(label, "text/html").body.textContent;
}

function swatch(trace) {
  const marker = trace.marker || {};
  const ring = marker.color === "rgba(0, 0, 0, 0)";
  if (trace.mode === "lines") {
    const line = make("span", undefined, "line");
    line.style.borderTop = `3px ${DASHES[trace.line.dash] || "solid"} ${trace.line.color}`;
    return line;
  }
  const text = ring ? "◯" : SYMBOLS[marker.symbol] || "●";
  const drawn = make("span", text, "mark");
  const colour = ring ? marker.line.color : marker.color;
  if (typeof colour === "string") drawn.style.color = colour;
  return drawn;
}

function addLegend(plot, traces) {
  const legend = make("div", undefined, "legend");
  traces.forEach((trace, index) => {
    const button = make("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(swatch(trace), plain(trace.name || ""));
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!shown));
      Plotly.restyle(plot, { visible: !shown }, [index]);
    });
    legend.append(button);
  });
  (plot.closest(".scroll") || plot).after(legend);
}

const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const figure = JSON.parse(document.getElementById(`${plot.id}-data`).textContent);
  if (touch) figure.layout.dragmode = false;
  const named = figure.data.filter((trace) => trace.name);
  figure.layout.showlegend = false;
  figure.layout.margin.b = 48;
  plot.traces = figure.data.length;
  plot.axes = figure.layout.meta && figure.layout.meta.axes;
  if (plot.axes) figure.data.push(structuredClone(SELECTED));
  Plotly.newPlot(plot, figure.data, figure.layout, config);
  if (named.length > 1) addLegend(plot, named);
  if (plot.axes) {
    plot.on("plotly_click", (event) => {
      const found = event.points.find((point) => typeof point.customdata === "string");
      if (found) toggle(found.customdata);
    });
  }
}

function markSelected(plot) {
  const x = [], y = [];
  for (const trace of plot.data.slice(0, plot.traces)) {
    (trace.customdata || []).forEach((id, index) => {
      if (state.selected.includes(id)) { x.push(trace.x[index]); y.push(trace.y[index]); }
    });
  }
  Plotly.restyle(plot, { x: [x], y: [y] }, [plot.traces]);
}

function switchAxis(key) {
  for (const plot of plots.filter((one) => one.axes)) {
    // Not where nothing in this figure is known, as when only retrained networks were measured.
    const known = plot.axes[key].x.flat().some((value) => value !== null);
    const axis = plot.axes[known ? key : "macs"];
    const traces = [...Array(plot.traces).keys()];
    const layout = {
      "xaxis.title.text": axis.title, "xaxis.autorange": true,
      shapes: axis.shapes, annotations: axis.annotations,
    };
    Plotly.update(plot, { x: axis.x }, layout, traces).then(() => markSelected(plot));
  }
}

const axisChoice = document.getElementById("axis");
const withAxes = plots.find((plot) => plot.axes);
if (axisChoice !== null && withAxes) {
  for (const [key, axis] of Object.entries(withAxes.axes)) {
    axisChoice.append(new Option(axis.label, key));
  }
  if (!model.devices.length) {
    const missing = new Option("latency: not measured", "");
    missing.disabled = true;
    axisChoice.append(missing);
  }
  axisChoice.addEventListener("change", () => switchAxis(axisChoice.value));
}

function changed() {
  plots.filter((plot) => plot.axes).forEach(markSelected);
  for (const listener of state.listeners) listener();
  // Inside another page, as in MLflow, the address cannot be changed.
  if (/^(file|https?):$/.test(location.protocol)) {
    history.replaceState(null, "", `#${state.selected.join(",")}`);
  }
}

function toggle(id) {
  if (!(id in model.architectures)) return;
  const at = state.selected.indexOf(id);
  if (at >= 0) state.selected.splice(at, 1);
  else state.selected = [...state.selected, id].slice(-MOST_SELECTED);
  changed();
}
