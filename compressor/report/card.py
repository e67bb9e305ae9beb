"""`README.md` of a run: a model card in the hub's format. Every number in it is from the records.

The front matter is written by huggingface_hub itself, so that the hub reads it as its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from compressor.report.markdown import block, code, plain, quote, table
from compressor.report.page import command, differences, not_run
from compressor.report.results import QUALITY, Record, Results
from compressor.run import table as main_rows
from compressor.tables import COLUMNS, _parity

GENERATED = ("bills", "messages")
"""Sources of data that are made up."""
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
LIBRARIES = {"ctranslate2": "ctranslate2", "onnx": "onnx", "gguf": "gguf"}
METRIC_TYPES = {
    **{name: "rouge" for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    **{name: "f1" for name in ("micro_f1", "macro_f1")},
    **{name: name for name in ("roc_auc", "average_precision", "accuracy")},
}
"""Our metric → the hub's type of it."""
DENSE = 0.999
"""From this non-zero ratio on, zeros are no subject."""
FEW_ROWS = 1000


def card(results: Results) -> str:
    """The card of the model that a run ends with: its last export, else its last model."""
    subject = _subject(results)
    sections = [
        ("", _about(results, subject)),
        ("How it was compressed", _history(results, subject)),
        ("Results", _scores(results)),
        ("Sizes", _sizes(results, subject)),
        ("Speed", _speed(results)),
        ("Use", _use(results, subject)),
        ("Limitations", _limitations(results, subject)),
        ("Reproduce", _reproduce(results)),
    ]
    title = plain(results.name) + (f": {plain(_label(results, subject))}" if subject else "")
    body = [f"# {title}"]
    for heading, text in sections:
        body += [f"## {heading}"] * bool(heading and text) + [text] * bool(text)
    text = f"---\n{_front_matter(results, subject)}\n---\n\n" + "\n\n".join(body) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _subject(results: Results) -> Record | None:
    exports = results.of("export")
    return exports[-1] if exports else results.models[-1] if results.models else None


def _source(subject: Record) -> str:
    """The stage whose model it is: an export's is that of the stage it exports."""
    return str(subject["model"] if subject["stage"] == "export" else subject["name"])


def _label(results: Results, subject: Record) -> str:
    return results.label(_source(subject))


# --- front matter ---------------------------------------------------------------------------------


def _front_matter(results: Results, subject: Record | None) -> str:
    """YAML that only says what is known: no language, license or base that nobody named."""
    from huggingface_hub.repocard_data import ModelCardData

    data = results.data
    pipeline = "text-classification" if results.labelled else "summarization"
    exported = subject["metrics"].get("format") if subject and subject["stage"] == "export" else ""
    evaluated = _eval_results(results, subject, pipeline)
    known: dict[str, Any] = {
        "library_name": LIBRARIES.get(str(exported), "transformers"),
        "base_model": _base_model(results, subject),
        "datasets": [data["dataset"]] if data.get("source") == "hub" else None,
        "pipeline_tag": pipeline,
        "tags": _tags(results, subject, str(exported or "")),
    }
    if evaluated:
        known |= {"model_name": results.name, "eval_results": evaluated}
    found = ModelCardData(**{k: value for k, value in known.items() if value})
    return str(found.to_yaml()).strip()


def _tags(results: Results, subject: Record | None, exported: str) -> list[str]:
    """What was done to the model, by the kinds of stages on its way."""
    chain = results.chain(_source(subject)) if subject else []
    kinds = {results.by_name[name]["stage"] for name in chain}
    words = {"prune": "pruned", "quantize": "quantized", "distill": "distilled", "shrink": "pruned"}
    done = [words[kind] for kind in ("prune", "shrink", "distill", "quantize") if kind in kinds]
    return list(dict.fromkeys(["compressor", *done, *([exported] if exported in LIBRARIES else [])]))


