"""Packed models: one safetensors file of tensors without their zeros, configs and a tokenizer.

`packed.safetensors` holds, for a tensor `name`: `name` (its values), `name:mask` (bits, where it
has a mask) and `name:scale` (where it is int8). A JSON text in the file's metadata, under
`compressor.packed`, has the version, the head, every tensor's shape and CRC-32, and the ties.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import init_empty_weights
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compressor.core.errors import StageError
from compressor.core.settings import first_problem
from compressor.models.checkpoint import Checkpoint, save_config
from compressor.models.loading import Head, build_model, load_config, load_generation_config
from compressor.models.quantized_layers import dequantize_rows, quantize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FILE, ABOUT = "packed.safetensors", "compressor.packed"
Values = Literal["int8", "bfloat16", "float32"]

SMALL = 1024
"""Matrices with fewer entries stay float32: T5's position biases, say. Rounding saves nothing."""


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of `shape`, packed. Zeros that are not stored come back as +0."""

    shape: tuple[int, ...]
    values: Tensor
    """With a mask: the kept entries in row-major order, of shape (kept,). Without: all, `shape`."""
    scale: Tensor | None = None
    """For int8 values of a matrix: float32 of shape (rows, 1)."""
    mask: Tensor | None = None
    """uint8, ceil(entries / 8): 1 where an entry is kept, the first entry in the highest bit."""

    @property
    def mask_bytes(self) -> int:
        return _count_bytes(self.mask)

    @property
    def value_bytes(self) -> int:
        """Of the values and their scales."""
        return _count_bytes(self.values) + _count_bytes(self.scale)

    def unpack(self) -> Tensor:
        """Make the dense tensor in its own memory: float32, or of the values' type for integers."""
        dense = self.values
        if self.mask is not None:
            kept = np.unpackbits(self.mask.numpy(), count=math.prod(self.shape))
            dense = torch.zeros(self.shape, dtype=self.values.dtype)
            places = torch.from_numpy(kept).view(torch.bool).view(self.shape)
            dense.masked_scatter_(places, self.values)
        if self.scale is not None:
            return dequantize_rows(dense, self.scale)
        dense = dense.float() if dense.is_floating_point() else dense
        return dense.clone() if dense is self.values else dense


def pack_tensor(tensor: Tensor, values: Values) -> PackedTensor:
    """Pack a tensor, with or without a mask, whichever is smaller.

    Matrices of at least `SMALL` entries are rounded to `values` (int8: one scale a row, an error of
    at most scale / 2); other floating tensors stay float32, and integers what they are. The mask
    is found from the entries that are not zero after rounding. Raises ValueError where an
    entry is not finite, or rounds to what is not.
    """
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return _choose_smaller(tensor, None)
    tensor = tensor.float()
    if tensor.ndim != 2 or tensor.numel() < SMALL or values == "float32":
        return _choose_smaller(tensor, None)
    rounded = tensor.bfloat16() if values == "bfloat16" else tensor
    if not torch.isfinite(rounded).all():
        raise ValueError(f"an entry is not finite, or too large for {values}")
    if values == "bfloat16":
        return _choose_smaller(rounded, None)
    return pack_int8(*quantize_rows(tensor))


def pack_int8(weight: Tensor, scale: Tensor) -> PackedTensor:
    """Pack a matrix that is int8 already: its values and its scales, (rows, 1), as they are."""
    return _choose_smaller(weight.detach().cpu(), scale.detach().cpu())


def _choose_smaller(dense: Tensor, scale: Tensor | None) -> PackedTensor:
    dense = dense.contiguous()
    kept = dense != 0
    count = int(kept.count_nonzero())
    saved = (dense.numel() - count) * dense.element_size()
    shape = tuple(dense.shape)
    if saved <= math.ceil(dense.numel() / 8):
        return PackedTensor(shape, dense, scale)
    mask = torch.from_numpy(np.packbits(kept.numpy()))
    return PackedTensor(shape, dense[kept], scale, mask)


def _count_bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: tuple[NonNegativeInt, ...]
    crc32: int
    """Of the values, the scales and the mask, one after the other."""


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Literal[1]
    head: Head
    values: Values
    tensors: dict[str, _Entry]
    ties: dict[str, str]
    """Other name → the name under which a tied tensor is stored."""


def _pack_model(
    checkpoint: Checkpoint, values: Values
) -> tuple[dict[str, PackedTensor], dict[str, str]]:
    """Pack each distinct tensor, by its first name; also other name → first name for the ties.

    An int8 tensor keeps its values and scales. Raises StageError that names a tensor which cannot
    be packed.
    """
    state = checkpoint.model.state_dict()
    packed: dict[str, PackedTensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[int, int], str] = {}
    for name, tensor in state.items():
        if name.endswith("_scale") and name.removesuffix("_scale") in state:
            continue
        owner = first.setdefault((tensor.data_ptr(), tensor.numel()), name)
        if owner != name and tensor.numel():
            ties[name] = owner
            continue
        scale = state.get(f"{name}_scale")
        try:
            packed[name] = (
                pack_tensor(tensor, values) if scale is None else pack_int8(tensor, scale)
            )
        except ValueError as error:
            raise StageError(f"cannot pack {name}: {error}") from error
    return packed, ties


