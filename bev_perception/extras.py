"""Optional packages: which extra of this package installs each of them."""

from __future__ import annotations

#: importable name of an optional package -> the extra that installs it, see setup.cfg
EXTRAS = {
    "av": "video",
    "lz4": "bag",
    "matplotlib": "train",
    "motmetrics": "nuscenes",
    "nuscenes": "nuscenes",
    "onnx": "onnxruntime",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxruntime",
    "openvino": "openvino",
    "pandas": "nuscenes",
    "ray": "ray",
    "rclpy": "ros",
    "rerun": "viewer",
    "rosbags": "bag",
    "sklearn": "nuscenes",
    "tensorboard": "train",
}


def missing_extra(error: ImportError) -> str | None:
    """Return a sentence that says which extra to install; None if what is missing is no optional package."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    return None if extra is None else f"{package} cannot be imported ({error}); pip install bev_perception[{extra}]"
