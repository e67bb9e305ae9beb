"""Write a model as ONNX graphs with one file of weights. For int8 see `int8`; `runtime` runs them.

An encoder-decoder becomes two graphs, which name layer i's keys and values [B, H, T, K] by stack:

    encoder.onnx  input_ids, attention_mask [B, S] → cross.i.key, cross.i.value
    decoder.onnx  input_ids [B, 1], attention_mask [B, S], past.i.…, cross.i.… → logits [B, V],
                  present.i.…

Cross-attention's keys and values are computed once, where transformers' first step computes them;
`past` has length 0 at the first step, and `present` is one longer. A decoder becomes one graph, for
prompts and for each token after them; H are the heads that have keys:

    decoder.onnx  input_ids [B, T], padding [B], kept [N], past.i.… → logits [B, N, V], present.i.…

The first `padding` tokens of a row, its past included, are none; logits are of the places of
`input_ids` that `kept` names. A classifier becomes one graph:

    model.onnx    input_ids, attention_mask [B, S] → logits [B, L], or of each token [B, S, L]

Batch, source, new tokens and past have any length. Tensors are in `weights.bin`, each distinct one
once, also where both graphs or two layers have it. The graphs are traced by
`torch.onnx.export(dynamo=True)`: the older exporter writes T5's position biases of one length into
the graph without a word.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.quantization import Grid, Kind
from compressor.models.surgery import dequantize_checkpoint

if TYPE_CHECKING:
    import onnx_ir as ir


WEIGHTS = "weights.bin"

OPSET = 20

_INLINE = 1024
"""Bytes up to which a tensor stays in the graph: shapes, constants, a few biases."""

_ALIGNED = 4096
"""Bytes; so that a runtime can map a tensor's pages."""


def write_model(
    checkpoint: Checkpoint, folder: Path, *, weights: Literal["float32", "int8"]
) -> None:
    """Write the graphs of a model, and `weights.bin`, into a folder that exists.

    `int8` stores the matrices that the stage `quantize` would make int8, with its very values, and
    GPT-2's layers, and multiplies by integer products; an int8 checkpoint keeps its own. `float32`
    writes the float values that an int8 checkpoint's weights stand for. The checkpoint is not
    changed. Raises StageError for a model that cannot be traced; `formats.FORMATS` has those that
    can.
    """
    model = _prepare_copy(checkpoint, weights)
    if checkpoint.head == "seq2seq_lm":
        graphs = _trace_seq2seq(model)
    elif checkpoint.head == "causal_lm":
        graphs = {"decoder": _trace_decoder(model)}
    else:
        graphs = {"model": _trace_classifier(model)}
    _save_graphs(graphs, folder)


def _prepare_copy(checkpoint: Checkpoint, weights: str) -> nn.Module:
    """Copy a model to trace: with int8 layers as the graphs have them, or without any."""
    from compressor.backends.onnx.int8 import straighten_layers, with_int8_operators

    quantization = checkpoint.quantization
    if quantization is not None and not quantization.weights == weights == "int8":
        checkpoint = dequantize_checkpoint(checkpoint)
    model: nn.Module = copy.deepcopy(checkpoint.model).eval().cpu()
    # Plain products and a softmax, which runtimes fuse.
    model.set_attn_implementation("eager")  # type: ignore[operator]
    if weights != "int8":
        return model
    kinds: dict[str, Kind] = dict.fromkeys(straighten_layers(model), "int8")
    if checkpoint.quantization is None:
        kinds |= Grid().choose_kinds("int8", checkpoint.derive_facts())
    return with_int8_operators(model, kinds)


class _TracedModule(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class _Encoder(_TracedModule):
    """Ids and mask [B, S] → keys and values [B, H, S, K] of each layer's cross-attention.

    They are what one step of the decoder leaves in its cache, in every family; what else the step
    computes is of no use to an output, and leaves the graph.
    """

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        cache = EncoderDecoderCache(_fill_cache(), _fill_cache())
        self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1],
            past_key_values=cache,
            use_cache=True,
        )
        return _list_cache_tensors(cache.cross_attention_cache)


