"use strict";
/* The chart of a sweep, and what ties its points to the rows of the table. */

const points = data.points;
const row = (index) => document.getElementById("point-" + index);
const chart = document.getElementById("chart");
const tip = document.getElementById("tip");
const defaults = { ...data.axes };
let axes = { ...defaults };
for (const [axis, metric] of Object.entries(memory.get("axes", {}))) {
  if (metric === null ? axis === "size" : metric in data.metrics) axes[axis] = metric;
}
let range = memory.get("range", null);  // what a person has zoomed to
let drawn = [];  // for each of Plotly's traces, the points that its marks stand for
const FRONT = 0, LIT = 3;  // traces; 1 and 2 are marks

/* Which metrics the front is about: the sweep's objectives, or the axes that a person chose. */
function compared() {
  const own = axes.x === defaults.x && axes.y === defaults.y;
  return own && data.objectives.length ? data.objectives : seen();
}
const seen = () => [axes.x, axes.y].map((metric) => [metric, data.metrics[metric]]);

/* Those of `some` points that no other one dominates. The same as `pareto.front`. */
function front(some, aims) {
  const rows = some
    .map((index) => ({ index, values: aims.map(([metric, aim]) => {
      const value = points[index].metrics[metric];
      return value === null ? null : aim === "maximize" ? value : -value;
    }) }))
    .filter((each) => !each.values.includes(null));
  return rows
    .filter((one) => !rows.some((other) =>
      other.values.every((value, at) => value >= one.values[at]) &&
      other.values.some((value, at) => value > one.values[at])))
    .map((each) => each.index);
}

const done = points.flatMap((point, index) => (point.done ? [index] : []));
const value = (index, axis) => points[index].metrics[axes[axis]];
const isBytes = (metric) => /(^|_)bytes(_|$)/.test(metric);
const arrows = { maximize: "more is better", minimize: "less is better" };
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

function axisLayout(axis, values) {
  const metric = axes[axis], aim = data.metrics[metric];
  const counts = isBytes(metric) || /^(parameters|nonzero)$/.test(metric);
  const title = plain(metric) + (aim ? ` <span style="color:${colour("muted")}">(${arrows[aim]})</span>` : "");
  return {
    title: { text: title, font: { size: 13 }, standoff: 10 },
    tickformat: counts ? "~s" : "~g", hoverformat: "", ticksuffix: isBytes(metric) ? "B" : "",
    ...(new Set(values).size === 1 ? around(values[0]) : {}),
    ...(range ? { range: range[axis], autorange: false } : {}),
  };
}

/* Plotly's own axis for a single value is far wider than it. */
const around = (value) => ({ range: [value - 0.1 * Math.abs(value || 1), value + 0.1 * Math.abs(value || 1)] });

/* Diameters in px: areas go from the least to the most. */
function diameters(shown) {
  const known = shown.map((index) => value(index, "size")).filter((size) => size !== null);
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const least_area = 81, most_area = 900;
  return {
    least, most, none: !known.length,
    of(index) {
      const size = axes.size === null ? null : value(index, "size");
      if (axes.size === null) return 12;
      if (size === null) return 6;
      const share = most > least ? (size - least) / (most - least) : 0.3;
      return Math.sqrt(least_area + share * (most_area - least_area));
    },
  };
}

/* Labels for front points, as many as have room: a label's box may not lie on another mark. */
function labels(shown, front_, size) {
  if (front_.length > 12) return new Map();
  const axis = (name) => chart._fullLayout[name + "axis"];
  const at = (index) => [axis("x").l2p(value(index, "x")), axis("y").l2p(value(index, "y"))];
  const width = axis("x")._length, height = axis("y")._length;
  const boxes = shown.map((index) => {
    const [x, y] = at(index), half = size.of(index) / 2;
    return { index, left: x - half, right: x + half, top: y - half, bottom: y + half };
  });
  const placed = new Map();
  for (const index of front_) {
    const [x, y] = at(index), gap = size.of(index) / 2 + 3;
    const wide = points[index].label.length * 6.4 + 4, high = 15;
    if (!points[index].label || wide > 170) continue;
    const tries = {
      "top center": [x - wide / 2, y - gap - high], "middle right": [x + gap, y - high / 2],
      "bottom center": [x - wide / 2, y + gap], "middle left": [x - gap - wide, y - high / 2],
    };
    for (const [position, [left, top]] of Object.entries(tries)) {
      const box = { index, left, top, right: left + wide, bottom: top + high };
      const inside = box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= height;
      const free = boxes.every((other) => other.right < box.left || other.left > box.right ||
        other.bottom < box.top || other.top > box.bottom);
      if (inside && free) {
        boxes.push(box);
        placed.set(index, position);
        break;
      }
    }
  }
  return placed;
}