def _base_model(results: Results, subject: Record | None) -> str | None:
    """The hub id that the model began as; None for a directory or fresh weights."""
    if subject is None:
        return None
    source = _load_settings(results, subject).get("source")
    if not isinstance(source, str) or not HUB_ID.match(source):
        return None
    return None if source.startswith(".") or Path(source).expanduser().exists() else source


def _load_settings(results: Results, subject: Record) -> dict[str, Any]:
    """How the first model of the subject's chain was loaded."""
    chain = results.chain(_source(subject))
    own = (results.recipe.get("stages") or {}).get(chain[0] if chain else "") or {}
    return {**(results.recipe.get("model") or {}), **own}


def _eval_results(results: Results, subject: Record | None, task: str) -> list[Any]:
    from huggingface_hub.repocard_data import EvalResult

    metrics = _own_metrics(results, subject)
    data = results.data
    dataset = str(data.get("dataset") or data.get("source"))
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=metrics[name],
        )
        for name, kind in METRIC_TYPES.items()
        if isinstance(metrics.get(name), float)
    ]


def _own_metrics(results: Results, subject: Record | None) -> Mapping[str, Any]:
    """What was measured of the very model; of an export's source where both have the same values."""
    if subject is None:
        return {}
    if subject["name"] in results.measured or subject["stage"] != "export":
        return results.measured.get(subject["name"], {})
    same = subject["metrics"].get("weights") == "float32"
    return results.measured.get(_source(subject), {}) if same else {}


# --- body -----------------------------------------------------------------------------------------


def _about(results: Results, subject: Record | None) -> str:
    version = (results.environment.get("packages") or {}).get("compressor")
    by = f"compressor {code(version)}" if version else "compressor"
    parts = [f"Made with {by} from the recipe {code(results.name)}. "
             "Every number below was measured by this run, or by the one that made a cached stage: "
             "`metrics.json` has all of them, and [report.html](report.html) shows them."]  # fmt: skip
    if results.recipe.get("description"):
        parts.insert(0, quote(str(results.recipe["description"])))
    if results.ended != "done":
        reason = f": {plain(results.error)}" if results.error else ""
        missing = ", ".join(code(node["name"]) for node in not_run(results))
        parts.append(f"**This run is not complete**; it was {results.ended}{reason}. "
                     f"Not done: {missing or 'nothing'}.")  # fmt: skip
    if subject is not None:
        base = _base_model(results, subject)
        began = f" It began as {code(base)}." if base else ""
        parts.append(f"The model is {code(_label(results, subject))}.{began}")
    return "\n\n".join(parts)


def _history(results: Results, subject: Record | None) -> str:
    """The stages that the model went through, with their settings, and what the recipe changed."""
    if subject is None:
        return ""
    chain = [results.by_name[name] for name in results.chain(_source(subject))]
    chain += [subject] if subject["stage"] == "export" else []
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
    own = dict((results.recipe.get("stages") or {}).get(name.partition("@")[0]) or {})
    for key in ("stage", "model", "label"):
        own.pop(key, None)
    text = yaml.safe_dump(own, default_flow_style=True, sort_keys=False, allow_unicode=True,
                          width=10**9)  # fmt: skip
    return code(text) if own else ""


def _scores(results: Results) -> str:
    """The table that the console shows, scores alone."""
    rows = main_rows(results.records)
    shown = [c for c in COLUMNS if c[0] not in _NO_SCORES and any(_there(r, c[0]) for r in rows)]
    if not shown:
        return ""
    cells = [
        [plain(str(row["model"])), *(w(row[k]) if _there(row, k) else "" for k, _, w in shown)]
        for row in rows
    ]
    return table(["model", *(plain(heading) for _, heading, _ in shown)], cells)


_NO_SCORES = frozenset({
    *("parameters", "nonzero_ratio", "bytes", "latency_p50_ms", "latency_p95_ms"),
    *("latency_p99_ms", "speedup", "texts_per_second", "tokens_per_second", "resident_bytes"),
})  # fmt: skip


