"""What a lifecycle node must be able to do while it loads a model, and when it is asked for the impossible: answer.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode

#: s between two looks for requests while a transition works
ANSWER_PERIOD = 0.02
#: states in which a node may be asked for a transition; in all others one is under way
_PRIMARY = (
    State.PRIMARY_STATE_UNCONFIGURED,
    State.PRIMARY_STATE_INACTIVE,
    State.PRIMARY_STATE_ACTIVE,
    State.PRIMARY_STATE_FINALIZED,
)

Value = TypeVar("Value")


def answer_while(node: LifecycleNode, work: Callable[[], Value], survive: Callable[[Exception], None]) -> Value:
    """Return what `work` returns, or raise what it raises; meanwhile answer the requests to all services of the node.

    A lifecycle manager asks for the state while a model is loaded, and takes a node that does not answer for dead. The
    work is done in a thread, the requests are answered in the calling one, which is the executor's: so callbacks are
    still called one after the other.

    survive: is given the errors of services.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="transition")
    try:
        future = pool.submit(work)
        while not wait([future], ANSWER_PERIOD).done:
            for service in list(node.services):
                try:
                    _answer(service)
                except Exception as error:  # as in the executor's loop, it must not end the node
                    survive(error)
        return future.result()
    finally:
        pool.shutdown(wait=False)  # SIGINT does not wait for the work


def _answer(service: Any) -> None:
    with service.handle:
        request, header = service.handle.service_take_request(service.srv_type.Request)
    if header is not None:
        service.send_response(service.callback(request, service.srv_type.Response()), header)


def impossible(node: LifecycleNode, request: ChangeState.Request) -> str:
    """Return why the node cannot do the transition that is asked for, and which ones it can; empty if it can."""
    number, state = node._state_machine.current_state
    wanted = request.transition.label or str(request.transition.id)
    if number not in _PRIMARY:
        return f"{wanted} is asked for, but the node is {state}; ask again when that has ended"
    there = {row[1]: row[0] for row in node._state_machine.available_transitions}
    label = request.transition.label
    if label in there if label else request.transition.id in there.values():
        return ""
    possible = ", ".join(f"{name} ({number})" for name, number in sorted(there.items())) or "none"
    return f"there is no transition {wanted} in the state {state}; possible: {possible}"
