"""Occupancy over real DDS: a planted world for subscribers of two kinds, and the node with untrained weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rclpy
from client_runner import run_script
from kit import NODE, NodeProcess, new_domain, wait_until
from planted import OBJECTS, STAMP, planted_occupancy
from rclpy.executors import SingleThreadedExecutor

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.drive import CAMERAS
from bev_perception.data.messages import stamp_ns
from bev_perception.data.rosbag import BagReader, write_bag
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.families.variants import load_variant
from bev_perception.pipeline.loading import load_pipeline, write_initial_weights
from bev_perception.pipeline.offline import run_events
from bev_perception.results.costmap import CostmapSettings
from bev_perception.results.occupancy_codec import decode
from bev_perception.ros.outputs import OCCUPANCY_TOPICS
from bev_perception.ros.tools.peer import Listener
from bev_perception.ros.tools.process import dds_environment
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def planted_domain(tmp_path_factory):
    """A process that publishes the planted world; yields its domain."""
    domain = new_domain()
    path = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = dds_environment(domain) | {"PYTHONPATH": path}
    log = (tmp_path_factory.mktemp("planted") / "log").open("w+")
    command = [sys.executable, str(HERE / "planted.py"), str(domain)]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    yield domain
    ended = process.poll()
    process.kill()
    process.wait()
    log.seek(0)
    assert ended is None, log.read()


def receive(domain: int) -> dict[str, object]:
    """One message of each topic, as any node gets it."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("subscriber", context=context)
    got: dict[str, object] = {}
    for topic, kind in OCCUPANCY_TOPICS.items():
        node.create_subscription(kind, f"{NODE}/{topic}", lambda m, topic=topic: got.setdefault(topic, m), 5)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def complete():
        executor.spin_once(timeout_sec=0.1)
        return len(got) == len(OCCUPANCY_TOPICS)

    wait_until(complete, 60, lambda: f"all of {set(OCCUPANCY_TOPICS)}; {set(got)} came")
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)
    return got


def inside(values: np.ndarray, spans) -> np.ndarray:
    """Which rows of values [n, 2 or 3] (m) lie in a box."""
    return np.all([(v > low) & (v < high) for v, (low, high) in zip(values.T, spans, strict=False)], axis=0)


def assert_costmap(obstacles: np.ndarray, free: np.ndarray, unknown: np.ndarray) -> None:
    """obstacles, free, unknown: [n, 2], the middles of cells, m."""
    assert len(obstacles) + len(free) + len(unknown) == 6000
    for name, _, *spans in OBJECTS:
        size = np.prod([round((high - low) / 0.4) for low, high in spans[:2]])
        assert inside(obstacles, spans).sum() == size, name
    assert len(obstacles) == 10 * 5 + 1 + 100
    # beside the car and before it is free; behind it, seen from the cameras, nobody knows
    assert inside(free, [(8, 9.6), (4, 6)]).sum() == 4 * 5 and inside(free, [(10, 14), (-6, -4)]).sum() == 10 * 5
    assert inside(unknown, [(16, 17.2), (6.8, 7.2)]).sum() == 3
    assert inside(unknown, [(-0.4, 0.8), (-0.4, 0.4)]).sum() == 6  # beneath the vehicle itself


def test_a_subscriber_finds_the_obstacle_ahead_left(planted_domain):
    message = receive(planted_domain)["costmap"]
    assert message.header.frame_id == "base_link" and stamp_ns(message.header.stamp) == STAMP
    info = message.info
    grid = np.array(message.data).reshape(info.height, info.width)
    places = {}
    for value in (100, 0, -1):
        row, column = np.nonzero(grid == value)
        places[value] = np.stack(
            [
                info.origin.position.x + info.resolution * (column + 0.5),
                info.origin.position.y + info.resolution * (row + 0.5),
            ],
            axis=1,
        )
    assert_costmap(places[100], places[0], places[-1])


