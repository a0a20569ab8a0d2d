"""Where drives come from and go to: nuScenes, rosbag2 bags, ROS messages, a synthetic world."""
