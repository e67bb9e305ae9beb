"""Fit a classifier's last layer to the labels of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Linear
    from transformers import PreTrainedModel

    from compressor.data.source_base import DataBase


def label_config(data: DataBase) -> dict[str, Any]:
    """Describe the data's labels as transformers' config does."""
    problem = {"problem_type": f"{data.task}_classification"}
    return (problem if data.task != "token_classification" else {}) | {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {name: index for index, name in enumerate(data.labels)},
        "num_labels": len(data.labels),
    }


def fit_head(model: PreTrainedModel, source: Mapping[str, Any], labels: list[str]) -> str:
    """Make the rows of a loaded classifier's last layer mean `labels`, and say how.

    `source` is the config that the model came with. A head for the same labels in another order is
    reordered; one for other labels is drawn anew. A head whose labels have no names, or that
    transformers has just drawn, stays as it is.
    """
    import torch

    kind = "TokenClassification" if is_tagger(model) else "SequenceClassification"
    classes = source.get("architectures") or ()
    if not any(f"For{kind}" in name for name in classes):
        if any("Classification" in name for name in classes):
            _draw(_last_linear(model), model)  # another kind's head can have the same name
        return "fresh"
    pairs = (source.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}).items()
    names = [str(name) for _, name in sorted(pairs, key=lambda pair: int(pair[0]))]
    if len(names) != len(labels):
        return f"fresh: the source's is for {len(names)} labels, not {len(labels)}"
    if names == labels or all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return "the source's"
    head = _last_linear(model)
    if set(names) != set(labels):
        _draw(head, model)
        other = next(name for name in names if name not in labels)
        return f"fresh: the source's is for other labels, such as {other!r}"
    order = [names.index(label) for label in labels]
    with torch.no_grad():
        for tensor in (head.weight, head.bias):
            if tensor is not None:
                tensor.copy_(tensor[order].clone())
    return "the source's, in the order of data.labels"


def _draw(head: Linear, model: PreTrainedModel) -> None:
    import torch

    with torch.no_grad():
        head.weight.normal_(std=getattr(model.config, "initializer_range", 0.02))
        if head.bias is not None:
            head.bias.zero_()


def start_at_labels(model: PreTrainedModel, labels: list[list[int]]) -> None:
    """Set a fresh head's bias, which is all zero, to the log-odds of the labels in some rows.

    `labels`: 0 or 1 for each label, one class a row, or tags of a row's words. Counts are raised by
    a half, so that a label that all rows have, or none, gets finite odds. A head without a bias is
    left alone.
    """
    import torch

    bias = _last_linear(model).bias
    if bias is None or bool(bias.any()):
        return
    if is_tagger(model):
        labels = [[tag] for row in labels for tag in row]
    table, count = torch.tensor(labels, dtype=torch.float64), len(labels)
    with torch.no_grad():
        if model.config.problem_type == "multi_label_classification":
            bias.copy_(torch.logit((table.sum(0) + 0.5) / (count + 1)))
        else:
            counts = torch.bincount(table[:, 0].long(), minlength=model.config.num_labels)
            bias.copy_(((counts + 0.5) / (count + 0.5 * len(counts))).log())


def is_tagger(model: PreTrainedModel) -> bool:
    """Tell whether a model has a class for each token, and not for the text."""
    return type(model).__name__.endswith("ForTokenClassification")


def _last_linear(model: PreTrainedModel) -> Linear:
    from torch.nn import Linear

    return [module for module in model.modules() if isinstance(module, Linear)][-1]
