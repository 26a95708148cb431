"""Parameters of the node: names, defaults, meanings and ranges."""

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from y7edge import ConfigError

FIXED: dict[str, tuple[Any, str]] = {
    "model": ("", "path of an exported model"),
    "image_topic": ("image", "topic of the images"),
    "compressed": (False, "subscribe to IMAGE_TOPIC/compressed, a sensor_msgs/CompressedImage"),
    "encoding": ("", "used instead of the encoding of the images; '': theirs"),
    "backend": ("auto", "runtime of y7edge; auto: the one for the model's format"),
    "device": ("auto", "auto, or a device of the runtime, such as cpu or cuda:0"),
    "track": (False, "fill in the ids of objects; needs y7edge[tracking]"),
    "class_numbers": (False, "class_id of results is a class's number, not its name"),
    "queue": (1, "images that wait; with 1, the newest image is always next"),
    "reliable": (True, "publish results reliably; false: best effort"),
}
LIVE: dict[str, tuple[Any, str]] = {
    "conf": (0.0, "publish objects with a greater score; 0: the model's threshold"),
    "iou": (0.0, "suppress boxes with a greater IoU with a better box; 0: the model's threshold"),
    "max_det": (0, "largest number of objects per image; 0: the model's"),
    "classes": ([""], "classes to publish, by name or number; ['']: all"),
}
RANGES = {"conf": (0.0, 1.0), "iou": (0.0, 1.0), "max_det": (0, 100_000), "queue": (1, 1024)}


def declare(node: Node) -> dict[str, Any]:
    """Declare all parameters; return their values. Those of ``LIVE`` can be changed later."""
    for name, (default, text) in {**FIXED, **LIVE}.items():
        descriptor = ParameterDescriptor(description=text, read_only=name in FIXED)
        if name in RANGES:
            low, high = RANGES[name]
            if isinstance(default, float):
                span = FloatingPointRange(from_value=low, to_value=high)
                descriptor.floating_point_range = [span]
            else:
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        node.declare_parameter(name, default, descriptor)
    values = {name: node.get_parameter(name).value for name in {**FIXED, **LIVE}}
    if not values["model"]:
        raise ConfigError("the parameter model is not set: give the path of an exported model")
    return values


def thresholds(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a Detector that the parameters of ``LIVE`` set."""
    chosen = {name: values[name] or None for name in ("conf", "iou", "max_det")}
    return {**chosen, "classes": [name for name in values["classes"] if name] or None}
