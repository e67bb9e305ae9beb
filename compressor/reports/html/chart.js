"use strict";
/* What every chart has: this page's colours, and Plotly's settings. */

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const coarse = matchMedia("(pointer: coarse)").matches;

/* A layout in the page's colours; `own` is laid over it, axes included. */
function chartLayout(own) {
  const axis = {
    gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true,
    ticks: "outside", tickcolor: colour("line"), tickfont: { color: colour("muted") },
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("text") },
    margin: { l: 8, r: 14, t: 14, b: 8 }, hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("dominated"), activecolor: colour("accent") },
    dragmode: coarse ? false : "zoom",  // a finger that moves scrolls the page
    ...own, xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis },
  };
}

const chartConfig = {
  responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};

/* Draw again whenever the person's machine turns to the other theme. */
const onTheme = (draw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
