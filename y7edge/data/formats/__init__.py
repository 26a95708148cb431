"""Parsers of label formats (YOLO, COCO, Pascal VOC), and the records that they return."""
