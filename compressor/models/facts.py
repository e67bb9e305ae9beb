"""Facts of a model from its config alone: parameters, groups, layers, ties. No torch here.

A plan counts parameters before any weights are loaded, and importing torch takes longer than a
whole plan may; so each architecture declares its table of parameters, and a test holds the table
against the real model on the meta device.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from compressor.core.errors import nearest
from compressor.core.settings import to_int
from compressor.models.block_config import BlockSizes
from compressor.models.structure import (
    Channels,
    ConfigError,
    Shape,
    Stack,
    UnitKind,
    Units,
    Widths,
    renumber_parameter,
)

MOST_LAYERS, MOST_OF_ANYTHING = 1_000, 10**9
"""The largest counts that a config may have, as planning loops over layers and multiplies sizes."""

HALF = ("bfloat16", "float16")
"""Floating-point types of two bytes an entry."""

FRESH_HEADS = ("classifier", "pre_classifier", "score", "bert.pooler")
"""Prefixes of the parameters that a classifier has and a pretrained body may lack."""

_MODULES = {
    "t5": "t5", "mt5": "t5", "longt5": "t5",
    "bart": "bart", "mbart": "bart", "pegasus": "bart", "marian": "bart",
    "bert": "bert", "roberta": "bert", "electra": "bert", "distilbert": "distilbert",
    "gpt2": "gpt2",
    "llama": "llama", "qwen2": "llama", "qwen3": "llama",
}  # fmt: skip
"""Model type → the module that describes it, which has these constants:

- `DEFAULTS`: model type → the values that transformers fills into a config that lacks them;
- `ALIASES`: another name that transformers takes (and prefers) for a key → the key;
- `HEADS`: the heads that the body can have (see `stages.load.Load.head`);
- `WIDTHS`: which keys of a config are widths (see `Widths`);
- `NOT_LINEAR`: how the names of matrices end that are no weight of an `nn.Linear`, the only layers
  that integer products can be made with: tables, unless a head is tied to them, and `Conv1D`;
- `ONLY` (optional): key of a config → (the only supported value, the reason);
- `TOKENS` (optional): model type → the special token ids that transformers fills into a config;

and these functions of a `config` that has every key of `DEFAULTS` and `head`:

- `stacks`: name → `Stack`, the layers of the encoder and of the decoder;
- `parameters` (`untied_head`: None is as the config says): name → shape of every distinct tensor;
- `ties`: a parameter that shares its tensor with another → the name under which that is counted;
- `heads` (only where a config can spare some), `feed_forward`, `vocabulary`: the `Units` of that
  kind that can be removed from a model;
