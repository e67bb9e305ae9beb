"""The columns of the table: what a recipe's stage gives, and how far that is from the reference.

A family's recipe is planned and run by the real engine. What planning refuses is left out of it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

import compressor
from compressor.backends.base import WRITERS
from compressor.core.console import Console
from compressor.core.errors import RecipeError, StageError
from compressor.core.progress import Progress
from compressor.data.bills import make_bills
from compressor.data.examples import PSEUDO_LABELS, read_pseudo_labels
from compressor.data.messages import LABELS, make_messages
from compressor.engine.engine import Engine
from compressor.engine.launcher import describe_task
from compressor.engine.plan import Plan, plan
from compressor.engine.run_folder import Run
from compressor.engine.store.store import Store
from compressor.engine.worker import TASK
from compressor.evaluation.predictions import guard_cell
from compressor.models.checkpoint import Checkpoint
from compressor.recipe.compose import compose
from compressor.stages.base import Context, Inputs
from compressor.training.launch_config import Launch, Processes
from tests.support import reference
from tests.support.families import TAGGER, TAGS, Family, write
from tests.support.reference import Plain

INFINITE = float("inf")
ROWS, SEED = 8, 39
"""The messages of this seed have every label."""
KEPT_LAYER, PRUNED, SLICED = 1, {"self_attention": 0.4, "feed_forward": 0.5}, 0.5
LIMITS = {
    "max_source_length": reference.SOURCE, "max_target_length": reference.TARGET,
    "rows": dict.fromkeys(("train", "validation", "test"), ROWS),
}  # fmt: skip
_EXPORT = {"stage": "export", "model": "load", "parity": None}
STAGES: Mapping[str, Mapping[str, Any]] = {
    "load": {},
    "finetune": {"model": "load", "epochs": reference.EPOCHS},
    "adapters": {
        "stage": "finetune", "model": "load", "epochs": reference.EPOCHS,
        "lora": {"rank": reference.RANK, "alpha": reference.ALPHA},
    },
    "distill": {
        "model": "load",
        "teacher": "teacher",
        "epochs": 1,
        "losses": {"labels": 0.5, "logits": 0.5},
    },
    "prune": {"model": "load", "importance": "magnitude", "amounts": PRUNED},
    "shrink": {"model": "load"},
    "slice": {"model": "load", "feed_forward": SLICED, "importance": "magnitude"},
    "heads": {"stage": "slice", "model": "load", "heads": SLICED, "importance": "magnitude"},
    "trim": {"stage": "trim_vocabulary", "model": "load", "from_splits": ["train"]},
    "quantize": {"model": "load", "weights": "int8", "activations": "float"},
    "smooth": {"model": "load", "calibration_rows": ROWS},
    "approximate": {
        "model": "load", "layers": [0], "epochs": 0, "inputs": "data",
        "block": {"heads": 2, "head_size": 8, "depth": 1},
    },
    "evaluate": {"model": "load", "max_length": reference.LIMIT},
    "pseudo label": {"model": "load", "max_length": reference.LIMIT},
    "sensitivity": {
        "model": "load", "importance": "magnitude", "amounts": [SLICED], "only": ["feed_forward"],
    },
    "huggingface": _EXPORT | {"format": "huggingface"},
    "packed": _EXPORT | {"format": "packed", "weights": "int8"},
    "ct2": _EXPORT | {"format": "ctranslate2", "weights": "float32"},
    "ct2 int8": _EXPORT | {"format": "ctranslate2", "weights": "int8", "smooth": False},
    "onnx": _EXPORT | {"format": "onnx", "weights": "float32", "model": "shrink"},
    "onnx int8": _EXPORT | {"format": "onnx", "weights": "int8", "model": "shrink"},
    "gguf": _EXPORT | {"format": "gguf", "weights": "float32"},
}  # fmt: skip
"""Column → the stage of the recipe that it is about. Tracing an ONNX graph takes seconds a layer,
so it is made of what `shrink` leaves.
"""


def difference(result: Any, expected: Any) -> float:
    """The largest, as a share of the largest expected value; infinite between two shapes."""
    a, b = (np.asarray(value, dtype=np.float64) for value in (result, expected))
    if a.shape != b.shape or not np.isfinite(b).all():
        return INFINITE
    worst = np.abs(a - b).max() / np.abs(b).max()
    return float(worst) if np.isfinite(worst) else INFINITE


class Subject:
    """A family's model on the disk, its recipe, and what came of each column that was asked for."""

    def __init__(
        self, family: Family, folder: Path, columns: Collection[str], left_out: Collection[str] = ()
    ) -> None:
        """`left_out`: columns of the recipe that are not run."""
        self.family, self.folder = family, folder
        self.store = Store(folder / "store")
        self.refused: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.plain = Plain(family, write(family, folder / "model"), *self.rows("train"))
        self.teacher = write(family, folder / "teacher", seed=1)
        self._write_recipe(columns)
        self.plan = self._run(left_out)

    def rows(self, split: str) -> tuple[list[str], list[Any]]:
        """Texts, and what is learned: of bills a text, since the lengths of summaries vary. A word
        has the tag of its length.
        """
        rows = list(make_bills(ROWS, seed=0, split=split))
        if self.family.head == TAGGER:
            texts = [row["summary"] for row in rows]
            return texts, [[len(word) % len(TAGS) for word in text.split()] for text in texts]
        if not self.family.is_labelled:
            return [row["summary"] for row in rows], [row["text"] for row in rows]
        single = self.family.task == "single_label"
        made = list(make_messages(ROWS, seed=SEED, split=split, single=single))
        given = [[int(name in chosen) for name in LABELS] for _, chosen in made]
        return [text for text, _ in made], [[row.index(1)] if single else row for row in given]

    def _write_recipe(self, columns: Collection[str]) -> None:
        stages = {name: dict(values) for name, values in STAGES.items() if name in columns}
        for stack in self.family.stacks if "shrink" in columns else ():
            stages["shrink"][f"{stack}_layers"] = [KEPT_LAYER]
        if "distill" in columns:
            stages = {"teacher": {"stage": "load", "source": str(self.teacher)}, **stages}
        if self.family.is_labelled and "evaluate" in columns:
            del stages["evaluate"]["max_length"]
        names = {name: name.replace(" ", "_") for name in stages}
        data: dict[str, Any] = {"source": "bills", "text": "summary", "summary": "text"}
        if self.family.is_labelled:
            data = {"source": "messages", "task": self.family.task, "seed": SEED}
        if self.family.head == TAGGER:
            data = self._write_tagged()
        recipe = {
            "defaults": ["/base", "_self_"],
            "pipeline": list(names.values()),
            "model": {"source": str(self.plain.folder), "head": self.family.head},
            "data": data | LIMITS,
            "training": {
                "batch_size": ROWS, "learning_rate": reference.RATE, "warmup_steps": 0,
                "weight_decay": reference.DECAY, "clip_norm": reference.CLIP,
                "precision": "float32",
            },
            "stages": {names[name]: values for name, values in stages.items()},
        }  # fmt: skip
        text = yaml.safe_dump(recipe, sort_keys=False)
        (self.folder / "recipe.yaml").write_text(text, encoding="utf-8")

    def _write_tagged(self) -> dict[str, Any]:
        """Write a file of words and tags for each split, and give the recipe's data."""
        files = {split: str(self.folder / f"{split}.jsonl") for split in LIMITS["rows"]}
        for split, file in files.items():
            lines = [
                json.dumps({"words": text.split(), "tags": [TAGS[tag] for tag in tags]}) + "\n"
                for text, tags in zip(*self.rows(split), strict=True)
            ]
            Path(file).write_text("".join(lines), encoding="utf-8")
        about = {"task": TAGGER, "text": "words", "label": "tags", "labels": [*TAGS]}
        return {"source": "files", "files": files, **about}

    def _run(self, left_out: Collection[str]) -> Plan:
        """Plan and run what is not refused, and does not fail."""
        skipped = {*left_out}
        while True:
            try:
                planned = self._planned(skipped)
                run = Run.create(self.folder / "run", planned, self.store)
                Engine(planned, self.store, run, Progress(Console(), quiet=True)).execute()
                return planned
            except RecipeError as error:
                for problem in error.problems:
                    stage = problem.path.split(".")[1]
                    self.refused[stage.replace("_", " ")] = f"{problem.path}: {problem.message}"
                    skipped.add(stage)
            except StageError as error:
                stage = str(error).split("'")[1]
                self.failed[stage.replace("_", " ")] = str(error)
                skipped.add(stage)

    def _planned(self, skipped: Collection[str]) -> Plan:
        skip = f"skip=[{','.join(sorted(skipped))}]"
        return plan(compose(str(self.folder / "recipe.yaml"), [skip]), self.store)

    def task(self, column: str, folder: Path) -> Path:
        """The file of a stage that is planned and not run, for processes that run it."""
        node = self._planned({name.replace(" ", "_") for name in self.refused}).node(column)
        assert node.key is not None
        context = Context(
            folder=self.store.begin(node.key), resume=self.store.resume_folder(node.key),
            data=self.plan.composed.recipe.data, seed=0, launch=Launch(num_processes=2),
            progress=Progress(Console(), quiet=True), name=column,
        )  # fmt: skip
        inputs = Inputs(self.path("load"))
        task = describe_task(node.kind, node.stage, inputs, context, Processes(2))
        folder.mkdir(parents=True)
        (folder / TASK).write_text(json.dumps(task), encoding="utf-8")
        return folder / TASK

    def path(self, column: str) -> Path:
        """The artifact of a column's stage."""
        key = self.plan.node(column.replace(" ", "_")).key
        assert key is not None
        return self.store.path(key)

    def outcome(self, column: str) -> float | str:
        """Compare a column's result with the reference, or say why there is none."""
        if column in self.refused:
            return f"refused at planning: {self.refused[column]}"
        if column in self.failed:
            return f"failed in the run: {self.failed[column]}"
        return COMPARISONS[column](self)

    def model(self, column: str) -> PreTrainedModel:
        return Checkpoint.load(self.path(column)).model

    def metrics(self, column: str) -> Mapping[str, Any]:
        result: Mapping[str, Any] = self.store.manifest(self.path(column).name)["metrics"]
        return result

    def logits(self, model: PreTrainedModel) -> Tensor:
        """Compute those of the training rows."""
        return reference.logits(model, self.plain.batch)

    def compare(self, column: str, expected: PreTrainedModel) -> float:
        """Compare the logits of a stage's model with those of another."""
        return difference(self.logits(self.model(column)), self.logits(expected))

    @cached_property
    def finetuned(self) -> tuple[PreTrainedModel, list[float]]:
        """The reference's model and losses."""
        model = self.plain.twin()
        loss = reference.label_loss(self.plain)
        return model, reference.train(self.plain, model, loss, reference.EPOCHS)

    def trained(
        self, artifact: Path, expected: tuple[PreTrainedModel, list[float]] | None = None
    ) -> float:
        """A `finetune` stage's model and losses against the reference's."""
        model, losses = expected or self.finetuned
        with (artifact / "losses.csv").open(encoding="utf-8") as file:
            result = [float(row["loss"]) for row in csv.DictReader(file)]
        logits = difference(self.logits(Checkpoint.load(artifact).model), self.logits(model))
        return max(logits, difference(result, losses))


