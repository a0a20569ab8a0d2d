"""Looks at the ROS graph: what is there in place of images that do not come, and whether the node has a double.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

from bev_perception.health import SILENT, Health
from bev_perception.ros.graph_advice import Wanted, advice

#: s without an image of a camera until the graph is looked at, and between two looks
PATIENCE = 5.0


class Lookout:
    """Advice about cameras from which nothing has come since the node was activated.

    advice: camera -> sentence.
    """

    def __init__(self, node: Node, health: Health, subscriptions: Mapping[str, tuple[Any, str, str]]) -> None:
        """Start with no advice.

        health: knows which cameras are silent, and takes the advice as notices.
        subscriptions: camera -> subscription of its images, their type's name, and the topic as remap rules name it.
        """
        self._node = node
        self._health = health
        self._subscriptions = subscriptions
        self.advice: dict[str, str] = {}

    def look(self) -> None:
        """Look once; takes some milliseconds."""
        silent = [c for c in self._subscriptions if self._health.camera_state(c).state == SILENT]
        self.advice = {}
        if not silent:
            return
        published = {name: frozenset(types) for name, types in self._published().items()}
        for camera in silent:
            subscription, type_name, private = self._subscriptions[camera]
            wanted = Wanted(subscription.topic_name, type_name, private, camera)
            self.advice[camera] = advice(wanted, published, self._unfit(subscription))
            self._health.notice("no images", f"{camera}: {self.advice[camera]}", camera)

    def _published(self) -> dict[str, list[str]]:
        """Return topic -> types, of the topics that anybody publishes."""
        known = self._node.get_topic_names_and_types()
        return {name: types for name, types in known if self._node.count_publishers(name)}

    def _unfit(self, subscription: Any) -> str:
        """Return why no publisher of a topic fits its subscription, or an empty text."""
        reasons = []
        for publisher in self._node.get_publishers_info_by_topic(subscription.topic_name):
            fit, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
            if fit != QoSCompatibility.ERROR:
                return ""
            reasons.append(f"the QoS of {publisher.node_name} does not fit: {reason.strip()}")
        remedy = f"; set qos_overrides.{subscription.topic_name}.subscription.* to what it offers"
        return "; ".join(reasons) + remedy if reasons else ""


def doubles(node: Node) -> int:
    """Return how many other nodes have the full name of this one."""
    mine = (node.get_name(), node.get_namespace())
    return max(0, sum(found == mine for found in node.get_node_names_and_namespaces()) - 1)


def notice_doubles(node: Node, health: Health) -> None:
    """Notice other nodes that have the full name of this one."""
    others = doubles(node)
    if others:
        health.notice(
            "two nodes of one name",
            f"{others} more of {node.get_fully_qualified_name()}: parameters and services reach one of them by "
            "chance, and both publish; start one with another name or namespace",
        )
