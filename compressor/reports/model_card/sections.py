"""Write the sections of a model card, in Markdown. Every number is from the run's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.backends.base import CLASSIFIERS, WRITERS
from compressor.engine.past_run import Record
from compressor.evaluation.metric_names import list_main_scores
from compressor.reports.model_card.markdown import (
    escape,
    format_block,
    format_code,
    format_table,
)
from compressor.reports.model_card.subject import Subject
from compressor.reports.run_page.page import format_command, format_yaml, list_changes
from compressor.reports.run_page.results import QUALITY, Results
from compressor.reports.tables import describe_parity, fill_columns, list_models

GENERATED = ("bills", "messages")
"""Sources of data that are made up."""
DENSE = 0.999
"""From this non-zero ratio on, zeros are no subject."""
FEW_ROWS = 1000
_NO_SCORES = (
    *("parameters", "nonzero_ratio", "bytes", "latency_p50_ms", "latency_p95_ms"),
    *("latency_p99_ms", "speedup", "texts_per_second", "tokens_per_second", "resident_bytes"),
    *("first_token_ms", "prefill_tokens_per_second", "decode_tokens_per_second"),
)
"""Columns of the main table that have a section of their own here."""
_TIMES = (
    ("latency_p50_ms", "p50 ms", ".1f"),
    ("latency_p95_ms", "p95 ms", ".1f"),
    ("speedup", "× faster", ".2f"),
    ("texts_per_second", "texts/s", ".1f"),
)
_OF_DECODERS = (
    ("first_token_ms", "first token ms", ".1f"),
    ("prefill_tokens_per_second", "prefill tokens/s", ",.0f"),
    ("decode_tokens_per_second", "decode tokens/s", ",.0f"),
)


def introduce(results: Results, subject: Subject | None) -> str:
    """Say what it is, from what, and whether the run came to its end."""
    version = results.packages.get("compressor")
    by = f"compressor {format_code(version)}" if version else "compressor"
    description = results.recipe.get("description")
    parts = [f"> {escape(str(description))}"] if description else []
    parts.append(
        f"Made with {by} from the recipe {format_code(results.name)}. Every number below was "
        "measured by this run, or by the one that made a cached stage: `metrics.json` has all of "
        "them, and [report.html](report.html) shows them."
    )
    if results.ended != "done":
        reason = f": {escape(results.error)}" if results.error else ""
        missing = ", ".join(format_code(node["name"]) for node in results.not_run) or "nothing"
        parts.append(
            f"**This run is not complete**; it was {results.ended}{reason}. Not done: {missing}."
        )
    if subject is not None:
        began = f" It began as {format_code(subject.base_model)}." if subject.base_model else ""
        parts.append(f"The model is {format_code(subject.label)}.{began}")
    return "\n\n".join(parts)


def tell_history(subject: Subject) -> str:
    """List the stages that the model went through, and what the recipe changed."""
    results = subject.results
    chain = [*subject.chain, *([subject.record] if subject.export_metrics else [])]
    rows = [
        [
            format_code(record["name"]),
            format_code(record["stage"]),
            _format_settings(results, record["name"]),
            *_format_sizes(record)[:3],
        ]
        for record in chain
    ]
    headings = ("stage", "kind", "settings", "parameters", "non-zero", "MB on disk")
    parts = [format_table(headings, rows, texts=3)]
    for changes in filter(lambda changes: changes["rows"], list_changes(results.request)):
        lines = [f"- {_format_difference(*row)}" for row in changes["rows"]]
        parts.append(f"{escape(changes['heading'])}:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _format_difference(path: str, before: str, after: str) -> str:
    sides = [format_code(side) if side else "(not there)" for side in (before, after)]
    return f"{format_code(path)}: {sides[0]} → {sides[1]}"


def _format_settings(results: Results, name: str) -> str:
    """Write what the recipe sets for a stage, as YAML in one line."""
    stage = (results.recipe.get("stages") or {}).get(name.partition("@")[0]) or {}
    settings = {k: v for k, v in stage.items() if k not in ("stage", "model", "label")}
    return format_code(format_yaml(settings)) if settings else ""


def list_scores(results: Results) -> str:
    """Write the table that the console shows, scores alone."""
    rows = list_models(results.records)
    shown = [(h, cells) for key, h, cells in fill_columns(rows) if key not in _NO_SCORES]
    if not shown:
        return ""
    headings, columns = zip(*shown, strict=True)
    cells = list(zip((escape(str(row["model"])) for row in rows), *columns, strict=True))
    text = format_table(["model", *map(escape, headings)], cells)
    tokenizers = results.rouge_tokenizers
    return f"{text}\n\nROUGE's tokenizer: {tokenizers}." if tokenizers else text


def _format_sizes(record: Record, resident: float | None = None) -> list[str]:
    if record.get("parameters") is None:
        return ["", "", "", ""]
    return [
        f"{record['parameters']:,}",
        f"{record['nonzero_ratio']:.4f}",
        f"{record['bytes'] / 1e6:.2f}",
        "" if resident is None else f"{resident / 1e6:.0f}",
    ]


def list_sizes(subject: Subject) -> str:
    """Write four kinds of sizes, which are never the same, of the original and of this model."""
    results, rows = subject.results, []
    for name in dict.fromkeys(filter(None, (subject.original, subject.source))):
        resident = results.measurements.get(name, {}).get("resident_bytes")
        rows.append([escape(results.label(name)), *_format_sizes(results.by_name[name], resident)])
    text = (
        "Parameters count every entry; non-zero is the share that is not zero; MB on disk are the "
        "files with the weights; resident MB is memory of a process that has loaded the model."
    )
    if metrics := subject.export_metrics:
        cells = _format_sizes(subject.record, metrics.get("resident_bytes"))
        rows.append([format_code(subject.record["name"]), *cells])
        text += (
            f" The directory `model/` has {metrics['disk_bytes'] / 1e6:.2f} MB in all; its "
            f"weights are {metrics['gzip_bytes'] / 1e6:.2f} MB after gzip."
        )
    headings = ("model", "parameters", "non-zero", "MB on disk", "resident MB")
    return f"{format_table(headings, rows)}\n\n{text}"


def list_times(results: Results) -> str:
    """Write times, with the machine they were measured on."""
    records = results.of("benchmark")
    if not records:
        return ""
    of_decoders = any("first_token_ms" in record["metrics"] for record in records)
    columns = _TIMES + (_OF_DECODERS if of_decoders else ())
    rows = [
        [
            escape(results.label(record["model"])),
            *(
                "" if (value := record["metrics"].get(key)) is None else format(value, form)
                for key, _, form in columns
            ),
        ]
        for record in records
    ]
    machine = results.environment.get("machine") or {}
    where = ", ".join(format_code(str(value)) for key, value in machine.items() if key != "threads")
    threads = {record["metrics"].get("threads") for record in records} - {None}
    many = f", threads: {threads.pop()}" if len(threads) == 1 else ""
    note = (
        "Latency is of the smallest batch, throughput of the largest. Times of a machine that does "
        "other things too are noisy."
    )
    headings = ["model", *(heading for _, heading, _ in columns)]
    return f"{format_table(headings, rows)}\n\nOn {where}{many}. {note}"


def show_use(subject: Subject) -> str:
    """Write lines that run as they stand, in the run's folder."""
    results, form = subject.results, subject.export_metrics.get("format")
    task = results.data.get("task", "summarization")
    is_summary = task == "summarization" and subject.head == "seq2seq_lm"
    verb = "classify" if results.has_labels else "summarize" if is_summary else "write"
    whole = subject.head in (*WRITERS, *CLASSIFIERS)  # a body writes nothing
    if form is None and whole:
        return format_block(f"compressor {verb} . < text.txt", "console")
    if form == "huggingface" and not results.of("approximate"):  # its blocks are no transformers'
        return format_block(_write_transformers_code(results.data, subject.head), "python")
    place = "model" if form else "."
    verb = "tag" if subject.head == "token_classification" else verb
    lines = ["import compressor", "", f'model = compressor.load("{place}")']
    lines.append(f'print(model.{verb if whole else "logits"}(["A text."]))')
    if form is None:
        return format_block("\n".join(lines), "python")
    opens = f"In the format {format_code(str(form))}, which `compressor.load` opens:"
    return f"{opens}\n\n{format_block(chr(10).join(lines), 'python')}"


