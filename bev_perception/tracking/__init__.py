"""Association of boxes over time, for detectors whose boxes have no track ids. Free of torch and ROS."""
