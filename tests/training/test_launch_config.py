"""In which processes a stage runs, by `launch` and its Accelerate config."""

from __future__ import annotations

import re

import pytest

from compressor.core.files import find_recipes_folder, list_accelerate_configs
from compressor.training.launch_config import Launch, Processes, Scheme, read_processes


def test_checked_in_configs_mean_what_they_say() -> None:
    """Each is read; a number of processes replaces its own; a path is taken too."""
    configs = list_accelerate_configs()
    assert list(configs) == ["ddp", "fsdp2", "several_machines"]
    assert read_processes(Launch(num_processes=3)) == Processes(3)
    fsdp2 = read_processes(Launch(config_file="fsdp2", num_processes=4))
    assert (fsdp2.world_size, fsdp2.count_per_machine, fsdp2.is_distributed) == (4, 4, True)
    assert fsdp2.scheme == Scheme(kind="fsdp2", reshard_after_forward=True)
    assert read_processes(Launch(config_file="ddp")).scheme.kind == "ddp"
    two = read_processes(Launch(config_file=str(configs["several_machines"])))
    assert (two.world_size, two.count_per_machine, two.machines, two.machine_rank) == (2, 1, 2, 0)
    assert (two.main_address, two.main_port) == ("127.0.0.1", 29500)
    assert find_recipes_folder() in configs["ddp"].parents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no file and no checked-in config 'fsdp'; did you mean 'fsdp2'?"),
        ("use_cpu: true", "Accelerate starts one process where use_cpu is true"),
        ("distributed_type: MULTI_CPU", "set distributed_type: MULTI_GPU and use_cpu: false"),
        ("distributed_type: FDSP", "distributed_type: no 'FDSP' here; did you mean 'FSDP'?"),
        ("distributed_type: FSDP", "fsdp_config.fsdp_version: only 2 is offered"),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_offload_params: true}",
            "fsdp_config.fsdp_offload_params is not offered",
        ),
        ("distributed_type: DEEPSPEED", "no 'DEEPSPEED' here; valid: FSDP, MULTI_GPU, NO"),
        ("mixed_precision: fp16", "mixed_precision: only `training.precision` decides"),
        ("num_machines: 2\nnum_processes: 4", "main_process_ip: several machines need"),
        ("num_machines: 2\nmachine_rank: 2", "machine_rank is 2, of 2 machines"),
        ("num_processes: many", "num_processes is 'many', not a number"),
        ("[1, 2]", "expected a mapping, as `accelerate config` writes"),
        (
            "num_machines: 2\nnum_processes: 3\nmain_process_ip: a",
            "3 processes do not divide over 2 machines",
        ),
    ],
)
def test_a_wrong_config_is_refused(tmp_path, text, expected) -> None:
    """With what is offered instead, or the nearest name."""
    name = "fsdp"
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
        name = str(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_processes(Launch(config_file=name))


def test_a_plan_refuses_a_wrong_config(plan_errors) -> None:
    told = plan_errors(overrides=["launch.config_file=fsdp"])
    assert "launch.config_file: no file and no checked-in config 'fsdp'" in told