def _there(row: Mapping[str, Any], key: str) -> bool:
    return row.get(key) is not None


def _size_cells(record: Record, resident: float | None = None) -> list[str]:
    if record.get("parameters") is None:
        return ["", "", "", ""]
    return [
        f"{record['parameters']:,}",
        f"{record['nonzero_ratio']:.4f}",
        f"{record['bytes'] / 1e6:.2f}",
        "" if resident is None else f"{resident / 1e6:.0f}",
    ]


def _sizes(results: Results, subject: Record | None) -> str:
    """Four kinds, which are never the same: of the original and of this model."""
    if subject is None:
        return ""
    names = dict.fromkeys(filter(None, (results.original, _source(subject))))
    rows = []
    for name in names:
        resident = results.measured.get(name, {}).get("resident_bytes")
        rows.append([plain(results.label(name)), *_size_cells(results.by_name[name], resident)])
    if subject["stage"] == "export":
        resident = subject["metrics"].get("resident_bytes")
        rows.append([code(subject["name"]), *_size_cells(subject, resident)])
    headings = ("model", "parameters", "non-zero", "MB on disk", "resident MB")
    text = (
        "Parameters count every entry; non-zero is the share that is not zero; MB on disk are the "
        "files with the weights; resident MB is memory of a process that has loaded the model."
    )
    return f"{table(headings, rows)}\n\n{text}{_export_sizes(subject)}"


def _export_sizes(subject: Record) -> str:
    if subject["stage"] != "export":
        return ""
    metrics = subject["metrics"]
    return (
        f" The directory {code('model/')} has {metrics['disk_bytes'] / 1e6:.2f} MB in all; its "
        f"weights are {metrics['gzip_bytes'] / 1e6:.2f} MB after gzip."
    )


def _speed(results: Results) -> str:
    """Times with the machine they were measured on."""
    records = results.of("benchmark")
    rows = []
    for record in records:
        m = record["metrics"]
        rows.append([plain(results.label(record["model"])), *(_number(m, *item) for item in _TIMES)])
    if not rows:
        return ""
    machine = results.environment.get("machine") or {}
    where = ", ".join(code(str(value)) for key, value in machine.items() if key != "threads")
    threads = {record["metrics"].get("threads") for record in records} - {None}
    many = f", {threads.pop()} thread(s)" if len(threads) == 1 else ""
    headings = [heading for _, heading, _ in _TIMES]
    note = "Latency is of the smallest batch, throughput of the largest. Times of a machine that "
    note += "does other things too are noisy."
    return f"{table(['model', *headings], rows)}\n\nOn {where}{many}. {note}"


_TIMES = (
    ("latency_p50_ms", "p50 ms", ".1f"),
    ("latency_p95_ms", "p95 ms", ".1f"),
    ("speedup", "× faster", ".2f"),
    ("texts_per_second", "texts/s", ".1f"),
)


def _number(metrics: Mapping[str, Any], key: str, _: str, form: str) -> str:
    return format(metrics[key], form) if metrics.get(key) is not None else ""


def _use(results: Results, subject: Record | None) -> str:
    """Lines that run as they stand, in the run's folder."""
    if subject is None:
        return ""
    labelled = results.labelled
    if subject["stage"] != "export":
        verb = "classify" if labelled else "summarize"
        return block(f"compressor {verb} {shlex.quote(str(results.folder))} < text.txt", "console")
    kind = subject["metrics"].get("format")
    if kind == "huggingface" and _plain_transformers(results):
        return block(_transformers_lines(results.data, labelled=labelled), "python")
    call = "classify" if labelled else "summarize"
    lines = f'import compressor\n\nmodel = compressor.load("model")\nprint(model.{call}(["A text."]))'
    return f"In the format {code(str(kind))}, which `compressor.load` opens:\n\n{block(lines, 'python')}"


def _plain_transformers(results: Results) -> bool:
    """Whether transformers alone reads an export: not one with a block of `approximate` in it."""
    return not results.of("approximate")


