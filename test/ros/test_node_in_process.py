"""The node in this process, on a planted pipeline: transitions that fail, and what never ends."""

import threading

import pytest
import rclpy
from kit import new_domain, wait_until
from rclpy.parameter import Parameter
from tf2_msgs.msg import TFMessage

from bev_perception.families.variants import load_variant
from bev_perception.ros import node as ros_node

pytestmark = pytest.mark.timeout(60)


class Variant:
    config = load_variant("sparsebev_tiny")


class Planted:
    """A pipeline without a model, which may fail to close."""

    variants = (Variant,)
    encoders = (("planted",),)
    name, device, trained, memory_frames, memory_bytes = "planted", "cpu", True, 0, 0

    def __init__(self, closing=None):
        self._closing = closing
        self.released = threading.Event()

    def step(self, frame):
        """Work until `released`, then fail."""
        self.released.wait(20)
        raise RuntimeError("released")

    def warm_up(self, cameras):
        pass

    def close(self):
        if self._closing is not None:
            raise self._closing


@pytest.fixture
def pipelines(monkeypatch):
    """What configuring loads, from the end on."""
    planted = [Planted()]
    monkeypatch.setattr(ros_node, "load_pipeline", lambda *args, **kwargs: planted.pop())
    return planted


@pytest.fixture
def node(pipelines):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=new_domain())
    node = ros_node.PerceptionNode(context=context)
    yield node
    node.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def state(node):
    return node._state_machine.current_state[1]


def diagnostics(node, monkeypatch):
    """Return the level and the message that the node publishes."""
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(node._diagnostics, "publish", sent.append)
        node._report()
    return sent[0].status[0].level[0], sent[0].status[0].message


def spoil_activation(node, monkeypatch):
    def no_worker(*args):
        raise RuntimeError("no more threads")

    monkeypatch.setattr(ros_node, "Worker", no_worker)
    node.trigger_activate()


def test_a_failure_ends_with_the_next_transition_that_succeeds(node, pipelines, monkeypatch):
    pipelines.insert(0, Planted())
    node.trigger_configure()
    with monkeypatch.context() as patch:
        spoil_activation(node, patch)
    assert diagnostics(node, monkeypatch) == (2, "cannot activate: no more threads")
    node.trigger_cleanup()
    assert state(node) == "unconfigured" and diagnostics(node, monkeypatch) == (0, "unconfigured")
    node.trigger_configure()
    with monkeypatch.context() as patch:
        spoil_activation(node, patch)
    node.trigger_shutdown()
    assert state(node) == "finalized" and diagnostics(node, monkeypatch) == (0, "finalized")


def test_a_cleanup_that_fails_is_named_and_frees_all_the_same(node, pipelines, monkeypatch):
    pipelines[:] = [Planted(), Planted(closing=RuntimeError("a thread hangs"))]
    node.trigger_configure()
    node.trigger_cleanup()
    assert state(node) == "unconfigured"
    assert diagnostics(node, monkeypatch) == (2, "cannot clean up: a thread hangs")
    assert node._pipeline is None and node._outputs is None and not node._tf_subscriptions
    node.trigger_configure()
    assert state(node) == "inactive" and diagnostics(node, monkeypatch) == (0, "inactive")


def test_a_gpu_that_is_lost_leaves_the_node_unconfigured(node, pipelines, monkeypatch):
    """Then even giving back its memory fails, in the error transition too."""

    def lost():
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(ros_node, "give_back_device_memory", lost)
    pipelines.insert(0, Planted())
    node.trigger_configure()
    node.trigger_cleanup()
    assert state(node) == "unconfigured"
    assert diagnostics(node, monkeypatch) == (2, "cannot clean up: CUDA error: unspecified launch failure")
    node.trigger_configure()
    assert state(node) == "inactive" and diagnostics(node, monkeypatch) == (0, "inactive")


def test_a_deactivation_that_fails_is_named(node, monkeypatch):
    node.trigger_configure()
    node.trigger_activate()
    worker = node._worker

    def cannot_stop(*how):
        type(worker).stop(worker, *how)
        raise RuntimeError("no such thread")

    monkeypatch.setattr(worker, "stop", cannot_stop)
    node.trigger_deactivate()
    assert state(node) == "unconfigured"
    assert diagnostics(node, monkeypatch) == (2, "cannot deactivate: no such thread")


def test_a_model_that_does_not_return_is_not_running(node, pipelines, monkeypatch):
    pipeline = pipelines[0]
    node.trigger_configure()
    node.trigger_activate()
    monkeypatch.setattr(ros_node, "STUCK", 0.2)
    node._worker.put("frame")
    assert diagnostics(node, monkeypatch)[0] == 0
    wait_until(lambda: diagnostics(node, monkeypatch)[0] == 1, 5, lambda: str(diagnostics(node, monkeypatch)))
    assert "on one frame for" in diagnostics(node, monkeypatch)[1]
    pipeline.released.set()
    wait_until(lambda: not node._worker.busy, 5, "the worker")
    assert "on one frame" not in diagnostics(node, monkeypatch)[1]


class Endless:
    """A subscription of tf on which there is always one more message."""

    def __init__(self):
        self.handle, self.taken = self, 0

    def take_message(self, kind, raw):
        self.taken += 1
        return TFMessage(), None


def test_tf_without_an_end_leaves_time_for_images(node):
    node.trigger_configure()
    endless = [Endless(), Endless()]
    node._tf_subscriptions = endless
    node._catch_up_with_tf()
    assert all(0 < subscription.taken <= 100 for subscription in endless)


def test_a_tracker_that_there_is_not_is_refused(node, monkeypatch):
    node.set_parameters([Parameter("tracker", value="sort")])
    node.trigger_configure()
    assert state(node) == "unconfigured"
    assert diagnostics(node, monkeypatch)[1] == "cannot configure: tracker is 'sort'; it must be one of none, greedy"
    node.set_parameters([Parameter("tracker", value="none")])
    node.trigger_configure()
    assert state(node) == "inactive"
