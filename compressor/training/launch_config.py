"""Read from an Accelerate config how many processes a stage gets, and where. Starts none.

The config is the user's own file, or the name of one that comes with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from compressor.core.errors import nearest
from compressor.core.files import expand_home, list_accelerate_configs
from compressor.core.settings import SETTINGS, Integer

SchemeKind = Literal["ddp", "fsdp2"]

DEFAULT_PORT = 29_500
"""The port that Accelerate and torch use if a config of several machines names none."""

_RESHARD_KEY = "fsdp_reshard_after_forward"
"""The key of Accelerate's `fsdp_config` that `Scheme.reshard_after_forward` is read from."""

_DISTRIBUTED_TYPES = ("NO", "MULTI_GPU", "FSDP")
"""The supported values of Accelerate's `distributed_type`."""


class Launch(BaseModel):
    """Settings for starting a stage that can use several processes. Never part of a store key.

    Example: `launch: {num_processes: 2}`
    Example: `launch: {config_file: fsdp2, num_processes: 4}`
    """

    model_config = SETTINGS

    num_processes: Integer = Field(
        1,
        ge=1,
        description="Processes on this machine; with a config file, 2 or more replace its number.",
    )
    config_file: str | None = Field(
        None,
        description="An Accelerate config file, or the name of a checked-in one: ddp, fsdp2, "
        "several_machines.",
    )


class Scheme(BaseModel):
    """How weights, gradients and optimizer state are laid out over the processes of a training."""

    model_config = ConfigDict(frozen=True)

    kind: SchemeKind = "ddp"
    reshard_after_forward: bool = True
    """fsdp2 only: free a layer's gathered weights after its forward pass, and gather them again for
    the backward pass."""


@dataclass(frozen=True)
class Processes:
    """The processes of a distributed stage, over all machines."""

    world_size: int = 1
    """Processes on all machines together."""
    machines: int = 1
    machine_rank: int = 0
    """Number of this machine. Machine 0 writes the results; the others lend it processes."""
    main_address: str | None = None
    """Address of machine 0, where the processes meet; None for one machine without a config."""
    main_port: int | None = None
    scheme: Scheme = field(default_factory=Scheme)
    config_file: Path | None = None
    """The Accelerate config that all this was read from, if any."""

    @property
    def count_per_machine(self) -> int:
        return max(1, self.world_size // self.machines)

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1 or self.config_file is not None


def read_processes(launch: Launch) -> Processes:
    """Work out the processes that `launch` asks for. Raises ValueError at its first mistake."""
    if launch.config_file is None:
        return Processes(launch.num_processes)
    path = _find_config(launch.config_file)
    values = _read_config(path)
    for problem in _find_problems(values):
        raise ValueError(f"{path}: {problem}")
    machines = int(values.get("num_machines") or 1)
    world_size = int(values.get("num_processes") or 1)
    if launch.num_processes > 1:
        world_size = launch.num_processes * machines
    if world_size % machines:
        raise ValueError(f"{path}: {world_size} processes do not divide over {machines} machines")
    port = values.get("main_process_port")
    return Processes(
        world_size=world_size,
        machines=machines,
        machine_rank=int(values.get("machine_rank") or 0),
        main_address=values.get("main_process_ip"),
        main_port=int(port) if port is not None else DEFAULT_PORT if machines > 1 else None,
        scheme=_read_scheme(values),
        config_file=path,
    )


def check_launch(launch: Launch, report: Callable[[str, str], None]) -> None:
    """Report a config that is missing, or that asks for something unsupported.

    `report` takes the recipe's key and a message.
    """
    try:
        read_processes(launch)
    except ValueError as error:
        report("launch.config_file", str(error))


def _find_config(name: str) -> Path:
    path, checked_in = expand_home(name), list_accelerate_configs()
    if path.is_file():
        return path
    if name in checked_in:
        return checked_in[name]
    if path.suffix in {".yaml", ".yml", ".json"} or len(path.parts) > 1:
        raise ValueError(f"no such file: {name!r}")
    raise ValueError(f"no file and no checked-in config {name!r}; {nearest(name, checked_in)}")


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping, as `accelerate config` writes")
    for key in ("num_machines", "machine_rank", "num_processes", "main_process_port"):
        if not str(values.get(key) or 0).isdigit():
            raise ValueError(f"{path}: {key} is {values[key]!r}, not a number")
    return values


def _find_problems(values: Mapping[str, Any]) -> Iterator[str]:
    kind = str(values.get("distributed_type", "NO"))
    if kind == "MULTI_CPU" or values.get("use_cpu"):
        yield (
            "Accelerate starts one process where use_cpu is true or distributed_type is MULTI_CPU; "
            "set distributed_type: MULTI_GPU and use_cpu: false, which use CPUs where torch finds "
            "no GPU"
        )
    if kind not in _DISTRIBUTED_TYPES:
        yield f"distributed_type: no {kind!r} here; {nearest(kind, _DISTRIBUTED_TYPES)}"
    if str(values.get("mixed_precision", "no")) not in {"no", "bf16"}:
        yield "mixed_precision: only `training.precision` decides, and float16 is not offered"
    machines, rank = int(values.get("num_machines") or 1), int(values.get("machine_rank") or 0)
    if rank >= machines:
        yield f"machine_rank is {rank}, of {machines} machines: the first one is 0"
    if machines > 1 and not values.get("main_process_ip"):
        yield "main_process_ip: several machines need the first one's address"
    if kind == "FSDP":
        yield from _find_fsdp_problems(values.get("fsdp_config") or {})


def _find_fsdp_problems(config: Mapping[str, Any]) -> Iterator[str]:
    if str(config.get("fsdp_version", 1)) != "2":
        yield "fsdp_config.fsdp_version: only 2 is offered"
    for key, instead in (
        ("fsdp_offload_params", "weights stay on the devices"),
        ("fsdp_activation_checkpointing", "set training.gradient_checkpointing"),
    ):
        if config.get(key):
            yield f"fsdp_config.{key} is not offered: {instead}"
    reshard = config.get(_RESHARD_KEY, True)
    if not isinstance(reshard, bool):
        yield f"fsdp_config.{_RESHARD_KEY}: true or false, not {reshard!r}"


def _read_scheme(values: Mapping[str, Any]) -> Scheme:
    if values.get("distributed_type") != "FSDP":
        return Scheme()
    reshard = (values.get("fsdp_config") or {}).get(_RESHARD_KEY, True)
    return Scheme(kind="fsdp2", reshard_after_forward=reshard)
