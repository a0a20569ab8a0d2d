import pytest
import torch

from bev_perception.models.device import choose_device
from bev_perception.strict import ConfigError


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ConfigError, match=f"device '{name}'.*choose 'auto'"):
            choose_device(name)
