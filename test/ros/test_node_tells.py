"""The node in this process: what it tells about cameras, QoS and its double, and what it withdraws."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from kit import new_domain, wait_until
from nav_msgs.msg import OccupancyGrid
from planted import planted_frame, planted_result
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.families.variants import load_variant
from bev_perception.ros import lookout
from bev_perception.ros import node as ros_node
from bev_perception.ros.messages import header
from bev_perception.ros.tools.peer import stamped_transform

pytestmark = pytest.mark.timeout(60)
CAMERAS = [rig.name for rig in synthetic_rig()]
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Planted:
    """A pipeline without a model, which never gives a result."""

    variants = tuple(SimpleNamespace(config=load_variant(name)) for name in ("sparsebev_tiny", "sparseocc_tiny"))
    encoders = (("planted",),)
    name, device, trained, memory_frames, memory_bytes = "planted", "cpu", True, 0, 0

    def warm_up(self, cameras):
        pass

    def close(self):
        pass

    def reset(self, cause):
        pass


class Bench:
    """The node and a peer in one process, both spun by hand."""

    def __init__(self, monkeypatch, _cli=(), **parameters):
        monkeypatch.setattr(ros_node, "load_pipeline", lambda *args, **kwargs: Planted())
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=new_domain())
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = ros_node.PerceptionNode(context=self.context, parameter_overrides=overrides, cli_args=list(_cli))
        self.peer = rclpy.create_node("peer", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.peer)
        self.sent = []
        self.node._diagnostics.publish = self.sent.append

    def close(self):
        self.node.close()
        self.node.destroy_node()
        self.peer.destroy_node()
        rclpy.shutdown(context=self.context)

    def until(self, condition, what="it"):
        def holds():
            self.executor.spin_once(timeout_sec=0.02)
            return condition()

        wait_until(holds, 20, what)

    def statuses(self):
        self.node._report()
        return {status.name.split(": ", 1)[1]: status for status in self.sent[-1].status}


@pytest.fixture
def bench(monkeypatch):
    opened = []

    def begin(activate=True, **parameters):
        opened.append(Bench(monkeypatch, **parameters))
        opened[-1].node.trigger_configure()
        if activate:
            opened[-1].node.trigger_activate()
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def test_each_camera_has_a_status(bench):
    bench = bench(image_transport="compressed")
    names = ["perception", *(f"camera {camera}" for camera in CAMERAS)]
    assert list(bench.statuses()) == names
    publisher = bench.peer.create_publisher(CompressedImage, f"/bev_perception/input/{CAMERAS[0]}/image/compressed", 5)

    def refused():
        publisher.publish(CompressedImage(header=header(7 * 10**9, CAMERAS[0]), format="theora", data=b"xyz"))
        return bench.statuses()[f"camera {CAMERAS[0]}"].message.startswith("refused")

    bench.until(refused)
    statuses = bench.statuses()
    values = {value.key: value.value for value in statuses[f"camera {CAMERAS[0]}"].values}
    assert values["state"] == "refused" and "theora" in values["reason"]
    assert statuses[f"camera {CAMERAS[1]}"].message == "silent: no image has come"
    assert statuses[f"camera {CAMERAS[1]}"].level == b"\1"
    bench.node.trigger_deactivate()
    status = bench.statuses()[f"camera {CAMERAS[1]}"]
    assert status.level == b"\0" and status.message.startswith("inactive")


def test_what_is_there_in_place_of_the_images_is_said(bench, monkeypatch):
    monkeypatch.setattr(ros_node, "PATIENCE", 0.1)
    bench = bench(cameras=["cam_front"])
    bench.peer.create_publisher(CompressedImage, "/bev_perception/input/cam_front/image/compressed", 5)
    bench.until(lambda: "image_transport:=compressed" in bench.statuses()["camera cam_front"].message)
    assert bench.node._health.snapshot().notices["no images"] >= 1
    bench.node._health._finished.clear()
    bench.node._health._started -= 60
    assert "image_transport:=compressed" in bench.statuses()["perception"].message


def test_rectified_images_with_the_raw_cameras_info_are_told_by_their_topic(monkeypatch):
    """As offline, but by the name that the topic is remapped to."""
    bench = Bench(
        monkeypatch,
        _cli=["--ros-args", "-r", "~/input/cam_front/image:=/sensing/image_rect_color"],
        cameras=["cam_front"],
        rectified=[""],
    )
    raw = CameraInfo(header=header(1, "cam_front"), width=800, height=450, distortion_model="plumb_bob")
    raw.d, raw.k = [-0.3, 0.1, 0.0, 0.0, 0.0], [500.0, 0.0, 400.0, 0.0, 500.0, 225.0, 0.0, 0.0, 1.0]
    raw.p = [400.0, 0.0, 400.0, 0.0, 0.0, 400.0, 225.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    try:
        bench.node.trigger_configure()
        bench.node._on_camera_info("cam_front", raw)
        (line,) = [line for line in bench.node._health.drain_news() if line.startswith("rectified images")]
        assert "/sensing/image_rect_color is rectified by its name" in line and "(--rectified)" in line
        bench.node.trigger_cleanup()
        bench.node.set_parameters([Parameter("rectified", value=["*"])])
        bench.node.trigger_configure()
        bench.node._on_camera_info("cam_front", raw)
        taken = bench.node._synchronizer._calibrations["cam_front"]
        assert taken.intrinsics[0, 0] == 400.0 and taken.distortion == () and taken.rectified
    finally:
        bench.close()


def test_a_qos_that_does_not_fit_is_said(bench, monkeypatch):
    monkeypatch.setattr(ros_node, "PATIENCE", 0.1)
    topic = "/bev_perception/input/cam_front/image"
    override = f"qos_overrides.{topic}.subscription.durability"
    bench = bench(cameras=["cam_front"], **{override: "transient_local"})
    bench.peer.create_publisher(Image, topic, 5)
    bench.until(lambda: "the QoS of peer does not fit" in bench.statuses()["camera cam_front"].message)
    info = bench.peer.get_subscriptions_info_by_topic(topic)
    assert [i.qos_profile.durability.name for i in info] == ["TRANSIENT_LOCAL"]


def test_tf_static_stays_latched(bench):
    bench = bench(activate=False, **{"qos_overrides./tf_static.subscription.durability": "volatile"})
    assert "its durability must stay transient_local" in bench.statuses()["perception"].message


@pytest.mark.parametrize("qos", [LATCHED, QoSProfile(depth=5)], ids=["latched", "volatile"])
def test_camera_info_and_static_tf_arrive_latched_or_not(bench, qos):
    """Latched ones also if they were sent before the node was there."""
    bench = bench(activate=False, cameras=["cam_front"])
    bench.node.trigger_cleanup()
    info = bench.peer.create_publisher(CameraInfo, "/bev_perception/input/cam_front/camera_info", qos)
    static = bench.peer.create_publisher(TFMessage, "/tf_static", qos)
    message = CameraInfo(width=4, height=4, k=[1.0, 0, 2, 0, 1, 2, 0, 0, 1])

    def send():
        info.publish(message)
        static.publish(TFMessage(transforms=[stamped_transform("base_link", "cam_front", 0, np.eye(4))]))

    send()
    bench.node.trigger_configure()

    def arrived():
        if qos is not LATCHED:
            send()
        known = bench.node._synchronizer._calibrations.get("cam_front") is not None
        return known and bench.node._transforms._is_static("cam_front")

    bench.until(arrived)


def test_a_double_is_noticed(bench, monkeypatch):
    monkeypatch.setattr(ros_node, "PATIENCE", 0.0)
    bench = bench()
    other = rclpy.create_node("bev_perception", context=bench.context)
    bench.until(lambda: lookout.doubles(bench.node) == 1)
    bench.statuses()
    assert bench.node._health.snapshot().notices["two nodes of one name"] >= 1
    other.destroy_node()


def test_an_impossible_transition_is_answered(bench):
    from lifecycle_msgs.srv import ChangeState

    bench, log = bench(), []
    bench.node.get_logger = lambda: SimpleNamespace(warning=log.append)  # that of the reports
    client = bench.peer.create_client(ChangeState, "/bev_perception/change_state")
    bench.until(client.service_is_ready)
    for number, label in ((1, ""), (99, ""), (0, "fly")):
        request = ChangeState.Request()
        request.transition.id, request.transition.label = number, label
        future = client.call_async(request)
        bench.until(future.done, f"an answer to {number} {label}")
        assert not future.result().success
    assert bench.node._lifecycle == "active"
    told = " ".join([*log, *bench.node._health.drain_news()])
    assert " in the state active; possible: deactivate (4), shutdown (7)" in told


def test_services_answer_while_the_model_loads(bench, monkeypatch):
    from lifecycle_msgs.srv import ChangeState, GetState
    from rcl_interfaces.srv import SetParameters
    from std_srvs.srv import Trigger

    bench = bench(activate=False)
    bench.node.trigger_cleanup()
    loaded, asked = threading.Event(), []

    def load(*args, **kwargs):
        assert loaded.wait(20)
        return Planted()

    monkeypatch.setattr(ros_node, "load_pipeline", load)
    kinds = {
        "change_state": ChangeState,
        "get_state": GetState,
        "set_parameters": SetParameters,
        "reset": Trigger,
    }
    clients = {name: bench.peer.create_client(kind, f"/bev_perception/{name}") for name, kind in kinds.items()}
    bench.until(lambda: all(client.service_is_ready() for client in clients.values()))
    bench.executor.remove_node(bench.peer)  # a manager in a process of its own
    peer = SingleThreadedExecutor(context=bench.context)
    peer.add_node(bench.peer)

    def ask(name, request):
        future = clients[name].call_async(request)
        peer.spin_until_future_complete(future, timeout_sec=10)
        return future.result()

    def manage():
        configure = ChangeState.Request()
        configure.transition.label = "configure"
        first = clients["change_state"].call_async(configure)
        for _ in range(1000):
            asked.append(ask("get_state", GetState.Request()).current_state.label)
            if asked[-1] == "configuring":
                break
        asked.append(ask("change_state", configure).success)
        changes = [Parameter("device", value="cpu"), Parameter("score_threshold", value=0.5)]
        messages = [change.to_parameter_msg() for change in changes]
        results = ask("set_parameters", SetParameters.Request(parameters=messages)).results
        asked.extend(result.successful for result in results)
        asked.append(ask("reset", Trigger.Request()).message)
        asked.append(first.done())
        loaded.set()
        peer.spin_until_future_complete(first, timeout_sec=10)
        asked.append(first.result().success)

    manager = threading.Thread(target=manage)
    manager.start()
    bench.until(lambda: not manager.is_alive())
    peer.shutdown()
    assert asked[0] in ("unconfigured", "configuring")
    expected = [
        "configuring",
        False,
        False,
        True,
        "the node is not configured; there is no memory to wipe",
        False,
        True,
    ]
    assert asked[-len(expected) :] == expected
    assert bench.node._pipeline.settings.score_threshold == 0.5 and bench.node._lifecycle == "inactive"


def test_cameras_of_one_topic_are_refused(bench):
    rules = ["--ros-args", "-r", "~/input/a/image:=/shared", "-r", "~/input/b/image:=/shared"]
    node = bench(activate=False, cameras=["a", "b"], _cli=rules).node
    assert "a and b both get the images of /shared" in node._failure
    assert bench(activate=False, cameras=["a", "b"], image_transport="compressed", _cli=rules).node._failure == ""


def test_cameras_that_are_no_names_are_refused(bench):
    for cameras, reason in (
        (["cam-front"], "'cam-front' cannot be part of a topic"),
        ([""], "'' cannot be part of a topic"),
        (["1"], "'1' cannot be part of a topic"),
        (["a", "a"], "each once"),
    ):
        node = bench(activate=False, cameras=cameras).node
        assert reason in node._failure and node._lifecycle == "unconfigured"


def received(bench):
    got = {"markers": [], "costmap": [], "obstacles": [], "occupancy_points": []}
    kinds = {"markers": MarkerArray, "costmap": OccupancyGrid, "obstacles": PointCloud2}
    for name, messages in got.items():
        bench.peer.create_subscription(kinds.get(name, PointCloud2), f"/bev_perception/{name}", messages.append, 5)
    bench.until(lambda: all(bench.node.count_subscribers(f"/bev_perception/{name}") for name in got))
    return got


def publish(bench):
    boxes = planted_boxes()
    result = planted_result()
    bench.node._publish(SimpleNamespace(**{**vars(result), "boxes": boxes}), planted_frame())


def planted_boxes():
    from bev_perception.types import Boxes3D

    return Boxes3D(
        np.array([[5.0, 1, 1]]), np.array([[4.0, 2, 1]]), np.array([0.0]), np.array([[0.0, 0]]), np.array([0.9]),
        np.array([0]), Planted.variants[0].config.class_names,
    )  # fmt: skip


WITHDRAWALS = {
    "time": lambda bench: None,
    "deactivate": lambda bench: bench.node.trigger_deactivate(),
    "reset": lambda bench: bench.node._on_reset(None, SimpleNamespace()),
    "shutdown": lambda bench: bench.node.trigger_shutdown(),
    "end": lambda bench: bench.node.close(),
}


@pytest.mark.parametrize("cause", WITHDRAWALS)
def test_results_are_withdrawn(bench, cause):
    bench = bench(output_lifetime=1.0 if cause == "time" else 60.0)
    got = received(bench)

    def complete():
        publish(bench)
        return all(got.values())

    bench.until(complete)
    assert len(got["markers"][-1].markers) > 1 and got["obstacles"][-1].width and got["occupancy_points"][-1].width
    assert {marker.lifetime.sec for marker in got["markers"][-1].markers[1:]} == {1 if cause == "time" else 60}
    assert 100 in got["costmap"][-1].data and 0 in got["costmap"][-1].data
    begin = time.monotonic()
    WITHDRAWALS[cause](bench)
    bench.until(
        lambda: got["markers"][-1].markers[0].action == Marker.DELETEALL and len(got["markers"][-1].markers) == 1
    )
    bench.until(lambda: set(got["costmap"][-1].data) == {-1})
    bench.until(lambda: not got["obstacles"][-1].width and not got["occupancy_points"][-1].width)
    assert cause != "time" or 0.5 < time.monotonic() - begin < 10


def test_obstacles_are_what_the_costmap_calls_so(bench):
    bench = bench()
    got = received(bench)

    def complete():
        publish(bench)
        return got["obstacles"]

    bench.until(complete)
    cloud = got["obstacles"][-1]
    points = np.frombuffer(bytes(cloud.data), np.uint8).reshape(-1, cloud.point_step)
    xyz = np.ascontiguousarray(points[:, :12]).view("<f4")
    labels = {OCC3D_CLASSES[label] for label in points[:, 16]}
    assert labels == {"car", "traffic_cone", "manmade"} and cloud.header.frame_id == "base_link"
    assert xyz[:, 2].min() > 0.2 and xyz[:, 2].max() < 2.2  # the wall is higher
    ahead_left = (xyz[:, 0] > 10) & (xyz[:, 0] < 14) & (xyz[:, 1] > 4) & (xyz[:, 1] < 6)
    assert ahead_left.sum() == 10 * 5 * 4


def test_numbers_may_be_written_without_a_point_and_unknown_names_are_told(bench, capfd):
    bench = bench(camera_timeout=1, score_treshold=0.5)
    assert bench.node.get_parameter("camera_timeout").value == 1.0
    assert not bench.node._parameter_errors
    assert "there is no parameter score_treshold; did you mean score_threshold?" in capfd.readouterr().err
    result = bench.node.set_parameters_atomically([Parameter("score_threshold", value=1)])
    assert result.successful and bench.node.get_parameter("score_threshold").value == 1.0
