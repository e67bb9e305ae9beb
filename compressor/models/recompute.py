"""Compute a layer, or chunks of it, again in the backward pass: only its inputs are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


@contextmanager
def recompute_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Have each of `layers` keep its inputs alone for a backward pass, and compute itself again.

    Gradients are the same to the bit. For models in evaluation: transformers' own way is for
    training alone. Layers may not write to what they are given, as to a cache of keys and values.
    """
    with ExitStack() as stack:
        for layer in layers:
            forward = partial(checkpoint, layer.forward, use_reentrant=False)
            layer.forward = forward
            stack.callback(delattr, layer, "forward")
        yield


@dataclass(frozen=True)
class ChunkedLayer:
    """A layer that computes chunks of rows, each of which also reads something of a whole input."""

    layer: Any

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Prepare what chunks read: the keys and values of all tokens, say."""
        raise NotImplementedError

    def chunk_size(self, rows: Tensor) -> int:
        """Choose how many of the rows [B, R, D], along R, a chunk has."""
        raise NotImplementedError

    def cut_prepared(self, prepared: tuple[Tensor, ...], chunk: slice) -> tuple[Tensor, ...]:
        """View what a chunk reads of the prepared tensors, or of others shaped like them."""
        return prepared

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], chunk: slice
    ) -> Tensor:
        """Compute the result [B, r, D], of the rows' dtype, for a chunk's rows [B, r, D]."""
        raise NotImplementedError

    def split_rows(self, rows: Tensor) -> list[slice]:
        """Cut rows [B, R, D] along R."""
        size = self.chunk_size(rows)
        return [slice(start, start + size) for start in range(0, rows.shape[1], size)]

    def list_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.layer.parameters() if p.requires_grad]


def chunked_with_recompute(
    layer: ChunkedLayer, whole: Tensor, rows: Tensor, shared: tuple[Tensor, ...] = ()
) -> Tensor:
    """Compute a layer for all of `rows` [B, R, D]. With gradients too, only the arguments are kept.

    Gradients are those for `whole`, `rows`, `shared` (floating point) and the parameters. Dropout
    draws the same numbers when it is computed again. There are no gradients of gradients.
    """
    apply: Any = _ChunkedFunction.apply  # torch does not type it
    result: Tensor = apply(layer, len(shared), whole, rows, *shared, *layer.list_parameters())
    return result


class _ChunkedFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: ChunkedLayer, shared: int, whole: Tensor, rows: Tensor, *others: Tensor
    ) -> Tensor:
        ctx.save_for_backward(whole, rows, *others[:shared])
        ctx.layer, ctx.state = layer, _State(rows.device)
        prepared, result = layer.prepare_shared(whole), torch.empty_like(rows)
        for chunk in layer.split_rows(rows):
            parts = layer.cut_prepared(prepared, chunk)
            result[:, chunk] = layer.compute_chunk(rows[:, chunk], parts, others[:shared], chunk)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        whole, rows, *shared = ctx.saved_tensors
        with ctx.state.restore():
            gradients = _compute_gradients(ctx.layer, whole, rows, shared, gradient)
        return (None, None, *gradients)


def _compute_gradients(
    layer: ChunkedLayer, whole: Tensor, rows: Tensor, shared: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """Compute gradients for whole, rows, shared and parameters, of a result's [B, R, D]."""
    parameters = layer.list_parameters()
    source = whole.detach().requires_grad_()
    with torch.enable_grad():
        graph = layer.prepare_shared(source)
    prepared = tuple(tensor.detach() for tensor in graph)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in shared)
    sums = tuple(map(torch.zeros_like, prepared))
    totals = [torch.zeros_like(tensor) for tensor in (*leaves, *parameters)]
    of_rows = torch.empty_like(rows)
    for chunk in layer.split_rows(rows):
        part = rows[:, chunk].detach().requires_grad_()
        read = tuple(t.detach().requires_grad_() for t in layer.cut_prepared(prepared, chunk))
        with torch.enable_grad():
            result = layer.compute_chunk(part, read, leaves, chunk)
        inputs = (part, *read, *leaves, *parameters)
        first, *rest = torch.autograd.grad(result, inputs, gradient[:, chunk], allow_unused=True)
        of_rows[:, chunk] = first
        _add_gradients([*layer.cut_prepared(sums, chunk), *totals], rest)
        del result, rest  # before the next chunk makes its own
    of_whole, *rest = torch.autograd.grad(graph, (source, *parameters), sums, allow_unused=True)
    _add_gradients(totals[len(leaves) :], rest)
    return [of_whole, of_rows, *totals]


def _add_gradients(totals: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for total, tensor in zip(totals, gradients, strict=True):
        if tensor is not None:
            total.add_(tensor)


class _State:
    """What results depend on beside arguments, as it was when this was made: the generator that
    dropout draws from, autocast, and modes such as `compressor.training.dropout.FasterDropout`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._random = torch.cuda.get_rng_state(device) if self._cuda else torch.get_rng_state()
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
        )
        # A backward pass begins without any. torch has no public way to ask for them.
        self._modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def restore(self) -> Iterator[None]:
        """While it lasts, have it so again; the generator goes on from where it was before."""
        with torch.random.fork_rng(self._cuda), self._autocast, ExitStack() as modes:
            if self._cuda:
                torch.cuda.set_rng_state(self._random, *self._cuda)
            else:
                torch.set_rng_state(self._random)
            for mode in self._modes:
                modes.enter_context(mode)
            yield
