"""Tools for tests against the real node over DDS."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys

import cv2
import numpy as np
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from bev_perception.data.drive import CAMERAS, Drive, DriveImage
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.tools.process import HIGHEST_DOMAIN, NodeProcess, wait_until

ensure_interfaces()
from bev_perception.ros.tools.peer import MS, NODE, SECOND, RigPeer  # noqa: E402

__all__ = [
    "CAMERAS",
    "MS",
    "NODE",
    "PARAMETERS",
    "SECOND",
    "NodeProcess",
    "Peer",
    "first_jpegs",
    "load",
    "new_domain",
    "wait_until",
]

# of a node that answers fast and always finds something
PARAMETERS = {
    "variant": "sparsebev_tiny",
    "device": "cpu",
    "score_threshold": 0.0,
    "nms": "none",
    "max_detections": 7,
    "image_transport": "compressed",
    "diagnostics_period": 0.1,
}


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_domains = itertools.count(WORKER, WORKERS)


def new_domain() -> int:
    """Return a DDS domain that none of the test processes uses at this time."""
    return 1 + next(_domains) % (HIGHEST_DOMAIN // WORKERS * WORKERS)


def first_jpegs(drive: Drive) -> dict[str, bytes]:
    jpegs: dict[str, bytes] = {}
    for event in drive:
        if isinstance(event, DriveImage):
            jpegs.setdefault(event.camera, event.jpeg)
    return jpegs


class Peer(RigPeer):
    """A rig that can also call the node's services."""

    def __init__(self, domain: int, drive: Drive, cameras=CAMERAS, raw: bool = False):
        rigs = [rig for rig in drive.cameras if rig.name in cameras]
        images = first_jpegs(drive)
        if raw:
            images = {c: cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for c, jpeg in images.items()}
        super().__init__(domain, rigs, images)

    def call(self, kind, name: str, request, timeout: float = 60.0):
        client = self.node.create_client(kind, f"{NODE}/{name}")
        assert client.wait_for_service(timeout), f"no service {name}"
        future = client.call_async(request)
        wait_until(future.done, timeout, f"an answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def transition(self, name: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = name
        request.transition.id = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4, "shutdown": 5}[name]
        return self.call(ChangeState, "change_state", request).success

    def state(self) -> str:
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def set_parameter(self, name: str, value):
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def reset(self):
        return self.call(Trigger, "reset", Trigger.Request())


@contextlib.contextmanager
def load(loops=2):
    """Keep processors busy, as much beside each other as here."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
