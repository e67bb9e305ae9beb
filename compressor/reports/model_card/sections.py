"""The sections of a model card, as Markdown. Every number in them is from the run's records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from compressor.reports.model_card.subject import Subject
from compressor.reports.run_page.page import command, differences
from compressor.reports.run_page.results import QUALITY, Record, Results
from compressor.reports.tables import COLUMNS, parity
from compressor.reports.tables import table as main_rows

GENERATED = ("bills", "messages")
"""Sources of data that are made up."""

DENSE = 0.999
"""From this non-zero ratio on, zeros are no subject."""

FEW_ROWS = 1000

_NO_SCORES = (
    *("parameters", "nonzero_ratio", "bytes", "latency_p50_ms", "latency_p95_ms"),
    *("latency_p99_ms", "speedup", "texts_per_second", "tokens_per_second", "resident_bytes"),
)
"""Columns of the main table that have a section of their own here."""

_TIMES = (
    ("latency_p50_ms", "p50 ms", ".1f"),
    ("latency_p95_ms", "p95 ms", ".1f"),
    ("speedup", "× faster", ".2f"),
    ("texts_per_second", "texts/s", ".1f"),
)


def about(results: Results, subject: Subject | None) -> str:
    """What it is, from what, and whether the run came to its end."""
    version = (results.environment.get("packages") or {}).get("compressor")
    by = f"compressor {code(version)}" if version else "compressor"
    parts = [quote(str(results.recipe["description"]))] if results.recipe.get("description") else []
    parts.append(
        f"Made with {by} from the recipe {code(results.name)}. Every number below was measured by "
        "this run, or by the one that made a cached stage: `metrics.json` has all of them, and "
        "[report.html](report.html) shows them."
    )
    if results.ended != "done":
        reason = f": {plain(results.error)}" if results.error else ""
        missing = ", ".join(code(node["name"]) for node in results.not_run) or "nothing"
        parts.append(
            f"**This run is not complete**; it was {results.ended}{reason}. Not done: {missing}."
        )
    if subject is not None:
        began = f" It began as {code(subject.base_model)}." if subject.base_model else ""
        parts.append(f"The model is {code(subject.label)}.{began}")
    return "\n\n".join(parts)


def history(subject: Subject) -> str:
    """The stages that the model went through, with their settings, and what the recipe changed."""
    results = subject.results
    chain = [*subject.chain, *([subject.record] if subject.exported else [])]
    rows = [
        [code(r["name"]), code(r["stage"]), _settings(results, r["name"]), *_size_cells(r)[:3]]
        for r in chain
    ]
    headings = ("stage", "kind", "settings", "parameters", "non-zero", "MB on disk")
    parts = [table(headings, rows, texts=3)]
    for each in differences(results.asked):
        if each["rows"]:
            lines = [f"- {_difference(*row)}" for row in each["rows"]]
            parts.append(f"{plain(each['heading'])}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _difference(path: str, before: str, after: str) -> str:
    sides = [code(side) if side else "(not there)" for side in (before, after)]
    return f"{code(path)}: {sides[0]} → {sides[1]}"


def _settings(results: Results, name: str) -> str:
    """What the recipe sets for a stage, as YAML in one line."""
    own = dict((results.recipe.get("stages") or {}).get(name.partition("@")[0]) or {})
    for key in ("stage", "model", "label"):
        own.pop(key, None)
    if not own:
        return ""
    how: Any = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    return code(yaml.safe_dump(own, width=10**9, **how))


def scores(results: Results) -> str:
    """The table that the console shows, scores alone."""
    rows = main_rows(results.records)
    shown = [
        column
        for column in COLUMNS
        if column[0] not in _NO_SCORES and any(row.get(column[0]) is not None for row in rows)
    ]
    if not shown:
        return ""
    cells = [
        [plain(str(row["model"])), *("" if row.get(k) is None else w(row[k]) for k, _, w in shown)]
        for row in rows
    ]
    text = table(["model", *(plain(heading) for _, heading, _ in shown)], cells)
    named = results.rouge_tokenizers
    return f"{text}\n\nROUGE's tokenizer: {named}." if named else text


def _size_cells(record: Record, resident: float | None = None) -> list[str]:
    if record.get("parameters") is None:
        return ["", "", "", ""]
    return [
        f"{record['parameters']:,}",
        f"{record['nonzero_ratio']:.4f}",
        f"{record['bytes'] / 1e6:.2f}",
        "" if resident is None else f"{resident / 1e6:.0f}",
    ]


def sizes(subject: Subject) -> str:
    """Four kinds, which are never the same: of the original and of this model."""
    results, rows = subject.results, []
    for name in dict.fromkeys(filter(None, (subject.original, subject.source))):
        resident = results.measured.get(name, {}).get("resident_bytes")
        rows.append([plain(results.label(name)), *_size_cells(results.by_name[name], resident)])
    text = (
        "Parameters count every entry; non-zero is the share that is not zero; MB on disk are the "
        "files with the weights; resident MB is memory of a process that has loaded the model."
    )
    if exported := subject.exported:
        cells = _size_cells(subject.record, exported.get("resident_bytes"))
        rows.append([code(subject.record["name"]), *cells])
        text += (
            f" The directory {code('model/')} has {exported['disk_bytes'] / 1e6:.2f} MB in all; "
            f"its weights are {exported['gzip_bytes'] / 1e6:.2f} MB after gzip."
        )
    headings = ("model", "parameters", "non-zero", "MB on disk", "resident MB")
    return f"{table(headings, rows)}\n\n{text}"


def speed(results: Results) -> str:
    """Times, with the machine they were measured on."""
    records = results.of("benchmark")
    if not records:
        return ""
    rows = [
        [
            plain(results.label(record["model"])),
            *(_number(record["metrics"], key, form) for key, _, form in _TIMES),
        ]
        for record in records
    ]
    machine = results.environment.get("machine") or {}
    where = ", ".join(code(str(value)) for key, value in machine.items() if key != "threads")
    threads = {record["metrics"].get("threads") for record in records} - {None}
    many = f", threads: {threads.pop()}" if len(threads) == 1 else ""
    note = (
        "Latency is of the smallest batch, throughput of the largest. Times of a machine that does "
        "other things too are noisy."
    )
    headings = ["model", *(heading for _, heading, _ in _TIMES)]
    return f"{table(headings, rows)}\n\nOn {where}{many}. {note}"


def _number(metrics: Mapping[str, Any], key: str, form: str) -> str:
    return format(metrics[key], form) if metrics.get(key) is not None else ""


def use(subject: Subject) -> str:
    """Lines that run as they stand, in the run's folder."""
    results, form = subject.results, subject.exported.get("format")
    verb = "classify" if results.labelled else "summarize"
    whole = subject.head in ("seq2seq_lm", "sequence_classification")  # the others write nothing
    if form is None and whole:
        return block(f"compressor {verb} . < text.txt", "console")
    if form == "huggingface" and not results.of("approximate"):  # its blocks are no transformers'
        return block(_transformers_lines(results.data, subject.head), "python")
    place = "model" if form else "."
    lines = ["import compressor", "", f'model = compressor.load("{place}")']
    lines.append(f'print(model.{verb if whole else "logits"}(["A text."]))')
    if form is None:
        return block("\n".join(lines), "python")
    opens = f"In the format {code(str(form))}, which `compressor.load` opens:"
    return f"{opens}\n\n{block(chr(10).join(lines), 'python')}"


