"""A made-up robot with four cameras of its own names, 0.9 m up, that drives through the synthetic ring road."""

import json

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from bev_perception.data.drive import CameraRig, Drive, DriveImage, DrivePose
from bev_perception.data.rendering import Painter
from bev_perception.data.rosbag import write_bag
from bev_perception.data.synthetic import START, World
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw, transform_points
from bev_perception.sensing.view_checks import BODY_FROM_OPTICAL
from bev_perception.types import Calibration

CAMERAS = ("front", "left", "rear", "right")
NAMES = {"car": "auto", "truck": "forklift", "pedestrian": "person"}  # as the robot's boxes call them
CLASSES = "auto: car\nforklift: forklift\nperson: pedestrian\n"
REACH = 40.0  # m
TYPES = get_typestore(Stores.ROS2_JAZZY)


def robot_drive(seconds, size=(320, 180), rate=4.0, distortion=(), seed=3):
    """Return the drive; every camera takes its picture at the same time."""
    model = "plumb_bob" if distortion else ""
    k = np.array([[0.55 * size[0], 0, size[0] / 2], [0, 0.55 * size[0], size[1] / 2], [0, 0, 1]])
    rig = tuple(
        CameraRig(
            name,
            Calibration(k, *size, model, distortion),
            make_transform(rotation_from_yaw(turn * np.pi / 2) @ BODY_FROM_OPTICAL, np.array([0.0, 0.0, 0.9])),
        )
        for turn, name in enumerate(CAMERAS)
    )
    ticks = [START + round(k * 1e9 / rate) for k in range(round(seconds * rate))]

    def events():
        world = World(seed)
        scenery, painters = world.scenery(), [Painter(camera) for camera in rig]
        for stamp in ticks:
            pose = world.ego2global(stamp)
            yield DrivePose(stamp, pose)
            for camera, painter in zip(rig, painters, strict=True):
                image = painter.paint(scenery, pose, world.boxes(stamp), world.colors)
                yield DriveImage(camera.name, stamp, cv2.imencode(".jpg", image)[1].tobytes())

    return Drive("robot", rig, len(ticks) * 5, events)


def write_robot(folder, seconds=3.0, name="robot", **drive):
    """Write a bag, its boxes (2 Hz, in odom) and classes.yaml to a folder; return their paths."""
    write_bag(robot_drive(seconds, **drive), folder / name, progress=False)
    lines = [row for k in range(int(seconds * 2)) for row in box_lines(START + k * 500_000_000)]
    (folder / "boxes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "classes.yaml").write_text(CLASSES)
    return folder / name, folder / "boxes.jsonl", folder / "classes.yaml"


def box_lines(stamp, seed=3):
    """Return the lines of a stamp for the boxes near the robot."""
    world = World(seed)
    boxes, ego = world.boxes(stamp), world.ego2global(stamp)
    near = np.flatnonzero(np.linalg.norm(boxes.centers[:, :2] - ego[:2, 3], axis=1) < REACH)
    return [
        {
            "stamp": stamp,
            "frame": "odom",
            "class": NAMES[boxes.class_names[boxes.labels[i]]],
            "track_id": int(i),
            "center": boxes.centers[i].tolist(),
            "size": boxes.sizes[i].tolist(),
            "yaw": float(boxes.yaws[i]),
        }
        for i in near.tolist()
    ]


def write_lidar(path, seconds=3.0, mount=(0.2, 0.0, 1.1), rate=10.0, seed=3):
    """Write a bag with points on /lidar in the frame lidar_link: the corners and middles of the boxes of the world."""
    sensor2ego = make_transform(rotation_from_yaw(0.3), np.array(mount))
    with Writer(path, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer:
        cloud = writer.add_connection("/lidar", "sensor_msgs/msg/PointCloud2", typestore=TYPES)
        tf = writer.add_connection("/tf_static", "tf2_msgs/msg/TFMessage", typestore=TYPES)
        made = TYPES.types
        time = made["builtin_interfaces/msg/Time"](sec=START // 10**9, nanosec=START % 10**9)
        link = made["geometry_msgs/msg/TransformStamped"](
            header=made["std_msgs/msg/Header"](stamp=time, frame_id="base_link"),
            child_frame_id="lidar_link",
            transform=made["geometry_msgs/msg/Transform"](
                translation=made["geometry_msgs/msg/Vector3"](x=mount[0], y=mount[1], z=mount[2]),
                rotation=made["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=np.sin(0.15), w=np.cos(0.15)),
            ),
        )
        message = made["tf2_msgs/msg/TFMessage"](transforms=[link])
        writer.write(tf, START, TYPES.serialize_cdr(message, tf.msgtype))
        field = made["sensor_msgs/msg/PointField"]
        for k in range(round(seconds * rate)):
            stamp = START + round(k * 1e9 / rate)
            world = World(seed)
            points = transform_points(
                invert_transform(world.ego2global(stamp) @ sensor2ego), world.boxes(stamp).centers
            ).astype(np.float32)
            points = np.concatenate([points, np.full((1, 3), np.nan, np.float32)])  # a ray without return
            time = made["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
            message = made["sensor_msgs/msg/PointCloud2"](
                header=made["std_msgs/msg/Header"](stamp=time, frame_id="lidar_link"),
                height=1,
                width=len(points),
                fields=[field(name=n, offset=4 * j, datatype=7, count=1) for j, n in enumerate("xyz")],
                is_bigendian=False,
                point_step=12,
                row_step=12 * len(points),
                data=points.view(np.uint8).ravel(),
                is_dense=False,
            )
            writer.write(cloud, stamp, TYPES.serialize_cdr(message, cloud.msgtype))
