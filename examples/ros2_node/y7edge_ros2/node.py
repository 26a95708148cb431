"""Detect objects in the images of a topic; publish them as vision_msgs/Detection2DArray."""

from functools import partial
from typing import Any

import diagnostic_msgs.msg
import vision_msgs.msg
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from y7edge import Detector, Tracker, Y7EdgeError
from y7edge.adapters.ros2 import Ros2Detector, to_detection_array
from y7edge_ros2.parameters import declare, thresholds


class DetectorNode(Node):
    """Give images to a ``Ros2Detector``, which detects in the newest one in its own thread."""

    def __init__(self) -> None:
        super().__init__("y7edge")
        v = self.values = declare(self)
        # Best effort: a reliable subscription hears nothing from a best-effort publisher.
        newest = QoSProfile(depth=v["queue"], reliability=ReliabilityPolicy.BEST_EFFORT)
        kind, end = (CompressedImage, "/compressed") if v["compressed"] else (Image, "")
        topic, put = v["image_topic"] + end, lambda message: self.detector.put(message)
        images = self.create_subscription(kind, topic, put, newest)
        qos = QoSProfile(depth=5)  # reliable
        qos.reliability = qos.reliability if v["reliable"] else newest.reliability
        results = self.create_publisher(vision_msgs.msg.Detection2DArray, "detections", qos)
        self.detector = Ros2Detector(
            Detector(v["model"], v["backend"], v["device"], **thresholds(v)),
            partial(to_detection_array, messages=vision_msgs.msg, numbers=v["class_numbers"]),
            results.publish,
            topic=images.topic_name,
            encoding=v["encoding"] or None,
            tracker=Tracker() if v["track"] else None,
            queue=v["queue"],
            now_ns=lambda: self.get_clock().now().nanoseconds,
            on_error=lambda text: self.get_logger().error(text, throttle_duration_sec=5.0),
        )
        self.add_on_set_parameters_callback(self.change)
        self.reports = self.create_publisher(diagnostic_msgs.msg.DiagnosticArray, "/diagnostics", 1)
        self.create_timer(1.0, self.report)

    def report(self) -> None:
        """Publish the diagnostics."""
        stamp = self.get_clock().now().to_msg()
        self.reports.publish(self.detector.diagnostics(diagnostic_msgs.msg, stamp))

    def change(self, parameters: list[Any]) -> SetParametersResult:
        """Apply changed thresholds, or say why not."""
        values = self.values | {one.name: one.value for one in parameters}
        try:
            self.detector.configure(**thresholds(values))
        except Y7EdgeError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.values = values
        return SetParametersResult(successful=True)
