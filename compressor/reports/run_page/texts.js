"use strict";
/* Texts side by side: the most regressed first, twenty at a time, with what differs marked. */

{
  const texts = JSON.parse(document.getElementById("rows").textContent);
  const list = document.getElementById("texts");
  const model = document.getElementById("texts-model");
  const filter = document.getElementById("texts-filter");
  const many = 20, longest = 600;  // rows at a time; words up to which two texts are compared
  let start = 0;

  const add = (parent, name, text = "", className = "") => {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.textContent = text;
    parent.append(element);
    return element;
  };

  /* Which words of two texts are not in their longest common subsequence. */
  function differing(one, other) {
    const [a, b] = [one, other].map((text) => text.split(/(\s+)/).filter((word) => word.trim()));
    const apart = [a.map(() => true), b.map(() => true)];
    if (a.length > longest || b.length > longest) return [null, null];
    const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
      }
    }
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { apart[0][i++] = false; apart[1][j++] = false; }
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
      else j++;
    }
    return apart;
  }

  /* A text as nodes, runs of marked words in a <mark>; white space stays as it was. */
  function marked(parent, text, marks, className) {
    if (!text) { add(parent, "span", "(empty)", "muted"); return; }
    if (!marks) { parent.append(text); return; }
    let word = 0, run = "", gap = "";
    const flush = () => { if (run) add(parent, "mark", run, className); run = ""; };
    for (const part of text.split(/(\s+)/)) {
      if (!part.trim()) { gap += part; continue; }
      const mark = marks[word++];
      if (mark && run) run += gap + part;
      else if (mark) { parent.append(gap); run = part; }
      else { flush(); parent.append(gap + part); }
      gap = "";
    }
    flush();
  }

  const signed = (lost) => (lost > 0 ? "+" : lost < 0 ? "−" : "±") + Math.abs(lost).toFixed(4);
  const chosen = () => (!model ? [] : model.value === "all" ? texts.models.map((_, at) => at) : [Number(model.value)]);
  const known = (line, models) => models.map((at) => line.d[at]).filter((lost) => lost !== null);
  const changed = (line, models) => models.some((at) => line.t[at + 1] !== line.t[0]);

  /* The rows to show, in their order. */
  function found() {
    const models = chosen(), wanted = filter.value.trim().toLowerCase();
    let rows = texts.rows;
    if (texts.labelled && models.length) rows = rows.filter((line) => changed(line, models));
    if (wanted) {
      const has = (text) => text.toLowerCase().includes(wanted);
      rows = rows.filter((line) => has(line.s) || has(line.r) || has(line.t[0]) || models.some((at) => has(line.t[at + 1])));
    }
    if (!models.length) return texts.scored ? [...rows].sort((a, b) => a.q - b.q) : rows;
    const least = new Map(rows.map((line) => [line, Math.min(...known(line, models), Infinity)]));
    return [...rows].sort((a, b) => (least.get(a) === least.get(b) ? 0 : least.get(a) - least.get(b)));
  }

  function side(parent, heading, text, marks, className, lost) {
    const box = add(parent, "div", "", "side");
    const title = add(box, "h3", heading);
    if (lost !== undefined && lost !== null) {
      title.append(" ");
      add(title, "span", signed(lost), lost < 0 ? "lost" : lost > 0 ? "won" : "");
    }
    marked(add(box, "p"), text, marks, className);
  }

  function item(line) {
    const models = chosen(), box = document.createElement("article");
    box.className = "text";
    add(box, "p", `row ${line.n}`, "muted");
    const sides = add(box, "div", "", "sides");
    const pairs = models.map((at) => (texts.labelled ? [null, null] : differing(line.t[0], line.t[at + 1])));
    side(sides, "reference", line.r, null, "");
    side(sides, texts.original, line.t[0], models.length === 1 ? pairs[0][0] : null, "gone");
    models.forEach((at, order) => side(sides, texts.models[at], line.t[at + 1], pairs[order][1], "new", line.d[at]));
    const source = add(box, "details");
    add(source, "summary", "source");
    source.addEventListener("toggle", () => {
      if (source.open && source.children.length === 1) add(source, "p", line.s);
    });
    return box;
  }

  function show() {
    const rows = found();
    start = Math.max(0, Math.min(start, Math.floor((rows.length - 1) / many) * many));
    list.replaceChildren(...rows.slice(start, start + many).map(item));
    if (!rows.length) add(list, "p", filter.value ? "No row has that." : "No row has other labels.", "empty");
    document.getElementById("texts-pages").hidden = rows.length <= many;
    document.getElementById("texts-where").textContent = rows.length
      ? `${start + 1} – ${Math.min(start + many, rows.length)} of ${rows.length}` : "";
    document.getElementById("texts-before").disabled = start === 0;
    document.getElementById("texts-after").disabled = start + many >= rows.length;
  }

  const turn = (by) => { start += by; show(); document.getElementById("texts-heading").scrollIntoView(); };
  document.getElementById("texts-before").addEventListener("click", () => turn(-many));
  document.getElementById("texts-after").addEventListener("click", () => turn(many));
  model?.addEventListener("change", () => { start = 0; show(); });
  filter.addEventListener("input", () => { start = 0; show(); });
  document.getElementById("texts-choices").hidden = false;
  show();
}
