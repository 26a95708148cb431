"""A ROS 2 node for y7edge."""
