"""Runs the perception node until a signal ends it.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from bev_perception.ros.endings import end_by, raise_exit
from bev_perception.ros.node import PerceptionNode

#: s between two checks whether to stop
SPIN_TIMEOUT = 0.1
#: s that the frame in progress has to be done when the process is to end
PATIENCE = 0.3
#: s to wait after an error in the executor's loop, so that a lasting error does not take a whole CPU core
ERROR_PAUSE = 0.01


def run_node(args: list[str] | None = None) -> int:
    """Run the perception node until SIGINT or SIGTERM; return the exit status.

    The model may still be at work then, in a thread under which Python must not be taken down; see endings.leave.

    args: command line with ROS arguments; None takes sys.argv.
    """
    end_by(raise_exit)
    # rclpy's own signal handlers would shut the context down before the node can stop its worker
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        with suppress(SystemExit):  # of a signal before spin() listens, as while the model is loaded
            node = PerceptionNode()
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            if node.get_parameter("autostart").value:
                node.autostart()
            spin(executor, node)
    finally:
        end_by(lambda *_: None)  # a second signal hurries nothing; end_in_time has begun with the first one
        if node is not None:
            node.close(PATIENCE)
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def spin(executor: SingleThreadedExecutor, node: PerceptionNode) -> None:
    """Run callbacks until SIGINT or SIGTERM, or until the ROS context is shut down from outside.

    executor: has the node added.
    node: counts and logs the errors of callbacks.
    """
    stopping = threading.Event()
    end_by(lambda *_: stopping.set())
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
