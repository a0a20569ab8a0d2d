"""Points of sensor_msgs/PointCloud2 messages in a bag."""

from __future__ import annotations

from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from bev_perception.data.messages import frame_name
from bev_perception.data.rosbag import RawMessage
from bev_perception.strict import UserError

POINT_CLOUD = "sensor_msgs/msg/PointCloud2"
#: numpy's type of each PointField.datatype
_TYPES_OF_FIELDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_TYPES = get_typestore(Stores.ROS2_JAZZY)


def header_stamp(message: RawMessage) -> int:
    """Return the header's stamp (ns) of a message that begins with a header, without reading the rest of it."""
    order = "<" if message.data[1:2] == b"\x01" else ">"
    seconds, nanoseconds = np.frombuffer(message.data, f"{order}i4", 2, 4).tolist()
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def read_points(message: RawMessage) -> tuple[str, np.ndarray]:
    """Return the frame and the points [n, 4] float32 (x, y, z in m, intensity) of a PointCloud2.

    Points that are NaN or infinite, as drivers mark rays without return, are left out; without a field intensity it
    is 0.

    Raises UserError for a message that is damaged or holds no x, y, z.
    """
    try:
        cloud: Any = _TYPES.deserialize_cdr(message.data, POINT_CLOUD)
        order = ">" if cloud.is_bigendian else "<"
        fields = {
            f.name: (order + _TYPES_OF_FIELDS[f.datatype], f.offset)
            for f in cloud.fields
            if f.datatype in _TYPES_OF_FIELDS
        }
        columns = [name for name in ("x", "y", "z", "intensity") if name in fields]
        if columns[:3] != ["x", "y", "z"]:
            raise UserError(f"{message.topic.name} has the fields {', '.join(fields)}; x, y and z are needed")
        layout = np.dtype(
            {
                "names": columns,
                "formats": [fields[name][0] for name in columns],
                "offsets": [fields[name][1] for name in columns],
                "itemsize": cloud.point_step,
            }
        )
        width, height = int(cloud.width), int(cloud.height)
        rows = [
            np.frombuffer(cloud.data, layout, width, row * cloud.row_step) for row in range(height) if width
        ]  # rows may be padded
    except UserError:
        raise
    except Exception as error:  # whatever the decoder meets in damaged bytes
        raise UserError(
            f"{message.topic.name}: the points logged at {message.stamp} ns are damaged: {error}"
        ) from error
    points = np.zeros((width * height, 4), np.float32)
    for k, name in enumerate(columns):
        points[:, k] = np.concatenate([row[name] for row in rows]) if rows else 0
    return frame_name(cloud.header.frame_id), points[np.isfinite(points).all(axis=1)]
