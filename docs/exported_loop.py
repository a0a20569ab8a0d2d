"""Run an exported variant of SparseBEV or SparseOcc on a stream of frames, with its memory, in ONNX Runtime.

bev_perception export --variant V --checkpoint W --format onnx --part encoder DIR
bev_perception export --variant V --checkpoint W --format onnx --part step DIR
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime


class ExportedModel:
    """Encoder, step and the memory of past frames; encoder.md and step.md say what goes in and comes out."""

    def __init__(self, folder: Path, past: int, interval: float) -> None:
        """Load encoder.onnx and step.onnx; past, interval: number of past frames, and s between them (step.md)."""
        self.encoder = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
        self.step = onnxruntime.InferenceSession(str(folder / "step.onnx"))
        self.past, self.interval = past, interval
        self.memory: list[
            tuple[float, list[np.ndarray], np.ndarray]
        ] = []  # (stamp, levels, global2image), newest first

    def __call__(
        self, images: np.ndarray, global2image: np.ndarray, reference2global: np.ndarray, stamp: float
    ) -> dict:
        """Return the step's outputs by name.

        images: [N, 3, H, W] float32; global2image: [N, 4, 4] float64, to depth-scaled pixels
        reference2global: [4, 4] float64; stamp: s
        """
        current = (stamp, self.encoder.run(None, {"images": images}), global2image)
        older = self.memory or [current]
        times = [stamp - k * self.interval for k in range(1, self.past + 1)]
        frames = [current, *(min(older, key=lambda frame: abs(frame[0] - time)) for time in times)]
        matrices = np.stack([frame[2] @ reference2global for frame in frames])  # [T, N, 4, 4]
        named = {f"frame{t}_level{k}": level for t, frame in enumerate(frames) for k, level in enumerate(frame[1])}
        named["reference2image"] = matrices.astype(np.float32)
        named["image2reference"] = np.linalg.inv(matrices).astype(np.float32)
        named["time_differences"] = np.array([stamp - frame[0] for frame in frames], np.float32)
        taken = {taken.name: named[taken.name] for taken in self.step.get_inputs()}
        self.memory = [f for f in (current, *self.memory) if stamp - f[0] <= self.past * self.interval + 0.5]
        return dict(zip((given.name for given in self.step.get_outputs()), self.step.run(None, taken), strict=True))
