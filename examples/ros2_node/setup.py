"""Install the node where ROS 2 looks for it; colcon runs this file."""

from setuptools import setup

NAME = "y7edge_ros2"

setup(
    name=NAME,
    version="0.1.0",
    description="Detect objects in images with y7edge, as vision_msgs/Detection2DArray",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/detector.launch.py"]),
        (f"share/{NAME}/config", ["config/detector.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": [f"detector = {NAME}.main:main"]},
)
