"""Builds the wheel; all metadata is in setup.cfg.

`colcon build` does not come here: package.xml says ament_cmake, see CMakeLists.txt.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: directory of the source tree -> where the code looks for it inside an installed package
DATA = {
    "config": "bev_perception/config",
    "msg": "bev_perception/ros/bare_msgs/bev_perception",
}


class BuildWithData(build_py):
    """Adds to a wheel what an editable install reads from the source tree."""

    def run(self) -> None:
        """Build the modules, then lay the data beside them."""
        super().run()
        if not self.editable_mode:
            for source, target in DATA.items():
                shutil.copytree(source, Path(self.build_lib, target), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithData})