def save_packed(checkpoint: Checkpoint, folder: Path, values: Values) -> dict[str, PackedTensor]:
    """Write a checkpoint into `folder`, matrices in `values`; return what was written, by name."""
    packed, ties = _pack_model(checkpoint, values)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(checkpoint.model, folder)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save_pretrained(folder)
    entries = {n: _Entry(shape=p.shape, crc32=_compute_crc32(p)) for n, p in packed.items()}
    about = _About(version=1, head=checkpoint.head, values=values, tensors=entries, ties=ties)
    parts = {key: part for name, p in packed.items() for key, part in _list_parts(name, p).items()}
    save_file(parts, folder / FILE, metadata={ABOUT: about.model_dump_json()})
    return packed


def load_packed(folder: Path) -> PreTrainedModel:
    """Load what `save_packed` wrote: float32, on the CPU, in evaluation mode, ties intact.

    Raises StageError, naming the tensor, where the file is damaged or does not fit the config.
    """
    about, packed = _read_file(folder)
    try:
        config = load_config(folder)
        # Parameters without memory: no time goes into values that are replaced below.
        with init_empty_weights(include_buffers=False):
            model = build_model(config, about.head)
        load_generation_config(model, folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise StageError(f"cannot build the model of {folder}: {error}") from error
    _check_tensors(folder / FILE, model, about)
    _assign_tensors(model, {name: t.unpack() for name, t in packed.items()}, about.ties)
    return model.eval()


def _read_file(folder: Path) -> tuple[_About, dict[str, PackedTensor]]:
    """Read the description and every packed tensor, each with the bytes that were written."""
    path = folder / FILE
    try:
        with safe_open(path, "pt") as file:
            about = _parse_description(path, (file.metadata() or {}).get(ABOUT))
            parts: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StageError(f"{path} is damaged: {error}") from error
    packed = {}
    for name, entry in about.tensors.items():
        if name not in parts:
            raise StageError(f"{path} lacks the tensor {name}")
        scale, mask = parts.get(f"{name}:scale"), parts.get(f"{name}:mask")
        packed[name] = PackedTensor(entry.shape, parts[name], scale, mask)
        if _compute_crc32(packed[name]) != entry.crc32:
            raise StageError(f"{path} is damaged: {name} has not the bytes that were written")
    return about, packed


def _parse_description(path: Path, text: str | None) -> _About:
    if text is None:
        raise StageError(f"{path} is no packed model: its metadata has no {ABOUT!r}")
    try:
        return _About.model_validate_json(text)
    except ValidationError as error:
        raise StageError(f"{path}: {ABOUT}.{first_problem(error)}") from error


def _check_tensors(path: Path, model: nn.Module, about: _About) -> None:
    """Require that the file has every tensor of the model, once or as a tie, and no other."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, owner in about.ties.items():
        if owner not in about.tensors:
            raise StageError(f"{path}: {name} is tied to {owner}, which is not stored")
    named = about.tensors.keys() | about.ties.keys()
    if missing := shapes.keys() - named:
        raise StageError(f"{path} lacks {min(missing)}, which the config asks for")
    if unknown := named - shapes.keys():
        raise StageError(f"{path} has {min(unknown)}, which the config does not ask for")
    for name, shape in shapes.items():
        stored = about.tensors[about.ties.get(name, name)].shape
        if stored != shape:
            message = f"{name}: expected shape {shape} from the config, found {stored}"
            raise StageError(f"{path}: {message}")


def _assign_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str]
) -> None:
    """Put the tensors in the place of the model's own; tied names get one and the same object."""
    parameters: dict[str, nn.Parameter] = {}
    for name, old in model.state_dict(keep_vars=True).items():
        owner = ties.get(name, name)
        new: Any = tensors[owner]
        if isinstance(old, nn.Parameter):
            new = parameters.setdefault(owner, nn.Parameter(new))
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)


def _list_parts(name: str, packed: PackedTensor) -> dict[str, Tensor]:
    """List the tensors of the file that one packed tensor becomes."""
    parts = {name: packed.values, f"{name}:scale": packed.scale, f"{name}:mask": packed.mask}
    return {key: part.contiguous() for key, part in parts.items() if part is not None}


def _compute_crc32(packed: PackedTensor) -> int:
    """Compute a checksum against accidents, not against people: 25 MB take 10 ms."""
    crc = 0
    for part in (packed.values, packed.scale, packed.mask):
        if part is not None and part.numel():
            crc = zlib.crc32(part.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return crc
