"use strict";
/* The charts of a run. Each is drawn when it comes near the screen, after the text is there. */

const palette = () => Array.from({ length: 8 }, (_, at) => colour("c" + at));
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const short = (text, most = 26) => plain(text.length > most ? text.slice(0, most - 1) + "…" : text);
const chosen = (id) => document.getElementById(id + "-choice")?.value ?? "0";
const units = { bytes: [1e-6, " MB"], latency_p50_ms: [1, " ms"] };
const headings = { bytes: "weights on disk, MB", latency_p50_ms: "latency p50, ms", micro_f1: "micro F1", macro_f1: "macro F1", entity_f1: "entity F1", validation_loss: "validation loss" };
const lessIsBetter = new Set(data.less_is_better);
const titled = (text) => ({ text: plain(text), font: { size: 13 }, standoff: 10 });
const legend = () => ({ orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } });

/* The place of a plot inside of a chart's own element; made once, and drawn into again. */
function plot(parent, name, title = "") {
  let box = parent.querySelector(`[data-plot="${name}"]`);
  if (!box) {
    const around = document.createElement("div");
    if (title) around.append(Object.assign(document.createElement("h3"), { textContent: title }));
    box = document.createElement("div");
    box.className = "plot";
    box.dataset.plot = name;
    box.setAttribute("role", "img");
    around.append(box);
    parent.append(around);
  }
  box.setAttribute("aria-label", title || parent.closest("section").querySelector("h2").textContent);
  return box;
}
const react = (box, traces, layout) => Plotly.react(box, traces, chartLayout(layout), chartConfig);

/* A colour for each of many lines; beyond the palette the dash tells them apart. */
function style(at) {
  const colours = palette(), dashes = ["solid", "dot", "dash", "dashdot"];
  return { color: colours[at % 8], dash: dashes[Math.floor(at / 8) % 4] };
}

/* With a fixed number of decimals, and more where these would all be zero. */
function rounded(value, digits) {
  const text = value.toFixed(digits);
  return value && !Number(text) ? value.toPrecision(1) : text;
}

/* --- what each stage did ------------------------------------------------------------------------ */
function waterfall(parent) {
  const chain = data.waterfall[chosen("waterfall")];
  const title = (panel) => headings[panel.metric] ?? panel.metric;
  parent.replaceChildren();
  const steps = Math.max(...chain.panels.map((panel) => panel.steps.length));
  parent.classList.toggle("long", steps > 10);
  const boxes = chain.panels.map((panel) => plot(parent, panel.metric, title(panel)));  // all, before one is as wide as the room
  const drawn = chain.panels.map((panel, index) => {
    const [scale, unit] = units[panel.metric] ?? [1, ""];
    const values = panel.steps.map((step) => step.value * scale);
    const largest = Math.max(...values.map(Math.abs));
    const digits = unit ? (largest >= 100 ? 0 : largest >= 10 ? 1 : 2) : 3;
    const good = lessIsBetter.has(panel.metric);
    let level = 0;
    const levels = values.map((value, at) => (level = panel.steps[at].total ? value : level + value));
    const [least, most] = [Math.min(0, ...levels), Math.max(0, ...levels)], room = 0.12 * (most - least);
    const texts = panel.steps.map((step, at) =>
      (step.total || values[at] < 0 ? "" : "+") + rounded(values[at], digits).replace("-", "−"));
    const trace = {
      type: "waterfall", x: values.map((_, at) => at), y: values.map((v, at) => (at === values.length - 1 ? 0 : v)),
      measure: panel.steps.map((step, at) => (at === 0 ? "absolute" : step.total ? "total" : "relative")),
      text: values.length <= (parent.clientWidth < 560 ? 10 : 24) ? texts : undefined, textposition: "outside", cliponaxis: false, textfont: { size: 11, color: colour("text") },
      customdata: panel.steps.map((step, at) => [plain(step.label), texts[at] + unit]),
      hovertemplate: "%{customdata[0]}<br><b>%{customdata[1]}</b><extra></extra>",
      connector: { line: { color: colour("dominated"), width: 1 } },
      increasing: { marker: { color: colour(good ? "bad" : "good") } },
      decreasing: { marker: { color: colour(good ? "good" : "bad") } },
      totals: { marker: { color: colour("c0") } },
    };
    return react(boxes[index], [trace], {
      xaxis: { tickvals: trace.x, ticktext: panel.steps.map((step) => short(step.label, 22)), tickangle: values.length > 20 ? -60 : values.length > 4 ? -40 : 0, showgrid: false, ticks: "" },
      yaxis: { tickformat: "~g", range: room ? [least - room, most + room] : [-0.1, 1], zeroline: true, zerolinecolor: colour("dominated") },
    });
  });
  const notes = [];
  const metrics = (key) => chain.panels.filter((panel) => panel[key]).map(title).join(" and ");
  if (metrics("joined")) notes.push(`Where a stage's model was not measured, its effect is in the next one that was: names joined by + or …, in ${metrics("joined")}.`);
  if (metrics("unchanged")) notes.push("Of bytes, stages that changed nothing are left out.");
  for (const panel of chain.panels) {
    if (panel.after.length) notes.push(`Not measured after the last step, in ${title(panel)}: ${panel.after.join(", ")}.`);
  }
  document.getElementById("waterfall-note").textContent = notes.join(" ");
  return Promise.all(drawn);
}

