"""The other side of the node: publish images, and print the messages that come back, as JSON.

It runs in the environment of ROS 2, and reads a script from the command line: a JSON list of steps.
Every step prints one line of JSON.

    {"publish": ["image.npy", ...], "encoding": "bgr8", "every": 0.5}   images, one period apart
    {"each": [...], "encoding": "rgb8"}        images, each after the result of the one before; and
                                               the results
    {"wait": "results", "more": 2, "seconds": 30}          until so many more messages have come
    {"set": {"conf": 0.5}}                     parameters of the node
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2DArray


class Peer(Node):
    """Publish images and collect results and diagnostics."""

    def __init__(self, reliable_images: bool, reliable_results: bool, compressed: bool) -> None:
        super().__init__("peer")
        kinds = {True: ReliabilityPolicy.RELIABLE, False: ReliabilityPolicy.BEST_EFFORT}
        self.compressed, self.sent = compressed, 0
        self.images = self.create_publisher(
            CompressedImage if compressed else Image,
            "/camera/image_raw" + "/compressed" * compressed,
            QoSProfile(depth=10, reliability=kinds[reliable_images]),
        )
        self.got: dict[str, list[dict]] = {"results": [], "diagnostics": []}
        results = QoSProfile(depth=100, reliability=kinds[reliable_results])
        self.create_subscription(Detection2DArray, "/detections", self.on_result, results)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, 10)
        self.parameters = self.create_client(SetParameters, "/y7edge/set_parameters")

    def on_result(self, message: Detection2DArray) -> None:
        """Keep a result."""
        header = header_of(message)
        found = [
            {
                "header": header_of(one),
                "class": one.results[0].hypothesis.class_id,
                "score": one.results[0].hypothesis.score,
                "centre": [one.bbox.center.position.x, one.bbox.center.position.y],
                "size": [one.bbox.size_x, one.bbox.size_y],
                "id": one.id,
            }
            for one in message.detections
        ]
        self.got["results"].append({"header": header, "detections": found})

    def on_diagnostics(self, message: DiagnosticArray) -> None:
        """Keep the status of the node."""
        (status,) = message.status
        values = {pair.key: pair.value for pair in status.values}
        entry = {"level": status.level[0], "name": status.name, "message": status.message}
        self.got["diagnostics"].append({**entry, "stamp": message.header.stamp.sec, **values})

    def until(self, done, seconds: float) -> bool:
        """Spin until a condition holds."""
        end = time.monotonic() + seconds
        while not done() and (left := end - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=min(left, 0.02))
        return bool(done())

    def publish(self, path: str, encoding: str) -> list:
        """Publish an image, with its number in the frame id; return its header."""
        pixels = np.load(path)
        message = CompressedImage() if self.compressed else Image()
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = f"camera_{self.sent}"
        if self.compressed:
            message.format = "bgr8; png compressed bgr8"
            message.data = cv2.imencode(".png", pixels)[1].tobytes()
        else:
            message.height, message.width = pixels.shape[:2]
            message.encoding = encoding
            pixels = pixels if encoding != "rgb8" else pixels[:, :, ::-1]
            padded = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, 6)))
            message.step, message.data = padded.shape[1], padded.tobytes()
        self.images.publish(message)
        self.sent += 1
        return header_of(message)

    def run(self, step: dict) -> object:
        """Run a step; return what it prints."""
        got = {name: len(found) for name, found in self.got.items()}
        encoding = step.get("encoding", "bgr8")
        headers = []
        if "publish" in step:
            for path in step["publish"]:
                headers.append(self.publish(path, encoding))
                self.until(lambda: False, step.get("every", 0))
            return headers
        if "each" in step:
            for index, path in enumerate(step["each"]):
                headers.append(self.publish(path, encoding))
                wanted = got["results"] + index + 1
                self.until(lambda wanted=wanted: len(self.got["results"]) >= wanted, 30)
            return headers, self.got["results"][got["results"] :]
        if "wait" in step:
            found, start = self.got[step["wait"]], got[step["wait"]]
            self.until(lambda: len(found) >= start + step["more"], step["seconds"])
            return found
        assert self.parameters.wait_for_service(timeout_sec=30)
        request = SetParameters.Request(
            parameters=[
                Parameter(name, value=value).to_parameter_msg()
                for name, value in step["set"].items()
            ]
        )
        future = self.parameters.call_async(request)
        assert self.until(future.done, 30)
        return [[one.successful, one.reason] for one in future.result().results]


def header_of(message) -> list:
    """Return the header of a message as a list."""
    stamp = message.header.stamp
    return [stamp.sec, stamp.nanosec, message.header.frame_id]


def main() -> None:
    """Wait for the node, and run the steps."""
    options, steps = map(json.loads, sys.argv[1:3])
    rclpy.init(args=[])
    peer = Peer(**options)
    ready = peer.until(
        lambda: peer.images.get_subscription_count() and peer.count_publishers("/detections"), 60
    )
    assert ready, "the node has not appeared"
    peer.until(lambda: peer.got["diagnostics"], 60)  # reliable: both sides know each other
    for step in steps:
        print(json.dumps(peer.run(step)), flush=True)
    peer.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
