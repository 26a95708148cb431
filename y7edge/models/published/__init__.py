"""Read the checkpoints published by the authors of YOLOv7 (``.pt``), without torch."""
