"""What is made of results without ROS."""
