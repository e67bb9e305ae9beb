"""What is known of a model from its config alone: parameters, groups, stacks, ties. No torch here.

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
from typing import Any, Literal

from pydantic import ValidationError

from compressor.core.errors import nearest
from compressor.core.settings import to_int
from compressor.models.block_config import KEY, BlockSizes

Shape = tuple[int, ...]
MOST_LAYERS, MOST_OF_ANYTHING = 1_000, 10**9
"""What a config may say at most: planning looks at each layer, and multiplies sizes."""

HALF = ("bfloat16", "float16")
"""Floating-point types of two bytes an entry."""

_MODULES = {
    "t5": "t5", "mt5": "t5", "longt5": "t5",
    "bart": "bart", "mbart": "bart", "pegasus": "bart", "marian": "bart",
    "bert": "bert", "roberta": "bert", "electra": "bert", "distilbert": "distilbert",
    "gpt2": "gpt2",
    "llama": "llama", "qwen2": "llama", "qwen3": "llama",
}  # fmt: skip
"""Model type → the module that describes it. Each such module has

- `DEFAULTS`: for each model type, what a config leaves out, as transformers fills it in;
- `ALIASES`: other names that transformers takes for some of these keys (they win over them);
- `HEADS`: what can stand on the body (see `stages.load.Load.head`);
- `WIDTHS`: which keys of a config are widths, as `Widths` says;
- `stacks(config)`: stack → `Stack`; `groups(config)`: group path → names of its weights;
- `parameters(config, untied_head=…)`: name → shape of every distinct parameter;
- `ties(config)`: name of a parameter → the name it goes by where the two are one tensor;
- `channels(config, shapes)`, where any are: the `Channels` that `smooth` can rescale;
- `ONLY`, where any are: key of a config → (the only value that is computed, why);
- `reserved_positions(config)`, where any are: positions of the table that no token has;
- `TOKENS`, where any are: model type → the token ids that transformers fills in for a config;
- `linear(config, shapes)`: the parameters that are the weight of an `nn.Linear` (GPT-2's `Conv1D`
  is none), which are those that integer products can be made with.