def test_occupancy_and_points_decode_to_the_same_grid(planted_domain):
    got = receive(planted_domain)
    occupancy, planted = decode(got["occupancy"]), planted_occupancy()
    assert np.array_equal(occupancy.semantics, planted.semantics)
    assert np.array_equal(occupancy.instances, planted.instances)
    cloud = got["occupancy_points"]
    assert got["occupancy"].header == cloud.header and stamp_ns(cloud.header.stamp) == STAMP
    names, types = [f.name for f in cloud.fields], {7: "<f4", 2: "u1", 3: "<i2"}
    layout = {
        "names": names,
        "formats": [types[f.datatype] for f in cloud.fields],
        "offsets": [f.offset for f in cloud.fields],
        "itemsize": cloud.point_step,
    }
    points = np.frombuffer(bytes(cloud.data), np.dtype(layout))
    semantics = np.full(occupancy.grid.shape, OCC3D_CLASSES.index("free"), np.uint8)
    instances = np.zeros(occupancy.grid.shape, np.int16)
    xyz = np.stack([points[axis] for axis in "xyz"], axis=1)
    voxels = tuple(np.floor((xyz - occupancy.grid.origin) / occupancy.grid.resolution).astype(int).T)
    semantics[voxels], instances[voxels] = points["label"], points["instance"]
    assert np.array_equal(semantics, occupancy.semantics) and np.array_equal(instances, occupancy.instances)


def test_an_independent_subscriber_reads_the_same_from_the_comments(planted_domain):
    """Cyclone DDS and decoders of its own: occupancy_client.py shares nothing with this package."""
    python = ROOT / ".venv-client" / "bin" / "python"
    assert python.exists(), "the client's venv is missing: run `make test`, or `make .venv-client/.installed`"
    report = run_script(python, "occupancy_client.py", [str(planted_domain)], 60)
    assert "error" not in report, report
    assert {(report[name]["stamp"], report[name]["frame_id"]) for name in OCCUPANCY_TOPICS} == {(STAMP, "base_link")}

    planted = planted_occupancy()
    i, j, k = np.nonzero(planted.occupied)
    middles = np.array(planted.grid.origin) + planted.grid.resolution * (np.stack([i, j, k], axis=1) + 0.5)
    labels = [OCC3D_CLASSES[label] for label in planted.semantics[i, j, k]]
    expected = {
        (*np.round(middle, 3).tolist(), label, int(instance))
        for middle, label, instance in zip(middles, labels, planted.instances[i, j, k], strict=True)
    }
    for name in ("occupancy", "occupancy_points"):
        assert {(*(round(v, 3) for v in xyz), c, n) for *xyz, c, n in report[name]["voxels"]} == expected, name
    found = {(*(round(v, 3) for v in xyz), c, n) for *xyz, c, n in report["obstacles"]["voxels"]}
    low, high = CostmapSettings().min_height, CostmapSettings().max_height
    assert found == {v for v in expected if v[3] != "driveable_surface" and low - 0.2 < v[2] < high + 0.2}
    assert_costmap(*(np.array(report["costmap"][name]) for name in ("obstacles", "free", "unknown")))


# ------------------------------------------------------------------ the node


