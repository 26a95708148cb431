"""Run the node until SIGINT or SIGTERM, and close it in order."""

import sys

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger

from y7edge import Y7EdgeError
from y7edge_ros2.node import DetectorNode


def main() -> int:
    """Return the exit code: 1 if the node could not be started."""
    try:
        rclpy.init()
    except RuntimeError as error:  # such as a file of parameters that does not exist
        print(f"y7edge: {error}", file=sys.stderr)
        return 1
    node = None
    try:
        node = DetectorNode()
        node.get_logger().info(f"images from {node.detector.topic}")
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except (Y7EdgeError, ParameterException, NameValidationException) as error:
        get_logger("y7edge").fatal(str(error))
        return 1
    except RuntimeError:  # of rclpy, if SIGTERM came while the model was opened
        if rclpy.ok():
            raise
        return 0
    finally:
        if node is not None:
            node.detector.close()  # first: its thread publishes
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
