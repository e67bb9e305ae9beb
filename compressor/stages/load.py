"""`load`: where a model comes from. What can be done with it is for the other stages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from compressor import hub
from compressor.architectures import ConfigError, Facts, architecture, facts, with_whole_numbers
from compressor.backends.tokens import MARIANS
from compressor.data.sources import Data, Reads, Split
from compressor.errors import StageError, Unreachable, nearest
from compressor.extras import installing, versions
from compressor.field_types import SETTINGS as MODEL_SETTINGS
from compressor.field_types import Integer
from compressor.files import MANIFEST, expand_home
from compressor.generation_config import FILE as GENERATION
from compressor.generation_config import (
    SETTINGS,
    TOKEN_IDS,
    find_invalid,
    read_settings,
    settings_in,
    settings_of,
    token_problems,
)
from compressor.model_files import (
    TOKENIZER_FILES,
    digest_model,
    digest_tokenizer,
    missing_packages,
    read_header,
    stored_tensors,
    weight_files,
)
from compressor.redaction import is_secret
from compressor.stage import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from compressor.checkpoint import Checkpoint

PACKED = "packed.safetensors"
"""What `export: {format: packed}` writes."""
_ALL_BUT = 0.85
"""As alike as `n_layers` and `num_layers`; no key of a known config is so like one it is not."""
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "wte.weight")
"""How the names of tables end that a language model's head may be tied to."""


class TrainTokenizer(BaseModel):
    """Train a byte-level tokenizer, which reads any text.

    Example: `tokenizer: {vocab_size: 1500}`
    """

    model_config = MODEL_SETTINGS

    vocab_size: Integer = Field(ge=300, description="Number of pieces, special ones included.")
    data: Data | None = Field(None, description="Rows to train on; default: the recipe's data.")


_OF_THE_RUN = {"attn_implementation", "_attn_implementation", "experts_implementation"}
"""Keys of a config that say how a model is run, and could name code of the hub."""