async function draw() {
  const shown = done.filter((index) => value(index, "x") !== null && value(index, "y") !== null);
  const aims = compared();
  const both = ["x", "y"].every((axis) => data.metrics[axes[axis]]);
  const best = both ? front(done, aims) : [];
  mark(best);
  const isBest = new Set(best);
  const groups = [shown.filter((index) => !isBest.has(index)), shown.filter((index) => isBest.has(index))];
  const size = diameters(shown);
  const line = both ? front(groups[1], seen()) : [];
  line.sort((a, b) => value(a, "x") - value(b, "x") || value(a, "y") - value(b, "y"));
  const column = (some, axis) => some.map((index) => value(index, axis));
  // Up to the next point, what the point before it gives is the best to be had.
  const shape = data.metrics[axes.x] === "minimize" ? "hv" : "vh";
  const fills = both ? ["rgba(0,0,0,0)", colour("accent")] : [colour("accent"), colour("accent")];
  const edges = both ? [colour("dominated"), colour("surface")] : [colour("surface"), colour("surface")];
  const traces = [
    { x: column(line, "x"), y: column(line, "y"), mode: "lines", hoverinfo: "skip", line: { shape, width: 2, color: colour("accent") }, opacity: 0.55 },
    ...groups.map((some, which) => ({
      x: column(some, "x"), y: column(some, "y"), mode: "markers", hoverinfo: "none", cliponaxis: false,
      marker: { size: some.map(size.of), opacity: 1, color: fills[which], line: { color: edges[which], width: both && !which ? 1.75 : 1 } },
      textfont: { size: 12, color: colour("text") },
    })),
    { x: [], y: [], mode: "markers", hoverinfo: "skip", cliponaxis: false, marker: { size: [], color: "rgba(0,0,0,0)", line: { color: colour("text"), width: 2 } } },
  ];
  drawn = [[], ...groups, []];
  const layout = chartLayout({
    xaxis: axisLayout("x", column(shown, "x")), yaxis: axisLayout("y", column(shown, "y")),
  });
  await Plotly.react(chart, traces, layout, chartConfig);
  const placed = labels(shown, groups[1], size);
  await Plotly.restyle(chart, {
    mode: placed.size ? "markers+text" : "markers",
    text: [groups[1].map((index) => (placed.has(index) ? plain(points[index].label) : ""))],
    textposition: [groups[1].map((index) => placed.get(index) ?? "top center")],
  }, [2]);
  note(shown, best, aims, both, size, placed.size > 0);
}

/* The front in the table: a mark and words, beside the colour. */
function mark(best) {
  points.forEach((_, index) => {
    const place = row(index).querySelector(".mark");
    const on = best.includes(index);
    if (on === Boolean(place.title)) return;
    place.title = on ? "on the Pareto front" : "";
    place.innerHTML = on ? '<span aria-hidden="true">●</span><span class="hidden-text">on the front: </span>' : "";
  });
}

const circle = (diameter, fill, edge) =>
  `<svg width="${diameter}" height="14" aria-hidden="true"><circle cx="${diameter / 2}" cy="7" r="${diameter / 2}" fill="${fill}" stroke="${edge}" stroke-width="1.5"/></svg>`;

/* What the marks mean, and what the chart does not show. */
function note(shown, best, aims, both, size, labelled) {
  const notes = document.getElementById("chart-notes");
  notes.replaceChildren();
  const say = (text, picture = "") => {
    const item = document.createElement("span");
    item.innerHTML = picture;
    item.append(text);
    notes.append(item);
  };
  if (both) {
    const about = aims.map(([metric, aim]) => `${metric} ${aim === "maximize" ? "↑" : "↓"}`).join(", ");
    say(`on the Pareto front of ${about}: ${best.length} of ${done.length}`, circle(11, "var(--accent)", "none"));
    if (best.length < done.length) say("dominated", circle(11, "none", "var(--dominated)"));
  } else {
    const vague = ["x", "y"].map((axis) => axes[axis]).filter((metric) => !data.metrics[metric]);
    say(`No front: neither more nor less ${[...new Set(vague)].join(" or ")} is better.`);
  }
  if (axes.size !== null && !size.none) {
    const text = (index) => cellText(index, axes.size);
    const ends = [size.least, size.most].map((end) => text(shown.find((index) => value(index, "size") === end)));
    say(`${axes.size}: ${size.least === size.most ? ends[0] : ends.join(" to ")}`,
      circle(9, "none", "var(--muted)") + circle(18, "none", "var(--muted)"));
  }
  if (labelled) say(`labels: ${data.labels.join(" · ")}`);
  if (shown.length < done.length) {
    say(`${done.length - shown.length} of ${done.length} done points lack ${axes.x} or ${axes.y} and are not shown`);
  }
}

const headings = [...document.querySelectorAll("#points thead th")];
const cellText = (index, metric) => {
  const at = headings.findIndex((heading) => heading.dataset.key === "metric:" + metric);
  return row(index).rows[0].cells[at].textContent;
};

