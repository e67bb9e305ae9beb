"""What a generation config says, and what becomes of each of its settings here. No transformers.

Greedy and beam search are transformers', token for token. What neither we nor an engine follows is
refused while planning, by name, and once more where a decode begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
)

from compressor.core.errors import StageError

FILE = "generation_config.json"
BackendName = Literal["torch", "ctranslate2", "onnxruntime", "llamacpp"]

Use = Literal[
    "followed",  # by all that decodes
    "without ctranslate2",  # by all but CTranslate2
    "torch",  # by torch alone
    "recipe",  # the recipe decides it, in the stage that decodes
    "no effect",  # on the tokens of greedy and beam search; decoding leaves it out
    "greedy",  # has no effect on greedy search; beam search refuses it
    "refused",
]

SETTINGS: Mapping[str, Use] = {
    **dict.fromkeys(
        (
            *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"),
            *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "bad_words_ids"),
            *("min_length", "min_new_tokens", "no_repeat_ngram_size", "repetition_penalty"),
            *("length_penalty", "early_stopping", "renormalize_logits"),
        ),
        "followed",
    ),
    "begin_suppress_tokens": "without ctranslate2",
    **dict.fromkeys(
        (
            *("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "sequence_bias"),
            *("exponential_decay_length_penalty", "remove_invalid_values"),
        ),
        "torch",
    ),
    **dict.fromkeys(("do_sample", "max_length", "num_beams", "num_return_sequences"), "recipe"),
    **dict.fromkeys(
        (
            # of sampling
            *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
            *("epsilon_cutoff", "eta_cutoff"),
            # of how a token is computed, which it leaves as it is
            *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
            *("disable_compile", "prefill_chunk_size", "continuous_batching_config"),
            # of drafts, of which those are kept that greedy search would give
            *("use_mtp", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
            *("assistant_early_exit", "is_assistant", "num_assistant_tokens", "speculation_type"),
            *("num_assistant_tokens_schedule", "assistant_confidence_threshold"),
            *("assistant_lookbehind", "target_lookbehind"),
            # of what is given beside the tokens
            *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
            *("return_dict_in_generate", "transformers_version", "_from_model_config"),
            # of groups of beams, which are refused by their number
            *("diversity_penalty", "_commit_hash"),
        ),
        "no effect",
    ),
    "num_beam_groups": "greedy",
    **dict.fromkeys(
        (
            *("max_time", "max_new_tokens", "stop_strings", "guidance_scale", "token_healing"),
            *("watermarking_config", "penalty_alpha", "dola_layers", "constraints"),
            *("force_words_ids", "assistant_ensemble_weight", "compile_config"),
        ),
        "refused",
    ),
}  # fmt: skip
"""Every attribute of transformers' `GenerationConfig`; a test compares the two."""

_NEUTRAL: Mapping[str, float] = {
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "num_beam_groups": 1,
}
"""Values with which a setting does nothing, besides null, 0 and what is empty."""

_EVEN_IF_ZERO = {
    *("guidance_scale", "max_time", "stop_strings", "constraints", "force_words_ids"),
    "watermarking_config",
}

_WHY: Mapping[str, str] = {
    "max_new_tokens": "wins over the limits of a recipe in `generate`",
    "max_time": "cuts texts by the machine's speed",
}

TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
"""Those that a model's config has too."""

_START = "decoder_start_token_id"

OF_TOKENS = (
    *("pad_token_id", "eos_token_id", _START, "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
)
"""Those whose values are tokens."""

_LOOK_AT_PROMPT = (
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),
    *("min_length", "forced_bos_token_id"),
)
"""Those that take the pads before a decoder's prompt for tokens of it, or count them."""


def counts_prompt(settings: Mapping[str, Any]) -> bool:
    """Tell whether what a decoder writes in a batch depends on how long other prompts are."""
    return any(settings.get(name) not in (None, 0, 1) for name in _LOOK_AT_PROMPT)