class Load(Stage):
    """Load a model: a hub id, a local directory, or a fresh one from a config.

    Weights are read from safetensors, or from an old `.bin` with `weights_only` loading; nothing
    is unpickled. The revision is resolved to a commit when planned, and recorded.

    Example: `load: {source: google-t5/t5-small, revision: main}`
    Example: `load: {config: {model_type: t5, d_model: 128}, tokenizer: {vocab_size: 1500}}`
    """

    version: ClassVar[int] = 1
    needs_model: ClassVar[bool] = False
    section: ClassVar[str | None] = "model"

    source: str | None = Field(None, description="Hub id, or path of a local directory.")
    revision: str = Field("main", description="Branch, tag or commit on the hub.")
    config: dict[str, Any] | None = Field(
        None,
        description="Without a source: the config of a fresh model. With one: what a plan counts "
        "with while the hub cannot be reached.",
    )
    head: Literal["seq2seq_lm", "causal_lm", "sequence_classification", "none"] = Field(
        "seq2seq_lm",
        description="What stands on the model's body: seq2seq_lm (T5, BART and their kin), "
        "causal_lm (GPT-2, Llama, Qwen), sequence_classification, or nothing.",
    )
    generation: dict[str, Any] = Field(
        {},
        description="Settings of generation instead of the source's own, such as "
        "`{length_penalty: 2.0}`; null takes one out. Token ids are those of training too.",
    )
    tokenizer: str | TrainTokenizer | None = Field(
        None, description="Hub id, directory, or how to train one; default: the source's own."
    )
    head_bias: Literal["labels", "zero"] = Field(
        "labels",
        description="Where a classifier's fresh head starts. labels: at the log-odds that each "
        "label has in the train split, so that no steps are spent on learning how rare it is "
        "(arXiv 1708.02002, section 3.3).",
    )
    trust_remote_code: bool = Field(
        False, description="Let the source's own Python code run. Only for sources you wrote."
    )

    @field_validator("config")
    @classmethod
    def _counts_in_whole_numbers(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else with_whole_numbers(value)

    @property
    def _classifies(self) -> bool:
        return self.head == "sequence_classification"

    def _labels(self, data: Data) -> dict[str, Any]:
        """What a classifier's config says of the data's labels; nothing of data without any."""
        return label_config(data) if self._classifies and data.task != "summarization" else {}

    @model_validator(mode="after")
    def _has_origin(self) -> Load:
        if self.source is None and self.config is None:
            raise ValueError("set `source` (a hub id or directory) or `config` (a fresh model)")
        return self

    def is_random(self) -> bool:
        return self.source is None or self._classifies  # whose head may be fresh

    def reads(self) -> Mapping[Split, Reads]:
        trains_on_recipe = (
            isinstance(self.tokenizer, TrainTokenizer) and self.tokenizer.data is None
        )
        return {"train": "texts"} if trains_on_recipe or self._starts_at_labels else {}

    @property
    def _starts_at_labels(self) -> bool:
        return self._classifies and self.head_bias == "labels"

    def _directory(self) -> Path | None:
        """The local directory that `source` names, if it names one."""
        return None if self.source is None else _local(self.source)

    def preview(self, planning: Planning) -> Facts | None:
        """Facts from the config alone. Reports a missing directory, model or architecture."""
        if isinstance(self.tokenizer, str):
            there = _local(self.tokenizer)
            if there is not None and not there.is_dir():
                planning.problem("tokenizer", f"no directory {self.tokenizer!r}")
        own, folder = self._config(planning)
        if own is None:
            return None
        config = own
        self._check_one_folder(config, folder, planning)
        model_type = str(config.get("model_type"))
        where = "config.model_type" if self.source is None else "source"
        try:
            module = architecture(model_type)
        except KeyError as error:
            planning.problem(where, str(error.args[0]))
            return None
        if self.head not in module.HEADS:
            hint = nearest(self.head, module.HEADS)
            planning.problem("head", f"{model_type} has no head {self.head!r}; {hint}")
            return None
        for key in _secrets(self.config or {}):
            message = "looks like a secret, and a config is written with every model that is made"
            planning.problem(f"config.{key}", message)
        if self.source is None:
            self._check_keys({*module.DEFAULTS[model_type], *module.ALIASES}, planning)
        generation = self._generation(own, folder, planning)
        ids = self._token_ids(own, module)
        config = {**own, **ids, **self._labels(planning.data)}
        untied = None if folder is None else self._untied_head(folder, config, module, planning)
        try:
            found = facts(config, head=self.head, untied_head=untied)
        except ConfigError as error:
            planning.problem(f"config.{error.key}" if self.source is None else "source", str(error))
            return None
        self._check_vocabulary(found, planning)
        whole = folder is not None
        for name, message in token_problems(found.config, ids, generation, whole=whole):
            path = "source" if self.source is not None else f"config.{name}"
            planning.problem(f"generation.{name}" if name in self.generation else path, message)
        slow = self._check_tokenizer(found, planning)
        return replace(found, slow_tokenizer=slow, generation=generation)

    def _token_ids(self, config: Mapping[str, Any], module: ModuleType) -> dict[str, Any]:
        """The token ids of the model's config, as far as they are known before its tokenizer is."""
        ids: dict[str, Any] = {}
        if self.source is not None:
            ids = dict(getattr(module, "TOKENS", {}).get(config["model_type"], {}))
        elif isinstance(self.tokenizer, TrainTokenizer):
            ids["pad_token_id"] = 0  # the first that is trained
        elif self.tokenizer and (pad := _pad_id(expand_home(self.tokenizer))) is not None:
            ids["pad_token_id"] = pad
        own = {**config, **self.generation}
        return ids | {name: own[name] for name in TOKEN_IDS if name in own}

    def _generation(
        self, config: Mapping[str, Any], folder: Path | None, planning: Planning
    ) -> dict[str, Any]:
        """The settings of a decode: the source's, and instead of them the recipe's own."""
        for name in self.generation:
            if name not in SETTINGS:
                planning.problem(
                    f"generation.{name}", f"no such setting; {nearest(name, SETTINGS)}"
                )
            elif SETTINGS[name] == "recipe" and self.generation[name] is not None:
                message = "is a setting of the stages that decode, such as `evaluate`"
                planning.problem(f"generation.{name}", message)
        if self.generation and self.head not in ("seq2seq_lm", "causal_lm"):
            planning.problem("generation", f"the head {self.head!r} generates nothing")
        own: dict[str, Any] = {}
        try:
            if folder is None:
                own = {} if self.source is None else settings_in(config)
            elif self._directory() or weight_files(folder):
                own = read_settings(folder, config)
            elif self.head in ("seq2seq_lm", "causal_lm"):
                own = self._hub_settings(config)
        except Unreachable as error:
            planning.unreached("source", str(error))
            own = settings_in(config)
        except ValueError as error:
            planning.problem("source", str(error))
        for name in find_invalid(settings := own | self.generation):
            cure = f"`generation: {{{name}: null}}` under `model` leaves it out"
            message = f"transformers refuses its generation config's {name}"
            planning.problem("source", f"{message}, {settings[name]!r}; {cure}")
        return settings

    def _hub_settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a source on the hub whose weights are not here yet; in its config where
        it has no file of them. Raises Unreachable, and ValueError for what is not JSON.
        """
        assert self.source is not None
        commit = hub.commit(self.source, self.revision, "model")
        path = hub.find_file(self.source, GENERATION, commit, "model")
        return settings_in(config) if path is None else settings_of(path)

    def _check_tokenizer(self, found: Facts, planning: Planning) -> bool:
        """Report a tokenizer that cannot be read here; gives whether it is one without a fast twin.

        Of one on the hub its files are not known: Marian's own is taken to be as all are published.
        """
        named = self.source if self.tokenizer is None else self.tokenizer
        if not isinstance(named, str):
            return False
        key = "source" if self.tokenizer is None else "tokenizer"
        directory = _local(named)
        if directory is None:
            is_slow = found.model_type == "marian" and key == "source"
            missing = [] if not is_slow or find_spec("sentencepiece") else ["sentencepiece"]
        else:
            is_slow, missing = (directory / MARIANS).is_file(), missing_packages(directory)
        if missing:
            cure = f"not installed: {installing('sentencepiece')}"
            planning.problem(key, f"its tokenizer needs {' and '.join(missing)}, {cure}")
        if is_slow and planning.data.truncate == "sentences":
            message = "Marian's tokenizer does not tell where in a text a token ends; set 'tokens'"
            planning.problem("data.truncate", message)
        return is_slow

    def _check_vocabulary(self, found: Facts, planning: Planning) -> None:
        """Report more pieces than the embedding has rows, where both are known without a hub."""
        rows = found.config.get("vocab_size")
        if not isinstance(rows, int):
            return
        key = "tokenizer"
        if isinstance(self.tokenizer, TrainTokenizer):
            key, pieces = "tokenizer.vocab_size", self.tokenizer.vocab_size
        else:
            directory = _local(self.tokenizer) if self.tokenizer else self._directory()
            key = key if self.tokenizer else "source"
            pieces = 0 if directory is None else _pieces(directory / "tokenizer.json")
        if pieces > rows:
            planning.problem(
                key,
                f"the tokenizer has {pieces:,} pieces, the model's embedding only {rows:,} rows; "
                "set config.vocab_size to at least as many, or take the model's own tokenizer",
            )

    def _check_keys(self, known: set[str], planning: Planning) -> None:
        """Report a key that is all but one that sizes the model: transformers would pass over it.

        Others stay: a config has keys, such as its task's, that decide nothing here.
        """
        for key in sorted((self.config or {}).keys() & _OF_THE_RUN):
            planning.problem(f"config.{key}", "is for what runs the model to choose; leave it out")
        for key in sorted((self.config or {}).keys() - known):
            if close := difflib.get_close_matches(key, known, n=1, cutoff=_ALL_BUT):
                planning.problem(f"config.{key}", f"no such key; did you mean {close[0]!r}?")

    def _check_one_folder(
        self, config: Mapping[str, Any], folder: Path | None, planning: Planning
    ) -> None:
        """Report weights or code that come from where no key looks."""
        if folder is not None and (folder / "adapter_config.json").is_file():
            message = f"{str(folder)!r} has a PEFT adapter beside the model, which is not loaded; "
            planning.problem("source", f"{message}merge it (`merge_and_unload`) and save that")
        if self.source is not None and "transformers_weights" in config:
            message = "its config's transformers_weights names a file of its own; call that file "
            planning.problem("source", f"{message}model.safetensors, and leave the key out")
        code = config.get("auto_map") if self.trust_remote_code else None
        names = [str(name) for name in (code.values() if isinstance(code, dict) else ())]
        if strange := next((name for name in names if "--" in name), None):
            message = f"the config takes code from another repository, {strange!r}; copy it into "
            planning.problem("trust_remote_code", f"{message}the model's folder")

    def _untied_head(
        self, folder: Path, config: Mapping[str, Any], module: ModuleType, planning: Planning
    ) -> bool | None:
        """Whether the head is a tensor of its own; None: as the config says.

        As `from_pretrained` does it: what a config ties stays apart where the files have both with
        other values. T5's configs always tie. Reports embeddings of which each has other values.
        """
        tensors, defaults = stored_tensors(folder), module.DEFAULTS[config["model_type"]]
        given = {key: value for key, value in config.items() if value is not None}
        full = {**defaults, **given, "head": self.head}
        table = module.ties(full).get(_HEAD)
        if not tensors:  # not here yet, or a `.bin`
            return _unread_head(config)
        if table is None or ("tie_word_embeddings" in defaults and not full["tie_word_embeddings"]):
            return None
        tables = [name for name in tensors if name.endswith(_EMBEDDINGS)]
        if not full.get("share_encoder_decoder_embeddings", True):  # Marian's two vocabularies
            tables = [name for name in tables if name == table]
        for name in tables[1:]:
            if not tensors[name].equals(tensors[tables[0]]):
                message = f"{name} has other values than {tables[0]} in {str(folder)!r}"
                planning.problem("source", f"{message}; only one table for both is offered")
                return None
        return _HEAD in tensors and any(not tensors[_HEAD].equals(tensors[n]) for n in tables[:1])

    def _config(self, planning: Planning) -> tuple[Mapping[str, Any] | None, Path | None]:
        """(config, the folder that it is from)."""
        if self.source is None:
            return self.config, None
        directory = self._directory()
        if directory is not None:
            return self._local_config(directory, planning), directory
        try:
            commit = hub.commit(self.source, self.revision, "model")
            path = hub.file(self.source, "config.json", commit, "model")
            return json.loads(path.read_text(encoding="utf-8")), path.parent
        except Unreachable as error:
            hint = "; for a plan without it, set model.config" if self.config is None else ""
            planning.unreached("source", f"{error}{hint}")
            return self.config, None
        except (ValueError, FileNotFoundError) as error:
            planning.problem("source", str(error))
            return None, None

    def _local_config(self, directory: Path, planning: Planning) -> Mapping[str, Any] | None:
        path = directory / "config.json"
        if (directory / MANIFEST).is_file():
            planning.problem(
                "source",
                f"{str(directory)!r} is an artifact of a run, whose masks or quantized weights "
                "plain transformers would lose; take a folder that `export` wrote, or put the "
                "stages that made it into this recipe (they are cached)",
            )
            return None
        if (directory / PACKED).is_file():
            planning.problem(
                "source",
                f"{str(directory)!r} is a packed export, which `compressor.load_model` reads; "
                "export with `format: huggingface` to load it here",
            )
            return None
        if not path.is_file():
            folder = directory.parent
            there = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
            what = "no config.json in" if directory.is_dir() else "no directory"
            hint = f"; {nearest(directory.name, there)}" if there else ""
            planning.problem("source", f"{what} {str(directory)!r}{hint}")
            return None
        for file in weight_files(directory):
            if not file.is_file():
                planning.problem("source", f"no file {str(file)!r}, which the index names")
                return None
            if file.suffix == ".safetensors" and (short := _cut_off(file)):
                planning.problem("source", f"{str(file)!r} is cut off: {short}; copy it again")
                return None
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too deep
            planning.problem("source", f"{path} is not JSON: {error}")
            return None
        if not isinstance(config, dict):
            planning.problem("source", f"{path} is no model's config: it holds no object")
            return None
        return config

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """The commit, or the digests of a local directory's files; and of the tokenizer's."""
        found: dict[str, Any] = {}
        if self._labels(planning.data):
            found |= {"task": planning.data.task, "labels": list(planning.data.labels)}
        directory = self._directory()
        if directory is not None:
            found["files"] = digest_model(directory, with_code=self.trust_remote_code)
        elif self.source is not None:
            found["commit"] = hub.commit(self.source, self.revision, "model")
        if isinstance(self.tokenizer, str):
            path = expand_home(self.tokenizer)
            found["tokenizer"] = (
                digest_tokenizer(path)
                if path.is_dir()
                else hub.commit(self.tokenizer, "main", "model")
            )
        elif self.tokenizer is not None:
            found |= versions(("tokenizers",))  # another release may train another one
            if self.tokenizer.data is not None:
                found["tokenizer"] = self.tokenizer.data.key("train", "texts")
        return found

    def parameters(self) -> dict[str, Any]:
        """Paths and branches are no part of the key: digests and commits are."""
        fields = super().parameters()
        if not self._classifies:
            del fields["head_bias"]
        if not self.generation:
            del fields["generation"]
        if self.source is not None:
            del fields["source"], fields["revision"], fields["config"]
        if isinstance(self.tokenizer, str):
            del fields["tokenizer"]
        return fields

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Load, and compare what came with the config it was planned from."""
        import torch

        from compressor.checkpoint import Checkpoint
        from compressor.losses import CAUSAL_TYPES

        torch.manual_seed(context.seed)  # a fresh head on a pretrained body is random too
        tokenizer = self._tokenizer(context)
        task = self._labels(context.data)
        if self.source is None:
            model = self._fresh(tokenizer, task)
        else:
            model = self._pretrained(context, task)
        if tokenizer is not None and len(tokenizer) > model.get_input_embeddings().num_embeddings:
            raise StageError(
                f"the tokenizer has {len(tokenizer)} pieces, the model's embedding only "
                f"{model.get_input_embeddings().num_embeddings} rows; raise config.vocab_size"
            )
        checkpoint = Checkpoint(model.eval(), tokenizer, self.head)
        checkpoint.require_finite(
            "the source is damaged, or its training had diverged: take an earlier checkpoint of it"
        )
        if self._classifies and tokenizer is not None and model.config.model_type in CAUSAL_TYPES:
            model.config.pad_token_id = checkpoint.pad_id  # it looks for the last token before
        if task and self._starts_at_labels:
            start_at_labels(model, context.rows("train").labels)
        return checkpoint

    def _fresh(self, tokenizer: PreTrainedTokenizerBase | None, task: Mapping[str, Any]) -> Any:
        """A model with random weights, which means by pad, bos and eos what the tokenizer does."""
        from transformers import AutoConfig

        from compressor.checkpoint import build

        assert self.config is not None
        ids = {k: v for k, v in self.generation.items() if k in TOKEN_IDS}
        values = {**self.config, **task, **ids}
        model_type = values.pop("model_type")
        for token in ("pad", "bos", "eos"):
            number = getattr(tokenizer, f"{token}_token_id", None)
            if number is not None:
                values.setdefault(f"{token}_token_id", number)
        if self.head == "seq2seq_lm":
            values.setdefault("decoder_start_token_id", values.get("pad_token_id", 0))
        config = AutoConfig.for_model(model_type, **values)
        config._attn_implementation = None  # as in `checkpoint.load_config`
        if getattr(config, "forced_eos_token_id", None) and "forced_eos_token_id" not in values:
            config.forced_eos_token_id = (
                config.eos_token_id
            )  # BART's default is its own tokenizer's
        model = build(config, self.head, untied_head=values.get("tie_word_embeddings") is False)
        if self.generation:
            model.generation_config = self._generation_config(model.generation_config.to_dict())
        return model

    def _generation_config(self, own: Mapping[str, Any]) -> GenerationConfig:
        """The source's own with the recipe's settings instead. Raises StageError."""
        from transformers import GenerationConfig

        settings = {k: v for k, v in {**own, **self.generation}.items() if v is not None}
        try:
            return GenerationConfig.from_dict(settings)
        except (ValueError, TypeError) as error:
            raise StageError(f"model.generation: {str(error).splitlines()[0]}") from error

    def _pretrained(self, context: Context, task: Mapping[str, Any]) -> Any:
        from compressor.checkpoint import load_pretrained

        directory = self._directory() or self._download(context)
        trust = self.trust_remote_code
        own = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        generation, config = None, task
        if self.generation:
            generation = self._generation_config(read_settings(directory, own))
            config = {**task, **{k: v for k, v in self.generation.items() if k in TOKEN_IDS}}
        model = load_pretrained(
            directory, self.head, trust_remote_code=trust, config=config, generation=generation
        )
        for name in self.generation.keys() & TOKEN_IDS:
            setattr(model.config, name, self.generation[name])  # of which T5's class knows not all
        if not any(directory.glob("*.safetensors")):
            self._require_planned_head(model, directory)
        if task:
            context.metrics["head"] = said = fit_head(model, own, list(context.data.labels))
            context.progress.say(f"  the classifier's head: {said}")
        return model

    def _require_planned_head(self, model: PreTrainedModel, directory: Path) -> None:
        """Raise StageError where a `.bin`, which a plan does not read, has another head than its
        config says.
        """
        from compressor.checkpoint import has_untied_head

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        planned = _HEAD in facts(config, head=self.head, untied_head=_unread_head(config)).shapes
        if planned != bool(has_untied_head(model)):
            apart = "equal to its embedding" if planned else "other than its embedding"
            raise StageError(
                f"the head in {directory} is {apart}, and its config says otherwise: all counts of "
                "the plan would be wrong. A plan does not read a .bin; save the model once more "
                "with transformers, as safetensors"
            )

    def _download(self, context: Context) -> Path:
        assert self.source is not None
        commit = hub.commit(self.source, self.revision, "model")
        patterns = ["*.json", "*.safetensors", *TOKENIZER_FILES]
        folder = hub.files(self.source, commit, patterns)
        if not any(folder.glob("*.safetensors")):
            folder = hub.files(self.source, commit, [*patterns, "*.bin"])
        context.metrics["commit"] = commit
        return folder

    def _tokenizer(self, context: Context) -> PreTrainedTokenizerBase | None:
        from compressor.checkpoint import has_tokenizer, load_tokenizer

        if isinstance(self.tokenizer, TrainTokenizer):
            from compressor.data.tokenizer import train_tokenizer

            data = self.tokenizer.data
            rows = data.load("train") if data is not None else context.rows("train")
            return train_tokenizer(
                [*rows.texts, *rows.summaries], vocab_size=self.tokenizer.vocab_size
            )
        source = self.tokenizer or self.source
        if source is None:
            return None
        directory = expand_home(source)
        if directory.is_dir():
            return load_tokenizer(directory) if has_tokenizer(directory) else None
        revision = self.revision if self.tokenizer is None else "main"
        commit = hub.commit(source, revision, "model")
        folder = hub.files(source, commit, ["*.json", *TOKENIZER_FILES])  # into the cache, whole
        if missing := missing_packages(folder):
            needs = f"the tokenizer of {source} needs {' and '.join(missing)}"
            raise StageError(f"{needs}, not installed: {installing('sentencepiece')}")
        return load_tokenizer(source, revision=commit)


def label_config(data: Data) -> dict[str, Any]:
    """What transformers' config says of a classifier for the data's labels."""
    several = data.task == "multi_label"
    return {
        "problem_type": f"{'multi' if several else 'single'}_label_classification",
        "id2label": dict(enumerate(data.labels)),
        "label2id": {name: index for index, name in enumerate(data.labels)},
        "num_labels": len(data.labels),
    }


def fit_head(model: PreTrainedModel, own: Mapping[str, Any], labels: list[str]) -> str:
    """Make the rows of a loaded classifier's last layer mean `labels`, in their order.

    `own` is the config that the source came with. A head for the same labels in another order is
    put in this one; one for other labels is drawn anew. Says which, and leaves a head alone whose
    labels have no names, or that transformers has just drawn.
    """
    import torch
    from torch import nn

    if not any("ForSequenceClassification" in name for name in own.get("architectures") or ()):
        return "fresh"
    named = own.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    names = [str(name) for _, name in sorted(named.items(), key=lambda item: int(item[0]))]
    if len(names) != len(labels):
        return f"fresh: the source's is for {len(names)} labels, not {len(labels)}"
    if names == labels or all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return "the source's"
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    if set(names) != set(labels):
        with torch.no_grad():
            last.weight.normal_(std=getattr(model.config, "initializer_range", 0.02))
            if last.bias is not None:
                last.bias.zero_()
        strange = next(name for name in names if name not in labels)
        return f"fresh: the source's is for other labels, such as {strange!r}"
    order = [names.index(label) for label in labels]
    with torch.no_grad():
        for tensor in (last.weight, last.bias):
            if tensor is not None:
                tensor.copy_(tensor[order].clone())
    return "the source's, in the order of data.labels"


def start_at_labels(model: PreTrainedModel, labels: list[list[int]]) -> None:
    """Give a classifier whose last bias is all zero, as a fresh one's, the labels' log-odds.

    `labels`: 0 or 1 for each label, or one class a row. Counts are raised by a half, so that a
    label that all rows have, or none, gets a finite one. A head without a bias is left alone.
    """
    import torch
    from torch import nn

    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    if last.bias is None or bool(last.bias.any()):
        return
    table, count = torch.tensor(labels, dtype=torch.float64), len(labels)
    with torch.no_grad():
        if model.config.problem_type == "multi_label_classification":
            share = (table.sum(0) + 0.5) / (count + 1)
            last.bias.copy_(torch.logit(share))
        else:
            numbers = torch.bincount(table[:, 0].long(), minlength=model.config.num_labels)
            last.bias.copy_(((numbers + 0.5) / (count + 0.5 * len(numbers))).log())


def _secrets(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The key paths of a config that name a secret."""
    for key, value in config.items():
        if is_secret(str(key)):
            yield f"{above}{key}"
        elif isinstance(value, Mapping):
            yield from _secrets(value, f"{above}{key}.")


def _unread_head(config: Mapping[str, Any]) -> bool | None:
    """Whether a head is a tensor of its own in files that were not read; None: as the config says.

    LongT5's files have none, whatever their configs say.
    """
    return False if config["model_type"] == "longt5" else None


def _local(source: str) -> Path | None:
    """The local directory that a name stands for, there or not; None for a name of the hub."""
    path = expand_home(source)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    return path if looks_local or path.is_dir() else None


def _pieces(path: Path) -> int:
    """How many ids a `tokenizer.json` gives, counted from 0; 0 where there is none to read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        vocabulary, added = document["model"]["vocab"], document["added_tokens"]
        own = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + max([*own, *(token["id"] for token in added)], default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # The run will say what is wrong with it.
        return 0


def _pad_id(directory: Path) -> int | None:
    """The id of a tokenizer's pad, where its files tell it."""
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        pad = settings["pad_token"]
        text = pad["content"] if isinstance(pad, dict) else pad
        ids = {token["content"]: int(token["id"]) for token in document["added_tokens"]}
        return ids.get(text)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _cut_off(path: Path) -> str:
    """How much of a safetensors file is there, where its header names more; "" where all is."""
    header, begin = read_header(path)
    tensors = [each for each in header.values() if isinstance(each, dict)]
    offsets = [each.get("data_offsets") for each in tensors]
    ends = [pair[1] for pair in offsets if isinstance(pair, list) and len(pair) == 2]
    ends = [end for end in ends if isinstance(end, int)]  # of another form the run will tell
    there, whole = path.stat().st_size, begin + max(ends, default=0)
    return f"{there:,} of {whole:,} bytes" if there < whole else ""
