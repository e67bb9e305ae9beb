"""Check that an exported model does what its source does, by running it in a process of its own.

`python -m compressor.evaluation.parity FOLDER TASK OUT` is that process. It loads what a user
would load.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from compressor.core.errors import StageError
from compressor.core.processes import child_environment, end_with_parent
from compressor.core.settings import SETTINGS, Integer, Length
from compressor.evaluation.predictions import guard_cell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.data.rows import Rows
    from compressor.data.source_base import DataBase
    from compressor.models.checkpoint import Checkpoint

LOOSEST = {
    "float32": {"tokens": 0.98, "rouge": 0.005, "logits": 1e-3, "labels": 0.99},
    "16": {"tokens": 0.90, "rouge": 0.02, "logits": 0.05, "labels": 0.97},
    "int8": {"tokens": 0.50, "rouge": 0.03, "logits": 0.2, "labels": 0.9},
}
"""The limits of a recipe that names none. A greedy decode that differs in one token goes on from
another text, so that a share of equal tokens falls faster than the quality does: a T5 of 77 M after
60 steps on titles shared 70 % in CTranslate2's int8, 85 % in ONNX's, and lost 0.6 and 0.1 points of
rougeLsum. Without one of its five layers, the T5 of the tests shares 2 to 29 %."""

OF_DECODERS = {"float32": 0.98, "16": 0.5, "int8": 0.1}
"""Their `tokens`: what goes on from a prompt is free, and its logits are compared too. After six
bills SmolLM2-135M shared 33 % of 96 tokens in CTranslate2's int8, 55 % in ONNX's (33 % after four
of them); logits differed by 0.11 and 0.05 of the largest, and the perplexity of 17.42 was 17.80 and
17.36."""

LIMITS = {
    "tokens": ("equal_tokens", "{:.1%} of greedy tokens are equal"),
    "rouge": ("rougeLsum_difference", "rougeLsum differs by {:.4f}"),
    "labels": ("equal_labels", "{:.1%} of labels are equal"),
    "logits": ("logits_difference", "a logit differs by {:.4g} of the largest"),
}
"""Limit → what is measured for it, and how that is told."""

OUTPUTS, TOLD = "outputs.npz", "told.json"


class Parity(BaseModel):
    """The check of an export: rows of the test split, read by it and by its source.

    Example: `parity: {rows: 64, tokens: 0.95}`
    """

    model_config = SETTINGS

    rows: Integer = Field(32, ge=1, description="Rows of the test split, from its beginning.")
    max_length: Length | None = Field(
        None, description="Limit of a text, in tokens; default: `data.max_target_length`."
    )
    tokens: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Least share of greedy tokens that are equal, place by place; default: 0.98 "
        "for float32 weights, 0.9 for 16 bits, 0.5 for int8; of a decoder 0.98, 0.5, 0.1.",
    )
    rouge: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest difference of rougeLsum (0 … 1) on these rows; default: 0.005, 0.02, "
        "0.03.",
    )
    logits: float | None = Field(
        None,
        ge=0,
        description="Largest difference of a logit of another head, as a share of the largest "
        "logit; default: 0.001, 0.05, 0.2.",
    )
    labels: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Least share of a classifier's labels that are equal, given or not by 0.5 or "
        "the likeliest; default: 0.99, 0.97, 0.9.",
    )

    def choose_limits(self, *weights: str, continues: bool = False) -> dict[str, float]:
        """Choose each measure's limit, for a source and an export with weights of these kinds.

        `continues`: of a decoder.
        """
        kinds = {"float32": "float32", "bfloat16": "16", "float16": "16"}
        coarsest = max((kinds.get(kind, "int8") for kind in weights), key=list(LOOSEST).index)
        limits = LOOSEST[coarsest] | ({"tokens": OF_DECODERS[coarsest]} if continues else {})
        return limits | self.model_dump(include=set(LIMITS), exclude_none=True)


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for some rows."""

    tokens: list[list[int]] | None
    """Of a model that writes, greedily; None of a decoder that torch runs."""
    texts: list[str]
    logits: NDArray[np.float64] | None
    """Of any but an encoder-decoder: its first output, at the token that stands for the row."""


