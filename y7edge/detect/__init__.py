"""Detection on edge devices: Detector, Detections, pre- and post-processing, self-test."""