def _adapters(subject: Subject) -> float:
    expected = reference.train_adapters(subject.plain, subject.plan.composed.recipe.seed)
    return subject.trained(subject.path("adapters"), expected)


def _distill(subject: Subject) -> float:
    model = subject.plain.twin()
    loss = reference.distillation_loss(subject.plain, subject.plain.load(subject.teacher))
    reference.train(subject.plain, model, loss, 1)
    return subject.compare("distill", model)


def _prune(subject: Subject) -> float:
    family = subject.family
    patterns = {"self_attention": family.attention, "feed_forward": reference.neurons(family)}
    expected = reference.pruned(subject.plain, {patterns[k]: v for k, v in PRUNED.items()})
    result = dict(subject.model("prune").named_parameters())
    return max(difference(result[n].detach(), p.detach()) for n, p in expected.named_parameters())


def _trim(subject: Subject) -> float:
    """The logits at the pieces that stay, of the same rows in new ids."""
    from transformers import AutoTokenizer

    plain, new = subject.plain, AutoTokenizer.from_pretrained(subject.path("trim"))
    model = subject.model("trim")
    assert len(new) < len(plain.tokenizer), "nothing was trimmed"
    pieces = new.convert_ids_to_tokens(list(range(len(new))))
    old = plain.tokenizer.convert_tokens_to_ids(pieces)
    rows = {was: now for now, was in enumerate(old)}
    batch = {name: tensor.clone() for name, tensor in plain.batch.items()}
    for name in ("input_ids", "labels") if not subject.family.is_labelled else ("input_ids",):
        batch[name].apply_(lambda i: i if i < 0 else rows[i])
    if plain.sources(plain.texts) != [[old[i] for i in r] for r in plain.sources(plain.texts, new)]:
        return INFINITE
    expected, result = subject.logits(plain.model), reference.logits(model, batch)
    if not subject.family.is_labelled:
        expected, result = expected[:, old], result[:, : len(old)]
    return difference(result, expected)


