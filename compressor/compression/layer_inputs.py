"""Sum up what comes into modules on calibration rows, layer by layer where a model lets one.

Chooses and prunes nothing: who takes a layer's sums may prune it before asking for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from compressor.compression.pruning import Origin

Batch = dict[str, Tensor]
Statistic = Callable[[Tensor | None, Tensor], Tensor]
"""(sum so far, [tokens, inputs]) → the sum with them, which may be the old one, changed."""


class _EnoughError(Exception):
    """Ends a forward whose rest would tell nothing."""


def add_squares(total: Tensor | None, tokens: Tensor) -> Tensor:
    """Add `Σ x_j²` over tokens: [inputs]."""
    squares = tokens.square().sum(0)
    return squares if total is None else total + squares


def add_products(total: Tensor | None, tokens: Tensor) -> Tensor:
    """Add `Σ x xᵀ` over tokens: [inputs, inputs].

    Half the Hessian of `‖W x − W' x‖²` with regard to a row of W'; the factor does not matter.
    """
    if total is None:
        total = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
    return total.addmm_(tokens.T, tokens)


@contextmanager
def watch_inputs(
    modules: Mapping[str, nn.Module], add: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `add(name, [tokens, inputs])` with what comes into each module, in float32.

    A padded position is a token like any other here.
    """

    def hook(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        add(name, inputs[0].detach().flatten(0, -2).float())

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(hook, name)))
        yield


@contextmanager
def sum_inputs(
    modules: Mapping[str, nn.Module],
    statistic: Statistic,
    *,
    shares: bool = False,
    ends: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Sum up what comes into each module while it lasts: name → sum.

    `shares`: modules that read one tensor in turn, as those of queries, keys and values do, share
    one sum; none may be reached twice in a forward, as some of LongT5's are. `ends`: end a forward
    by an error once each module has been reached.
    """
    sums: dict[str, Tensor] = {}
    reached: set[str] = set()
    last: list[tuple[str, Tensor]] = []

    def add(name: str, tokens: Tensor) -> None:
        # The last one is alive: nothing else lies where it does.
        if shares and last and last[0][1].data_ptr() == tokens.data_ptr():
            sums[name] = sums[last[0][0]]
        else:
            sums[name] = statistic(sums.get(name), tokens)
        last[:] = [(name, tokens)]
        reached.add(name)
        if ends and len(reached) == len(modules):
            reached.clear()
            raise _EnoughError

    with watch_inputs(modules, add):
        yield sums


@dataclass
class _Row:
    """A calibration row on its way through the layers of a stack."""

    states: Tensor
    """What the layer that it has come to reads."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """What else each layer is called with: masks, positions, an encoder's states."""


class LayerWalk:
    """Runs a stack's layers one after the other, each on all rows, whose states alone are kept.

    The layers take states first and give states, and read nothing of the layers before but these:
    T5's, which hand on their position biases, are none of those.
    """

    def __init__(
        self, layers: Sequence[nn.Module], loss: Callable[[Batch], Any], batches: Iterable[Batch]
    ) -> None:
        self.layers = layers
        self.rows = [self._enter(loss, batch) for batch in batches]

    @torch.no_grad()
    def run(self, index: int, *, advances: bool) -> None:
        """Run a layer on all rows. `advances`: what it gives is what the next layer reads."""
        for row in self.rows:
            arguments, options = row.calls[index]
            with suppress(_EnoughError):
                output = self.layers[index](row.states, *arguments, **options)
                if advances:
                    row.states = output if isinstance(output, Tensor) else output[0]

    @torch.no_grad()
    def _enter(self, loss: Callable[[Batch], Any], batch: Batch) -> _Row:
        """Run a model up to the first layer, and note what it calls each layer with.

        Only the first one computes, and its output stands for those of the others.
        """
        states: list[Tensor] = []
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        outputs: list[Any] = []

        def record(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            # Without a cache, into which each run of a layer would put its keys again.
            rest = tuple(None if isinstance(a, Cache) else a for a in arguments[1:])
            options = {n: None if isinstance(a, Cache) else a for n, a in options.items()}
            states.append(arguments[0])
            calls.append((rest, options))
            if len(calls) == len(self.layers):
                raise _EnoughError
            if not outputs:
                outputs.append(forward(arguments[0], *rest, **options))
            return outputs[0]

        with ExitStack() as undo:
            for layer in self.layers:
                undo.callback(delattr, layer, "forward")
                layer.forward = partial(record, layer.forward)
            undo.enter_context(suppress(_EnoughError))
            loss(batch)
        return _Row(states[0], calls)


def sum_by_layer(
    modules: Mapping[str, nn.Module],
    stacks: Sequence[Sequence[nn.Module]],
    loss: Callable[[Batch], Any],
    batches: Sequence[Batch],
    statistic: Statistic,
    origin: Origin,
) -> Iterator[dict[str, Tensor]]:
    """Yield the sums of the modules of a layer, name → sum, for one layer after the other.

    Every module is in one yield. Only the sums of a layer are held, and of what is in none of
    `stacks` (the layers of each, in the order in which the model runs them), which come last.
    What was yielded may be pruned before the next is asked for; with "dense", no other may.
    """
    rest, dense = dict(modules), origin == "dense"
    walks = []
    for layers in stacks:
        parts = [_take_inside(rest, layer) for layer in layers]
        if any(parts):
            walks.append((layers, parts))
    outside = _sum_at_once(rest, loss, batches, statistic) if rest and dense else {}
    # In a dense encoder-decoder the decoder first: it reads what the encoder makes.
    for layers, parts in reversed(walks) if dense else walks:
        walk = LayerWalk(layers, loss, batches)
        last = max(index for index, part in enumerate(parts) if part)
        for index, part in enumerate(parts[: last + 1]):
            if part:
                with sum_inputs(part, statistic, shares=True, ends=not dense) as sums:
                    walk.run(index, advances=dense)
                yield sums
            if index < last and not (dense and part):
                walk.run(index, advances=True)
    if rest:
        yield outside if dense else _sum_at_once(rest, loss, batches, statistic)


def _take_inside(modules: dict[str, nn.Module], layer: nn.Module) -> dict[str, nn.Module]:
    """Take out of `modules` those that a layer has."""
    inside = {id(module) for module in layer.modules()}
    names = [name for name, module in modules.items() if id(module) in inside]
    return {name: modules.pop(name) for name in names}


@torch.no_grad()
def _sum_at_once(
    modules: Mapping[str, nn.Module],
    loss: Callable[[Batch], Any],
    batches: Iterable[Batch],
    statistic: Statistic,
) -> dict[str, Tensor]:
    with sum_inputs(modules, statistic) as sums:
        for batch in batches:
            loss(batch)
    return sums
