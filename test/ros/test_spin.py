"""The loop that runs the node's callbacks: it ends when it should, and errors do not make it race."""

import signal
import time

import kit  # noqa: F401 - makes the messages importable
import pytest
import rclpy
from rclpy.executors import ExternalShutdownException

from bev_perception.ros.spin import spin

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of signals as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def context():
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=99)
    yield context
    rclpy.try_shutdown(context=context)


class Node:
    """What the loop needs of a node."""

    def __init__(self, context):
        self.context, self.survived, self.lines = context, [], []

    def survive(self, error):
        self.survived.append(error)

    def get_logger(self):
        return self

    def info(self, text):
        self.lines.append(text)


class Executor:
    """Its spin_once does what the test says."""

    def __init__(self, spin_once):
        self._spin_once = spin_once

    def spin_once(self, timeout_sec):
        self._spin_once()


def test_an_error_at_every_spin_does_not_spin_hot(context):
    node, begin = Node(context), time.monotonic()

    def broken():
        if time.monotonic() - begin > 0.5:
            signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("no wait set")

    spin(Executor(broken), node)
    assert 5 < len(node.survived) < 100


@pytest.mark.parametrize("symptom", [ExternalShutdownException, RuntimeError, None])
def test_a_context_that_is_gone_ends_the_loop_with_one_line(context, symptom):
    node = Node(context)

    def shut_down():
        rclpy.shutdown(context=context)
        if symptom is not None:
            raise symptom

    spin(Executor(shut_down), node)
    assert not node.survived
    assert len(node.lines) == 1 and "ROS context" in node.lines[0]


def test_sigint_ends_the_loop_without_a_word(context):
    node = Node(context)
    spin(Executor(lambda: signal.raise_signal(signal.SIGINT)), node)
    assert not node.survived and not node.lines