def _quantize(subject: Subject) -> float:
    expected = subject.plain.twin()
    reference.rounded(expected, all_matrices=False)
    return subject.compare("quantize", expected)


def _approximate(subject: Subject) -> float:
    """What is not replaced stays; it is 0 or infinite."""
    result = dict(subject.model("approximate").named_parameters())
    place = f"{subject.family.stacks['encoder']}.0."
    stays = {n: p for n, p in subject.plain.model.named_parameters() if not n.startswith(place)}
    return max(difference(result[n].detach(), p.detach()) for n, p in stays.items())


def _evaluate(subject: Subject) -> float:
    """Compare the texts that are written, or the loss of labels."""
    texts, targets = subject.rows("test")
    if subject.family.is_labelled:
        loss = subject.plain.loss(subject.plain.model, texts, targets)
        return difference(subject.metrics("evaluate")["loss"], loss)
    with (subject.path("evaluate") / "predictions.csv").open(encoding="utf-8", newline="") as file:
        result = [row["prediction"] for row in csv.DictReader(file)]
    expected = [guard_cell(text) for text in subject.plain.summaries(texts)]
    return 0.0 if result == expected else INFINITE


def _pseudo_label(subject: Subject) -> float:
    result = read_pseudo_labels(subject.path("pseudo label") / PSEUDO_LABELS)
    expected = subject.plain.summaries(subject.plain.texts)
    return 0.0 if [label.summary for label in result] == expected else INFINITE


