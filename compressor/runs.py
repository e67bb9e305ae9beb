"""Rows computed a run at a time, and again in the backward pass, into memory laid out beforehand.

What is computed is the caller's, as `Work`. `torch.utils.checkpoint` around each run gives the same
gradients, but its results are allocated among the large tensors of their runs, and outlive them:
the holes between them are of no use to the next run, and a process grows with every one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import _get_current_function_mode_stack


class Work(Protocol):
    """What is done to runs of rows, each of which also reads something made of a whole input."""

    def modules(self) -> Iterator[nn.Module]:
        """The modules whose parameters are used."""

    def prepare(self, whole: Tensor) -> tuple[Tensor, ...]:
        """What runs read: the keys and values of all tokens, say."""

    def runs(self, rows: Tensor) -> list[slice]:
        """How rows [B, R, D] are cut along R."""

    def cut(self, prepared: tuple[Tensor, ...], run: slice) -> tuple[Tensor, ...]:
        """Views of what a run reads of the prepared tensors, or of others shaped like them."""

    def compute(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], run: slice
    ) -> Tensor:
        """The result [B, r, D], of the rows' dtype, for a run's rows [B, r, D]."""


def in_runs(work: Work, whole: Tensor, rows: Tensor, shared: tuple[Tensor, ...] = ()) -> Tensor:
    """`work` done to all of `rows` [B, R, D]. With gradients too, only the arguments are kept.

    Gradients are those for `whole`, `rows`, `shared` (floating point) and the parameters. Dropout
    draws the same numbers when it is computed again. There are no gradients of gradients.
    """
    apply: Any = _InRuns.apply  # torch does not type it
    result: Tensor = apply(work, len(shared), whole, rows, *shared, *_parameters(work))
    return result


def _parameters(work: Work) -> list[nn.Parameter]:
    return [p for module in work.modules() for p in module.parameters() if p.requires_grad]


class _InRuns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: Work, shared: int, whole: Tensor, rows: Tensor, *others: Tensor
    ) -> Tensor:
        ctx.save_for_backward(whole, rows, *others[:shared])
        ctx.work, ctx.surroundings = work, _Surroundings(rows.device)
        prepared, result = work.prepare(whole), torch.empty_like(rows)
        for run in work.runs(rows):
            parts = work.cut(prepared, run)
            result[:, run] = work.compute(rows[:, run], parts, others[:shared], run)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        whole, rows, *shared = ctx.saved_tensors
        with ctx.surroundings.again():
            found = _gradients(ctx.work, whole, rows, shared, gradient)
        return (None, None, *found)


def _gradients(
    work: Work, whole: Tensor, rows: Tensor, shared: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """Gradients for whole, rows, shared and parameters, of a result's `gradient` [B, R, D]."""
    parameters = _parameters(work)
    source = whole.detach().requires_grad_()
    with torch.enable_grad():
        made = work.prepare(source)
    prepared = tuple(tensor.detach() for tensor in made)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in shared)
    sums = tuple(map(torch.zeros_like, prepared))
    totals = [torch.zeros_like(tensor) for tensor in (*leaves, *parameters)]
    of_rows = torch.empty_like(rows)
    for run in work.runs(rows):
        own = rows[:, run].detach().requires_grad_()
        parts = tuple(part.detach().requires_grad_() for part in work.cut(prepared, run))
        with torch.enable_grad():
            result = work.compute(own, parts, leaves, run)
        inputs = (own, *parts, *leaves, *parameters)
        first, *found = torch.autograd.grad(result, inputs, gradient[:, run], allow_unused=True)
        of_rows[:, run] = first
        _add([*work.cut(sums, run), *totals], found)
        del result, found  # before the next run makes its own
    of_whole, *found = torch.autograd.grad(made, (source, *parameters), sums, allow_unused=True)
    _add(totals[len(leaves) :], found)
    return [of_whole, of_rows, *totals]


def _add(totals: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    for total, tensor in zip(totals, found, strict=True):
        if tensor is not None:
            total.add_(tensor)


class _Surroundings:
    """What results depend on beside arguments, as it was when this was made: the generator that
    dropout draws from, autocast, and modes such as `compressor.dropout.FasterDropout`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._random = _random_state(device)
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
        )
        # A backward pass begins without any. torch has no public way to ask for them.
        self._modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, it is so again; the generator goes on afterwards from where it was before."""
        now = _random_state(self._device)
        _set_random_state(self._device, self._random)
        try:
            with self._autocast, ExitStack() as modes:
                for mode in self._modes:
                    modes.enter_context(mode)
                yield
        finally:
            _set_random_state(self._device, now)


def _random_state(device: torch.device) -> Tensor:
    """The state of the generator that dropout on a device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
