"""A small world with obstacles at known places, and a process that publishes it as the node publishes its results.

python planted.py DOMAIN_ID
"""

import sys
import time

import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.types import CameraImage, Frame, Occupancy, Result, View, VoxelGrid

#: not square, so that swapped axes are seen
GRID = VoxelGrid((-20.0, -12.0, -1.0), 0.4, (100, 60, 16))
STAMP = 1_800_000_000_123_456_789
FREE = OCC3D_CLASSES.index("free")
#: class, instance, x, y, z from and to (m)
OBJECTS = (
    ("car", 7, (10.0, 14.0), (4.0, 6.0), (0.2, 1.8)),  # ahead, to the left
    ("traffic_cone", 0, (-8.0, -7.6), (-3.2, -2.8), (0.2, 1.0)),  # behind, to the right
    ("manmade", 0, (-20.0, 20.0), (11.6, 12.0), (0.2, 5.4)),  # a wall along the left
)


def planted_occupancy() -> Occupancy:
    semantics = np.full(GRID.shape, FREE, np.uint8)
    instances = np.zeros(GRID.shape, np.int16)
    semantics[:, :, 2] = OCC3D_CLASSES.index("driveable_surface")
    for name, instance, *spans in OBJECTS:
        where = tuple(
            slice(*(round((edge - start) / GRID.resolution) for edge in span))
            for span, start in zip(spans, GRID.origin, strict=True)
        )
        semantics[where], instances[where] = OCC3D_CLASSES.index(name), instance
    return Occupancy(semantics, OCC3D_CLASSES, GRID, instances)


def planted_frame() -> Frame:
    rig = synthetic_rig()
    views = tuple(
        View(CameraImage(r.name, STAMP, r.name, "jpeg", b""), r.calibration, r.sensor2ego, np.eye(4)) for r in rig
    )
    return Frame(STAMP, tuple(r.name for r in rig), views, np.eye(4))


def planted_result() -> Result:
    return Result(STAMP, None, planted_occupancy(), {}, None, {}, 0)


def main() -> int:
    import rclpy

    from bev_perception.ros.interfaces import ensure_interfaces

    ensure_interfaces()
    from rclpy.lifecycle import LifecycleNode

    from bev_perception.families.variants import load_variant
    from bev_perception.results.costmap import CostmapSettings
    from bev_perception.ros.outputs import Outputs

    rclpy.init(domain_id=int(sys.argv[1]))
    node = LifecycleNode("bev_perception")
    outputs = Outputs(node, [load_variant("sparseocc_tiny")], CostmapSettings())
    node.trigger_configure()
    node.trigger_activate()
    result, frame = planted_result(), planted_frame()
    while True:
        outputs.publish(result, frame, "base_link", "odom")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