def _sensitivity(subject: Subject) -> float:
    """The losses on the validation rows, before and after half of the neurons' weights go."""
    rows, pattern = subject.rows("validation"), reference.neurons(subject.family)
    models = [subject.plain.model, reference.pruned(subject.plain, {pattern: SLICED})]
    result = subject.metrics("sensitivity")
    losses = [result["loss"], result["groups"]["feed_forward"]["points"][0]["loss"]]
    return difference(losses, [subject.plain.loss(model, *rows) for model in models])


def _huggingface(subject: Subject) -> float:
    result = subject.plain.load(subject.path("huggingface") / "model")
    return difference(subject.logits(result), subject.logits(subject.plain.model))


def _packed(subject: Subject) -> float:
    expected = subject.plain.twin()
    reference.rounded(expected, all_matrices=True)
    result = compressor.load_model(subject.path("packed") / "model")
    return difference(subject.logits(result), subject.logits(expected))


def _exported(column: str) -> Callable[[Subject], float]:
    """Texts that are read as the same ids, and the same outputs for them."""

    def compare(subject: Subject) -> float:
        plain = subject.plain
        shorter = STAGES[column]["model"] == "shrink"
        model = reference.shrunk(plain, KEPT_LAYER) if shorter else plain.model
        loaded = compressor.load(subject.path(column) / "model", threads=1)
        head = subject.family.head
        read = plain.sources if subject.family.is_labelled else plain.prompts
        sources = read(plain.texts)
        if loaded.tokenize(plain.texts) != sources:
            return INFINITE
        tokens: list[list[int]] = []
        if head in WRITERS:
            tokens = [reference.written(model, source) for source in sources]
            result = loaded.generate(plain.texts, max_length=reference.LIMIT).tokens
            if "int8" not in column and result != tokens:
                return INFINITE
        if head != "seq2seq_lm":
            return difference(loaded.logits(plain.texts), _single_logits(model, sources, head))
        if loaded.backend not in SCORES:
            return 0.0
        scores = SCORES[loaded.backend](subject.path(column) / "model", sources, tokens)
        both = zip(sources, tokens, strict=True)
        expected = [reference.log_probabilities(model, *pair) for pair in both]
        return difference(np.concatenate(scores), np.concatenate(expected))

    return compare


