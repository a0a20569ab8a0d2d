"""A rig of cameras without ROS: publishes sets of images over Cyclone DDS, prints the boxes that come back as JSON.

Run it with the Python of the client's own venv (requirements/client.txt); tests call client_runner.run_client.

    python dds_client.py DOMAIN_ID SPEC.json [--prefix /bev_perception] [--timeout 30]

SPEC.json (stamps in ns, quaternions as x, y, z, w):
    {"cameras": {NAME: {"image": PATH, "format": "jpeg", "stamp": ..., "frame_id": ...,
                        "width": ..., "height": ..., "k": [9 numbers], "distortion_model": "", "d": []}},
     "transforms": [TRANSFORM, ...], "static_transforms": [TRANSFORM, ...]}
    TRANSFORM: {"stamp": ..., "parent": ..., "child": ..., "translation": [3], "rotation": [4]}

Until an answer comes, the set is sent again every second with all stamps a second later, as a rig would go on: the
node may be known here before it knows this client, and what it publishes in between is lost.
"""

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

import cyclone_types as ros

#: stay on this machine and find the others by unicast, as config/fastdds_shm.xml does on the other side
CONFIGURATION = """
<CycloneDDS>
  <Domain Id="any">
    <General>
      <AllowMulticast>false</AllowMulticast>
      <Interfaces>
        <NetworkInterface name="lo" multicast="false"/>
      </Interfaces>
      <MaxMessageSize>65500B</MaxMessageSize>
    </General>
    <Discovery>
      <ParticipantIndex>auto</ParticipantIndex>
      <MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>
      <Peers>
        <Peer address="127.0.0.1"/>
      </Peers>
    </Discovery>
    <Internal>
      <SocketReceiveBufferSize min="default" max="4MB"/>
    </Internal>
  </Domain>
</CycloneDDS>
"""

INTERVAL = 10**9  # ns between two sets, in header time and in fact


def transform_stamped(values: dict, later: int = 0) -> ros.TransformStamped:
    return ros.TransformStamped(
        ros.Header(ros.Time.from_ns(values["stamp"] + later), values["parent"]),
        values["child"],
        ros.Transform(ros.Vector3(*values["translation"]), ros.Quaternion(*values["rotation"])),
    )


def header(camera: dict, later: int) -> ros.Header:
    return ros.Header(ros.Time.from_ns(camera["stamp"] + later), camera["frame_id"])


def camera_info(camera: dict, later: int) -> ros.CameraInfo:
    return ros.CameraInfo(
        header(camera, later),
        camera["height"],
        camera["width"],
        camera.get("distortion_model", ""),
        list(map(float, camera.get("d", []))),
        list(map(float, camera["k"])),
    )


def detection_values(detection: ros.Detection3D) -> dict:
    center, size = detection.bbox.center, detection.bbox.size
    return {
        "stamp": detection.header.stamp.to_ns(),
        "frame_id": detection.header.frame_id,
        "id": detection.id,
        "results": [{"class_id": r.hypothesis.class_id, "score": r.hypothesis.score} for r in detection.results],
        "position": [center.position.x, center.position.y, center.position.z],
        "orientation": [center.orientation.x, center.orientation.y, center.orientation.z, center.orientation.w],
        "size": [size.x, size.y, size.z],
    }


class Client:
    """The rig's topics; all are reliable, as ROS publishers and subscriptions are by default."""

    def __init__(self, domain_id: int, prefix: str, cameras: list[str]):
        from cyclonedds.core import Policy, Qos
        from cyclonedds.domain import DomainParticipant
        from cyclonedds.pub import DataWriter
        from cyclonedds.sub import DataReader
        from cyclonedds.topic import Topic
        from cyclonedds.util import duration

        self._participant = DomainParticipant(domain_id)
        reliable = Policy.Reliability.Reliable(duration(seconds=1))
        volatile = Qos(reliable, Policy.History.KeepLast(10))
        latched = Qos(reliable, Policy.History.KeepLast(10), Policy.Durability.TransientLocal)

        def topic(name: str, kind: type) -> Topic:
            return Topic(self._participant, f"rt{name}", kind)

        def writer(name: str, kind: type, qos: Qos) -> DataWriter:
            return DataWriter(self._participant, topic(name, kind), qos=qos)

        self.tf = writer("/tf", ros.TFMessage, volatile)
        self.tf_static = writer("/tf_static", ros.TFMessage, latched)
        inputs = f"{prefix}/input"
        self.images = {c: writer(f"{inputs}/{c}/image/compressed", ros.CompressedImage, volatile) for c in cameras}
        self.infos = {c: writer(f"{inputs}/{c}/camera_info", ros.CameraInfo, volatile) for c in cameras}
        detections = topic(f"{prefix}/detections", ros.Detection3DArray)
        self.detections = DataReader(self._participant, detections, qos=volatile)

    def wait_for_peer(self, deadline: float) -> None:
        """Wait until somebody listens to every topic and somebody publishes detections."""
        writers = {"/tf": self.tf, "/tf_static": self.tf_static}
        writers |= {f"image of {c}": w for c, w in self.images.items()}
        writers |= {f"camera_info of {c}": w for c, w in self.infos.items()}
        while True:
            waiting = [name for name, w in writers.items() if not w.get_matched_subscriptions()]
            waiting += [] if self.detections.get_matched_publications() else ["detections"]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody is at the other end of: {', '.join(waiting)}")
            time.sleep(0.02)

    def exchange(self, spec: dict, deadline: float) -> dict:
        """Send sets until detections come back; return them and how it went."""
        contents = {c: list(Path(values["image"]).read_bytes()) for c, values in spec["cameras"].items()}
        self.tf_static.write(ros.TFMessage(list(map(transform_stamped, spec["static_transforms"]))))
        start = time.monotonic()
        for sent in itertools.count():
            self._send_set(spec, contents, sent * INTERVAL)
            answer = self._take_detections(min(start + (sent + 1) * INTERVAL / 1e9, deadline))
            if answer is not None:
                return {
                    "sets_sent": sent + 1,
                    "seconds": time.monotonic() - start,
                    "stamp": answer.header.stamp.to_ns(),
                    "frame_id": answer.header.frame_id,
                    "detections": list(map(detection_values, answer.detections)),
                }
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no detections came back for {sent + 1} sets")

    def _send_set(self, spec: dict, contents: dict[str, list[int]], later: int) -> None:
        for values in spec["transforms"]:
            self.tf.write(ros.TFMessage([transform_stamped(values, later)]))
        for name, camera in spec["cameras"].items():
            self.infos[name].write(camera_info(camera, later))
        for name, camera in spec["cameras"].items():
            image = ros.CompressedImage(header(camera, later), camera.get("format", "jpeg"), contents[name])
            self.images[name].write(image)

    def _take_detections(self, until: float) -> ros.Detection3DArray | None:
        while time.monotonic() < until:
            for sample in self.detections.take(10):
                if isinstance(sample, ros.Detection3DArray):  # a peer that leaves sends samples without data
                    return sample
            time.sleep(0.005)
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain_id", type=int)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--prefix", default="/bev_perception", help="the node's name, with its namespace")
    parser.add_argument("--timeout", type=float, default=30.0, help="s until it gives up")
    args = parser.parse_args()
    spec = json.loads(args.spec.read_text())
    os.environ["CYCLONEDDS_URI"] = CONFIGURATION
    deadline = time.monotonic() + args.timeout
    try:
        client = Client(args.domain_id, args.prefix, list(spec["cameras"]))
        client.wait_for_peer(deadline)
        report = client.exchange(spec, deadline)
    except TimeoutError as error:
        report = {"error": str(error)}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
