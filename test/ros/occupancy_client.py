"""A subscriber to occupancy without ROS and without this package: Cyclone DDS, and decoders written from the comments.

Run it with the Python of the client's own venv (requirements/client.txt); tests call client_runner.run_script.

    python occupancy_client.py DOMAIN_ID [--prefix /bev_perception] [--timeout 30]

Prints as JSON, for each of the three topics, "stamp" (ns), "frame_id", and what the message says in metres:
"voxels" of ~/occupancy and ~/occupancy_points, each [x, y, z of its middle, class, instance], and "obstacles", "free"
and "unknown" of ~/costmap, each [x, y of the cell's middle]; or "error".
"""

import argparse
import json
import os
import struct
import sys
import time

import cyclone_types as ros
from dds_client import CONFIGURATION

TOPICS = {"occupancy": ros.SemanticOccupancy, "occupancy_points": ros.PointCloud2, "costmap": ros.OccupancyGrid}
TOPICS["obstacles"] = ros.PointCloud2
#: of sensor_msgs/PointField: datatype -> struct's format
FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}


def voxels(message: ros.SemanticOccupancy) -> list:
    """Decode as the comments of SemanticOccupancy.msg say."""
    size_x, size_y, size_z = message.shape
    labels, instances = [], []
    for r in range(len(message.run_labels)):
        for _ in range(message.run_lengths[r]):
            labels.append(message.run_labels[r])
            instances.append(message.run_instances[r] if message.run_instances else 0)
    if len(labels) != size_x * size_y * size_z:
        raise ValueError(f"{len(labels)} voxels for a shape of {message.shape}")
    found = []
    for k in range(size_z):
        for j in range(size_y):
            for i in range(size_x):
                v = i + size_x * (j + size_y * k)
                if labels[v] == len(message.class_names) - 1:
                    continue
                x = message.origin.x + message.resolution * (i + 0.5)
                y = message.origin.y + message.resolution * (j + 0.5)
                z = message.origin.z + message.resolution * (k + 0.5)
                found.append([x, y, z, message.class_names[labels[v]], instances[v]])
    return found


def points(message: ros.PointCloud2, class_names: list[str]) -> list:
    order = ">" if message.is_bigendian else "<"
    formats = {f.name: (order + FORMATS[f.datatype], f.offset) for f in message.fields}
    data, found = bytes(message.data), []
    for start in range(0, message.width * message.height * message.point_step, message.point_step):
        x, y, z, label, instance = (
            struct.unpack_from(formats[name][0], data, start + formats[name][1])[0]
            for name in ("x", "y", "z", "label", "instance")
        )
        found.append([x, y, z, class_names[label], instance])
    return found


def cells(message: ros.OccupancyGrid, value: int) -> list:
    info, found = message.info, []
    for row in range(info.height):
        for column in range(info.width):
            if message.data[row * info.width + column] == value:
                x = info.origin.position.x + info.resolution * (column + 0.5)
                y = info.origin.position.y + info.resolution * (row + 0.5)
                found.append([x, y])
    return found


def receive(domain_id: int, prefix: str, deadline: float) -> dict:
    """Return a message of each topic."""
    from cyclonedds.core import Policy, Qos
    from cyclonedds.domain import DomainParticipant
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration

    participant = DomainParticipant(domain_id)
    qos = Qos(Policy.Reliability.Reliable(duration(seconds=1)), Policy.History.KeepLast(5))
    readers = {
        name: DataReader(participant, Topic(participant, f"rt{prefix}/{name}", kind), qos=qos)
        for name, kind in TOPICS.items()
    }
    got = {}
    while len(got) < len(readers):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came on: {', '.join(sorted(set(readers) - set(got)))}")
        for name, reader in readers.items():
            for sample in reader.take(10):
                if isinstance(sample, TOPICS[name]):  # a peer that leaves sends samples without data
                    got[name] = sample
        time.sleep(0.01)
    return got


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain_id", type=int)
    parser.add_argument("--prefix", default="/bev_perception", help="the node's name, with its namespace")
    parser.add_argument("--timeout", type=float, default=30.0, help="s until it gives up")
    args = parser.parse_args()
    os.environ["CYCLONEDDS_URI"] = CONFIGURATION
    try:
        got = receive(args.domain_id, args.prefix, time.monotonic() + args.timeout)
    except TimeoutError as error:
        print(json.dumps({"error": str(error)}))
        return 0
    report = {
        name: {"stamp": message.header.stamp.to_ns(), "frame_id": message.header.frame_id}
        for name, message in got.items()
    }
    report["occupancy"]["voxels"] = voxels(got["occupancy"])
    report["occupancy_points"]["voxels"] = points(got["occupancy_points"], got["occupancy"].class_names)
    report["obstacles"]["voxels"] = points(got["obstacles"], got["occupancy"].class_names)
    for name, value in (("obstacles", 100), ("free", 0), ("unknown", -1)):
        report["costmap"][name] = cells(got["costmap"], value)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
