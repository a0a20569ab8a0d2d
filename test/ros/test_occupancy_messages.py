"""Occupancy as messages: layout, places, and that nobody pays for what nobody reads."""

from itertools import pairwise

import numpy as np
import pytest
from kit import wait_until
from planted import GRID, OBJECTS, STAMP, planted_frame, planted_occupancy, planted_result
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2, PointField

from bev_perception.classes import OCC3D_CLASSES, OCC3D_COLORS
from bev_perception.families.variants import load_variant
from bev_perception.results.costmap import CostmapSettings
from bev_perception.results.occupancy_codec import decode
from bev_perception.ros import occupancy_messages, outputs
from bev_perception.ros.outputs import Outputs
from bev_perception.types import Occupancy

SIZES = {PointField.FLOAT32: 4, PointField.UINT8: 1, PointField.INT16: 2}


def sent(message):
    """The message as a subscriber gets it."""
    return deserialize_message(serialize_message(message), type(message))


def field(cloud: PointCloud2, name: str, dtype: str) -> np.ndarray:
    """One field of all points, read as sensor_msgs/PointField says."""
    (found,) = [f for f in cloud.fields if f.name == name]
    assert SIZES[found.datatype] == np.dtype(dtype).itemsize and found.count == 1
    return np.ndarray(cloud.width, dtype, bytes(cloud.data), found.offset, (cloud.point_step,))


@pytest.mark.parametrize("instances", [True, False])
def test_the_message_holds_the_occupancy(instances):
    planted = planted_occupancy()
    occupancy = planted if instances else Occupancy(planted.semantics, planted.class_names, planted.grid)
    message = sent(occupancy_messages.semantic_occupancy(occupancy, STAMP, "base_link"))
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_800_000_000, 123_456_789)
    assert message.header.frame_id == "base_link" and len(serialize_message(message)) < 3000
    got = decode(message)
    assert (got.grid, got.class_names) == (GRID, OCC3D_CLASSES)
    assert np.array_equal(got.semantics, planted.semantics)
    assert np.array_equal(got.instances, planted.instances) if instances else got.instances is None


def test_points_are_laid_out_as_their_fields_say():
    occupancy = planted_occupancy()
    cloud = sent(occupancy_messages.points(occupancy, STAMP, "base_link"))
    assert cloud.header.frame_id == "base_link" and cloud.height == 1 and cloud.is_dense and not cloud.is_bigendian
    assert cloud.width == occupancy.occupied.sum() and cloud.row_step == cloud.width * cloud.point_step
    assert len(cloud.data) == cloud.row_step
    taken = sorted((f.offset, f.offset + SIZES[f.datatype]) for f in cloud.fields)
    assert all(a[1] <= b[0] for a, b in pairwise(taken)) and taken[-1][1] <= cloud.point_step
    assert all(f.offset % SIZES[f.datatype] == 0 for f in cloud.fields)
    x, y, z = (field(cloud, axis, "<f4") for axis in "xyz")
    labels, instances, rgb = field(cloud, "label", "u1"), field(cloud, "instance", "<i2"), field(cloud, "rgb", "<u4")
    car = labels == OCC3D_CLASSES.index("car")
    name, number, *spans = OBJECTS[0]
    for values, (low, high) in zip((x, y, z), spans, strict=True):
        assert np.isclose(values[car].min(), low + 0.2, atol=1e-5)
        assert np.isclose(values[car].max(), high - 0.2, atol=1e-5)
    assert car.sum() == 10 * 5 * 4 and (instances[car] == number).all() and not instances[~car].any()
    red, green, blue = OCC3D_COLORS[name]
    assert (rgb[car] == red << 16 | green << 8 | blue).all()
    assert np.isfinite(field(cloud, "rgb", "<f4")).all()  # as which viewers may look at it


def test_points_of_nothing():
    free = Occupancy(np.full(GRID.shape, OCC3D_CLASSES.index("free"), np.uint8), OCC3D_CLASSES, GRID)
    cloud = sent(occupancy_messages.points(free, STAMP, "base_link"))
    assert (cloud.width, cloud.row_step, len(cloud.data)) == (0, 0, 0)