- `channels` (optional, of the shapes too): the `Channels` that `smooth` can rescale;
- `reserved_positions` (optional): the number of position embeddings that no token uses;
- `extended_positions` (optional): the number of positions beyond those that a config counts.
"""


@dataclass(frozen=True)
class Facts:
    """A model without its weights: config, parameter shapes, and how many entries are masked.

    `masked` holds, for each set of parameters that was pruned together, how many of their entries
    are zero by mask. `exact` turns False where a count can only be estimated before the run
    (layers dropped out of a pruned group take an unknown number of zeros with them).
    """

    model_type: str
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    masked: tuple[tuple[frozenset[str], int], ...] = ()
    exact: bool = True
    weights: str = "float32"
    """What a `quantize` stage has made of the weights; those it left alone are float32."""
    int8: frozenset[str] = frozenset()
    """Names of the weights that are stored as int8 with one float32 scale a row."""
    int8_block: int = 0
    """Entries of a row that share one float16 scale; 0: each row has one float32 scale."""
    int4: frozenset[str] = frozenset()
    """Names of the weights that are stored as int4 with one bfloat16 scale a group."""
    group_size: int = 0
    """Columns of a weight in `int4` that share a scale."""
    smoothed: bool = False
    """Whether `smooth` has made its activations easier to round."""
    rounded_for: str = ""
    """The weights that a `quantization_aware` training has made its own for."""
    exact_size: bool = True
    """False where `shapes` are only an upper bound: the rows decide how many tokens go."""
    slow_tokenizer: bool = False
    """Whether the model's tokenizer has no fast version, as Marian's."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """The model's generation config, with what the recipe sets in it."""
    untrained: bool = False
    """Whether some of its weights, a head's say, are as they were drawn: its loss tells nothing."""

    @property
    def _architecture(self) -> ModuleType:
        return load_architecture(self.model_type)

    @property
    def parameters(self) -> int:
        """Physical parameters: every entry of every distinct tensor; tied tensors count once."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def nonzero_ratio(self) -> float:
        """The share of parameters that no mask sets to zero."""
        return (self.parameters - sum(count for _, count in self.masked)) / self.parameters

    @property
    def bytes(self) -> int:
        """Size of the stored weights, scales included."""
        return sum(map(self.tensor_bytes, self.shapes))

    def tensor_bytes(self, name: str) -> int:
        """Count the bytes of a stored tensor, scales included.

        An entry has 4 bytes, or 2 in half precision. In int8 it has 1, and a row has a scale of 4
        (or a block one of 2); in int4 it has ½, and a group has a scale of 2.
        """
        shape = self.shapes[name]
        entries = math.prod(shape)
        if name in self.int8 and self.int8_block:
            return entries + 2 * (entries // self.int8_block)
        if name in self.int8:
            return entries + 4 * shape[0]
        if name in self.int4:
            return entries // 2 + 2 * (entries // self.group_size)
        return entries * (2 if self.weights in HALF else 4)

    @property
    def quantized_kind(self) -> str:
        """What messages call a quantized model, such as "an int8 model"; "" for a float32 one."""
        if self.weights == "float32":
            return ""
        return f"{'an' if self.weights.startswith('int') else 'a'} {self.weights} model"

    def dequantize(self) -> Facts:
        """Give the facts of the float32 model that has the values of a quantized one."""
        return replace(self, weights="float32", int8=frozenset(), int8_block=0, int4=frozenset())

    @property
    def positions(self) -> int | None:
        """The most tokens a sequence can have, where a table or the training set such a limit."""
        defaults = self._architecture.DEFAULTS[self.model_type]
        keys = {"max_position_embeddings", "n_positions"} & defaults.keys()
        if not keys:
            return None
        reserved, extended = (
            int(getattr(self._architecture, f"{kind}_positions", lambda _: 0)(self.config))
            for kind in ("reserved", "extended")
        )
        return int(self.config[keys.pop()]) - reserved + extended

    def count_entries(self, names: Iterable[str]) -> int:
        return sum(math.prod(self.shapes[name]) for name in names)

    def count_remaining(self, names: frozenset[str]) -> tuple[int, bool]:
        """Count the entries of `names` that no mask zeroes; tell whether that count is exact."""
        left, exact = float(self.count_entries(names)), self.exact
        for masked_names, count in self.masked:
            shared = masked_names & names
            if shared == masked_names:
                left -= count
            elif shared:
                left -= count * self.count_entries(shared) / self.count_entries(masked_names)
                exact = False
        return round(left), exact

    def count_to_prune(
        self, names: frozenset[str], amount: float, *, of_all: bool
    ) -> tuple[int, bool]:
        """Count the entries that an amount, of what is left or of all, takes; whether exactly."""
        left, exact = self.count_remaining(names)
        return count_entries(amount, left, self.count_entries(names), of_all=of_all), exact

    def prune(self, names: frozenset[str], count: int, *, exact: bool = True) -> Facts:
        """Give the facts after `count` more entries of `names` are masked."""
        known = self.exact and self.exact_size and exact
        return replace(self, masked=(*self.masked, (names, count)), exact=known)

    def list_groups(self) -> dict[str, tuple[str, ...]]:
        """Map each group path to its `Linear` weights; unions (`feed_forward`) come after parts."""
        stacks, ties = self.list_stacks().values(), self.list_ties()
        parts = {path: names for stack in stacks for path, names in stack.list_groups().items()}
        if "lm_head.weight" in ties:
            parts["lm_head"] = ("lm_head.weight",)
        if blocks := tuple(name for stack in stacks for name in stack.list_block_weights()):
            parts["encoder.block"] = blocks
        others = {name: tie for name, tie in ties.items() if name not in self.shapes}
        parts = {path: tuple(others.get(n, n) for n in names) for path, names in parts.items()}
        unions: dict[str, tuple[str, ...]] = {}
        for path, names in parts.items():
            _, dot, kind = path.partition(".")
            if dot:
                unions[kind] = unions.get(kind, ()) + names
        return parts | {kind: names for kind, names in unions.items() if kind not in parts}

    def list_ties(self) -> Mapping[str, str]:
        """Map a parameter to the name it goes by where the two are one tensor."""
        ties: Mapping[str, str] = self._architecture.ties(self.config)
        return ties

    def list_linear_weights(self) -> list[str]:
        """List the weights of `nn.Linear` layers, with an embedding that the head is tied to."""
        tied = None if "lm_head.weight" in self.shapes else self.list_ties().get("lm_head.weight")
        return [
            name
            for name, shape in self.shapes.items()
            if len(shape) == 2
            and (name == tied or not name.endswith(self._architecture.NOT_LINEAR))
        ]

    def word_embeddings(self) -> set[str]:
        """Name the word embeddings; none for a model with two vocabularies."""
        rows = {name for units in self.list_units("vocabulary") for name in units.matrices}
        return rows & self.shapes.keys() - self.list_ties().keys()

    def list_stacks(self) -> dict[str, Stack]:
        stacks: dict[str, Stack] = self._architecture.stacks(self.config)
        return stacks

    def keep_layers(self, kept: Mapping[str, list[int]]) -> Facts:
        """Give the facts after keeping, of each named stack, only the listed layers."""
        stacks = self.list_stacks()
        # Every count is written: one that a config leaves out follows another that now changes.
        config = dict(self.config) | {stack.config_key: stack.layers for stack in stacks.values()}
        for stack, layers in kept.items():
            config |= stacks[stack].config_after(self.config, layers)

        renamed = {name: renumber_parameter(stacks, kept, name) for name in self.shapes}
        names = {old: new for old, new in renamed.items() if new is not None}
        shapes = {new: self.shapes[old] for old, new in names.items()}
        return replace(self, config=config, shapes=shapes, **self._masked_after(names))

    def _masked_after(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Give `masked` and `exact` when only the parameters in `names` stay, under new names."""
        masked, exact = [], self.exact
        for group, count in self.masked:
            left = group & names.keys()
            exact = exact and len(left) == len(group)
            if left:
                share = self.count_entries(left) / self.count_entries(group)
                masked.append((frozenset(names[name] for name in left), round(count * share)))
        return {"masked": tuple(masked), "exact": exact}

    def replace_layers(self, stack: str, layers: Sequence[int], sizes: BlockSizes) -> Facts:
        """Give the facts with one block in the place of consecutive `layers` of a stack."""
        kept = [i for i in range(self.list_stacks()[stack].layers) if i not in layers[1:]]
        shorter = self.keep_layers({stack: kept})
        spec = shorter.list_stacks()[stack]
        config = {**shorter.config, **spec.with_block(layers[0], sizes)}
        place = f"{spec.prefix}.{layers[0]}."
        names = {name: name for name in shorter.shapes if not name.startswith(place)}
        table: dict[str, Shape] = self._architecture.parameters(config)
        shapes = {name: shorter.shapes[name] for name in names}
        shapes |= {name: shape for name, shape in table.items() if name.startswith(place)}
        return replace(shorter, config=config, shapes=shapes, **shorter._masked_after(names))

    def list_units(self, kind: UnitKind) -> tuple[Units, ...]:
        """List the removable units of a kind: attention heads, neurons or tokens."""
        declare = getattr(self._architecture, kind, None)
        return () if declare is None else tuple(declare(self.config))

    @property
    def why_heads_stay(self) -> str:
        """Why a plain config cannot express fewer heads; "" where it can."""
        widths: Widths = self._architecture.WIDTHS
        reason = f"heads cannot leave a {self.model_type}: its config has no head size of its own"
        return "" if widths.head_size else f"{reason}, which is {widths.hidden} / {widths.heads[0]}"

    def list_channels(self) -> tuple[Channels, ...]:
        """List the channels that `smooth` can rescale, if the architecture has any."""
        declare = getattr(self._architecture, "channels", None)
        return () if declare is None else tuple(declare(self.config, self.shapes))

    def resize(self, units: Iterable[Units], width: int) -> Facts:
        """Give the facts after cutting each of `units` to `width` of them.

        The ratio of a pruned tensor is an estimate from then on: which zeros go is not known.
        """
        shapes, config = dict(self.shapes), dict(self.config)
        for part in units:
            config |= part.settings_of(width)
            if part.config_key == "vocab_size" and "decoder_vocab_size" in config:
                config["decoder_vocab_size"] = width
            for name, axis in part.tensors.items():
                if name in shapes:  # a tied name is not, nor is a buffer
                    shape = list(shapes[name])
                    shape[axis] = shape[axis] // part.count * width
                    shapes[name] = tuple(shape)
        smaller = replace(self, shapes=shapes, config=config)
        masked, exact = [], self.exact
        for names, count in self.masked:
            before, after = self.count_entries(names), smaller.count_entries(names)
            exact = exact and (before == after or count in (0, before))
            masked.append((names, round(count * after / before)))
        return replace(smaller, masked=tuple(masked), exact=exact)


