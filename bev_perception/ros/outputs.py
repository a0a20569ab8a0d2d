"""The node's topics for results. Import only after bev_perception.ros.interfaces.ensure_interfaces()."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nav_msgs.msg import OccupancyGrid
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import PointCloud2
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import MarkerArray

from bev_perception.config import VariantConfig
from bev_perception.families.catalog import family_of, gives
from bev_perception.families.family import BOXES, OCCUPANCY
from bev_perception.msg import Object3DArray, SemanticOccupancy
from bev_perception.ops.ray_casting import observed_voxels
from bev_perception.results.costmap import OUTPUT_LIFETIME, UNKNOWN, CostmapSettings, costmap
from bev_perception.results.point_cloud import POINT, obstacle_points
from bev_perception.ros import messages, occupancy_messages
from bev_perception.tracking.trails import Trails
from bev_perception.types import Boxes3D, Frame, Occupancy, Result, VoxelGrid
from bev_perception.visualization.viewer import Viewer

OUTPUT_QOS = QoSProfile(depth=5)
#: s that subscribers have to acknowledge the last messages before the publishers go
FAREWELL = 0.2

#: what is published of boxes and of occupancy: topic -> type
DETECTION_TOPICS = {"detections": Detection3DArray, "objects": Object3DArray, "markers": MarkerArray}
OCCUPANCY_TOPICS = {
    "occupancy": SemanticOccupancy,
    "occupancy_points": PointCloud2,
    "costmap": OccupancyGrid,
    "obstacles": PointCloud2,
}


@dataclass(frozen=True)
class _Standing:
    """What subscribers hold for true until it is replaced or withdrawn.

    since: of time.monotonic().
    stamp: of the result, ns.
    frame_id: tf frame of base_link.
    grid: of the occupancy, or None.
    """

    since: float
    stamp: int
    frame_id: str
    grid: VoxelGrid | None


class Outputs:
    """Publishers of what the variants give. A message that nobody subscribes to is not built.

    Viewers and planners keep what they have got last. So what is drawn or planned with is withdrawn when no newer
    result comes: markers are deleted, clouds are empty, and the costmap is unknown. Detections, objects and occupancy
    are not: an empty message would say that the way is clear. Their readers look at the stamps.

    costmap: may be replaced at any time by settings that `check` lets pass.
    """

    def __init__(
        self,
        node: LifecycleNode,
        variants: Sequence[VariantConfig],
        costmap: CostmapSettings,
        lifetime: float = OUTPUT_LIFETIME,
        viewer: Viewer | None = None,
    ) -> None:
        """Advertise the topics of boxes, of occupancy, or of both; raises UserError as `check` does.

        lifetime: s for which a result stands without a newer one.
        viewer: shows the results, too, and is closed with the publishers; None: no live viewer.
        """
        self._viewer = viewer
        self._lifetime = lifetime
        self._lock = threading.Lock()  # so that nothing is withdrawn that has just been published
        self._closed = False
        self._standing: _Standing | None = None
        given = frozenset().union(*(gives(config) for config in variants))
        occupancy = OCCUPANCY in given
        topics = (DETECTION_TOPICS if BOXES in given else {}) | (OCCUPANCY_TOPICS if occupancy else {})
        self._variants = tuple(variants)
        self.check(costmap)
        self.costmap = costmap
        if occupancy:  # the code that casts rays is compiled, or loaded, on first use: now, and not at the first frame
            nothing = np.empty((0, 3))
            observed_voxels(np.zeros((1, 1, 1), bool), VoxelGrid((0.0, 0.0, 0.0), 1.0, (1, 1, 1)), nothing, nothing)
        self._node = node
        self._trails = Trails()
        self._publishers: dict[str, Any] = {
            name: node.create_lifecycle_publisher(
                kind, f"~/{name}", OUTPUT_QOS, qos_overriding_options=QoSOverridingOptions.with_default_policies()
            )
            for name, kind in topics.items()
        }

    def check(self, costmap: CostmapSettings) -> None:
        """Raise UserError for a costmap of classes or heights that the variant of occupancy does not have."""
        for config in self._variants:
            grid = family_of(config).grid(config)
            if grid is not None:
                costmap.check(config.class_names, grid)

    def destroy(self) -> None:
        """Destroy the publishers, and close the viewer."""
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None
        while self._publishers:
            self._node.destroy_lifecycle_publisher(self._publishers.popitem()[1])

    def publish(self, result: Result, frame: Frame, frame_id: str, fixed_frame: str) -> None:
        """Publish a result, unless farewell was bidden.

        result: of the pipeline.
        frame: the frame that the result was made of.
        frame_id: tf frame of base_link.
        fixed_frame: tf frame that does not move with the vehicle.
        """
        with self._lock:
            if self._closed:
                return
            grid = None if result.occupancy is None else result.occupancy.grid
            self._standing = _Standing(time.monotonic(), result.stamp, frame_id, grid)
            self._publish(result, frame, frame_id, fixed_frame)
        if self._viewer is not None:
            self._viewer.show(frame, result)

    def age(self) -> None:
        """Withdraw the last result if it has stood for longer than its lifetime."""
        standing = self._standing
        if standing is not None and time.monotonic() - standing.since > self._lifetime:
            self.withdraw()

    def withdraw(self) -> None:
        """Take back the markers, the clouds and the costmap of the last result, if there are any."""
        with self._lock:
            standing, self._standing = self._standing, None
            self._trails.clear()
            if standing is None:
                return
            stamp, frame_id = standing.stamp, standing.frame_id
            if "markers" in self._publishers:
                self._send("markers", lambda: messages.anew([], stamp, frame_id, self._lifetime))
            if standing.grid is not None:
                grid, nothing = standing.grid, np.empty(0, POINT)
                unknown = np.full(grid.shape[:2], UNKNOWN, np.int8)
                self._send("costmap", lambda: occupancy_messages.occupancy_grid(unknown, grid, stamp, frame_id))
                for name in ("occupancy_points", "obstacles"):
                    self._send(name, lambda: occupancy_messages.point_cloud(nothing, stamp, frame_id))

    def bid_farewell(self) -> None:
        """Publish no more, withdraw the last result, and see that this arrives before the publishers are destroyed."""
        with self._lock:
            self._closed = True
        if self._standing is None:
            return
        self.withdraw()
        deadline = time.monotonic() + FAREWELL
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=max(0.0, deadline - time.monotonic())))

    def _publish(self, result: Result, frame: Frame, frame_id: str, fixed_frame: str) -> None:
        stamp, boxes, occupancy = result.stamp, result.boxes, result.occupancy
        if boxes is not None:
            if result.reset is not None:
                self._trails.clear()
            self._trails.add(stamp, boxes, frame.ego2global)
            self._send("markers", lambda: self._markers(boxes, stamp, frame_id, fixed_frame))
            self._send("objects", lambda: messages.objects(boxes, stamp, frame_id))
            self._send("detections", lambda: messages.detections(boxes, stamp, frame_id))
        if occupancy is not None:
            self._send("occupancy", lambda: occupancy_messages.semantic_occupancy(occupancy, stamp, frame_id))
            self._send("occupancy_points", lambda: occupancy_messages.points(occupancy, stamp, frame_id))
            self._send("obstacles", lambda: self._obstacles(occupancy, stamp, frame_id))
            self._send("costmap", lambda: self._costmap(result, frame, frame_id))

    def _markers(self, boxes: Boxes3D, stamp: int, frame_id: str, fixed_frame: str) -> MarkerArray:
        trails = messages.trail_markers(self._trails.lines(), stamp, fixed_frame)
        return messages.anew(messages.markers(boxes, stamp, frame_id) + trails, stamp, frame_id, self._lifetime)

    def _obstacles(self, occupancy: Occupancy, stamp: int, frame_id: str) -> PointCloud2:
        return occupancy_messages.point_cloud(obstacle_points(occupancy, self.costmap), stamp, frame_id)

    def _costmap(self, result: Result, frame: Frame, frame_id: str) -> OccupancyGrid:
        assert result.occupancy is not None
        cells = costmap(result.occupancy, frame, result.missing, self.costmap)
        return occupancy_messages.occupancy_grid(cells, result.occupancy.grid, result.stamp, frame_id)

    def _send(self, name: str, build: Callable[[], Any]) -> None:
        publisher = self._publishers[name]
        if publisher.get_subscription_count():
            publisher.publish(build())
