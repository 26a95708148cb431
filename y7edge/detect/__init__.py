"""What runs on a robot: Detector, Detections, pre- and post-processing, drawing, self-test."""
