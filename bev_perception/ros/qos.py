"""Subscriptions and their QoS, which parameters may override."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QosCallbackResult, QoSOverridingOptions

IMAGE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
TF_QOS = QoSProfile(depth=100)
TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LATCHED_QOS = QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL)

_POLICIES = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


def subscribe(node: Node, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> Any:
    """Subscribe with a QoS that the parameters qos_overrides.<topic>.subscription.* can override.

    Raises rclpy's InvalidQosOverridesError for /tf_static that is not transient local.
    """
    always_latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
    options = QoSOverridingOptions(_POLICIES, callback=_latched(topic) if always_latched else None)
    own = copy.copy(qos)  # rclpy writes the overrides into it
    return node.create_subscription(kind, topic, callback, own, qos_overriding_options=options)


def subscribe_beside(node: Node, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> Any:
    """Subscribe a second time to a topic, for publishers whose QoS does not fit the first subscription.

    A volatile subscription misses what a latched publisher has sent before; a transient local one hears nothing from a
    volatile publisher. Which of them a driver or a bag uses cannot be known.
    """
    quiet = SubscriptionEventCallbacks(use_default_callbacks=False)  # that some publishers do not fit is meant
    return node.create_subscription(kind, topic, callback, qos, event_callbacks=quiet)


def _latched(topic: str) -> Callable[[QoSProfile], QosCallbackResult]:
    def check(qos: QoSProfile) -> QosCallbackResult:
        result = QosCallbackResult()
        result.successful = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        result.reason = (
            f"{topic} is published once and kept for those who come later: its durability must stay transient_local; "
            f"take qos_overrides.{topic}.subscription.durability away"
        )
        return result

    return check