/* What a point is: what differs, and everything measured. All as text, never as markup. */
function showTip(index, x, y, link) {
  tip.replaceChildren();
  const add = (parent, name, text) => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const name = add(tip, "strong", points[index].name);
  if (row(index).querySelector(".mark").title) add(name, "span", " · on the Pareto front");
  const list = add(tip, "dl", "");
  [...row(index).rows[0].cells].forEach((cell, at) => {
    const key = headings[at].dataset.key;
    if (key === "point" || key === "state" || !cell.textContent) return;
    add(list, "dt", headings[at].querySelector("button").textContent);
    add(list, "dd", cell.textContent);
  });
  if (link && points[index].link) add(tip, "a", "Open this run").href = points[index].link;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const room = document.documentElement.clientWidth - 12;
  const left = x + 16 + width <= room ? x + 16 : Math.max(12, Math.min(x - 16 - width, room - width));
  const top = Math.max(8, Math.min(y - height / 2, innerHeight - height - 8));
  tip.style.left = left + "px";
  tip.style.top = top + "px";
}

function light(index, on) {
  row(index).classList.toggle("lit", on);
  if (!chart?.data) return;
  const which = [1, 2].find((trace) => drawn[trace].includes(index));
  if (which === undefined) return;
  const ring = on ? chart.data[which].marker.size[drawn[which].indexOf(index)] + 7 : 0;
  Plotly.restyle(chart, {
    x: [on ? [value(index, "x")] : []], y: [on ? [value(index, "y")] : []], "marker.size": [on ? [ring] : []],
  }, [LIT]);
}

/* Plotly draws every choice again; the choices themselves are kept for the next reading. */
function choices() {
  const reset = document.getElementById("axes-reset");
  const lists = Object.fromEntries(Object.keys(axes).map((axis) => [axis, document.getElementById("axis-" + axis)]));
  const show = () => {
    for (const [axis, list] of Object.entries(lists)) list.value = axes[axis] ?? "";
    reset.hidden = Object.keys(axes).every((axis) => axes[axis] === defaults[axis]);
  };
  const choose = (chosen) => {
    axes = chosen;
    range = null;
    memory.set("axes", axes);
    memory.set("range", null);
    show();
    draw();
  };
  for (const [axis, list] of Object.entries(lists)) {
    if (axis === "size") list.add(new Option("none", ""));
    for (const metric of Object.keys(data.metrics)) list.add(new Option(metric, metric));
    list.addEventListener("change", () => choose({ ...axes, [axis]: list.value || null }));
  }
  reset.addEventListener("click", () => choose({ ...defaults }));
  document.querySelector(".axes").hidden = false;
  show();
}

function connect() {
  let lit = null;
  const leave = () => {
    if (lit !== null) light(lit, false);
    lit = null;
    tip.hidden = true;
    chart.classList.remove("over");
  };
  let touched = false;  // by a finger or a pen, which cannot hover
  addEventListener("pointerdown", (event) => {
    touched = event.pointerType !== "mouse";
    if (touched && !tip.contains(event.target)) leave();
  }, true);
  const found = ({ points: [mark_] }) => drawn[mark_.curveNumber][mark_.pointIndex];
  const enter = (event) => {
    const index = found(event);
    if (lit !== null && lit !== index) light(lit, false);
    if (lit !== index) light(index, true);
    lit = index;
    chart.classList.add("over");
    const { clientX, clientY } = event.event.changedTouches?.[0] ?? event.event;
    showTip(index, clientX, clientY, touched);
  };
  chart.on("plotly_hover", enter);
  chart.on("plotly_unhover", () => { if (!touched) leave(); });
  // A touch shows what a mouse shows by hovering, with a link to follow; a click follows it.
  chart.on("plotly_click", (event) => {
    const { link } = points[found(event)];
    if (touched) enter(event);
    else if (link) location.href = link;
  });
  addEventListener("scroll", leave, { passive: true });
  chart.on("plotly_relayout", (change) => {
    if (change["xaxis.range[0]"] === undefined && !change["xaxis.autorange"]) return;
    const { xaxis, yaxis } = chart.layout;
    range = change["xaxis.autorange"] ? null : { x: [...xaxis.range], y: [...yaxis.range] };
    memory.set("range", range);
  });
}

points.forEach((_, index) => {
  const body = row(index);
  for (const [begin, end] of [["mouseenter", "mouseleave"], ["focusin", "focusout"]]) {
    body.addEventListener(begin, () => light(index, true));
    body.addEventListener(end, () => light(index, false));
  }
});

const all = document.getElementById("all-metrics");
if (all) {
  const show = () => document.getElementById("points").classList.toggle("brief", !all.checked);
  all.checked = memory.get("all", false);
  all.addEventListener("change", () => { memory.set("all", all.checked); show(); });
  show();
}

if (chart) {
  choices();
  draw().then(() => {
    connect();
    onTheme(draw);
    chart.dataset.drawn = "";
  });
}
follow(4, () => !tip.hidden);