@torch.no_grad()
def _single_logits(
    model: PreTrainedModel, sources: list[list[int]], head: str
) -> list[list[float]]:
    """A classifier's for each row alone, or for each token; a decoder's after its last token."""
    result = [model(input_ids=torch.tensor([row])).logits[0] for row in sources]
    if head == TAGGER:
        return [token for row in result for token in row.tolist()]
    return [(row if row.dim() == 1 else row[-1]).tolist() for row in result]


def _ct2_scores(folder: Path, sources: list[list[int]], tokens: list[list[int]]) -> list[Any]:
    import ctranslate2

    pieces = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
    texts = [[[pieces[i] for i in row] for row in rows] for rows in (sources, tokens)]
    results = ctranslate2.Translator(str(folder), intra_threads=1).score_batch(*texts)
    return [done.log_probs[: len(row)] for done, row in zip(results, tokens, strict=True)]


def _onnx_scores(folder: Path, sources: list[list[int]], tokens: list[list[int]]) -> list[Any]:
    from compressor.backends.onnx.runtime import OnnxModel

    model = OnnxModel(folder, threads=1)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    result = []
    for source, row in zip(sources, tokens, strict=True):
        decoder = model._encode_batch([source], 1)
        values = []
        for before, token in zip([settings["decoder_start_token_id"], *row], row, strict=False):
            logits = torch.from_numpy(decoder.step(np.array([before]))[0])
            values.append(float(logits.log_softmax(-1)[token]))
        result.append(values)
    return result


SCORES = {"ctranslate2": _ct2_scores, "onnxruntime": _onnx_scores}

COMPARISONS: Mapping[str, Callable[[Subject], float]] = {
    "load": lambda s: s.compare("load", s.plain.model),
    "finetune": lambda s: s.trained(s.path("finetune")),
    "adapters": _adapters,
    "distill": _distill,
    "prune": _prune,
    "shrink": lambda s: s.compare("shrink", reference.shrunk(s.plain, KEPT_LAYER)),
    "slice": lambda s: s.compare("slice", reference.without_neurons(s.plain, SLICED)),
    "heads": lambda s: s.compare("heads", reference.without_heads(s.plain, SLICED)),
    "trim": _trim,
    "quantize": _quantize,
    "smooth": lambda s: s.compare("smooth", s.plain.model),
    "approximate": _approximate,
    "evaluate": _evaluate,
    "pseudo label": _pseudo_label,
    "sensitivity": _sensitivity,
    "huggingface": _huggingface,
    "packed": _packed,
    **{column: _exported(column) for column in ("ct2", "ct2 int8", "onnx", "onnx int8", "gguf")},
}
"""Column → its difference from the reference."""
