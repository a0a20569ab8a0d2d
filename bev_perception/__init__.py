"""3D boxes and semantic occupancy from surround cameras and tf."""

from pkgutil import extend_path

# The ROS messages of this package (bev_perception.msg) are generated code: a ROS 2 workspace
# installs them beside this file; without ROS 2 they are in a cache directory on sys.path.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
