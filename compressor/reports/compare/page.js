"use strict";
/* The two charts of a comparison: differences with their intervals, and all models. */

const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "x"];
const runColour = (run) => colour("run-" + (run % symbols.length));
const runSymbol = (run) => symbols[run % symbols.length];
const shortened = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
const hover = () => ({
  bgcolor: colour("surface"), bordercolor: colour("line"), align: "left",
  font: { color: colour("text"), size: 13 },
});
const lines = (...all) => all.filter(Boolean).map((text) => plain(text)).join("<br>");

const differencesChart = document.getElementById("differences");
const modelsChart = document.getElementById("models");
const choice = document.getElementById("metric");
let metric = data.metrics.includes(memory.get("metric", "")) ? memory.get("metric") : data.metrics[0];
const narrow = () => innerWidth < 600;

/* A line for each pair, the first one at the top; a run has a colour and a shape. */
function drawDifferences() {
  const rows = data.pairs.filter((pair) => pair.scores[metric]?.difference != null);
  const isTested = (pair) => pair.scores[metric].low !== null;
  const runs = [...new Set(rows.map((pair) => pair.run))];
  const groups = runs.flatMap((run) => [true, false].map((tested) => ({
    run, tested, mine: rows.filter((pair) => pair.run === run && isTested(pair) === tested),
  })));
  const traces = groups.filter(({ mine }) => mine.length).map(({ run, tested, mine }) => {
    const scores = mine.map((pair) => pair.scores[metric]);
    const reach = (end) => scores.map((score) => Math.abs(score[end] - score.difference));
    const bars = { type: "data", symmetric: false, array: reach("high"), arrayminus: reach("low"), color: runColour(run), thickness: 2, width: 5 };
    return {
      x: scores.map((score) => score.difference), y: mine.map((pair) => rows.indexOf(pair)),
      mode: "markers", cliponaxis: false, hoverlabel: hover(), hoverinfo: "text",
      ...(tested ? { error_x: bars } : {}),
      marker: {
        size: 11, symbol: runSymbol(run) + (tested ? "" : "-open"), color: runColour(run),
        line: { color: tested ? colour("surface") : runColour(run), width: 1.5 },
      },
      hovertext: mine.map((pair, at) => lines(
        pair.name, data.names[run], `${metric} ${scores[at].text}`,
        tested ? `95 % ${scores[at].interval}, p ${scores[at].p}` : "not tested",
      )),
    };
  });
  const ends = rows.flatMap(({ scores: { [metric]: s } }) => [s.difference, s.low ?? 0, s.high ?? 0]);
  const name = (pair) => {
    const text = plain(shortened(pair.name, narrow() ? 16 : 44));
    return pair.headline ? `<b>${text}</b>` : text;
  };
  differencesChart.style.height = `${96 + 34 * rows.length}px`;
  return Plotly.react(differencesChart, traces, chartLayout({
    xaxis: { title: { text: plain(`${metric}, this minus baseline`), font: { size: 13 }, standoff: 10 }, tickformat: "~g", ...around([0, ...ends], 0.06) },
    yaxis: { tickmode: "array", tickvals: rows.map((_, at) => at), ticktext: rows.map(name), range: [rows.length - 0.5, -0.5], showgrid: false, ticks: "" },
    shapes: [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: colour("muted"), width: 1 } }],
  }), chartConfig);
}

/* Every evaluated model: what it takes on disk, and its score. */
function drawModels() {
  const some = data.models.filter((model) => model.scores[metric] != null);
  const traces = data.names.map((name, run) => {
    const mine = some.filter((model) => model.run === run);
    return {
      x: mine.map((model) => model.bytes), y: mine.map((model) => model.scores[metric]),
      // Labels of two runs have room, left and right; those of further ones are told by hovering.
      mode: run < 2 && mine.length <= 6 && !narrow() ? "markers+text" : "markers", cliponaxis: false,
      text: mine.map((model) => plain(shortened(model.label, 24))),
      textposition: run % 2 ? "middle right" : "middle left", textfont: { size: 12, color: colour("text") },
      marker: { size: 12, symbol: runSymbol(run), color: runColour(run), line: { color: colour("surface"), width: 1 } },
      hoverlabel: hover(), hoverinfo: "text",
      hovertext: mine.map((model) => lines(model.label, name, model.size, `${metric} ${model.scores[metric].toFixed(4)}`)),
    };
  });
  return Plotly.react(modelsChart, traces, chartLayout({
    xaxis: { title: { text: "bytes", font: { size: 13 }, standoff: 10 }, tickformat: "~s", ticksuffix: "B", ...around(some.map((model) => model.bytes), 0.2, 0) },
    yaxis: { title: { text: plain(metric), font: { size: 13 }, standoff: 10 }, tickformat: "~g", ...around(some.map((model) => model.scores[metric])) },
  }), chartConfig);
}

/* A range with room beside the marks: a share of what lies between them, but for `least_of_all`. */
function around(values, share = 0.12, least_of_all = -Infinity) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = share * (most - least) || 0.1 * Math.abs(most) || 0.1;
  return values.length ? { range: [Math.max(least_of_all, least - room), most + room] } : {};
}

async function draw() {
  for (const [chart, drawn] of [[differencesChart, drawDifferences], [modelsChart, drawModels]]) {
    if (chart) {
      await drawn();
      chart.dataset.drawn = metric;
    }
  }
}

if (choice) {
  for (const name of data.metrics) choice.add(new Option(name, name));
  choice.value = metric;
  choice.parentElement.hidden = false;
  choice.addEventListener("change", () => {
    metric = choice.value;
    memory.set("metric", metric);
    draw();
  });
}
draw();
onTheme(draw);
