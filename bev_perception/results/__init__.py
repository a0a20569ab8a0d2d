"""Conversions of results that do not need ROS."""