/* --- losses ------------------------------------------------------------------------------------- */
function losses(parent) {
  const one = chosen("losses");
  const all = one === "all" || data.losses.length === 1;
  const shown = all ? data.losses : [data.losses[one]];
  const log = document.getElementById("losses-log").checked;
  const traces = [], shapes = [];
  let start = 0;
  shown.forEach((training, at) => {
    const { color } = style(all ? at : Number(one));
    const name = plain(training.name), moved = (pairs) => pairs.map(([step]) => start + step);
    const hover = (what) => `${name}, step %{customdata}<br>${what} <b>%{y:.4f}</b><extra></extra>`;
    const common = (pairs) => ({ x: moved(pairs), y: pairs.map((pair) => pair[1]), customdata: pairs.map((pair) => pair[0]), legendgroup: name });
    traces.push({ ...common(training.train), mode: "lines", name, line: { color, width: 1.5 }, hovertemplate: hover("training") });
    traces.push({ ...common(training.validation), mode: "markers", name, showlegend: !training.train.length, marker: { color, size: 9, line: { color: colour("surface"), width: 1.5 } }, hovertemplate: hover("validation") });
    if (at) shapes.push({ type: "line", x0: start, x1: start, y0: 0, y1: 1, yref: "paper", line: { color: colour("line"), width: 1 } });
    start += training.steps;
  });
  return react(plot(parent, "losses"), traces, {
    showlegend: shown.length > 1, legend: legend(), shapes,
    xaxis: { title: titled("optimizer steps"), rangemode: "tozero" },
    yaxis: { title: titled("loss"), type: log ? "log" : "linear", rangemode: log ? "normal" : "tozero", tickformat: "~g" },
  });
}

/* --- sparsity ----------------------------------------------------------------------------------- */
function sparsity(parent) {
  const { groups } = data.sparsity.models[chosen("sparsity")];
  const names = Object.keys(groups);
  const numbers = [...new Set(names.flatMap((name) => groups[name].layers))];
  const layers = numbers.filter((layer) => layer !== null).sort((a, b) => a - b);
  if (numbers.includes(null)) layers.push(null);
  const cell = (name, layer) => {
    const at = groups[name].layers.indexOf(layer);
    return at < 0 ? null : [groups[name].weights[at], groups[name].nonzero[at]];
  };
  const cells = names.map((name) => layers.map((layer) => cell(name, layer)));
  const z = cells.map((row) => row.map((pair) => (pair ? 1 - pair[1] / pair[0] : null)));
  const box = plot(parent, "sparsity");
  box.style.height = 90 + 30 * names.length + "px";
  const wide = (parent.clientWidth - (parent.clientWidth < 560 ? 170 : 260)) / layers.length;  // px of a cell
  const trace = {
    type: "heatmap", z, zmin: 0, zmax: 1, x: layers.map((_, at) => at), y: names.map((_, at) => at), xgap: 2, ygap: 2, hoverongaps: false,
    colorscale: [[0, colour("raised")], [1, colour("c0")]],
    customdata: cells.map((row, y) => row.map((pair, x) => [plain(names[y]) + (layers[x] === null ? "" : `, layer ${layers[x]}`), pair ? (pair[0] - pair[1]).toLocaleString("en") : "", pair ? pair[0].toLocaleString("en") : ""])),
    hovertemplate: "%{customdata[0]}<br><b>%{z:.2%}</b> zero: %{customdata[1]} of %{customdata[2]}<extra></extra>",
    colorbar: { thickness: 10, tickformat: ".0%", outlinewidth: 0, tickfont: { color: colour("muted") }, len: 1 }, showscale: parent.clientWidth >= 560,
  };
  const text = (share) => (share && share < 1 && wide >= 56 ? (100 * share).toFixed(1) : Math.round(100 * share)) + " %";
  const annotations = wide < 38 ? [] : z.flatMap((row, y) => row.flatMap((share, x) => (share === null ? [] : [{
    x, y, text: text(share), showarrow: false, font: { size: 12, color: share > 0.5 ? colour("surface") : colour("text") },
  }])));
  return react(box, [trace], {
    annotations,
    xaxis: { tickvals: trace.x, ticktext: layers.map((layer) => layer ?? "–"), title: titled("layer"), showgrid: false, ticks: "" },
    yaxis: { tickvals: trace.y, ticktext: names.map((name) => short(name)), autorange: "reversed", showgrid: false, ticks: "" },
  });
}