def check_parity(
    settings: Parity,
    checkpoint: Checkpoint,
    folder: Path,
    rows: Rows,
    data: DataBase,
    *,
    weights: Sequence[str],
    evidence: Path | None = None,
) -> dict[str, Any]:
    """Run the model in `folder` in a fresh process, and hold it to `checkpoint`.

    `weights` are those of the source and of the export, as recipes call them. Returns what was
    measured, and the limits. Raises StageError where a limit is passed, and then leaves the rows
    and what both models made of them in `evidence`.
    """
    from compressor.data.examples import tokenize_sources

    rows = rows.first(settings.rows)
    limit = settings.max_length or data.max_target_length
    assert checkpoint.tokenizer is not None, "`export` says so first"
    continues = checkpoint.head == "causal_lm"
    sources = tokenize_sources(rows.texts, checkpoint.tokenizer, data, continues=continues)[:]
    limit = _choose_limit(checkpoint, folder, sources, limit)
    expected = _run_source(checkpoint, sources, limit)
    got, told = _run_export(folder, rows.texts, limit)
    if told["read"] != sources:
        row = next(i for i, (a, b) in enumerate(zip(told["read"], sources, strict=True)) if a != b)
        raise StageError(f"the exported tokenizer reads row {row} of the test split as other ids")
    measured = compare_outputs(expected, got, rows, data)
    limits = settings.choose_limits(*weights, continues=continues)
    if failed := list_failures(measured, limits):
        where = ""
        if evidence is not None:
            if data.task == "token_classification":
                expected, got = (_write_classes(outputs, sources) for outputs in (expected, got))
            keep_evidence(evidence, measured, limits, rows, expected, got)
            where = f"; the rows are in {evidence}"
        raise StageError(f"the exported model is not its source: {'; '.join(failed)}{where}")
    return {
        "parity": {"rows": len(rows), **measured, "limits": limits},
        **{name: told[name] for name in ("load_seconds", "resident_bytes")},
    }


def _choose_limit(
    checkpoint: Checkpoint, folder: Path, sources: Sequence[list[int]], limit: int
) -> int:
    """Choose how many tokens are written, 0 for none: after a prompt, no more than have a position.

    A decoder's logits tell all of an export that torch runs.
    """
    from compressor.backends.formats import FORMATS, ExportInfo

    if checkpoint.head == "seq2seq_lm":
        return limit
    backend = FORMATS[ExportInfo.load(folder).format].backend
    if checkpoint.head != "causal_lm" or backend == "torch":
        return 0
    positions = checkpoint.derive_facts().positions
    room = limit if positions is None else positions - max(map(len, sources), default=0)
    return max(0, min(limit, room))


def _run_source(checkpoint: Checkpoint, sources: list[list[int]], limit: int) -> Outputs:
    """Run the source in this process."""
    from compressor.backends.torch.model import TorchModel

    model = TorchModel(checkpoint)
    try:
        logits = None if checkpoint.head == "seq2seq_lm" else model.logits(sources)
        if not limit:
            return Outputs(None, [], logits)
        tokens = model.generate_each_limit(sources, max_lengths=[limit])[limit].tokens
        texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return Outputs(tokens, texts, logits)
    finally:
        checkpoint.model.to("cpu")


def _run_export(folder: Path, texts: Sequence[str], limit: int) -> tuple[Outputs, dict[str, Any]]:
    """Run the export in a fresh process; also return what that told."""
    import numpy as np

    # Beside the export: interrupted as it is removed, it goes with what was not finished.
    with TemporaryDirectory(prefix=".check-", dir=folder.parent) as temporary:
        task, out = Path(temporary) / "task.json", Path(temporary)
        task.write_text(json.dumps({"texts": list(texts), "limit": limit}), encoding="utf-8")
        module = ("-m", "compressor.evaluation.parity")
        done = subprocess.run(
            [sys.executable, *module, str(folder), str(task), str(out)],
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-6:])
            raise StageError(f"the exported model does not run in a fresh process:\n{last}")
        told: dict[str, Any] = json.loads((out / TOLD).read_text(encoding="utf-8"))
        logits = None
        if (out / OUTPUTS).is_file():
            with np.load(out / OUTPUTS, allow_pickle=False) as file:
                logits = file["logits"]
    return Outputs(told["tokens"], told["written"], logits), told


def equal_share(expected: Sequence[Sequence[int]], got: Sequence[Sequence[int]]) -> float:
    """Share of places with the same token; places that one of two rows lacks are unequal."""
    pairs = list(zip(expected, got, strict=True))
    places = sum(max(len(a), len(b)) for a, b in pairs)
    equal = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    return equal / places if places else 1.0