def _transformers_lines(data: Mapping[str, Any], *, labelled: bool) -> str:
    auto = "AutoModelForSequenceClassification" if labelled else "AutoModelForSeq2SeqLM"
    lines = [
        f"from transformers import AutoTokenizer, {auto}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("model")',
        f'model = {auto}.from_pretrained("model")',
        f"text = {data.get('prefix', '')!r} + \"A text.\"",
        f'inputs = tokenizer(text, return_tensors="pt", truncation=True, '
        f"max_length={data['max_source_length']})",
    ]
    if labelled:
        one = data.get("task") == "single_label"
        scores = "softmax(-1)" if one else "sigmoid()"
        lines.append(f"print(dict(zip(model.config.id2label.values(), "
                     f"model(**inputs).logits[0].{scores}.tolist())))")  # fmt: skip
    else:
        lines += [
            f"output = model.generate(**inputs, max_length={data['max_target_length']})",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    return "\n".join(lines)


def _limitations(results: Results, subject: Record | None) -> str:
    """What follows from the numbers and from what the model was made of."""
    if subject is None:
        return ""
    found = [*_of_zeros(results, subject), *_of_scores(results, subject)]
    source = results.data.get("source")
    if source in GENERATED:
        found.append(f"Trained and scored on generated {plain(str(source))}: the scores say nothing "
                     "of texts that people wrote.")  # fmt: skip
    if _load_settings(results, subject).get("source") is None:
        found.append("Its weights began at random: it has seen the recipe's training rows alone.")
    parity = subject["metrics"].get("parity") if subject["stage"] == "export" else None
    if parity:
        found.append(f"The export was held to its source on {parity['rows']} rows: {_parity(parity)}.")
    return "\n".join(f"- {line}" for line in found)


def _of_zeros(results: Results, subject: Record) -> list[str]:
    record, original = results.by_name[_source(subject)], results.original
    if record["nonzero_ratio"] >= DENSE or original is None:
        return []
    before = results.by_name[original]
    if record["parameters"] != before["parameters"]:
        return []
    if subject["metrics"].get("format") == "packed":
        return [
            f"{record['nonzero_ratio']:.4f} of its parameters are not zero. The packed file leaves "
            f"the zeros out; a model that is loaded from it has them, and is no faster for them."
        ]
    return [
        f"{record['nonzero_ratio']:.4f} of its parameters are not zero, yet zeros are stored and "
        f"multiplied as any other number: by themselves they make it neither smaller nor faster. "
        f"Its weights have {record['bytes'] / 1e6:.2f} MB, the original's "
        f"{before['bytes'] / 1e6:.2f} MB."
    ]


def _of_scores(results: Results, subject: Record) -> list[str]:
    metrics = results.measured.get(_source(subject), {})
    if not any(name in metrics for name in QUALITY):
        return ["Its quality was not measured."]
    found = []
    count, interval = metrics.get("count"), (metrics.get("intervals") or {}).get("rougeLsum")
    if count is not None and interval:
        few = "Few rows" if count < FEW_ROWS else "Rows"
        found.append(f"{few}: {count} were scored, and the bootstrap interval of rougeLsum is "
                     f"{interval[0]:.4f} … {interval[1]:.4f}. It tells nothing of another training.")  # fmt: skip
    kept = metrics.get("retention")
    if kept is not None and kept < 1 and results.original:
        found.append(f"It keeps {100 * kept:.1f} % of the main score of "
                     f"{plain(results.label(results.original))}.")  # fmt: skip
    return found


def _reproduce(results: Results) -> str:
    lines = ["compressor reproduce ."]
    if given := command(results.environment):
        lines.append(f"{given}     # the command of this run")
    text = "In this folder, with the versions of `environment.json`; `recipe.yaml` is the whole recipe."
    return f"{block(chr(10).join(lines), 'console')}\n\n{text}"
