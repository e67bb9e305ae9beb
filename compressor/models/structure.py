"""The parts that an architecture declares of itself: widths, stacks of layers, units, channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from compressor.core.settings import first_problem
from compressor.models.block_config import BLOCKS_KEY, BlockSizes

Shape = tuple[int, ...]
UnitKind = Literal["heads", "feed_forward", "vocabulary"]

NO_ENCODER = (False, "its layers attend to an encoder's states, and there is no encoder")
"""What `ONLY` says of `add_cross_attention`."""


class ConfigError(ValueError):
    """A config's value that no model can have. `key` is the config's."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


@dataclass(frozen=True)
class Widths:
    """The keys of a config that are widths, which a narrower model of the same type changes."""

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
class Units:
    """Equal units that can leave a model: the heads of one attention, the neurons of one
    feed-forward layer, or the tokens of the vocabulary.

    `matrices` and `carried` are parameter name → axis. Along its axis each tensor consists of
    `count` equal blocks, one a unit, in the same order in all of them.
    """

    name: str
    config_key: str
    """The config's width that says how many units there are, here and wherever else it counts."""
    count: int
    matrices: Mapping[str, int]
    """The tensors that decide a unit's importance. If all are zero, it contributes nothing. The
    last one multiplies what the units give."""
    carried: Mapping[str, int] = field(default_factory=dict)
    """Tensors that are cut too, but do not count in importance: biases, position biases."""
    stack: str = ""
    counted: Mapping[str, int] = field(default_factory=dict)
    """Other widths of the config that change too → how many of those each unit has."""
    fixed: Mapping[str, int] = field(default_factory=dict)
    """Values that a config must have from then on, since it would derive others."""
    divided: int = 0
    """What each of `counted` must divide, as the config's own class asks for; 0: nothing."""
    chosen_with: str = ""
    """Units of the same `chosen_with` must lose the same indices; "" chooses for itself."""

    @property
    def tensors(self) -> dict[str, int]:
        return {**self.matrices, **self.carried}

    @property
    def output(self) -> str:
        """The weight that multiplies what the units give."""
        return list(self.matrices)[-1]

    def list_widths(self) -> list[int]:
        """List the numbers of units that a config can express."""
        return [
            width
            for width in range(1, self.count + 1)
            if not any(self.divided % (number * width) for number in self.counted.values())
        ]

    def settings_of(self, width: int) -> dict[str, int]:
        """Give what the config says of so many units."""
        others = {key: number * width for key, number in self.counted.items()}
        return {self.config_key: width, **others, **self.fixed}


