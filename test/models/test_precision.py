import pytest
import torch

from bev_perception.config import ConfigError
from bev_perception.models.precision import check_precision, encoder_precision, strict_float32, tiny_is_zero

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def tf32_flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def gpu_of(monkeypatch):
    """Have a GPU of some compute capability, as far as it is asked about."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Elder GPU")

    return pretend


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_new_gpu_has_all(gpu_of, precision):
    gpu_of((8, 6))
    check_precision(precision, GPU)


@pytest.mark.parametrize(("precision", "refused"), [("fp32", False), ("tf32", True), ("bf16", True), ("fp16", False)])
def test_an_old_gpu_lacks_some(gpu_of, precision, refused):
    gpu_of((7, 5))
    if refused:
        with pytest.raises(ConfigError, match=f"Elder GPU is too old for precision '{precision}'; choose 'fp16'"):
            check_precision(precision, GPU)
    else:
        check_precision(precision, GPU)


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("half", CPU, "precision is 'half'; it must be one of fp32, bf16, fp16, tf32"),
        ("tf32", CPU, "on cpu choose 'fp32' or 'bf16'"),
        ("bf16", torch.device("meta"), "cannot be had on meta"),
    ],
)
def test_what_cannot_be_had_is_named(precision, device, message):
    with pytest.raises(ConfigError, match=message):
        check_precision(precision, device)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True)])
def test_tf32_is_allowed_inside_only(precision, allowed):
    before = tf32_flags()
    with pytest.raises(RuntimeError, match="out"), encoder_precision(precision, GPU):
        assert tf32_flags() == (allowed, allowed)
        raise RuntimeError("out")
    assert tf32_flags() == before


def test_strict_float32_holds_around_the_encoder():
    before = tf32_flags()
    with strict_float32(GPU):
        assert tf32_flags() == (False, False)
        with encoder_precision("tf32", GPU):
            assert tf32_flags() == (True, True)
        assert tf32_flags() == (False, False)
    assert tf32_flags() == before


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_convolutions_compute_in_it(precision, dtype):
    convolution, image = torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
    with encoder_precision(precision, CPU):
        assert convolution(image).dtype == dtype
    assert convolution(image).dtype == torch.float32


def test_tiny_numbers_are_zero_while_asked_for():
    numbers = torch.tensor([1e-39, 1e-37])
    with tiny_is_zero():
        assert (numbers * 0.5).tolist() == [0.0, pytest.approx(5e-38)]
    assert (numbers * 0.5 > 0).all()
