"""A synthetic world in the nuScenes format: streets, traffic, images, lidar sweeps, boxes and occupancy.

All of these come from one geometry, so results computed from the images can be checked against exact ground truth.
"""