/* --- scores by limit ---------------------------------------------------------------------------- */
function lengths(parent) {
  const { models } = data.lengths, score = document.getElementById("lengths-choice").value;
  const limits = [...new Set(models.flatMap((model) => model.limits))].sort((a, b) => a - b);
  const apart = (at) => (at - (models.length - 1) / 2) * 0.5 / Math.max(models.length, 1);
  const place = (model, at) => model.limits.map((limit) => limits.indexOf(limit) + apart(at));
  const scores = models.map((model, at) => {
    const { color, dash } = style(at), rows = model.scores[score], name = plain(model.name);
    return {
      x: place(model, at), y: rows.map((row) => row[0]), name, mode: "lines+markers", line: { color, dash, width: 1.5 }, marker: { color, size: 7 },
      error_y: { type: "data", symmetric: false, array: rows.map(([mean, , high]) => high === null ? 0 : high - mean), arrayminus: rows.map(([mean, low]) => low === null ? 0 : mean - low), color, thickness: 1.2, width: 3 },
      customdata: rows.map(([, low, high], index) => [low, high, model.limits[index]]),
      hovertemplate: `${name}, max_length %{customdata[2]}<br><b>%{y:.4f}</b>${rows.some(([, low]) => low === null) ? "" : " (%{customdata[0]:.4f} … %{customdata[1]:.4f})"}<extra></extra>`,
    };
  });
  const cuts = models.map((model, at) => {
    const { color, dash } = style(at), name = plain(model.name);
    return {
      x: place(model, at), y: model.cut_off, name, mode: "lines+markers", showlegend: false, line: { color, dash, width: 1.5 }, marker: { color, size: 7 },
      customdata: model.limits, hovertemplate: `${name}, max_length %{customdata}<br><b>%{y:.1%}</b> cut off<extra></extra>`,
    };
  });
  const xaxis = { tickvals: limits.map((_, at) => at), ticktext: limits.map(String), title: titled("max_length"), range: [-0.5, limits.length - 0.5] };
  const high = 320 + 18 * Math.ceil(models.length / 4) + "px";
  const boxes = [plot(parent, "scores", "score"), plot(parent, "cuts", "share cut off")];
  for (const box of boxes) box.style.height = high;
  return Promise.all([
    react(boxes[0], scores, { xaxis, yaxis: { title: titled(score), rangemode: "tozero" }, showlegend: models.length > 1, legend: legend() }),
    react(boxes[1], cuts, { xaxis, yaxis: { tickformat: ".0%", range: [-0.04, 1.04] } }),
  ]);
}

/* --- labels ------------------------------------------------------------------------------------- */
function labels(parent) {
  const { names, models } = data.labels, box = plot(parent, "labels");
  box.style.height = 110 + names.length * (12 + 9 * models.length) + "px";
  const apart = (at) => (at - (models.length - 1) / 2) * 0.6 / models.length;
  const traces = models.map((model, at) => ({
    y: names.map((_, index) => index + apart(at)), x: model.f1, mode: "markers", name: plain(model.name), marker: { color: style(at).color, size: 9 },
    customdata: names.map(plain), hovertemplate: `${plain(model.name)}, %{customdata}<br>F1 <b>%{x:.4f}</b><extra></extra>`,
  }));
  return react(box, traces, {
    showlegend: models.length > 1, legend: legend(), xaxis: { range: [-0.02, 1.02], title: titled("F1") },
    yaxis: { tickvals: names.map((_, at) => at), ticktext: names.map((name) => short(name)), range: [names.length - 0.5, -0.5], showgrid: false, ticks: "" },
  });
}