@dataclass(frozen=True)
class Stack:
    """A run of layers, `prefix.{i}.…` their parameters, `config_key` their count.

    All are alike but those in whose place a block stands.
    """

    name: Literal["encoder", "decoder"]
    prefix: str
    config_key: str
    layers: int
    parts: Mapping[str, Sequence[str]]
    """Part of a layer, such as `feed_forward` → the modules whose weights can be pruned."""
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
    def paths(self) -> list[str]:
        """The paths of the layers that are the architecture's own."""
        blocks = self.blocks or [None] * self.layers
        return [f"{self.prefix}.{layer}" for layer, block in enumerate(blocks) if block is None]

    def list_neurons(
        self,
        config: Mapping[str, Any],
        part: str,
        key: str,
        *,
        biases: bool = True,
        transposed: bool = False,
        count: int = 0,
    ) -> list[Units]:
        """List the neurons of every layer: rows of inner matrices, columns of the output one.

        `part`: the path in a layer that names them. `biases`: the inner matrices have some.
        `transposed`: as in `Conv1D`. `count`: where the config does not say it.
        """
        (*inner, output), row = self.parts["feed_forward"], int(transposed)
        return [
            Units(
                f"{path}.{part}",
                key,
                count or config[key],
                {f"{path}.{n}.weight": row for n in inner} | {f"{path}.{output}.weight": 1 - row},
                carried={f"{path}.{n}.bias": 0 for n in inner} if biases else {},
                stack=self.name,
            )
            for path in self.paths
        ]

    def _list_blocks(self) -> list[tuple[str, BlockSizes]]:
        """List (path, sizes) of the blocks."""
        pairs = enumerate(self.blocks)
        return [(f"{self.prefix}.{layer}", sizes) for layer, sizes in pairs if sizes is not None]

    def block_parameters(self, width: int) -> dict[str, Shape]:
        """Map every parameter of the blocks to its shape, in a model of `width`."""
        return {
            f"{path}.{name}": shape
            for path, sizes in self._list_blocks()
            for name, shape in sizes.list_parameters(width).items()
        }

    def list_groups(self) -> dict[str, tuple[str, ...]]:
        """Map each part to its weights, layer by layer."""
        return {
            f"{self.name}.{part}": tuple(f"{p}.{n}.weight" for p in self.paths for n in names)
            for part, names in self.parts.items()
        }

    def list_block_weights(self) -> tuple[str, ...]:
        """List the blocks' `Linear` weights."""
        blocks = self._list_blocks()
        return tuple(f"{path}.{name}" for path, sizes in blocks for name in sizes.list_weights())

    def with_block(self, layer: int, sizes: BlockSizes) -> dict[str, Any]:
        """Give the entry of the config that changes when a block takes the place of `layer`."""
        blocks = [*(self.blocks or [None] * self.layers)]
        blocks[layer] = sizes
        return {BLOCKS_KEY: [block.model_dump() if block else None for block in blocks]}

    def config_after(self, config: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
        """Give the entries of `config` that change when only `layers` are kept."""
        changed: dict[str, Any] = {self.config_key: len(layers)}
        for key in self.per_layer:
            if config.get(key) is not None:
                changed[key] = [config[key][layer] for layer in layers]
        for key in self.leading:
            if config.get(key) is not None:
                changed[key] = sum(layer < config[key] for layer in layers)
        return changed

    def renumber_parameter(self, name: str, layers: list[int]) -> str | None:
        """Give the name that a parameter has after keeping `layers`, or None if it goes."""
        if not name.startswith(f"{self.prefix}."):
            return name
        index, rest = name[len(self.prefix) + 1 :].split(".", 1)
        if rest in self.first_layer_only:
            return name
        if int(index) not in layers:
            return None
        return f"{self.prefix}.{layers.index(int(index))}.{rest}"


def renumber_parameter(
    stacks: Mapping[str, Stack], kept: Mapping[str, list[int]], name: str
) -> str | None:
    """Give the name that a parameter has after keeping layers of stacks, or None if it goes."""
    for stack, layers in kept.items():
        new = stacks[stack].renumber_parameter(name, layers)
        if new != name:
            return new
    return name


@dataclass(frozen=True)
class Channels:
    """Channels between two layers, which can be made smaller in the first and larger in the next.

    Divided by a number a channel in `writers`, along their first axis, and multiplied by it in
    `readers`, along their last, they leave what the model computes as it was. All `readers` read
    these channels, and nothing else does.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]


class Table(dict[str, Shape]):
    """A dict of parameter name → shape, with methods that add whole modules."""

    def add_linear(self, name: str, out: int, into: int) -> None:
        """Add the weight and bias of an `nn.Linear`."""
        self[f"{name}.weight"], self[f"{name}.bias"] = (out, into), (out,)

    def add_norm(self, name: str, width: int) -> None:
        """Add the weight and bias of a layer norm."""
        self[f"{name}.weight"], self[f"{name}.bias"] = (width,), (width,)

    def add_decoder_head(
        self, config: Mapping[str, Any], width: int, *, untied_head: bool | None
    ) -> None:
        """Add what stands on a decoder: a classifier's scores, or a language head of its own."""
        if config["head"] == "sequence_classification":
            self["score.weight"] = (count_labels(config), width)
        untied = not config["tie_word_embeddings"] if untied_head is None else untied_head
        if config["head"] == "causal_lm" and untied:
            self["lm_head.weight"] = (config["vocab_size"], width)


def count_labels(config: Mapping[str, Any]) -> int:
    """Count the classes of a classifier; transformers' default is 2."""
    return int(config.get("num_labels") or len(config.get("id2label") or ()) or 2)


def read_blocks(config: Mapping[str, Any], layers: int) -> tuple[BlockSizes | None, ...]:
    """Read the blocks that a config puts in the place of layers. Raises ConfigError."""
    listed = config.get(BLOCKS_KEY)
    if listed is None:
        return ()
    if not isinstance(listed, list) or len(listed) != layers:
        raise ConfigError(BLOCKS_KEY, f"expected a list of {layers}, an entry for each layer")
    try:
        return tuple(e if e is None else BlockSizes.model_validate(e) for e in listed)
    except ValidationError as error:
        raise ConfigError(BLOCKS_KEY, first_problem(error)) from error
