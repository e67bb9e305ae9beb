"""DeepSpeed's ZeRO, stages 1 to 3: AdamW's averages, gradients and weights in partitions.

Each process's part of a parameter is a run of its entries, row after row. What is read and written
here is DeepSpeed's own memory of such a part; DeepSpeed computes the step and clips the gradients.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.launching import Scheme
from compressor.sharding import (
    Batch,
    Objective,
    Weights,
    adamw,
    named_parameters,
    set_parameters,
)
from compressor.sparsity.select import apply_mask


@dataclass(frozen=True)
class Part:
    """A process's part of a parameter in the optimizer: entries from `start` on, flat."""

    start: int
    values: Tensor
    group: Tensor
    """The parts of all parameters, one after the other, that the optimizer takes for one."""

    @property
    def stop(self) -> int:
        return self.start + self.values.numel()

    def beside(self, state: Tensor) -> Tensor:
        """The same entries of what has the group's shape."""
        offset = (self.values.data_ptr() - self.group.data_ptr()) // self.group.itemsize
        return state[offset : offset + self.values.numel()]


class PartitionedWeights(Weights):
    """What the optimizer has of each parameter, in parts; in stage 3 the parameters are in parts
    too. In stages 1 and 2 every process has the parameters whole, beside its part.
    """

    sharded = True

    def __init__(self, *given: Any, scheme: Scheme) -> None:
        self.stage = int(scheme.kind[-1])
        super().__init__(*given)

    def _shard(self) -> None:
        if self.accelerator.device.type == "cpu":  # else it takes the first one it finds
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        self.named = named_parameters(self.model, self.loss)
        self.shapes = {name: parameter.shape for name, parameter in self.named.items()}
        self.trained = [p for p in self.named.values() if p.requires_grad]
        root = Objective(self.loss, self.measure, self.accelerator.autocast)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # which it cannot know, and does not need
            "gradient_clipping": self.settings.clip_norm or 0.0,
            # 0: else small weights are kept whole beside their parts, where masks do not reach.
            "zero_optimization": {"stage": self.stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        optimizer = adamw(self.model, self.loss, self.settings)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=root, optimizer=optimizer, config=config, dist_init_required=False
        )

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def summed(self, batch: Batch) -> Tensor:
        loss: Tensor = self.engine(batch)
        return loss

    def measured(self, batch: Batch) -> Tensor:
        loss: Tensor = self.engine(batch, measured=True)
        return loss

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, rate: float, masks: Mapping[str, Tensor]) -> float:
        """As `Weights.step`, but DeepSpeed clips, and counts the gradients of what is pruned."""
        del masks
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        self.spoiled = not math.isfinite(norm)  # the step was made before the norm was known
        return norm

    def _parts(self, name: str) -> Part | None:
        """What this process has of a parameter in the optimizer, or None."""
        parameter: Any = self.parameter(name)
        if self.stage < 3:
            mapping = parameter._hp_mapping
            if mapping is None:
                return None
            values = mapping.get_hp_fragment()
            group = next(g for g in self._groups() if _holds(g, values))
            return Part(mapping.lp_fragment_address.start, values, group)
        values = self.optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=True)[
            0
        ]
        start = self.accelerator.process_index * values.numel()
        length = max(0, min(values.numel(), parameter.ds_numel - start))
        group = next(g for g in self._groups() if _holds(g, values))
        return Part(start, values.view(-1)[:length], group)

    def _groups(self) -> list[Tensor]:
        optimizer = self.optimizer
        found: list[Tensor] = (
            optimizer.single_partition_of_fp32_groups
            if self.stage < 3
            else optimizer.fp32_partitioned_groups_flat
        )
        return found

    def _copies(self, name: str) -> list[tuple[int, Tensor]]:
        """(first entry, flat) of all that this process has of a parameter's values."""
        parameter: Any = self.parameter(name)
        part = self._parts(name)
        found = [(part.start, part.values)] if part is not None else []
        if self.stage < 3:
            return [*found, (0, parameter.data.view(-1))]
        assert part is not None, "in stage 3 every process has a part, if an empty one"
        return [*found, (part.start, parameter.ds_tensor.data.view(-1)[: part.values.numel()])]

    @torch.no_grad()
    def apply_masks(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            flat = mask.reshape(-1)
            for start, values in self._copies(name):
                apply_mask(values, flat[start : start + values.numel()])

    def whole(self, names: Iterable[str]) -> AbstractContextManager[Any]:
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        found: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            [self.parameter(name) for name in names]
        )
        return found

    def _part(self, name: str) -> Tensor:
        return torch.cat([values for _, values in self._copies(name)]).detach()

    def _part_of(self, name: str, whole: Tensor) -> Tensor:
        flat = whole.reshape(-1)
        found = [flat[start : start + values.numel()] for start, values in self._copies(name)]
        return torch.cat(found)

    def whole_tensor(self, name: str) -> Tensor:
        part = self._parts(name)
        return self._gathered(name, part, None if part is None else part.values)

    def state(self, name: str) -> dict[str, Tensor]:
        part, found = self._parts(name), dict[str, Tensor]()
        if self.named[name].requires_grad is False or not self.optimizer.optimizer.state:
            return found
        group = self._groups()[0] if part is None else part.group
        for key, value in self.optimizer.optimizer.state[group].items():
            if value.shape == group.shape:
                values = None if part is None else part.beside(value)
                found[key] = self._gathered(name, part, values)
            else:
                found[key] = value.clone()  # it is the same one for all parameters
        return found

    def _gathered(self, name: str, part: Part | None, values: Tensor | None) -> Tensor:
        """The whole of what each process has a part of."""
        shape = self.shapes[name]
        whole = torch.zeros(shape, device=self.accelerator.device).view(-1)
        if part is not None and values is not None:
            whole[part.start : part.stop] = values.detach()
        summed: Tensor = self.accelerator.reduce(whole, "sum")
        return summed.view(shape)

    @torch.no_grad()
    def load(self, name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> None:
        flat = tensor.reshape(-1)
        for start, values in self._copies(name):
            values.copy_(flat[start : start + values.numel()])
        part = self._parts(name)
        if not state or part is None:
            return
        own = self.optimizer.optimizer.state[part.group]
        for key, value in state.items():
            if value.shape != tensor.shape:
                own[key] = value.to(part.group.device) if value.dim() else value
                continue
            own.setdefault(key, torch.zeros_like(part.group.detach()))
            part.beside(own[key]).copy_(value.reshape(-1)[part.start : part.stop])

    def finish(self) -> None:
        whole = {id(p): nn.Parameter(self.whole_tensor(n)) for n, p in self.named.items()}
        self.engine.destroy()
        set_parameters(self.model, self.model, whole)


def _holds(group: Tensor, values: Tensor) -> bool:
    """Whether a part lies in a group's memory."""
    first = group.data_ptr()
    return first <= values.data_ptr() < first + group.numel() * group.itemsize