def compare_outputs(
    expected: Outputs, got: Outputs, rows: Rows, data: DataBase
) -> dict[str, float]:
    import numpy as np

    measured: dict[str, float] = {}
    if expected.tokens is not None and got.tokens is not None:
        measured["equal_tokens"] = equal_share(expected.tokens, got.tokens)
    if expected.logits is None or got.logits is None:
        from compressor.evaluation.rouge import score_rows

        scores = [
            float(score_rows(outputs.texts, rows.references)["rougeLsum"][:, 2].mean())
            for outputs in (expected, got)
        ]
        return measured | {"rougeLsum_difference": abs(scores[0] - scores[1])}
    if expected.logits.shape != got.logits.shape:
        return measured | {"logits_difference": float("inf")}
    difference = np.abs(expected.logits - got.logits).max()
    largest = np.abs(expected.logits).max()
    # A head that is all zero gives zeros, and so has its export to.
    measured["logits_difference"] = float(difference / largest) if difference else 0.0
    if data.task == "multi_label":
        measured["equal_labels"] = float(((expected.logits >= 0) == (got.logits >= 0)).mean())
    elif data.has_labels:  # of each row, or of each token
        measured["equal_labels"] = float((expected.logits.argmax(1) == got.logits.argmax(1)).mean())
    return measured


def list_failures(measured: dict[str, float], limits: dict[str, float]) -> list[str]:
    """Say of each limit by how much it is passed; NaN passes every one."""
    failures = []
    for limit, (name, text) in LIMITS.items():
        value, asked, is_share = measured.get(name), limits[limit], name.startswith("equal")
        if value is not None and not (value >= asked if is_share else value <= asked):
            wanted = f"at least {asked:.0%}" if is_share else f"at most {asked:g}"
            failures.append(f"{text.format(value)}, {wanted} asked")
    return failures


def _write_classes(outputs: Outputs, sources: Sequence[Sequence[int]]) -> Outputs:
    """Write the likeliest class of each token, by number, in the place of logits."""
    import numpy as np

    assert outputs.logits is not None, "what classifies tokens gives logits"
    rows = np.split(outputs.logits.argmax(1), np.cumsum([len(source) for source in sources])[:-1])
    return Outputs(None, [" ".join(map(str, row)) for row in rows], None)


def keep_evidence(
    folder: Path,
    measured: dict[str, float],
    limits: dict[str, float],
    rows: Rows,
    expected: Outputs,
    got: Outputs,
) -> None:
    """Leave what a person needs to see why."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"measured": {k: repr(v) for k, v in measured.items()}, "limits": limits}
    (folder / "parity.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    pairs: Iterable[tuple[Any, Any]] = zip(expected.texts, got.texts, strict=True)
    if expected.logits is not None and got.logits is not None and expected.tokens is None:
        pairs = zip(expected.logits.tolist(), got.logits.tolist(), strict=True)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("row", "source", "of the source model", "of the export"))
        for index, (text, pair) in enumerate(zip(rows.texts, pairs, strict=True)):
            cells = (guard_cell(cell) if isinstance(cell, str) else cell for cell in (text, *pair))
            writer.writerow((index, *cells))


def main(folder: Path, task_file: Path, out: Path) -> None:
    """Load the exported model as a user does, run the task's texts, write what came out."""
    import psutil

    from compressor.backends.predictor import load_predictor

    end_with_parent()
    task = json.loads(task_file.read_text(encoding="utf-8"))
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    loaded = load_predictor(folder)
    told: dict[str, Any] = {"load_seconds": time.perf_counter() - started}
    writes, gives_logits = bool(task["limit"]), loaded.text_settings.head != "seq2seq_lm"
    first = task["texts"][:1]
    if writes:
        loaded.generate(first, max_length=task["limit"])
    else:
        loaded.logits(first)
    told["resident_bytes"] = psutil.Process().memory_info().rss - before
    told |= {"read": loaded.tokenize(task["texts"]), "tokens": None, "written": []}
    if writes:
        told["tokens"] = loaded.generate(task["texts"], max_length=task["limit"]).tokens
        told["written"] = loaded.decode(told["tokens"])
    if gives_logits:
        import numpy as np

        np.savez(out / OUTPUTS, logits=np.asarray(loaded.logits(task["texts"])))
    (out / TOLD).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:4]))
    except StageError as error:
        sys.exit(str(error))
