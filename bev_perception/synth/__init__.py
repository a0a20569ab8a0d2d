"""A made-up world in the format of nuScenes: streets, traffic, pictures, lidar sweeps, boxes and occupancy.

Everything is derived from one geometry, so whatever is computed from the pictures can be checked against the truth.
"""
