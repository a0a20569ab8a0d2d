"""Converts occupancy to ROS messages.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

from array import array

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion
from nav_msgs.msg import MapMetaData, OccupancyGrid
from sensor_msgs.msg import PointCloud2, PointField

from bev_perception.msg import SemanticOccupancy
from bev_perception.results.occupancy_codec import encode
from bev_perception.results.point_cloud import POINT, occupied_points
from bev_perception.ros.messages import header
from bev_perception.types import Occupancy, VoxelGrid

#: types of the fields of point_cloud.POINT; rgb is three packed bytes, declared float as RViz, Foxglove and PCL expect
_FIELDS = {
    "x": PointField.FLOAT32,
    "y": PointField.FLOAT32,
    "z": PointField.FLOAT32,
    "rgb": PointField.FLOAT32,
    "label": PointField.UINT8,
    "instance": PointField.INT16,
}


def semantic_occupancy(occupancy: Occupancy, stamp: int, frame_id: str) -> SemanticOccupancy:
    """Return all voxels as bev_perception/SemanticOccupancy; occupancy_codec.decode reads them.

    occupancy: in the frame `frame_id`.
    stamp: ns.
    frame_id: tf frame.
    """
    runs, (x, y, z) = encode(occupancy), occupancy.grid.origin
    return SemanticOccupancy(
        header=header(stamp, frame_id),
        origin=Point(x=float(x), y=float(y), z=float(z)),
        resolution=float(occupancy.grid.resolution),
        shape=np.array(occupancy.grid.shape, np.uint32),
        class_names=list(occupancy.class_names),
        # rclpy keeps an array.array as it is, but copies any other sequence value by value
        run_labels=array("B", runs.labels.tobytes()),
        run_lengths=array("B", runs.lengths.tobytes()),
        run_instances=array("h", runs.instances.tobytes()),
    )


def points(occupancy: Occupancy, stamp: int, frame_id: str) -> PointCloud2:
    """Return the occupied voxels as an unordered sensor_msgs/PointCloud2 with the fields of POINT.

    occupancy: in the frame `frame_id`.
    stamp: ns.
    frame_id: tf frame.
    """
    return point_cloud(occupied_points(occupancy), stamp, frame_id)


def point_cloud(cloud: np.ndarray, stamp: int, frame_id: str) -> PointCloud2:
    """Return points as an unordered sensor_msgs/PointCloud2 with the fields of POINT.

    cloud: [n] of dtype POINT, in the frame `frame_id`; see results.point_cloud.
    stamp: ns.
    frame_id: tf frame.
    """
    assert POINT.fields is not None
    return PointCloud2(
        header=header(stamp, frame_id),
        height=1,
        width=len(cloud),
        fields=[
            PointField(name=name, offset=POINT.fields[name][1], datatype=datatype, count=1)
            for name, datatype in _FIELDS.items()
        ],
        is_bigendian=False,
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * len(cloud),
        data=array("B", cloud.tobytes()),
        is_dense=True,
    )


def occupancy_grid(cells: np.ndarray, grid: VoxelGrid, stamp: int, frame_id: str) -> OccupancyGrid:
    """Return a costmap as nav_msgs/OccupancyGrid, on the ground below the voxels.

    A row of the message runs along x: cell (i, j) is data[j * width + i], at origin + resolution * (i, j).

    cells: [X, Y] int8, 0..100, or -1 for unknown.
    grid: the voxels that the cells belong to.
    stamp: ns.
    frame_id: tf frame.
    """
    head = header(stamp, frame_id)
    width, height = cells.shape
    origin = Pose(
        position=Point(x=float(grid.origin[0]), y=float(grid.origin[1]), z=0.0),
        orientation=Quaternion(x=0.0, y=0.0, z=0.0, w=1.0),
    )
    info = MapMetaData(
        map_load_time=head.stamp, resolution=float(grid.resolution), width=width, height=height, origin=origin
    )
    return OccupancyGrid(header=head, info=info, data=array("b", cells.T.tobytes()))
