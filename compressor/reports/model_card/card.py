"""Render `README.md` of a run: a model card in the hub's format. Its sections are `sections`'.

The front matter is written by huggingface_hub itself, so that the hub reads it as its own.
"""

from __future__ import annotations

from typing import Any

from compressor.data.rows import LABEL_TASKS
from compressor.evaluation.metric_names import list_main_scores
from compressor.reports.model_card import sections
from compressor.reports.model_card.markdown import escape
from compressor.reports.model_card.subject import Subject
from compressor.reports.run_page.results import Results

LIBRARIES = {"ctranslate2": "ctranslate2", "onnx": "onnx", "gguf": "gguf", "packed": "compressor"}
"""Format of an export → the hub's name of what runs it; transformers for the others."""
METRIC_TYPES = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "rouge"),
    **dict.fromkeys(("micro_f1", "macro_f1"), "f1"),
    **dict.fromkeys(("entity_f1", "entity_precision", "entity_recall"), "seqeval"),
    **{name: name for name in ("roc_auc", "average_precision", "accuracy")},
}
"""Our metric → the hub's type of it."""
PIPELINE_TAGS = {
    "summarization": "summarization",
    "text2text": "text2text-generation",
    "language_modeling": "text-generation",
    **dict.fromkeys(LABEL_TASKS, "text-classification"),
    "token_classification": "token-classification",
}
"""A recipe's task → the hub's."""
TAGS = dict.fromkeys(("prune", "shrink", "slice"), "pruned")
TAGS |= {"distill": "distilled", "quantize": "quantized"}


def render_card(results: Results) -> str:
    """Render the card of the model that a run ends with: its last export, else its last model."""
    subject = Subject.of(results)
    title = escape(results.name) + (f": {escape(subject.label)}" if subject else "")
    body = [f"# {title}", sections.introduce(results, subject)]
    if subject is not None:
        for heading, text in (
            ("How it was compressed", sections.tell_history(subject)),
            ("Results", sections.list_scores(results)),
            ("Sizes", sections.list_sizes(subject)),
            ("Speed", sections.list_times(results)),
            ("Use", sections.show_use(subject)),
            ("Limitations", sections.list_limitations(subject)),
        ):
            body += [f"## {heading}", text] if text else []
    body += ["## Reproduce", sections.list_commands(results)]
    text = f"---\n{_write_front_matter(results, subject)}\n---\n\n" + "\n\n".join(body) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_front_matter(results: Results, subject: Subject | None) -> str:
    """Write YAML that only says what is known: no language, license or base that nobody named."""
    from huggingface_hub.repocard_data import ModelCardData

    task = PIPELINE_TAGS[results.data.get("task", "summarization")]
    form = str(subject.export_metrics.get("format", "")) if subject else ""
    values: dict[str, Any] = {
        "library_name": LIBRARIES.get(form, "transformers"),
        "base_model": subject and subject.base_model,
        "datasets": [results.data["dataset"]] if results.data.get("source") == "hub" else None,
        "pipeline_tag": task,
        "tags": _list_tags(subject, form),
    }
    if evaluated := _list_eval_results(results, subject, task):
        values |= {"model_name": results.name, "eval_results": evaluated}
    data = ModelCardData(**{key: value for key, value in values.items() if value})
    return str(data.to_yaml()).strip()


def _list_tags(subject: Subject | None, form: str) -> list[str]:
    """List what was done to the model, by the kinds of stages on its way."""
    done = [TAGS[r["stage"]] for r in (subject.chain if subject else ()) if r["stage"] in TAGS]
    if subject and str(subject.export_metrics.get("weights", "")).startswith("int"):
        done.append(TAGS["quantize"])
    return list(dict.fromkeys(["compressor", *done, *filter(LIBRARIES.get, [form])]))


def _list_eval_results(results: Results, subject: Subject | None, task: str) -> list[Any]:
    """List the scores of this very model, as they were measured."""
    from huggingface_hub.repocard_data import EvalResult

    metrics = subject.metrics if subject else {}
    dataset = str(results.data.get("dataset") or results.data.get("source"))
    kinds = METRIC_TYPES | {
        name: name for name in list_main_scores(metrics) if name not in METRIC_TYPES
    }
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
        for name, kind in kinds.items()
        if isinstance(metrics.get(name), float)
    ]
