"use strict";
/* What every page has: its data, a memory that survives a reload, tables that sort. */

const data = JSON.parse(document.getElementById("data").textContent);

/* What a person has chosen on this page. Each file keeps its own, for as long as its tab is open. */
const memory = (() => {
  const place = "compressor:" + location.pathname;
  let held = {};
  try { held = JSON.parse(sessionStorage.getItem(place)) ?? {}; } catch { /* none, or not allowed */ }
  return {
    get: (name, otherwise) => held[name] ?? otherwise,
    set(name, value) {
      held[name] = value;
      try { sessionStorage.setItem(place, JSON.stringify(held)); } catch { /* then it is not kept */ }
    },
  };
})();

/* Sort by clicking on headings: ascending, descending, and back to the order of the page.
   A cell's own `data-value` is what counts, or else its text; what is empty comes last both ways.
   Rows that belong together, in a table with `data-rows="bodies"`, are one <tbody> each. */
function sortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const rows = table.dataset.rows === "bodies" ? [...table.tBodies] : [...table.tBodies[0].rows];
  const parent = rows[0]?.parentNode;
  const value = (row, index) => {
    const cell = (row.cells ?? row.rows[0].cells)[index];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  function sort(key, direction) {
    const index = headings.findIndex((heading) => heading.dataset.key === key);
    for (const heading of headings) heading.removeAttribute("aria-sort");
    let sorted = rows;
    if (index >= 0 && direction) {
      headings[index].setAttribute("aria-sort", direction);
      const values = new Map(rows.map((row) => [row, value(row, index)]));
      const filled = rows.filter((row) => values.get(row) !== "");
      const numbers = filled.every((row) => Number.isFinite(Number(values.get(row))));
      const sign = direction === "ascending" ? 1 : -1;
      const compare = numbers
        ? (a, b) => Number(values.get(a)) - Number(values.get(b))
        : (a, b) => values.get(a).localeCompare(values.get(b), undefined, { numeric: true });
      filled.sort((a, b) => sign * compare(a, b));
      sorted = [...filled, ...rows.filter((row) => values.get(row) === "")];
    }
    parent?.append(...sorted);
    memory.set("sort:" + table.id, [key, direction]);
  }
  for (const heading of headings) {
    heading.querySelector("button")?.addEventListener("click", () => {
      const next = { null: "ascending", ascending: "descending", descending: null };
      sort(heading.dataset.key, next[heading.getAttribute("aria-sort")]);
    });
  }
  const kept = memory.get("sort:" + table.id, [null, null]);
  if (kept[1]) sort(...kept);
}
document.querySelectorAll("table.sortable").forEach(sortable);

/* A text that is cut after some lines gets a button that shows the rest. */
for (const text of document.querySelectorAll(".clamped")) {
  const button = text.nextElementSibling;
  const name = "open:" + text.id;
  const show = (open) => {
    text.classList.toggle("open", open);
    button.textContent = open ? "Show less" : "Show all";
    button.setAttribute("aria-expanded", open);
  };
  button.hidden = text.scrollHeight <= text.clientHeight + 1;
  show(!button.hidden && memory.get(name, false));
  button.addEventListener("click", () => {
    const open = !text.classList.contains("open");
    memory.set(name, open);
    show(open);
  });
}

/* A page that is still being written: look every few seconds whether its file has changed, and if
   so read it again. A person finds place, focus and choices as they were. Not while the page is
   out of sight, a pointer is held, text is selected, a list may be open, or `busy` says so. */
function follow(seconds, busy) {
  const boxes = [...document.querySelectorAll(".scroll")];
  const kept = memory.get("place", null);
  if (kept) {
    document.getElementById(kept.focus)?.focus({ preventScroll: true });
    boxes.forEach((box, index) => { box.scrollLeft = kept.across[index] ?? 0; });
    window.scrollTo({ top: kept.down, behavior: "instant" });
    memory.set("place", null);
  }
  if (!data.running) return;
  let held = false, choosing = 0;  // until when a list may be open: a page is not told
  addEventListener("pointerdown", () => { held = true; });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { held = false; });
  for (const list of document.querySelectorAll("select")) {
    for (const begin of ["pointerdown", "keydown"]) {
      list.addEventListener(begin, () => { choosing = Date.now() + 15000; });
    }
    list.addEventListener("change", () => { choosing = 0; });
  }
  setInterval(async () => {
    const waits = () => document.hidden || held || Date.now() < choosing || busy() ||
      !(document.getSelection()?.isCollapsed ?? true);
    if (waits() || !(await changed()) || waits()) return;
    const across = boxes.map((box) => box.scrollLeft);
    memory.set("place", { down: scrollY, across, focus: document.activeElement?.id ?? "" });
    location.reload();
  }, seconds * 1000);
}

/* Whether this page's file is another now. A script may not read files, but a frame may open this
   one and say when it was written; a browser that will not have that counts as "yes". The time in
   the address is for pages that a server gives: an old copy would be no answer. */
function changed() {
  return new Promise((answer) => {
    const frame = document.createElement("iframe");
    frame.hidden = true;
    const end = (other) => {
      clearTimeout(timer);
      removeEventListener("message", hear);
      frame.remove();
      answer(other);
    };
    const hear = ({ source, data: said }) => {
      const own = document.querySelector("meta[name=written]").content;
      if (source === frame.contentWindow) end(said.written !== own);
    };
    const timer = setTimeout(end, 3000, true);
    addEventListener("message", hear);
    frame.src = `${location.pathname}?peek=${Date.now()}`;
    document.body.append(frame);
  });
}
