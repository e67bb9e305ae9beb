"""Weights of a training over its processes: whole in each (DDP), or in shards (FSDP2).

Both are used through `Weights`. No batches, no schedule.

Accelerate starts the process group; the sharding is torch's own, because Accelerate 1.15 ignores
FSDP on CPUs, where it is tested, and there and on GPUs it should be the same code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.trainer_pt_utils import get_parameter_names

from compressor.models.masks import apply_mask
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.launch_config import Scheme

Batch = dict[str, Tensor]
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""The patterns of `transformers.Trainer.get_decay_parameter_names`, which is long to import."""


def named_parameters(model: nn.Module, loss: nn.Module) -> dict[str, nn.Parameter]:
    """Name the model's parameters, and then those that the loss itself has to train."""
    named = dict(model.named_parameters())
    known = {id(parameter) for parameter in named.values()}
    others = ((n, p) for n, p in loss.named_parameters() if p.requires_grad)
    return named | {f"loss.{n}": p for n, p in others if id(p) not in known}


def names_that_decay(module: nn.Module) -> set[str]:
    """Name the parameters that Hugging Face's Trainer decays: no biases, no normalizations."""
    return set(get_parameter_names(module, [nn.LayerNorm], _NO_DECAY))


def make_optimizer(
    model: nn.Module, loss: nn.Module, settings: Hyperparameters
) -> torch.optim.AdamW:
    """Make the optimizer of all that `named_parameters` gives and that asks for a gradient."""
    trained = {n: p for n, p in named_parameters(model, loss).items() if p.requires_grad}
    decays = set(trained)
    if not settings.decay_biases_and_norms:
        decays = names_that_decay(model) | {f"loss.{name}" for name in names_that_decay(loss)}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained.items() if n in decays]},
        {"params": [p for n, p in trained.items() if n not in decays], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


class Weights:
    """The weights of a training. Here every process has them whole.

    Every method that talks of tensors by name must be called on every process, in the same order.
    """

    sharded = False

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loss: nn.Module,
        measure: nn.Module,
        settings: Hyperparameters,
    ) -> None:
        """`loss` is trained; `measure` gives the validation loss. `model` is inside of both."""
        self.accelerator, self.model, self.settings = accelerator, model, settings
        self.loss, self.measure = loss, measure
        loss.to(accelerator.device)
        self._shard_weights()
        self.named = named_parameters(self.model, self.loss)
        self.trained = {n: p for n, p in self.named.items() if p.requires_grad}
        self.optimizer = make_optimizer(self.model, self.loss, self.settings)
        self._prepare()

    def _shard_weights(self) -> None:
        """Lay the weights out over the processes."""

    def _prepare(self) -> None:
        self.wrapped, self.optimizer = self.accelerator.prepare(self.loss, self.optimizer)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch's two passes: gradients need not be reduced before the last."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def training_loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.wrapped(batch)
        return loss

    def validation_loss(self, batch: Batch) -> Tensor:
        with self.accelerator.autocast():  # preparing `loss` gave it autocast, but not `measure`
            loss: Tensor = self.measure(batch)
        return loss

    def run_backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def make_step(self, rate: float, masks: Mapping[str, Tensor]) -> float:
        """Clip the gradients and make an optimizer step; return the norm, over all processes.

        What a whole mask has False is no weight: its gradient is in no norm and no average. There
        is no step where the norm is not finite.
        """
        self._mask_gradients(masks)
        limit = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = self._clip_gradients(limit)
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _mask_gradients(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            gradient = self.get_parameter(name).grad
            if gradient is not None:
                apply_mask(get_local(gradient), self._take_shard(name, mask))

    def _clip_gradients(self, limit: float) -> float:
        return float(self.accelerator.clip_grad_norm_(self.trained.values(), limit))

    def get_parameter(self, name: str) -> nn.Parameter:
        """Get the parameter of any of its names, of which `named` has the first."""
        known = self.named.get(name)
        return self.model.get_parameter(name) if known is None else known

    @torch.no_grad()
    def apply_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Set to zero, wherever it lies, what a whole mask has False."""
        for name, mask in masks.items():
            apply_mask(self.local_shard(name), self._take_shard(name, mask))

    def summon_full(self, names: Iterable[str]) -> AbstractContextManager[Any]:
        """Unshard these parameters inside the context, for reading; changes may be lost."""
        return nullcontext()

    def not_finite(self, name: str) -> int:
        """Count the entries of this process's part that are not finite."""
        part = self.local_shard(name)
        return part.numel() - int(torch.isfinite(part).sum())

    def count_revived(self, name: str, mask: Tensor) -> int:
        """Count the entries of this process's part that are not 0 where the whole mask is False."""
        return int(torch.count_nonzero(self.local_shard(name)[~self._take_shard(name, mask)]))

    def local_shard(self, name: str) -> Tensor:
        """Get what this process has of a parameter, in place."""
        return get_local(self.get_parameter(name)).detach()

    def _take_shard(self, name: str, whole: Tensor) -> Tensor:
        """Take from a tensor of a parameter's shape what belongs to this process's part."""
        return whole

    def gather(self, name: str) -> Tensor:
        """Gather a parameter, whole, on every process."""
        return _gather_full(self.named[name].detach())

    def gather_state(self, name: str) -> dict[str, Tensor]:
        """Gather the optimizer's state of a parameter, whole; empty before the first step."""
        state = self.optimizer.state.get(self.named[name], {})
        return {key: _gather_full(value) for key, value in state.items()}

    @torch.no_grad()
    def load_parameter(self, name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> None:
        """Take a whole parameter, and its optimizer's whole state where there is one."""
        self.local_shard(name).copy_(self._take_shard(name, tensor))
        if state:
            parameter = self.named[name]
            self.optimizer.state[parameter] = {
                key: self._lay_out(name, value.to(parameter.device), tensor.shape)
                for key, value in state.items()
            }

    def _lay_out(self, name: str, state: Tensor, shape: torch.Size) -> Tensor:
        """Lay a whole part of the optimizer's state out as the parameter of that shape lies."""
        return state

    def finish(self) -> None:
        """Leave the model with whole weights, as plain as it was."""


class Objective(nn.Module):
    """A training's loss and its validation's in one module: the root of what is sharded."""

    def __init__(self, loss: nn.Module, measure: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.loss, self.measure, self.accelerator = loss, measure, accelerator

    def forward(self, batch: Batch, *, measured: bool = False) -> Tensor:
        with self.accelerator.autocast():
            loss: Tensor = (self.measure if measured else self.loss)(batch)
        return loss


class FullyShardedWeights(Weights):
    """FSDP2: every parameter in slices of its first dimension, a layer gathered as it computes.

    What the loss does not train, such as a teacher, stays whole in every process.
    """

    sharded = True

    def __init__(self, *given: Any, scheme: Scheme) -> None:
        self.scheme = scheme
        super().__init__(*given)

    def _shard_weights(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = self.accelerator.device.type
        self.mesh = init_device_mesh(device, (self.accelerator.num_processes,))
        self.root = Objective(self.loss, self.measure, self.accelerator)
        # Copies of the layers' modules, without memory for their tensors.
        layers = dict(list_layers(self.model))
        self.plain_layers = {n: copy.deepcopy(layer).to("meta") for n, layer in layers.items()}
        frozen = {p for p in self.root.parameters() if not p.requires_grad}
        frozen -= set(self.model.parameters())
        for name in self.plain_layers:
            fully_shard(
                self.model.get_submodule(name),
                mesh=self.mesh,
                reshard_after_forward=self.scheme.reshard_after_forward,
            )
        fully_shard(self.root, mesh=self.mesh, ignored_params=frozen)
        self.units: list[Any] = [self.model.get_submodule(name) for name in self.plain_layers]
        self.units.append(self.root)

    def _prepare(self) -> None:
        """Have every parameter note when it gets a gradient here.

        A model may use some of them for some inputs only. All processes have to reduce the same
        gradients, so those that are missing count as 0, which is not known from the result.
        """
        self.with_gradient: set[str] = set()
        self.root.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
        for unit in self.units:
            unit.unshard()
            for name, parameter in named_parameters(self.model, self.loss).items():
                if parameter.requires_grad and not hasattr(parameter, "to_local"):
                    note = partial(lambda name, _: self.with_gradient.add(name), name)
                    parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
            unit.reshard()

    def make_step(self, rate: float, masks: Mapping[str, Tensor]) -> float:
        noted = [float(name in self.with_gradient) for name in self.named]
        self.with_gradient.clear()
        count = self.accelerator.reduce(torch.tensor(noted, device=self.accelerator.device), "sum")
        for parameter, used in zip(self.named.values(), count.tolist(), strict=True):
            if not used:  # in one process it would have none either, and be left as it is
                parameter.grad = None
        return super().make_step(rate, masks)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.root.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def training_loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.root(batch)
        return loss

    def validation_loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.root(batch, measured=True)
        for unit in self.units:
            unit.reshard()  # which a backward pass would have done
        return loss

    def run_backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def _clip_gradients(self, limit: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    @contextmanager
    def summon_full(self, names: Iterable[str]) -> Iterator[None]:
        sharded = {id(p): p for p in map(self.get_parameter, names)}
        whole = {key: nn.Parameter(_gather_full(p.detach())) for key, p in sharded.items()}
        set_parameters(self.model, self.model, whole)
        try:
            yield
        finally:
            back = {id(whole[key]): parameter for key, parameter in sharded.items()}
            set_parameters(self.model, self.model, back)

    def _take_shard(self, name: str, whole: Tensor) -> Tensor:
        return get_local(self._distribute_tensor(name, whole))

    def _distribute_tensor(self, name: str, whole: Tensor) -> Tensor:
        """Lay a whole tensor of a parameter's shape out as that parameter lies; sends nothing."""
        from torch.distributed.tensor import distribute_tensor

        like: Any = self.get_parameter(name)
        whole = whole.to(get_local(like).device)
        # Every process has the whole, so that none needs the first one's.
        part: Tensor = distribute_tensor(whole, self.mesh, like.placements, src_data_rank=None)
        return part

    def _lay_out(self, name: str, state: Tensor, shape: torch.Size) -> Tensor:
        return self._distribute_tensor(name, state) if state.shape == shape else state

    def finish(self) -> None:
        whole = {id(p): nn.Parameter(self.gather(n)) for n, p in self.named.items()}
        for path, plain in self.plain_layers.items():
            sharded = self.model.get_submodule(path)
            plain.to_empty(device=self.accelerator.device)
            for name, buffer in sharded.named_buffers():
                plain.get_buffer(name).copy_(buffer)
            set_parameters(plain, sharded, whole)
            self.model.set_submodule(path, plain.train(sharded.training))
        set_parameters(self.model, self.model, whole)


def set_parameters(module: nn.Module, like: nn.Module, whole: Mapping[int, nn.Parameter]) -> None:
    """Put what `whole` has for each parameter of `like` under its name in `module`."""
    for name, parameter in list(like.named_parameters(remove_duplicate=False)):
        if id(parameter) in whole:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, whole[id(parameter)])


def list_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List the layers of a model's stacks: what its outermost lists of modules hold."""
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{n}.") for n in lists):
            lists.append(name)
            yield from ((f"{name}.{child}", layer) for child, layer in module.named_children())


def get_local(tensor: Tensor) -> Tensor:
    """Get what this process has of a tensor, in place: all of it, unless it is one of FSDP2's."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _gather_full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def weights_for(scheme: Scheme, *given: Any) -> Weights:
    """Make the weights of a training, in one of several processes, as a scheme has them lie."""
    if given[0].num_processes == 1 or scheme.kind == "ddp":
        return Weights(*given)
    return FullyShardedWeights(*given, scheme=scheme)
