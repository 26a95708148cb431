"""Cameras, network streams, videos, folders, recordings and test patterns.

``base`` has what all sources share, ``address`` parses what a user types, and ``uri`` opens it.

Files: ``files`` reads images and videos, ``replay`` recordings, and ``pacing`` plays both in real
time.

Cameras and streams are captured by a child process, which may hang or crash:

- In the parent, ``capture`` is the camera that a program uses, ``feed`` has its newest frame and
  the counts, ``supervisor`` is the thread that notices faults and opens the device again, and
  ``child`` starts one process, receives its messages, and ends it.
- In the child, ``worker`` calls a grabber, and ``ring`` is the memory through which frames return.
- Grabbers: ``appsink`` (GStreamer), ``video_capture`` (OpenCV), ``pattern`` and ``scenes`` (no
  camera). ``launch`` chooses the library and writes the pipelines of GStreamer, ``options`` checks
  options, ``devices`` asks V4L2 cameras for their formats, ``buffers`` reads the memory of
  GStreamer, and ``advice`` says what to do about a fault.
"""
