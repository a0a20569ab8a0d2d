"""What a scene is made of, as far as its boxes go: who it is, where it stands or how it moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bev_perception.synth.shapes import Shape

#: m/s above which somebody moves
MOVING = 0.2
#: m, how much larger a box is than what is in it, on every side
MARGIN = 0.03


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    category: nuScenes' name; "" for what gets no box.  place: x, y, z (m), yaw of what stands.
    activity: "parked", "driving", "ridden", "left" (a bicycle without rider), "walking", "standing", "sitting", "".
    agent: number of the agent who moves it, -1 for none.  behind: m from the agent's front back to the shape's origin.
    """

    shape: Shape
    category: str
    place: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    activity: str = ""
    agent: int = -1
    behind: float = 0.0

    def attribute(self, speed: float) -> str:
        """Return nuScenes' attribute at a speed (m/s), "" if it has none."""
        moves = speed > MOVING
        if self.category.startswith("human.pedestrian"):
            if self.activity == "sitting":
                return "pedestrian.sitting_lying_down"
            return "pedestrian.moving" if moves else "pedestrian.standing"
        if self.activity in ("ridden", "left"):
            return "cycle.with_rider" if self.activity == "ridden" else "cycle.without_rider"
        if self.category.startswith("vehicle."):
            return "vehicle.moving" if moves else "vehicle.parked" if self.agent < 0 else "vehicle.stopped"
        return ""

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The box's middle [3] in the shape's frame and its size [3]: length, width, height."""
        low, high = self.shape.low - MARGIN, self.shape.high + MARGIN
        return (low + high) / 2, high - low