/* --- sensitivity -------------------------------------------------------------------------------- */
function sensitivity(parent) {
  const stage = data.sensitivity[chosen("sensitivity")];
  const traces = stage.groups.map((group, at) => {
    const { color, dash } = style(at), name = plain(group.name);
    return {
      x: group.points.map((point) => point[0]), y: group.points.map((point) => point[1]), name, mode: "lines+markers", line: { color, dash, width: 1.5 }, marker: { color, size: 6 },
      hovertemplate: `${name} (${(group.weights / 1e6).toFixed(2)} M weights)<br>%{x:.0%} pruned: loss <b>%{y:.4f}</b><extra></extra>`,
    };
  });
  const box = plot(parent, "sensitivity");
  box.style.height = 340 + 18 * Math.ceil(traces.length / (parent.clientWidth < 560 ? 2 : 5)) + "px";
  return react(box, traces, {
    showlegend: true, legend: legend(),
    xaxis: { tickformat: ".0%", title: titled("share of the group that is pruned") }, yaxis: { title: titled("loss") },
  });
}

/* --- benchmarks --------------------------------------------------------------------------------- */
function cases(parent) {
  const names = [...new Set(data.cases.flatMap((model) => model.cases))];
  const apart = (at) => (at - (data.cases.length - 1) / 2) * 0.6 / data.cases.length;
  const traces = data.cases.map((model, at) => {
    const { color } = style(at), name = plain(model.name);
    return {
      y: model.cases.map((each) => names.indexOf(each) + apart(at)), x: model.ms.map(([p50]) => p50), mode: "markers", name, marker: { color, size: 9 },
      error_x: { type: "data", symmetric: false, array: model.ms.map(([p50, p95]) => p95 - p50), arrayminus: model.ms.map(() => 0), color, thickness: 1.3, width: 3 },
      customdata: model.ms.map(([, p95, p99], index) => [plain(model.cases[index]), p95, p99]),
      hovertemplate: `${name}, %{customdata[0]}<br><b>%{x:.1f} ms</b>, p95 %{customdata[1]:.1f}, p99 %{customdata[2]:.1f}<extra></extra>`,
    };
  });
  const box = plot(parent, "cases");
  box.style.height = 120 + names.length * (24 + 12 * data.cases.length) + "px";
  return react(box, traces, {
    showlegend: data.cases.length > 1, legend: legend(), xaxis: { title: titled("ms a batch"), rangemode: "tozero" },
    yaxis: { tickvals: names.map((_, at) => at), ticktext: names.map((name) => short(name, parent.clientWidth < 560 ? 16 : 40)), range: [names.length - 0.5, -0.5], showgrid: false, ticks: "" },
  });
}

/* --- when --------------------------------------------------------------------------------------- */
const draws = { waterfall, losses, sparsity, lengths, labels, sensitivity, cases };
const charts = [...document.querySelectorAll(".chart")];
async function draw(chart) {
  await draws[chart.dataset.chart](chart);
  chart.dataset.drawn = "";
}
const redraw = (id) => {
  const chart = document.getElementById(id);
  if ("drawn" in chart.dataset) draw(chart);
};

function choices() {
  const first = document.getElementById("sparsity-choice");
  if (first) first.value = data.sparsity.first;
  for (const chart of charts) {
    const list = document.getElementById(chart.id + "-choice");
    if (!list) continue;
    const kept = memory.get("choice:" + chart.id, null);
    if ([...list.options].some((option) => option.value === kept)) list.value = kept;
    list.addEventListener("change", () => { memory.set("choice:" + chart.id, list.value); redraw(chart.id); });
  }
  document.getElementById("losses-log")?.addEventListener("change", () => redraw("losses"));
}

function begin() {
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "300px" });
  for (const chart of charts) seen.observe(chart);
  addEventListener("beforeprint", () => { for (const chart of charts) if (!("drawn" in chart.dataset)) draw(chart); });
  onTheme(() => { for (const chart of charts) redraw(chart.id); });
}
choices();
requestAnimationFrame(() => setTimeout(begin));  // after the text has been painted