@pytest.fixture(scope="module")
def untrained_occupancy(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sparseocc_tiny.safetensors"
    write_initial_weights("sparseocc_tiny", path, seed=0)
    return path


@pytest.mark.parametrize("name", ["sparseocc_tiny", "bevdetocc_tiny"])
def test_the_node_gives_the_occupancy_that_the_offline_run_gives(tmp_path, name):
    """The same bag, set by set; the player waits for ~/occupancy."""
    weights = tmp_path / "weights.safetensors"
    write_initial_weights(name, weights, seed=0)
    bag = tmp_path / "bag"
    write_bag(synthetic_drive(0.25, seed=5, image_size=(200, 112)), bag, progress=False)
    domain = new_domain()
    parameters = {"variant": name, "checkpoint": weights}
    parameters |= {"device": "cpu", "image_transport": "compressed"}
    node = NodeProcess("perception_node", domain, tmp_path / "node.log", parameters)
    listener = Listener(domain, answers="occupancy")
    try:
        node.wait_log(f"{name} is ready")
        lockstep = {
            "lockstep": True,
            "lockstep_topic": f"{NODE}/occupancy",
            "lockstep_type": "bev_perception/msg/SemanticOccupancy",
        }
        player = NodeProcess("bag_player", domain, tmp_path / "player.log", {"bag": bag} | lockstep)
        assert player.process.wait(120) == 0, player.text()
        assert "no message on" not in player.text()
        wait_until(lambda: len(listener.occupancies) == 3, 20, "the last occupancy")
        assert listener.node.count_publishers(f"{NODE}/costmap")
        assert not listener.node.count_publishers(f"{NODE}/detections")
    finally:
        node.kill()
        listener.close()

    pipeline = load_pipeline(name, weights, "cpu")
    offline = list(run_events(BagReader(bag).events(), pipeline, SynchronizerSettings(CAMERAS)))
    pipeline.close()
    assert [stamp_ns(m.header.stamp) for m in listener.occupancies] == [r.stamp for r in offline]
    for message, result in zip(listener.occupancies, offline, strict=True):
        assert message.header.frame_id == "base_link"
        live = decode(message)
        assert live.grid == result.occupancy.grid and live.class_names == load_variant(name).class_names
        assert np.array_equal(live.semantics, result.occupancy.semantics)


def test_detection_and_occupancy_beside_each_other(start, untrained_occupancy):
    """All outputs of one node; then its costmap, with other settings while it runs."""
    node, peer = start(
        occupancy_variant="sparseocc_tiny",
        occupancy_checkpoint=untrained_occupancy,
        wait="sparsebev_tiny + sparseocc_tiny is ready",
    )
    assert "encoded twice" not in node.text()  # the weights of both begin with the same draws
    got = {topic: [] for topic in OCCUPANCY_TOPICS}
    for topic, kind in OCCUPANCY_TOPICS.items():
        peer.node.create_subscription(kind, f"{NODE}/{topic}", got[topic].append, 50)

    def complete():
        peer.wait_detection(peer.send_set())
        return all(got.values())

    wait_until(complete, 60, "all of them")
    for messages in got.values():
        stamps = {stamp_ns(message.header.stamp) for message in messages}
        wait_until(lambda stamps=stamps: stamps <= set(peer.stamps()), 20, "boxes at the same stamps")
    assert (got["costmap"][-1].info.width, got["costmap"][-1].info.height) == (200, 200)
    assert decode(got["occupancy"][-1]).semantics.shape == (200, 200, 16)
    assert "dropped: model error" not in peer.values()
    assert peer.values()["variant"] == "sparsebev_tiny + sparseocc_tiny"

    def obstacles():
        """How many the costmap of a set has that is sent now."""
        got["costmap"].clear()
        peer.wait_detection(peer.send_set())
        wait_until(lambda: got["costmap"], 20, "a costmap")
        return got["costmap"][-1].data.count(100)

    few = obstacles()
    assert peer.set_parameter("costmap_max_height", 5.0).successful
    wait_until(lambda: obstacles() > few, 30, "more obstacles")
    for name, value, reason in (
        ("costmap_min_height", 5.0, "must be the lower one"),
        ("costmap_free_classes", ["grass"], "'grass'"),
        ("costmap_free_classes", 3, "STRING_ARRAY"),
        ("costmap_max_height", float("nan"), "costmap_max_height"),
    ):
        refused = peer.set_parameter(name, value)
        assert not refused.successful and reason in refused.reason
    assert peer.set_parameter("costmap_free_classes", list(OCC3D_CLASSES[:-1])).successful
    wait_until(lambda: obstacles() == 0, 30, "no obstacles")
    assert node.interrupt() == 0 and "Traceback" not in node.text()


def test_variants_that_do_not_fit_are_named(start, untrained, untrained_occupancy):
    node, peer = start(wait=None, occupancy_variant="r50_nuimg_704x256_8f")
    node.wait_log("no weights are shipped for r50_nuimg_704x256_8f;")
    occupancy = {"occupancy_variant": "sparseocc_tiny", "occupancy_checkpoint": str(untrained_occupancy)}
    for changes, text in (
        ({"occupancy_variant": "", "occupancy_checkpoint": "/weights"}, "name its variant in 'occupancy_variant'"),
        ({"variant": "", "checkpoint": "", "occupancy_checkpoint": ""}, "no variant is set"),
        (
            {"variant": "sparseocc_tiny", "checkpoint": str(untrained_occupancy)} | occupancy,
            "sparseocc_tiny and sparseocc_tiny both give occupancy",
        ),
        (
            {"variant": "sparsebev_tiny", "checkpoint": str(untrained), "costmap_free_classes": ["grass"]},
            "costmap_free_classes holds 'grass'",
        ),
    ):
        for name, value in changes.items():
            assert peer.set_parameter(name, value).successful
        assert not peer.transition("configure")
        peer.wait_diagnostics(lambda v, text=text: text in v.get("message", ""))
    assert node.interrupt() == 0 and "Traceback" not in node.text()