_CLASSES = {
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}
"""A model's head → the class of transformers that loads it; AutoModel for others."""


def _transformers_lines(data: Mapping[str, Any], head: str) -> str:
    auto = _CLASSES.get(head, "AutoModel")
    limit = f"truncation=True, max_length={data['max_source_length']}"
    end = " + tokenizer.eos_token" if head == "causal_lm" else ""  # where the summary begins
    lines = [
        f"from transformers import AutoTokenizer, {auto}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("model")',
        f'model = {auto}.from_pretrained("model")',
        f'text = {data.get("prefix", "")!r} + "A text."{end}',
        f'inputs = tokenizer(text, return_tensors="pt", {limit})',
    ]
    if head == "sequence_classification":
        likely = "softmax(-1)" if data.get("task") == "single_label" else "sigmoid()"
        lines.append(f"likely = model(**inputs).logits[0].{likely}.tolist()")
        lines.append("print(dict(zip(model.config.id2label.values(), likely)))")
    elif head == "causal_lm":
        limit = f"max_new_tokens={data['max_target_length']}"
        lines.append(f"output = model.generate(**inputs, {limit})")
        lines.append('written = output[0, inputs["input_ids"].shape[1] :]')
        lines.append("print(tokenizer.decode(written, skip_special_tokens=True))")
    elif head == "none":
        lines.append("print(model(**inputs).last_hidden_state.shape)")
    else:
        lines.append(f"output = model.generate(**inputs, max_length={data['max_target_length']})")
        lines.append("print(tokenizer.decode(output[0], skip_special_tokens=True))")
    return "\n".join(lines)


