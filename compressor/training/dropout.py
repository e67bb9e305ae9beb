"""Dropout for training in float32 on a CPU, as a context; what leaves it, or layer drop, out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

_DROPOUT = inspect.signature(functional.dropout)
DROPOUT_RATES = ("dropout", "attention_dropout", "activation_dropout")
"""Attributes with the rates that transformers' layers drop with themselves."""
LANES = 4
"""16-bit random numbers in one draw of 64 bits."""


def drop_entries(x: Tensor, p: float) -> Tensor:
    """Zero entries of `x` with probability `p`, and divide the rest by the share that stays.

    torch draws one number for each entry, on one core, which takes a seventh of a float32 step of
    a T5 on two; here one draw of 64 bits serves four entries. `p` is rounded to 1/65,536, and the
    divisor is that of the rounded one, so that the expected value is x exactly. The numbers come
    from torch's global generator, whose state a checkpoint has.
    """
    dropped = round(p * 2**16)
    draws = torch.empty(-(-x.numel() // LANES), dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)
    # As int8, since turning bools into floats takes six times as long.
    kept = (lanes >= dropped - 2**15).view(torch.int8).to(x.dtype)
    return x * kept.mul_(2**16 / (2**16 - dropped))


class FasterDropout(TorchFunctionMode):
    """Inside this context `functional.dropout` on float32 CPU tensors is `drop_entries`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            bound = _DROPOUT.bind(*args, **kwargs)
            bound.apply_defaults()
            x, p, training, inplace = bound.args
            fits = x.dtype == torch.float32 and x.device.type == "cpu" and not inplace
            if training and 0 < p < 1 and fits:
                return drop_entries(x, p)
        return func(*args, **kwargs)


@contextmanager
def use_faster_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, train with the faster dropout.

    It cannot reach into torch's fused attention, which on a CPU is slower than the plain one as
    soon as there is dropout.
    """
    hf = model if isinstance(model, PreTrainedModel) else None
    attention = hf and hf.config._attn_implementation
    if hf is not None:
        hf.set_attn_implementation("eager")
    try:
        with FasterDropout():
            yield
    finally:
        if hf is not None:
            hf.set_attn_implementation(attention)


def disable_dropout(model: nn.Module) -> None:
    """Have nothing dropped in training. The config stays as it is, and a saved model's dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUT_RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def disable_layer_drop(model: nn.Module) -> bool:
    """Have a BART or its kin run all layers in training; tell whether it would have skipped any.

    The config stays as it is, so that a saved model skips layers in a later training.
    """
    stacks = [module for module in model.modules() if getattr(module, "layerdrop", 0)]
    for stack in stacks:
        stack.layerdrop = 0.0  # type: ignore[assignment]
    return bool(stacks)