def test_rows_of_the_grid_run_along_x():
    cells = np.full(GRID.shape[:2], -1, np.int8)
    cells[70, 45], cells[3, 0] = 100, 0
    message = sent(occupancy_messages.occupancy_grid(cells, GRID, STAMP, "base_link"))
    info = message.info
    assert (info.width, info.height, len(message.data)) == (100, 60, 6000)
    assert np.isclose(info.resolution, 0.4) and info.map_load_time == message.header.stamp
    assert (info.origin.position.x, info.origin.position.y, info.origin.position.z) == (-20.0, -12.0, 0.0)
    orientation = info.origin.orientation
    assert (orientation.x, orientation.y, orientation.z, orientation.w) == (0.0, 0.0, 0.0, 1.0)
    assert message.data[45 * info.width + 70] == 100 and message.data[3] == 0
    assert message.data.count(-1) == 6000 - 2


# ------------------------------------------------------------------ publishers

COSTLY = (
    ("occupancy", "semantic_occupancy"),
    ("occupancy_points", "points"),
    ("costmap", "occupancy_grid"),
    ("obstacles", "obstacle_points"),
)


@pytest.mark.parametrize(("topic", "builder"), COSTLY)
def test_a_message_is_built_only_for_a_subscriber(node, monkeypatch, topic, builder):
    built = []

    def counted(name, build):
        def call(*args):
            built.append(name)
            return build(*args)

        return call

    for _, name in COSTLY:
        module = outputs if name == "obstacle_points" else occupancy_messages
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(outputs, "costmap", counted("occupancy_grid", outputs.costmap))
    publishers = Outputs(node, [load_variant("sparseocc_tiny")], CostmapSettings())
    node.trigger_configure()
    node.trigger_activate()
    publishers.publish(planted_result(), planted_frame(), "base_link", "odom")
    assert built == []

    got = []
    subscription = node.create_subscription(outputs.OCCUPANCY_TOPICS[topic], f"~/{topic}", got.append, 5)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    wait_until(lambda: node.count_subscribers(f"/bev_perception/{topic}"), 10, "the subscription")

    def receives():
        publishers.publish(planted_result(), planted_frame(), "base_link", "odom")
        executor.spin_once(timeout_sec=0.1)
        return got

    wait_until(receives, 20, topic)
    assert set(built) == {builder}

    node.destroy_subscription(subscription)
    wait_until(lambda: not node.count_subscribers(f"/bev_perception/{topic}"), 10, "the end of the subscription")
    built.clear()
    publishers.publish(planted_result(), planted_frame(), "base_link", "odom")
    assert built == []
    executor.shutdown()


def test_topics_are_those_of_the_variants(node):
    def topics():
        published = node.get_publisher_names_and_types_by_node("bev_perception", "/")
        return {name.removeprefix("/bev_perception/") for name, _ in published} & {
            *outputs.DETECTION_TOPICS,
            *outputs.OCCUPANCY_TOPICS,
        }

    boxes, occupancy = {*outputs.DETECTION_TOPICS}, {*outputs.OCCUPANCY_TOPICS}
    for variants, expected in (
        (["sparsebev_tiny"], boxes),
        (["sparseocc_tiny"], occupancy),
        (["sparsebev_tiny", "sparseocc_tiny"], boxes | occupancy),
    ):
        publishers = Outputs(node, [load_variant(name) for name in variants], CostmapSettings())
        assert topics() == expected
        publishers.destroy()
        assert topics() == set()


def test_settings_that_the_variant_cannot_have_are_named(node):
    variant = load_variant("sparseocc_tiny")
    with pytest.raises(ValueError, match="'grass'"):
        Outputs(node, [variant], CostmapSettings(free_classes=("grass",)))
    publishers = Outputs(node, [variant], CostmapSettings())
    with pytest.raises(ValueError, match="the grid reaches"):
        publishers.check(CostmapSettings(6.0, 7.0))
    Outputs(node, [load_variant("sparsebev_tiny")], CostmapSettings(free_classes=("grass",)))  # it has no costmap