def read_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `from_pretrained` takes for the generation config of a model's folder.

    Without a file of its own it is in the model's `config`, as older models have it. Raises
    ValueError for a file that is not JSON.
    """
    path = folder / FILE
    if path.is_file():
        return load_settings(path)
    return select_settings(config)


def select_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings of generation in a model's config."""
    return {name: value for name, value in config.items() if name in SETTINGS}


def load_settings(path: Path) -> dict[str, Any]:
    """Read the settings in a file. Raises ValueError, with its path."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no object")
    return settings


def find_unfollowed(
    settings: Mapping[str, Any], backend: BackendName, *, greedy: bool = True
) -> list[str]:
    """Find the settings that would change what `backend` gives, and that it does not follow.

    A name that is not known counts for the engines: a newer transformers may have given it a
    meaning. torch decodes by the `generate` that is installed, which passes over it.
    """
    followed: set[Use] = {"followed", "recipe", "no effect"}
    followed |= {"greedy"} if greedy else set()
    followed |= {"torch"} if backend == "torch" else set()
    followed |= {"without ctranslate2"} if backend != "ctranslate2" else set()
    return sorted(
        name
        for name, value in settings.items()
        if SETTINGS.get(name, "torch") not in followed and _has_effect(name, value)
    )


def _has_effect(name: str, value: Any) -> bool:
    if name in _EVEN_IF_ZERO and value is not None and value is not False:
        return bool(value != _NEUTRAL.get(name))
    return bool(value) and value != _NEUTRAL.get(name)


def explain_refusals(
    settings: Mapping[str, Any], backend: BackendName, *, greedy: bool = True
) -> Iterator[str]:
    """Explain each setting of `find_unfollowed`, and how to leave it out."""
    for name in find_unfollowed(settings, backend, greedy=greedy):
        where = "a decode by torch" if backend == "torch" else str(backend)
        if SETTINGS.get(name) == "greedy":
            where = "beam search"
        why = f", which {_WHY[name]}" if name in _WHY else ""
        yield (
            f"the model's generation config sets {name} to {settings[name]!r}{why}; {where} does "
            f"not follow it. To leave it out, set `generation: {{{name}: null}}` under `model`"
        )


_Count = Annotated[StrictInt, Field(ge=0)] | None
_Tokens = list[StrictInt]
_Ids = StrictInt | Annotated[_Tokens, Field(min_length=1)] | None
_Word = Annotated[_Tokens, Field(min_length=1)]


def _require_penalty(value: Any) -> Any:
    if value is None or value == 1 or (isinstance(value, float) and value > 0):
        return value
    raise ValueError("expected a float above 0")


_Penalty = Annotated[Any, AfterValidator(_require_penalty)]


class _Valid(BaseModel):
    """Values that `generate` takes."""

    num_beams: _Count = None
    num_return_sequences: _Count = None
    min_length: _Count = None
    min_new_tokens: _Count = None
    no_repeat_ngram_size: _Count = None
    encoder_no_repeat_ngram_size: _Count = None
    repetition_penalty: _Penalty = None
    encoder_repetition_penalty: _Penalty = None
    suppress_tokens: _Tokens | None = None
    begin_suppress_tokens: _Tokens | None = None
    eos_token_id: _Ids = None
    pad_token_id: _Ids = None
    decoder_start_token_id: _Ids = None
    forced_bos_token_id: _Ids = None
    forced_eos_token_id: _Ids = None
    bad_words_ids: Annotated[list[_Word], Field(min_length=1)] | None = None
    sequence_bias: Annotated[list[tuple[_Word, StrictFloat]], Field(min_length=1)] | None = None
    exponential_decay_length_penalty: tuple[StrictFloat, StrictFloat] | None = None


def find_invalid(settings: Mapping[str, Any]) -> Iterator[str]:
    """Name the settings with which transformers does not load a model, or `generate` fails."""
    wrong: list[str] = []
    try:
        _Valid.model_validate(dict(settings))
    except ValidationError as error:
        wrong = list(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()))
    yield from wrong
    if not {"num_return_sequences", "num_beams"} & set(wrong) and not settings.get("do_sample"):
        several = settings.get("num_return_sequences") or 1
        if several > max(1, settings.get("num_beams") or 1):
            yield "num_return_sequences"
    if settings.get("early_stopping") not in (None, True, False, "never"):
        yield "early_stopping"
    right = {name: value for name, value in settings.items() if name not in wrong}
    suppressed = {*_flatten([right.get("suppress_tokens")])}
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if (forced := {*_flatten([right.get(name)])}) and forced <= suppressed:
            yield name
    if settings.get("compile_config") is not None:
        yield "compile_config"


def require_followed(settings: Mapping[str, Any], backend: BackendName, *, greedy: bool) -> None:
    """Raise StageError for the first setting that `backend` does not follow."""
    for message in explain_refusals(settings, backend, greedy=greedy):
        raise StageError(message)


def check_tokens(
    config: Mapping[str, Any], ids: Mapping[str, Any], settings: Mapping[str, Any], *, whole: bool
) -> Iterator[tuple[str, str]]:
    """Report (name, message) of each token id that a model lacks, or that no row stands for.

    `ids` are those of its config. `whole`: they and the settings are all that a source has; else
    what is missing is found later, in the tokenizer or on the hub.
    """
    kind, missing = config["model_type"], _list_missing_ids(config, ids, settings, whole=whole)
    for name in missing:
        cure = f"`generation: {{{name}: {_suggest_id(name, kind, ids)}}}` under `model`"
        yield name, f"its config has no {name}, {_USE[name]}; add it, or set {cure}"
    rows = max(int(config.get(key) or 0) for key in ("vocab_size", "decoder_vocab_size"))
    writes = config["head"] == "seq2seq_lm"
    least = 0 if writes or kind == "roberta" else -rows
    for name in OF_TOKENS if writes else () if kind == "gpt2" else ("pad_token_id",):
        if name in missing:
            continue
        values = [ids.get(name), settings.get(name)]
        wrong = [v for v in _flatten(values) if not (type(v) is int and least <= v < rows)]
        if wrong:
            yield name, f"{name}: no row stands for {wrong[0]!r}; the vocabulary has {rows:,}"
        elif name == _START and any(isinstance(value, list) for value in values):
            yield name, f"{name}: expected one token, got {values[-1]!r}"


_USE: Mapping[str, str] = {
    "pad_token_id": "which fills batches",
    "decoder_start_token_id": "with which the decoder begins",
    "eos_token_id": "with which a text ends",
}


def _list_missing_ids(
    config: Mapping[str, Any], ids: Mapping[str, Any], settings: Mapping[str, Any], *, whole: bool
) -> list[str]:
    """Name the ids that are missing: in the config for training, in the settings for decoding."""
    kind = config["model_type"]
    if config["head"] != "seq2seq_lm":
        return ["pad_token_id"] if kind == "roberta" and ids.get("pad_token_id", 1) is None else []
    missing = [name for name in _USE if name in ids and ids[name] is None]
    if whole:
        # A decode would begin with bos, and a training with what the config's class fills in.
        missing += [name for name in (_START, "eos_token_id") if settings.get(name) is None]
        missing += [] if _START in ids or kind == "mbart" else [_START]
    return list(dict.fromkeys(missing))


def _suggest_id(name: str, kind: str, ids: Mapping[str, Any]) -> Any:
    """Suggest what it is in the models of a kind that were published."""
    if name != _START:
        return "its id"
    if kind == "mbart":
        return "the id of the language it writes"
    return ids.get("eos_token_id" if kind == "bart" else "pad_token_id")


def _flatten(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        elif value is not None:
            yield value
