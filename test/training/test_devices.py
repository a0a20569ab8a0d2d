"""Which device a process trains on."""

import pytest
import torch

from bev_perception.strict import ConfigError
from bev_perception.training.state import TrainingError
from bev_perception.training.train import join_processes, train

from .kit import MadeUpData, settings, small_config


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs, as far as the choice of one goes; the one that was set last."""
    was_set = []
    empty = torch.empty

    def empty_on(*size, device=None, **rest):
        if device is not None and torch.device(device).type == "cuda":
            if (torch.device(device).index or 0) > 3:
                raise RuntimeError("invalid device ordinal")
            device = "cpu"
        return empty(*size, device=device, **rest)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.empty", empty_on)
    monkeypatch.setattr("torch.cuda.set_device", was_set.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    return was_set


@pytest.mark.parametrize(
    ("name", "local", "chosen"),
    [
        ("cuda:1", None, "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("auto", None, "cuda:0"),
        ("cpu", None, "cpu"),
        ("cuda", "2", "cuda:2"),
        ("auto", "3", "cuda:3"),
        ("cpu", "1", "cpu"),
    ],
)
def test_the_device_that_is_asked_for(monkeypatch, four_gpus, name, local, chosen):
    if local is not None:
        for variable, value in (("WORLD_SIZE", "4"), ("RANK", local), ("LOCAL_RANK", local)):
            monkeypatch.setenv(variable, value)
    with join_processes(name) as processes:
        assert processes.device == torch.device(chosen)
    assert four_gpus == ([torch.device(chosen)] if "cuda" in chosen else [])


def test_devices_that_there_are_not(tmp_path, monkeypatch, four_gpus):
    for name in ("cuda:7", "toaster"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used"):
            train(small_config(), MadeUpData(), settings(tmp_path / "out", device=name))
        assert not (tmp_path / "out").exists()
    for variable, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "5")):
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match="device 'cuda:5' cannot be used"), join_processes("auto"):
        pass
    with (
        pytest.raises(TrainingError, match="cuda:1.* under torchrun; give 'cuda'"),
        join_processes("cuda:1"),
    ):
        pass
