"""The perception node with a pipeline that fails on command.

python planted_node.py FAULT_FILE --ros-args ...

FAULT_FILE is read at every frame; it holds what the pipeline does then, and does not exist while all is well:

"error": raise a RuntimeError, as a broken GPU does at every frame.
"frame": raise a FrameError and count it, as the pipeline does for a frame that cannot be used.
"shutdown": shut the ROS context down, as somebody else in the process may.
"""

import subprocess
import sys
from pathlib import Path

from bev_perception.ros.tools.process import NodeProcess, dds_environment

MESSAGE = "CUDA error: an illegal memory access was encountered"


class PlantedNode(NodeProcess):
    """This script as a process; fault("error") plants a fault, fault("") takes it away."""

    def __init__(self, directory: Path, domain: int, parameters: dict[str, object]):
        self.log = directory / "node.log"
        self._fault = directory / "fault"
        given = [argument for name, value in parameters.items() for argument in ("-p", f"{name}:={value}")]
        command = [sys.executable, __file__, str(self._fault), "--ros-args", *given]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dds_environment(domain))

    def fault(self, kind: str) -> None:
        self._fault.write_text(kind)


def plant(fault: Path) -> None:
    import rclpy

    from bev_perception.ros import node
    from bev_perception.types import FrameError

    load = node.load_pipeline

    def load_planted(*args, **kwargs):
        pipeline = load(*args, **kwargs)
        step = pipeline.step

        def planted_step(frame):
            kind = fault.read_text() if fault.exists() else ""
            if kind == "error":
                raise RuntimeError(MESSAGE)
            if kind == "frame":
                pipeline.health.fail("not finite", "the model's boxes hold NaN")
                raise FrameError("the model's boxes hold NaN")
            if kind == "shutdown":
                rclpy.shutdown()
            return step(frame)

        pipeline.step = planted_step
        return pipeline

    node.load_pipeline = load_planted


def main():
    from bev_perception.ros.endings import leave
    from bev_perception.ros.entry import prepare_process

    prepare_process()
    plant(Path(sys.argv[1]))
    from bev_perception.ros.spin import run_node

    leave(run_node(sys.argv))


if __name__ == "__main__":
    main()
