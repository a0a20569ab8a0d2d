"""The objects of a scene: category, place or movement, and bounding box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bev_perception.synth.shapes import Shape

#: m/s above which an object counts as moving
MOVING = 0.2
#: m, how far a box extends beyond its object on every side
MARGIN = 0.03


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    shape: its hulls
    category: of nuScenes; "" for a thing without a box
    place: x, y, z (m), yaw (rad) of a thing that stands still
    activity: "parked", "driving", "ridden", "left" (a bicycle or motorcycle without rider), "walking", "standing",
        "sitting" or ""
    agent: number of the agent that moves it, -1 for none
    behind: distance from the agent's front back to the shape's origin, m
    """

    shape: Shape
    category: str
    place: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    activity: str = ""
    agent: int = -1
    behind: float = 0.0

    def attribute(self, speed: float) -> str:
        """Return the nuScenes attribute at a speed (m/s), "" if there is none."""
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
        """The box's centre [3] in the shape's frame and its size [3]: length, width, height, m."""
        low, high = self.shape.low - MARGIN, self.shape.high + MARGIN
        return (low + high) / 2, high - low
