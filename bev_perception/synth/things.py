"""What a scene is made of, as far as its boxes go: who it is, where it stands or how it moves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bev_perception.synth.shapes import Shape
from bev_perception.synth.traffic import Agent, pose_on

#: m/s above which somebody moves
MOVING = 0.2
#: m, how much larger a box is than what is in it, on every side
MARGIN = 0.03
#: m that a pedestrian goes in one cycle of steps
STRIDE = 1.4


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    category: nuScenes' name; "" for what gets no box.  place: x, y, z (m), yaw of what stands; of what moves z alone
    counts.  agent: who moves it.  behind: m from the agent's nose back to the shape's origin.
    activity: "parked", "driving", "ridden", "left" (a bicycle without rider), "walking", "standing", "sitting", "".
    """

    shape: Shape
    category: str
    place: tuple[float, float, float, float]
    activity: str = ""
    agent: Agent | None = None
    behind: float = 0.0

    def pose_at(self, time: float) -> tuple[float, float, float]:
        """Return x, y, yaw at a time (s)."""
        if self.agent is None:
            x, y, _, yaw = self.place
            return x, y, yaw
        return pose_on(self.agent.way, self.agent.s_at(time) - self.behind, self.shape.anchors)

    def stride_at(self, time: float) -> float:
        """Return the phase of walking in rad; NaN for somebody who stands."""
        if self.activity != "walking" or self.agent is None:
            return math.nan
        return 2 * math.pi * self.agent.s_at(time) / STRIDE if self.agent.speed_at(time) > MOVING else math.nan

    def attribute_at(self, time: float) -> str:
        """Return nuScenes' attribute, "" if it has none."""
        moving = self.agent is not None and self.agent.speed_at(time) > MOVING
        if self.category.startswith("human.pedestrian"):
            if self.activity == "sitting":
                return "pedestrian.sitting_lying_down"
            return "pedestrian.moving" if moving else "pedestrian.standing"
        if self.activity in ("ridden", "left"):
            return "cycle.with_rider" if self.activity == "ridden" else "cycle.without_rider"
        if self.category.startswith("vehicle."):
            return "vehicle.parked" if self.agent is None else "vehicle.moving" if moving else "vehicle.stopped"
        return ""

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """The box's middle [3] in the shape's frame and its size [3]: length, width, height."""
        low, high = self.shape.low - MARGIN, self.shape.high + MARGIN
        return (low + high) / 2, high - low