`config` always has every key of `DEFAULTS`, and `head`.
"""


@dataclass(frozen=True)
class Widths:
    """Which keys of a config say how wide a model is: what a narrower one of its kind changes."""

    hidden: str
    """The width of the states that layers hand on; heads share it where there is no `head_size`."""
    feed_forward: tuple[str, ...]
    heads: tuple[str, ...]
    key_heads: str = ""
    """How many heads have keys of their own, where queries may share them."""
    head_size: str = ""
    embedding: str = ""
    """The width of the word embedding, where it has one of its own."""


@dataclass(frozen=True)
class Stack:
    """A run of layers, `prefix.{i}.…` their parameters, `config_key` their count.

    All are alike but those in whose place a block stands.
    """

    prefix: str
    config_key: str
    layers: int
    first_layer_only: tuple[str, ...] = ()
    """Parameter names, under `prefix.0.`, that whichever layer comes first must carry."""
    per_layer: tuple[str, ...] = ()
    """Keys of the config that have a list with one entry a layer, or nothing."""
    leading: tuple[str, ...] = ()
    """Keys of the config that say how many layers, counted from the first, are of one kind."""
    blocks: tuple[BlockSizes | None, ...] = ()
    """For each layer the sizes of the block in its place, or None; empty where there is none."""
    stays: str = ""
    """Why no block can stand in the place of a layer; "" where one can."""

    @property
    def native_layers(self) -> list[int]:
        """The layers that are the architecture's own."""
        return [i for i in range(self.layers) if not self.blocks or self.blocks[i] is None]

    def list_weights(self, names: Sequence[str]) -> tuple[str, ...]:
        """The full names of these modules' weights, layer by layer."""
        return tuple(f"{self.prefix}.{i}.{n}.weight" for i in self.native_layers for n in names)

    def block_parameters(self, width: int) -> dict[str, Shape]:
        """Name → shape of every parameter of the blocks, in a model of `width`."""
        return {
            f"{self.prefix}.{i}.{name}": shape
            for i, sizes in enumerate(self.blocks)
            if sizes is not None
            for name, shape in sizes.list_parameters(width).items()
        }

    def block_groups(self) -> dict[str, tuple[str, ...]]:
        """The group of the blocks' `Linear` weights, where there are blocks."""
        names = tuple(
            f"{self.prefix}.{i}.{name}"
            for i, sizes in enumerate(self.blocks)
            if sizes is not None
            for name in sizes.list_weights()
        )
        return {"encoder.block": names} if names else {}

    def with_block(self, layer: int, sizes: BlockSizes) -> dict[str, Any]:
        """The entry of the config that changes when a block takes the place of `layer`."""
        blocks = [*(self.blocks or [None] * self.layers)]
        blocks[layer] = sizes
        return {KEY: [each.model_dump() if each else None for each in blocks]}

    def config_after(self, config: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
        """The entries of `config` that change when only `layers` are kept."""
        changed: dict[str, Any] = {self.config_key: len(layers)}
        for key in self.per_layer:
            if config.get(key) is not None:
                changed[key] = [config[key][layer] for layer in layers]
        for key in self.leading:
            if config.get(key) is not None:
                changed[key] = sum(layer < config[key] for layer in layers)
        return changed

    def renumber_parameter(self, name: str, layers: list[int]) -> str | None:
        """The name that parameter `name` has after keeping `layers`, or None if it goes."""
        if not name.startswith(f"{self.prefix}."):
            return name
        index, rest = name[len(self.prefix) + 1 :].split(".", 1)
        if rest in self.first_layer_only:
            return name
        if int(index) not in layers:
            return None
        return f"{self.prefix}.{layers.index(int(index))}.{rest}"


UnitKind = Literal["heads", "feed_forward", "vocabulary"]

_DECLARED_BY = {
    "heads": "attentions",
    "feed_forward": "feed_forwards",
    "vocabulary": "vocabulary",
}
"""The function of an architecture's module that declares its units of each kind."""


@dataclass(frozen=True)
class Units:
    """Equal units that can leave a model: the heads of one attention, the neurons of one
    feed-forward layer, or the pieces of the vocabulary.

    `matrices` and `carried` are parameter name → axis. Along its axis each tensor consists of
    `count` equal blocks, one a unit, in the same order in all of them.
    """

    name: str
    config_key: str
    """The config's width that says how many units there are, here and wherever else it counts."""
    count: int
    matrices: Mapping[str, int]
    """What a unit is judged by. Where all of these are zero, the unit adds nothing."""
    carried: Mapping[str, int] = field(default_factory=dict)
    """What goes with a unit without a say in its importance: biases, a position bias's columns."""
    stack: str = ""
    chosen_with: str = ""
    """Units of the same `chosen_with` must lose the same indices; "" chooses for itself."""
    stays: str = ""
    """Why a plain config cannot express another width; "" where it can."""

    @property
    def tensors(self) -> dict[str, int]:
        return {**self.matrices, **self.carried}


@dataclass(frozen=True)
class Channels:
    """Channels between two layers, which can be made smaller in the first and larger in the next.

    Divided by a number a channel in `writers`, along their first axis, and multiplied by it in
    `readers`, along their last, they leave what the model computes as it was. All `readers` read
    these channels, and nothing else does.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]


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
    """Columns of such a group."""
    exact_size: bool = True
    """False where `shapes` are only an upper bound: the rows decide how many pieces go."""
    slow_tokenizer: bool = False
    """Whether the model's tokenizer has no fast twin, as Marian's own."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """The generation config that the model came with, and what the recipe sets of it."""

    @property
    def parameters(self) -> int:
        """Physical parameters: every entry of every distinct tensor; tied tensors count once."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def nonzero_ratio(self) -> float:
        """Entries that no mask zeroes / all parameters."""
        return (self.parameters - sum(count for _, count in self.masked)) / self.parameters

    @property
    def bytes(self) -> int:
        """Size of the weights in bytes: those of entries and scales."""
        return sum(self.tensor_bytes(name) for name in self.shapes)

    def tensor_bytes(self, name: str) -> int:
        """4 an entry, or 2; 1 and a 4-byte scale a row, or a 2-byte one a block, where int8; ½ and
        2 a group where int4.
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
        """What messages call a model that no stage can change any more; "" where it is float32."""
        if self.weights == "float32":
            return ""
        return f"{'an' if self.weights.startswith('int') else 'a'} {self.weights} model"

    def dequantize(self) -> Facts:
        """The facts of the float32 model that has the values of a quantized one."""
        return replace(self, weights="float32", int8=frozenset(), int8_block=0, int4=frozenset())

    @property
    def positions(self) -> int | None:
        """The most tokens a sequence can have, where the model has a table of positions."""
        module = load_architecture(self.model_type)
        table = {"max_position_embeddings", "n_positions"} & module.DEFAULTS[self.model_type].keys()
        if not table:
            return None
        reserved = getattr(module, "reserved_positions", lambda _: 0)
        return int(self.config[table.pop()]) - int(reserved(self.config))

    def count_entries(self, names: frozenset[str]) -> int:
        return sum(math.prod(self.shapes[name]) for name in names)

    def count_remaining(self, names: frozenset[str]) -> tuple[int, bool]:
        """How many entries of `names` no mask zeroes, and whether that count is exact."""
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
        """How many more entries an amount, of what is left or of all, takes; whether exactly."""
        left, exact = self.count_remaining(names)
        return count_entries(amount, left, self.count_entries(names), of_all=of_all), exact

    def prune(self, names: frozenset[str], count: int, *, exact: bool = True) -> Facts:
        """The facts after `count` more entries of `names` are masked."""
        known = self.exact and self.exact_size and exact
        return replace(self, masked=(*self.masked, (names, count)), exact=known)

    def list_groups(self) -> dict[str, tuple[str, ...]]:
        """Group path → names of its `Linear` weights; unions (`feed_forward`) come after parts."""
        parts: dict[str, tuple[str, ...]] = load_architecture(self.model_type).groups(self.config)
        parts = {path: tuple(map(self._follow_tie, names)) for path, names in parts.items()}
        unions: dict[str, tuple[str, ...]] = {}
        for path, names in parts.items():
            _, dot, kind = path.partition(".")
            if dot:
                unions[kind] = unions.get(kind, ()) + names
        return parts | {kind: names for kind, names in unions.items() if kind not in parts}

    def _follow_tie(self, name: str) -> str:
        return name if name in self.shapes else self.list_ties().get(name, name)

    def list_ties(self) -> Mapping[str, str]:
        """Name of a parameter → the name it goes by where the two are one tensor."""
        found: Mapping[str, str] = load_architecture(self.model_type).ties(self.config)
        return found

    def list_linear_weights(self) -> list[str]:
        """The parameters that are the weight of an `nn.Linear`."""
        found: list[str] = load_architecture(self.model_type).linear(self.config, self.shapes)
        return found

    def word_embeddings(self) -> set[str]:
        """The tables that words are looked up in. Of two vocabularies (Marian's) none is known."""
        heads = load_architecture(self.model_type).ties(self.config)
        rows = {name for units in self.list_units("vocabulary") for name in units.matrices}
        return {name for name in rows if name in self.shapes and name not in heads}

    def list_stacks(self) -> dict[str, Stack]:
        found: dict[str, Stack] = load_architecture(self.model_type).stacks(self.config)
        return found

    def keep_layers(self, kept: Mapping[str, list[int]]) -> Facts:
        """The facts after keeping, of each named stack, only the listed layers."""
        stacks = self.list_stacks()
        # Every count is written: one that a config leaves out follows another that now changes.
        config = dict(self.config) | {stack.config_key: stack.layers for stack in stacks.values()}
        for stack, layers in kept.items():
            config |= stacks[stack].config_after(self.config, layers)

        def rename_parameter(name: str) -> str | None:
            for stack, layers in kept.items():
                new = stacks[stack].renumber_parameter(name, layers)
                if new != name:
                    return new
            return name

        names = {old: new for old in self.shapes if (new := rename_parameter(old)) is not None}
        shapes = {new: self.shapes[old] for old, new in names.items()}
        return replace(self, config=config, shapes=shapes, **self._masked_after(names))

    def _masked_after(self, names: Mapping[str, str]) -> dict[str, Any]:
        """`masked` and `exact` when only the parameters in `names` stay, under new names."""
        masked, exact = [], self.exact
        for group, count in self.masked:
            left, share = frozenset(names[name] for name in group if name in names), 1.0
            if len(left) < len(group):
                share = self.count_entries(
                    frozenset(n for n in group if n in names)
                ) / self.count_entries(group)
                exact = False
            if left:
                masked.append((left, round(count * share)))
        return {"masked": tuple(masked), "exact": exact}

    def replace_layers(self, stack: str, layers: Sequence[int], sizes: BlockSizes) -> Facts:
        """The facts with one block in the place of consecutive `layers` of a stack."""
        kept = [i for i in range(self.list_stacks()[stack].layers) if i not in layers[1:]]
        shorter = self.keep_layers({stack: kept})
        spec = shorter.list_stacks()[stack]
        config = {**shorter.config, **spec.with_block(layers[0], sizes)}
        place = f"{spec.prefix}.{layers[0]}."
        names = {name: name for name in shorter.shapes if not name.startswith(place)}
        table: dict[str, Shape] = load_architecture(self.model_type).parameters(config)
        shapes = {name: shorter.shapes[name] for name in names}
        shapes |= {name: shape for name, shape in table.items() if name.startswith(place)}
        return replace(shorter, config=config, shapes=shapes, **shorter._masked_after(names))

    def list_units(self, kind: UnitKind) -> tuple[Units, ...]:
        """What an architecture declares of a kind; nothing where it declares none."""
        declare = getattr(load_architecture(self.model_type), _DECLARED_BY[kind], None)
        return () if declare is None else tuple(declare(self.config))

    def list_channels(self) -> tuple[Channels, ...]:
        """Those that an architecture declares; nothing where it declares none."""
        declare = getattr(load_architecture(self.model_type), "channels", None)
        return () if declare is None else tuple(declare(self.config, self.shapes))

    def resize(self, units: Iterable[Units], width: int) -> Facts:
        """The facts after `width` units of each of `units` stay.

        The ratio of a pruned tensor is an estimate from then on: which zeros go is not known.
        """
        shapes, config = dict(self.shapes), dict(self.config)
        for each in units:
            config[each.config_key] = width
            if each.config_key == "vocab_size" and "decoder_vocab_size" in config:
                config["decoder_vocab_size"] = width
            for name, axis in each.tensors.items():
                if name in shapes:  # a tied name is not, nor is a buffer
                    shape = list(shapes[name])
                    shape[axis] = shape[axis] // each.count * width
                    shapes[name] = tuple(shape)
        smaller = replace(self, shapes=shapes, config=config)
        masked, exact = [], self.exact
        for names, count in self.masked:
            before, after = self.count_entries(names), smaller.count_entries(names)
            exact = exact and (before == after or count in (0, before))
            masked.append((names, round(count * after / before)))
        return replace(smaller, masked=tuple(masked), exact=exact)


NO_ENCODER = (False, "its layers attend to an encoder's states, and there is no encoder")
"""What `ONLY` says of `add_cross_attention`."""


class ConfigError(ValueError):
    """A config's value that no model can have. `key` is the config's."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


def load_architecture(model_type: str) -> ModuleType:
    """The module that describes `model_type`. Raises KeyError with the known ones."""
    if model_type not in _MODULES:
        raise KeyError(f"no architecture {model_type!r}; {nearest(model_type, _MODULES)}")
    return importlib.import_module(f"compressor.models.architectures.{_MODULES[model_type]}")


def model_types(head: str) -> list[str]:
    """The model types on which such a head can stand."""
    return [each for each in _MODULES if head in load_architecture(each).HEADS]


def _list_count_keys(model_type: str) -> set[str]:
    """The keys of a config that say how many there are of something."""
    defaults = load_architecture(model_type).DEFAULTS[model_type]
    return {
        key
        for key, default in defaults.items()
        if default is None or (isinstance(default, int) and not isinstance(default, bool))
    }


def with_whole_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which 3.0 layers are 3, as everywhere in a recipe; all else as it is."""
    model_type = str(config.get("model_type", ""))
    try:
        counted = _list_count_keys(model_type)
    except KeyError:  # which planning reports
        return dict(config)
    counted |= {
        alias for alias, key in load_architecture(model_type).ALIASES.items() if key in counted
    }
    return {key: to_int(value) if key in counted else value for key, value in config.items()}


def derive_facts(config: Mapping[str, Any], *, untied_head: bool | None = None, head: str) -> Facts:
    """What a config says of a model. `untied_head` None: as the config says."""
    model_type = str(config.get("model_type", ""))
    module = load_architecture(model_type)
    given = {key: value for key, value in config.items() if value is not None}
    given |= {key: given[alias] for alias, key in module.ALIASES.items() if alias in given}
    full = {**module.DEFAULTS[model_type], **given, "head": head}
    for key in _list_count_keys(model_type) & given.keys():
        value = given[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(key, f"expected a whole number of at least 1, got {value!r}")
        most = MOST_LAYERS if "layer" in key else MOST_OF_ANYTHING
        if value > most:
            raise ConfigError(key, f"expected at most {most:,}, got {value:.3g}")
    for key, (only, reason) in getattr(module, "ONLY", {}).items():
        if given.get(key, only) != only:
            raise ConfigError(key, f"its config's {key} is {given[key]!r}: {reason}")
    shapes = module.parameters(full, untied_head=untied_head)
    return Facts(model_type=model_type, config=full, shapes=shapes)


def count_labels(config: Mapping[str, Any]) -> int:
    """How many classes a classifier of this config has; transformers' default is 2."""
    return int(config.get("num_labels") or len(config.get("id2label") or ()) or 2)


def read_blocks(config: Mapping[str, Any], layers: int) -> tuple[BlockSizes | None, ...]:
    """The blocks that a config puts in the place of layers; empty where it names none."""
    listed = config.get(KEY)
    if listed is None:
        return ()
    if not isinstance(listed, list) or len(listed) != layers:
        raise ConfigError(KEY, f"expected a list of {layers}, an entry for each layer")
    try:
        return tuple(e if e is None else BlockSizes.model_validate(e) for e in listed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(KEY, f"{where}: {first['msg']}") from error


def count_entries(amount: float, left: int, size: int, *, of_all: bool) -> int:
    """How many entries an amount takes: of the `left`, or of all `size`, of which some are gone."""
    return max(0, round(amount * size) - (size - left)) if of_all else round(amount * left)


def evenly_spaced(layers: int, keep: int) -> list[int]:
    """`keep` of `layers` indices, evenly spaced from the first: 6 → 3 keeps 0, 2, 4."""
    return [index * layers // keep for index in range(keep)]


def matched_layers(student: int, teacher: int) -> dict[int, int]:
    """A teacher's layer for each of a student's, evenly, last to last: 2 of 4 are 1 and 3."""
    return {layer: -(-(layer + 1) * teacher // student) - 1 for layer in range(student)}