def limitations(subject: Subject) -> str:
    """What follows from the numbers and from what the model was made of."""
    found = [*_of_zeros(subject), *_of_scores(subject)]
    source = subject.results.data.get("source")
    if source in GENERATED:
        made_up = f"Trained and scored on generated {plain(str(source))}"
        found.append(f"{made_up}: the scores say nothing of texts that people wrote.")
    if subject.origin is None:
        found.append("Its weights began at random: it has seen the recipe's training rows alone.")
    if check := subject.exported.get("parity"):
        held = f"The export was held to its source on {check['rows']} rows"
        found.append(f"{held}: {parity(check)}.")
    return "\n".join(f"- {line}" for line in found)


def _of_zeros(subject: Subject) -> list[str]:
    """That zeros alone make nothing smaller or faster, where there are some."""
    results = subject.results
    record, before = results.by_name[subject.source], results.by_name[subject.original]
    if record["nonzero_ratio"] >= DENSE or record["parameters"] != before["parameters"]:
        return []
    kept = f"{record['nonzero_ratio']:.4f} of its parameters are not zero"
    if subject.exported.get("format") == "packed":
        text = "The packed file leaves the zeros out; a model that is loaded from it has them, and"
        return [f"{kept}. {text} is no faster for them."]
    own = f"{subject.record['bytes'] / 1e6:.2f} MB"
    text = (
        f"{kept}, yet zeros are stored and multiplied as any other number: by themselves they make "
        f"it neither smaller nor faster. Its weights have {own}, the original's "
        f"{before['bytes'] / 1e6:.2f} MB."
    )
    return [text]


def _of_scores(subject: Subject) -> list[str]:
    """How far its scores can be trusted."""
    metrics = subject.metrics
    if not any(name in metrics for name in QUALITY):
        if any(name in subject.results.measured.get(subject.source, ()) for name in QUALITY):
            source, weights = code(subject.label), plain(str(subject.exported["weights"]))
            return [f"The scores are those of {source}; the export, in {weights}, was not scored."]
        return ["Its quality was not measured."]
    found = []
    count, interval = metrics.get("count"), (metrics.get("intervals") or {}).get("rougeLsum")
    if count is not None and interval:
        few = "Few rows" if count < FEW_ROWS else "Rows"
        ends = f"{interval[0]:.4f} … {interval[1]:.4f}"
        scored = f"{few}: {count} were scored, and the bootstrap interval of rougeLsum is {ends}"
        found.append(f"{scored}. It tells nothing of another training.")
    kept, original = metrics.get("retention"), subject.results.original
    if kept is not None and kept < 1:
        whose = plain(subject.results.label(original))
        found.append(f"It keeps {100 * kept:.1f} % of the main score of {whose}.")
    return found


def reproduce(results: Results) -> str:
    """The commands that give it again."""
    lines = ["compressor reproduce ."] if results.records else []  # else it has nothing to compare
    if given := command(results.environment):
        lines.append(f"{given}     # the command of this run")
    text = "In this folder, with the versions that `environment.json` names; `recipe.yaml` is the "
    return f"{block(chr(10).join(lines), 'console')}\n\n{text}whole recipe."


_MARKUP = re.compile(r"([\\`*_{}\[\]|~#$!])")

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """A text in one line, with all that Markdown or HTML would take for markup escaped."""
    line = " ".join(text.split())
    escaped = "".join(_ENTITIES.get(mark, mark) for mark in _MARKUP.sub(r"\\\1", line))
    # A line that begins so would be a list, a rule or a heading.
    return re.sub(r"^([-+=]|\d+[.)])", lambda found: f"\\{found[0]}" if not found[0][0].isdigit()
                  else f"{found[0][:-1]}\\{found[0][-1]}", escaped)  # fmt: skip


def code(text: str) -> str:
    """A text in one line as a code span, whatever backticks it has."""
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{room}{line}{room}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced block, with a fence that nothing in it ends."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def quote(text: str) -> str:
    """A quotation, as plain text."""
    return f"> {plain(text)}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table of finished Markdown cells; columns after the first `texts` are numbers.

    Columns without any cell are left out.
    """
    kept = [n for n in range(len(headings)) if n < texts or any(row[n] for row in rows)]
    lines = [
        [headings[n] for n in kept],
        ["---" if n < texts else "---:" for n in kept],
        *([_cell(row[n]) for n in kept] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A pipe ends a cell even in a code span, unless it is escaped there too."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)