def load_architecture(model_type: str) -> ModuleType:
    """Import the module that describes `model_type`. Raises KeyError with the known ones."""
    if model_type not in _MODULES:
        raise KeyError(f"no architecture {model_type!r}; {nearest(model_type, _MODULES)}")
    return importlib.import_module(f"compressor.models.architectures.{_MODULES[model_type]}")


def model_types(head: str) -> list[str]:
    """List the model types that can have this head."""
    return [name for name in _MODULES if head in load_architecture(name).HEADS]


def _list_count_keys(model_type: str) -> set[str]:
    """List the keys of a config that are counts: those whose default is an integer or None."""
    defaults = load_architecture(model_type).DEFAULTS[model_type]
    return {key for key, value in defaults.items() if value is None or type(value) is int}


def with_whole_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the counts of a config that are written as floats into integers: 3.0 layers into 3."""
    model_type = str(config.get("model_type", ""))
    if model_type not in _MODULES:  # which planning reports
        return dict(config)
    counted, aliases = _list_count_keys(model_type), load_architecture(model_type).ALIASES
    counted |= {alias for alias, key in aliases.items() if key in counted}
    return {key: to_int(value) if key in counted else value for key, value in config.items()}


def derive_facts(config: Mapping[str, Any], *, untied_head: bool | None = None, head: str) -> Facts:
    """Derive from a config what is known of a model. Raises ConfigError.

    `untied_head` None: as the config says.
    """
    model_type = str(config.get("model_type", ""))
    module = load_architecture(model_type)
    values = {key: value for key, value in config.items() if value is not None}
    values |= {key: values[alias] for alias, key in module.ALIASES.items() if alias in values}
    full = {**module.DEFAULTS[model_type], **values, "head": head}
    optional = {key for key, value in module.DEFAULTS[model_type].items() if value is None}
    for key in _list_count_keys(model_type) & (values.keys() | config.keys() - optional):
        value = values.get(key)
        if type(value) is not int or value < 1:
            shown = "null" if value is None else repr(value)
            raise ConfigError(key, f"expected a whole number of at least 1, got {shown}")
        most = MOST_LAYERS if "layer" in key else MOST_OF_ANYTHING
        if value > most:
            raise ConfigError(key, f"expected at most {most:,}, got {value:.3g}")
    for key, (only, reason) in getattr(module, "ONLY", {}).items():
        if values.get(key, only) != only:
            raise ConfigError(key, f"its config's {key} is {values[key]!r}: {reason}")
    shapes = module.parameters(full, untied_head=untied_head)
    return Facts(model_type=model_type, config=full, shapes=shapes)


def count_entries(amount: float, left: int, size: int, *, of_all: bool) -> int:
    """Count what an amount takes: of the `left`, or of all `size`, of which some are gone."""
    return max(0, round(amount * size) - (size - left)) if of_all else round(amount * left)


def evenly_spaced(layers: int, keep: int) -> list[int]:
    """Choose `keep` of `layers` indices, evenly spaced from the first: 6 → 3 keeps 0, 2, 4."""
    return [index * layers // keep for index in range(keep)]


def matched_layers(student: int, teacher: int) -> dict[int, int]:
    """Match each layer of a student with a teacher's, last to last: 2 of 4 are 1 and 3."""
    return {layer: -(-(layer + 1) * teacher // student) - 1 for layer in range(student)}