class _DecoderStep(_TracedModule):
    """Last tokens [B, 1] and what is cached → logits [B, V], and self-attention's cache."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor], cross: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = EncoderDecoderCache(_fill_cache(past), _fill_cache(cross))
        cache.is_updated = dict.fromkeys(cache.is_updated, True)
        output = self.model(
            # Only its length is read, since the cross-attention's keys and values are given.
            encoder_outputs=(attention_mask[..., None].float(),),
            attention_mask=attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (output.logits[:, -1], *_list_cache_tensors(cache.self_attention_cache))


class _Continuation(_TracedModule):
    """New tokens [B, T] and what is cached → logits [B, N, V] of the kept places, and the cache."""

    def forward(
        self, input_ids: Tensor, padding: Tensor, kept: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        done, cache = past[0].shape[2], _fill_cache(past)
        places = torch.arange(done + input_ids.shape[1])
        output = self.model(
            input_ids=input_ids,
            attention_mask=places >= padding[:, None],
            position_ids=(places[done:] - padding[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        return (output.logits, *_list_cache_tensors(cache))


class _Classifier(_TracedModule):
    """Ids and mask [B, S] → logits [B, L], or [B, S, L]."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _fill_cache(tensors: Sequence[Tensor] = ()) -> DynamicCache:
    """Make a cache of the keys and values of layers: see `_list_cache_tensors`."""
    cache = DynamicCache()
    for layer in range(len(tensors) // 2):
        cache.update(*tensors[2 * layer : 2 * layer + 2], layer)
    return cache


def _list_cache_tensors(cache: Any) -> tuple[Tensor, ...]:
    """List the keys and values of a cache, layer by layer."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def _choose_sizes(model: Any) -> list[int]:
    """Choose four sizes of inputs to trace with: all differ, none is a size of the model.

    Where two sizes are equal, tracing may take it for a rule.
    """
    taken = {value for value in model.config.to_dict().values() if isinstance(value, int)}
    return [size for size in range(3, 12 + len(taken)) if size not in taken][:4]


def _make_source(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Make ids and mask to trace with, the first row with some padding."""
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[0, tokens // 2 :] = 0
    return torch.full_like(mask, 3), mask


_BATCH, _LENGTH, _NEW, _KEPT, _PAST = map(
    torch.export.Dim, ("batch", "source", "new", "kept", "past")
)

_SOURCE = {0: _BATCH, 1: _LENGTH}


def _trace_seq2seq(model: nn.Module) -> dict[str, ir.Model]:
    rows, tokens, done, _ = _choose_sizes(model)
    ids, mask = _make_source(rows, tokens)
    encoder = _Encoder(model)
    with torch.no_grad():
        cross = list(encoder(ids, mask))
    past = _make_past(cross, done)  # self- and cross-attention have the same heads
    names = _name_cache_tensors(cross)
    crossed = [f"cross.{name}" for name in names]
    source = ["input_ids", "attention_mask"]
    step = (ids[:, :1], mask, past, cross)
    shapes = (
        {0: _BATCH},
        _SOURCE,
        [{0: _BATCH, 2: _PAST} for _ in past],
        [{0: _BATCH, 2: _LENGTH} for _ in cross],
    )
    taken = [*source, *(f"past.{name}" for name in names), *crossed]
    given = ["logits", *(f"present.{name}" for name in names)]
    return {
        "encoder": _trace_module(encoder, (ids, mask), (_SOURCE, _SOURCE), source, crossed),
        "decoder": _trace_module(_DecoderStep(model), step, shapes, taken, given),
    }


def _trace_decoder(model: nn.Module) -> ir.Model:
    rows, tokens, done, kept = _choose_sizes(model)
    ids, cache = torch.full((rows, tokens), 3), _fill_cache()
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    past = _make_past(_list_cache_tensors(cache), done)
    names = _name_cache_tensors(past)
    inputs = (ids, ids.new_ones(rows), ids.new_zeros(kept), past)
    shapes = ({0: _BATCH, 1: _NEW}, {0: _BATCH}, {0: _KEPT}, [{0: _BATCH, 2: _PAST} for _ in past])
    taken = ["input_ids", "padding", "kept", *(f"past.{name}" for name in names)]
    given = ["logits", *(f"present.{name}" for name in names)]
    return _trace_module(_Continuation(model), inputs, shapes, taken, given)


def _make_past(states: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """Make keys and values of so many tokens, of the heads that `states` [B, H, T, K] are of."""
    return [some.new_zeros(*some.shape[:2], tokens, some.shape[3]) for some in states]


def _name_cache_tensors(tensors: Sequence[Tensor]) -> list[str]:
    return [f"{layer}.{part}" for layer in range(len(tensors) // 2) for part in ("key", "value")]


def _trace_classifier(model: nn.Module) -> ir.Model:
    rows, tokens, *_ = _choose_sizes(model)
    inputs, names = _make_source(rows, tokens), ["input_ids", "attention_mask"]
    return _trace_module(_Classifier(model), inputs, (_SOURCE, _SOURCE), names, ["logits"])


def _trace_module(
    module: nn.Module,
    inputs: tuple[Any, ...],
    shapes: tuple[Any, ...],
    taken: Sequence[str],
    given: Sequence[str],
) -> ir.Model:
    """Trace a module to a graph, with constants folded but every parameter as it is."""
    from onnxscript.optimizer import optimize_ir

    with torch.no_grad(), _silence_exporter():  # with gradients, decomposing the graph fails
        try:
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=taken,
                output_names=given,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise StageError(f"cannot trace the model as an ONNX graph: {cause}") from error
        assert program is not None, "dynamo gives one"
        model: ir.Model = program.model
        parameters = set(model.graph.initializers)

        def may_fold(node: ir.Node) -> bool | None:
            # A folded transpose would copy a tied weight. Runtimes fold it in memory.
            names = {value.name for value in node.inputs if value is not None}
            return False if names & parameters else None

        optimize_ir(model, should_fold=may_fold)
    _require_dynamic(model, shapes)
    return model


def _require_dynamic(model: ir.Model, shapes: tuple[Any, ...]) -> None:
    """Raise StageError where tracing has taken a size of its example for the only one.

    It does so without a word in LongT5's transient-global attention.
    """
    flat = [shape for part in shapes for shape in (part if isinstance(part, list) else [part])]
    for value, dynamic in zip(model.graph.inputs, flat, strict=True):
        assert value.shape is not None, "inputs have shapes"
        for axis, name in dynamic.items():
            if isinstance(value.shape[axis], int):
                message = f"the traced graph takes {value.name} with one {name.__name__} alone"
                raise StageError(f"{message}, {value.shape[axis]}; this model cannot be written")


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Hide the exporter's warnings of its own deprecated calls, and of operators not used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _save_graphs(graphs: Mapping[str, ir.Model], folder: Path) -> None:
    """Write `<name>.onnx` for each graph, and the tensors of all in one file."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as file:
        for model in graphs.values():
            ClearMetadataAndDocStringPass()(model)  # of each node, where in which file it is from
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                assert tensor is not None, "an initializer has a value"
                if tensor.nbytes > _INLINE:
                    offset, length = _place_bytes(tensor.tobytes(), file, places)
                    value.const_value = ir.ExternalTensor(
                        WEIGHTS, offset, length, tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=folder,
                    )  # fmt: skip
    for name, model in graphs.items():
        ir.save(model, folder / f"{name}.onnx")


def _place_bytes(
    data: bytes, file: BinaryIO, places: dict[bytes, tuple[int, int]]
) -> tuple[int, int]:
    """Write bytes to the file if they are new; return their offset and length in it."""
    digest = hashlib.sha256(data).digest()
    if digest not in places:
        file.write(bytes(-file.tell() % _ALIGNED))
        places[digest] = (file.tell(), len(data))
        file.write(data)
    return places[digest]