_CLASSES = {
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}
"""A model's head → the class of transformers that loads it; AutoModel for others."""


def _write_transformers_code(data: Mapping[str, Any], head: str) -> str:
    auto = _CLASSES.get(head, "AutoModel")
    limit = f"truncation=True, max_length={data['max_source_length']}"
    is_marked = head == "causal_lm" and data.get("task") != "language_modeling"
    end = " + tokenizer.eos_token" if is_marked else ""  # where the target begins
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
        lines += [
            f"likely = model(**inputs).logits[0].{likely}.tolist()",
            "print(dict(zip(model.config.id2label.values(), likely)))",
        ]
    elif head == "token_classification":
        lines += [
            "tags = model(**inputs).logits[0].argmax(-1).tolist()",
            "names = [model.config.id2label[tag] for tag in tags]",
            "print(list(zip(inputs.tokens(), names)))",
        ]
    elif head == "causal_lm":
        lines += [
            f"output = model.generate(**inputs, max_new_tokens={data['max_target_length']})",
            'written = output[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(written, skip_special_tokens=True))",
        ]
    elif head == "none":
        lines.append("print(model(**inputs).last_hidden_state.shape)")
    else:
        lines += [
            f"output = model.generate(**inputs, max_length={data['max_target_length']})",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    return "\n".join(lines)


def list_limitations(subject: Subject) -> str:
    """List what follows from the numbers and from what the model was made of."""
    sentences = [*_explain_zeros(subject), *_explain_scores(subject)]
    source = subject.results.data.get("source")
    if source in GENERATED:
        made_up = f"Trained and scored on generated {escape(str(source))}"
        sentences.append(f"{made_up}: the scores say nothing of texts that people wrote.")
    if subject.origin is None:
        text = "Its weights began at random: it has seen the recipe's training rows alone."
        sentences.append(text)
    if check := subject.export_metrics.get("parity"):
        parity = describe_parity(check)
        sentences.append(f"The export was held to its source on {check['rows']} rows: {parity}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _explain_zeros(subject: Subject) -> list[str]:
    """Say that zeros alone make nothing smaller or faster, where there are some."""
    results = subject.results
    record, before = results.by_name[subject.source], results.by_name[subject.original]
    if record["nonzero_ratio"] >= DENSE or record["parameters"] != before["parameters"]:
        return []
    kept = f"{record['nonzero_ratio']:.4f} of its parameters are not zero"
    if subject.export_metrics.get("format") == "packed":
        text = "The packed file leaves the zeros out; a model that is loaded from it has them, and"
        return [f"{kept}. {text} is no faster for them."]
    size, original_size = (f"{r['bytes'] / 1e6:.2f} MB" for r in (subject.record, before))
    text = "yet zeros are stored and multiplied as any other number: by themselves they make it"
    sizes = f"Its weights have {size}, the original's {original_size}."
    return [f"{kept}, {text} neither smaller nor faster. {sizes}"]


def _explain_scores(subject: Subject) -> list[str]:
    """Say how far its scores can be trusted."""
    metrics = subject.metrics
    if not _is_scored(metrics):
        if _is_scored(subject.results.measurements.get(subject.source, {})):
            source, weights = format_code(subject.label), escape(subject.export_metrics["weights"])
            return [f"The scores are those of {source}; the export, in {weights}, was not scored."]
        return ["Its quality was not measured."]
    sentences = []
    main = next(iter(list_main_scores(metrics)), "")
    count, interval = metrics.get("count"), (metrics.get("intervals") or {}).get(main)
    if count is not None and interval:
        few = "Few rows" if count < FEW_ROWS else "Rows"
        of_main = f"{escape(main)} is {interval[0]:.4f} … {interval[1]:.4f}"
        scored = f"{few}: {count} were scored, and the bootstrap interval of {of_main}"
        sentences.append(f"{scored}. It tells nothing of another training.")
    kept, original = metrics.get("retention"), subject.results.original
    if kept is not None and kept < 1:
        label = escape(subject.results.label(original))
        sentences.append(f"It keeps {100 * kept:.1f} % of the main score of {label}.")
    return sentences


def _is_scored(metrics: Mapping[str, Any]) -> bool:
    return any(name in metrics for name in (*list_main_scores(metrics), *QUALITY))


def list_commands(results: Results) -> str:
    """Write the commands that give it again."""
    lines = ["compressor reproduce ."] if results.records else []  # else it has nothing to compare
    if command := format_command(results.environment):
        lines.append(f"{command}     # the command of this run")
    text = "In this folder, with the versions that `environment.json` names; `recipe.yaml` is the "
    return f"{format_block(chr(10).join(lines), 'console')}\n\n{text}whole recipe."
