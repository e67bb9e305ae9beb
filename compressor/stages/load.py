"""`load`: read a model from the hub or a folder, or build a fresh one from a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compressor.backends.generation_config import FILE as GENERATION
from compressor.backends.generation_config import (
    SETTINGS,
    TOKEN_IDS,
    check_tokens,
    find_invalid,
    load_settings,
    read_settings,
    select_settings,
)
from compressor.core.errors import StageError, Unreachable, nearest
from compressor.core.files import expand_home
from compressor.data import hub
from compressor.data.source_base import Reads, Split
from compressor.data.sources import Data
from compressor.models.classifier_head import fit_head, label_config, start_at_labels
from compressor.models.facts import Facts, derive_facts, with_whole_numbers
from compressor.models.model_files import (
    TOKENIZER_FILES,
    digest_model,
    has_own_head,
    has_own_unread_head,
    local_folder,
    read_config,
    read_pad_id,
    weight_files,
)
from compressor.models.source_checks import (
    check_fresh_config,
    check_origins,
    check_secrets,
    find_architecture,
)
from compressor.models.structure import ConfigError
from compressor.models.tokenizer_source import (
    TrainTokenizer,
    check_tokenizer,
    identify_tokenizer,
    open_tokenizer,
)
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from compressor.models.checkpoint import Checkpoint


class Load(Stage):
    """Load a model: a hub id, a local directory, or a fresh one from a config.

    Weights are read from safetensors, or from an old `.bin` with `weights_only` loading; nothing
    is unpickled. The revision is resolved to a commit while planning, and recorded.

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
    head: Literal[
        "seq2seq_lm", "causal_lm", "sequence_classification", "token_classification", "none"
    ] = Field(
        "seq2seq_lm",
        description="What stands on the model's body: seq2seq_lm (T5, BART and their kin), "
        "causal_lm (GPT-2, Llama, Qwen), sequence_classification, token_classification (tags of "
        "words: BERT, RoBERTa, ELECTRA, DistilBERT), or nothing.",
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

    @model_validator(mode="after")
    def _has_origin(self) -> Load:
        if self.source is None and self.config is None:
            raise ValueError("set `source` (a hub id or directory) or `config` (a fresh model)")
        return self

    @property
    def _classifies(self) -> bool:
        return self.head in ("sequence_classification", "token_classification")

    @property
    def _starts_at_labels(self) -> bool:
        return self._classifies and self.head_bias == "labels"

    @property
    def _token_settings(self) -> dict[str, Any]:
        """The token ids that the recipe sets, which a model's config has too."""
        return {name: value for name, value in self.generation.items() if name in TOKEN_IDS}

    def _key(self, name: str) -> str:
        """Name where in the recipe a config's key comes from."""
        return "source" if self.source is not None else f"config.{name}"

    @property
    def _directory(self) -> Path | None:
        """The local directory that `source` names, if it names one."""
        return None if self.source is None else local_folder(self.source)

    def _labels(self, data: Data) -> dict[str, Any]:
        """Describe the data's labels as a classifier's config does; nothing of data without any."""
        return label_config(data) if self._classifies and data.has_labels else {}

    def is_random(self) -> bool:
        return self.source is None or self._classifies  # whose head may be fresh

    def reads(self) -> Mapping[Split, Reads]:
        trained = self.tokenizer if isinstance(self.tokenizer, TrainTokenizer) else None
        on_recipe = trained is not None and trained.data is None
        return {"train": "texts"} if on_recipe or self._starts_at_labels else {}

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Identify the source by its commit or its files' digests, and the tokenizer likewise."""
        parts: dict[str, Any] = {}
        if self._labels(planning.data):
            parts |= {"task": planning.data.task, "labels": list(planning.data.labels)}
        if self._directory is not None:
            parts["files"] = digest_model(self._directory, with_code=self.trust_remote_code)
        elif self.source is not None:
            parts["commit"] = hub.resolve_commit(self.source, self.revision, "model")
        return parts | identify_tokenizer(self.tokenizer)

    def parameters(self) -> dict[str, Any]:
        """Leave out paths and branches: digests and commits are in the key."""
        unused = set() if self._classifies else {"head_bias"}
        unused |= set() if self.generation else {"generation"}
        unused |= {"source", "revision", "config"} if self.source is not None else set()
        unused |= {"tokenizer"} if isinstance(self.tokenizer, str) else set()
        return {key: value for key, value in super().parameters().items() if key not in unused}

    def preview(self, planning: Planning) -> Facts | None:
        """Count from the config alone; report a missing directory, model or architecture."""
        if isinstance(self.tokenizer, str):
            directory = local_folder(self.tokenizer)
            if directory is not None and not directory.is_dir():
                planning.report("tokenizer", f"no directory {self.tokenizer!r}")
        config, folder = self._read_config(planning)
        if config is None:
            return None
        if self.source is not None:
            check_origins(config, folder, planning.report, runs_code=self.trust_remote_code)
        module = find_architecture(config, self.head, self._key, planning.report)
        if module is None:
            return None
        check_secrets(self.config or {}, planning.report)
        if self.source is None:
            known = {*module.DEFAULTS[str(config["model_type"])], *module.ALIASES}
            check_fresh_config(config, known, planning.report)
        generation = self._read_generation(config, folder, planning)
        ids = self._token_ids(config, module)
        config = {**config, **ids, **self._labels(planning.data)}
        try:
            untied = None if folder is None else has_own_head(folder, config, self.head, module)
        except ValueError as error:
            planning.report("source", str(error))
            untied = None
        try:
            result = derive_facts(config, head=self.head, untied_head=untied)
        except ConfigError as error:
            planning.report(self._key(error.key), str(error))
            return None
        for name, message in check_tokens(result.config, ids, generation, whole=folder is not None):
            path = f"generation.{name}" if name in self.generation else self._key(name)
            planning.report(path, message)
        given = self.tokenizer, self.source, result, planning.data
        slow = check_tokenizer(*given, planning.report)
        kinds = tuple(f"For{kind}Classification" for kind in ("Sequence", "Token"))
        heads = [name for name in config.get("architectures") or () if name.endswith(kinds)]
        untrained = self.source is None or (self._classifies and not heads)
        return replace(result, slow_tokenizer=slow, generation=generation, untrained=untrained)

    def _read_config(self, planning: Planning) -> tuple[Mapping[str, Any] | None, Path | None]:
        """Read the config, and say which folder it is from. None where there is none to read."""
        if self.source is None:
            return self.config, None
        try:
            if self._directory is not None:
                return read_config(self._directory), self._directory
            commit = hub.resolve_commit(self.source, self.revision, "model")
            path = hub.fetch_file(self.source, "config.json", commit, "model")
            return json.loads(path.read_text(encoding="utf-8")), path.parent
        except Unreachable as error:
            hint = "; for a plan without it, set model.config" if self.config is None else ""
            planning.report_unreached("source", f"{error}{hint}")
            return self.config, None
        except (ValueError, FileNotFoundError) as error:
            planning.report("source", str(error))
            return None, None

    def _token_ids(self, config: Mapping[str, Any], module: ModuleType) -> dict[str, Any]:
        """Collect the token ids of the config that are known before the tokenizer is."""
        ids: dict[str, Any] = {}
        if self.source is not None:
            ids = dict(getattr(module, "TOKENS", {}).get(config["model_type"], {}))
        elif isinstance(self.tokenizer, TrainTokenizer):
            ids["pad_token_id"] = 0  # the first that is trained
        elif self.tokenizer and (pad := read_pad_id(expand_home(self.tokenizer))) is not None:
            ids["pad_token_id"] = pad
        values = {**config, **self.generation}
        return ids | {name: values[name] for name in TOKEN_IDS if name in values}

    def _read_generation(
        self, config: Mapping[str, Any], folder: Path | None, planning: Planning
    ) -> dict[str, Any]:
        """Read the source's settings of generation, and put the recipe's in their place."""
        for name, value in self.generation.items():
            if name not in SETTINGS:
                message = f"no such setting; {nearest(name, SETTINGS)}"
                planning.report(f"generation.{name}", message)
            elif SETTINGS[name] == "recipe" and value is not None:
                message = "is a setting of the stages that decode, such as `evaluate`"
                planning.report(f"generation.{name}", message)
        if self.generation and not self._generates:
            planning.report("generation", f"the head {self.head!r} generates nothing")
        settings: dict[str, Any] = {}
        try:
            settings = self._source_generation(config, folder)
        except Unreachable as error:
            planning.report_unreached("source", str(error))
            settings = select_settings(config)
        except ValueError as error:
            planning.report("source", str(error))
        settings |= self.generation
        for name in find_invalid(settings):
            cure = f"`generation: {{{name}: null}}` under `model` leaves it out"
            message = f"transformers refuses its generation config's {name}"
            planning.report("source", f"{message}, {settings[name]!r}; {cure}")
        return settings

    @property
    def _generates(self) -> bool:
        return self.head in ("seq2seq_lm", "causal_lm")

    def _source_generation(self, config: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        """Read the source's own settings. Raises Unreachable, and ValueError for what is no JSON.

        Of a source on the hub whose weights are not here yet, the file of settings is fetched.
        """
        if self.source is None:
            return {}
        if folder is None:
            return select_settings(config)
        if self._directory or weight_files(folder):
            return read_settings(folder, config)
        if not self._generates:
            return {}
        commit = hub.resolve_commit(self.source, self.revision, "model")
        path = hub.find_file(self.source, GENERATION, commit, "model")
        return select_settings(config) if path is None else load_settings(path)

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Load or build the model, and its tokenizer."""
        import torch

        from compressor.models.checkpoint import Checkpoint
        from compressor.training.losses import CAUSAL_TYPES

        torch.manual_seed(context.seed)  # a fresh head on a pretrained body is random too
        given = self.tokenizer, self.source, self.revision
        tokenizer = open_tokenizer(*given, lambda: context.rows("train"))
        labels = self._labels(context.data)
        if self.source is None:
            model = self._build(tokenizer, labels)
        else:
            model = self._load_pretrained(context, labels)
        rows = model.get_input_embeddings().num_embeddings
        if tokenizer is not None and len(tokenizer) > rows:
            raise StageError(
                f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows} "
                "rows; raise config.vocab_size"
            )
        checkpoint = Checkpoint(model.eval(), tokenizer, self.head)
        checkpoint.require_finite(
            "the source is damaged, or its training had diverged: take an earlier checkpoint of it"
        )
        if self._classifies and tokenizer is not None and model.config.model_type in CAUSAL_TYPES:
            model.config.pad_token_id = checkpoint.pad_id  # it looks for the last token before
        if labels and self._starts_at_labels:
            start_at_labels(model, context.rows("train").labels)
        return checkpoint

    def _build(self, tokenizer: PreTrainedTokenizerBase | None, labels: Mapping[str, Any]) -> Any:
        """Build a model with random weights, and with the tokenizer's ids of pad, bos and eos."""
        from compressor.models.loading import build_fresh

        assert self.config is not None
        values = {**self.config, **labels, **self._token_settings}
        for token in ("pad", "bos", "eos"):
            number = getattr(tokenizer, f"{token}_token_id", None)
            if number is not None:
                values.setdefault(f"{token}_token_id", number)
        model = build_fresh(values, self.head)
        if self.generation:
            model.generation_config = self._generation_config(model.generation_config.to_dict())
        return model

    def _generation_config(self, settings: Mapping[str, Any]) -> GenerationConfig:
        """Put the recipe's settings into the source's own. Raises StageError."""
        from transformers import GenerationConfig

        merged = {k: v for k, v in {**settings, **self.generation}.items() if v is not None}
        try:
            return GenerationConfig.from_dict(merged)
        except (ValueError, TypeError) as error:
            raise StageError(f"model.generation: {str(error).splitlines()[0]}") from error

    def _load_pretrained(self, context: Context, labels: Mapping[str, Any]) -> Any:
        from compressor.models.loading import load_pretrained, require_planned_head

        directory = self._directory or self._download(context)
        source = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        generation = None
        if self.generation:
            generation = self._generation_config(read_settings(directory, source))
        model = load_pretrained(
            directory,
            self.head,
            trust_remote_code=self.trust_remote_code,
            config={**labels, **self._token_settings},
            generation=generation,
        )
        for name, value in self._token_settings.items():
            setattr(model.config, name, value)  # T5's class does not know all of them
        if not any(directory.glob("*.safetensors")):
            untied = has_own_unread_head(source)
            planned = derive_facts(source, head=self.head, untied_head=untied)
            require_planned_head(model, planned, directory)
        if labels:
            context.metrics["head"] = origin = fit_head(model, source, list(context.data.labels))
            context.progress.say(f"  the classifier's head: {origin}")
        return model

    def _download(self, context: Context) -> Path:
        assert self.source is not None
        commit = hub.resolve_commit(self.source, self.revision, "model")
        patterns = ["*.json", "*.safetensors", *TOKENIZER_FILES]
        folder = hub.fetch_files(self.source, commit, patterns)
        if not any(folder.glob("*.safetensors")):
            folder = hub.fetch_files(self.source, commit, [*patterns, "*.bin"])
        context.metrics["commit"] = commit
        return folder
