"""Reading the checkpoints that the authors of YOLOv7 published (``.pt``), without torch."""
