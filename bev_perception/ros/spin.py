"""Runs the perception node until a signal ends it.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import signal
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from bev_perception.ros.node import PerceptionNode

#: s between two checks whether to stop
SPIN_TIMEOUT = 0.2
#: s to wait after an error in the executor's loop, so that a lasting error does not take a whole CPU core
ERROR_PAUSE = 0.01


def run_node(args: list[str] | None = None) -> int:
    """Run the perception node until SIGINT or SIGTERM; return the exit status.

    args: command line with ROS arguments; None takes sys.argv.
    """
    # rclpy's own signal handlers would shut the context down before the node can stop its worker
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = PerceptionNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.get_parameter("autostart").value:
            node.autostart()
        spin(executor, node)
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def spin(executor: SingleThreadedExecutor, node: PerceptionNode) -> None:
    """Run callbacks until SIGINT or SIGTERM, or until the ROS context is shut down from outside.

    executor: has the node added.
    node: counts and logs the errors of callbacks.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.is_set():
        if not node.context.ok():
            node.get_logger().info("the ROS context was shut down from outside; the node ends")
            return
        try:
            executor.spin_once(timeout_sec=SPIN_TIMEOUT)
        except Exception as error:  # an unexpected error in one callback must not end the node
            if node.context.ok():
                node.survive(error)
                time.sleep(ERROR_PAUSE)
