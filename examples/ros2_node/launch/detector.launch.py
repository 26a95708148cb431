"""Start the node: ros2 launch y7edge_ros2 detector.launch.py model:=/opt/robot/mine.onnx."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    """Return the node, which is started again if it ends with an error."""
    share = Path(get_package_share_directory("y7edge_ros2"))
    arguments = {
        "model": (None, "path of an exported model"),
        "image": ("/camera/image_raw", "topic of the images"),
        "config": (str(share / "config" / "detector.yaml"), "file with the other parameters"),
        "namespace": ("", "namespace of the node, for several cameras"),
    }
    node = Node(
        package="y7edge_ros2",
        executable="detector",
        name="y7edge",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        respawn=True,
        respawn_delay=2.0,
        parameters=[
            LaunchConfiguration("config"),
            {
                "model": ParameterValue(LaunchConfiguration("model"), value_type=str),
                "image_topic": ParameterValue(LaunchConfiguration("image"), value_type=str),
            },
        ],
    )
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in arguments.items()
    ]
    return LaunchDescription([*declared, node])
