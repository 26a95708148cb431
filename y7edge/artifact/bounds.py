"""Limits for models and inputs that checkpoints and manifests describe.

A small file can describe a model of any size. Therefore the values in the file are compared with
these limits before memory is allocated. The largest published model, yolov7-e6e at 1920x1920,
reaches about half of ``MAX_LIVE`` and at most a fifth of the other limits.
"""

MAX_CLASSES = 65_536
MAX_NAME = 256  # characters of the name of a class, model or layer
MAX_HEADER = 16 << 20  # bytes of a checkpoint's header, before its tensors
MAX_DEPTH = 32  # levels of nesting

# The input, the outputs and the activations.
MIN_SIDE, MAX_SIDE = 8, 16_384  # pixels
MAX_PIXELS = 1 << 25  # of one image: 8192x4096
MAX_BATCH = 1024
MAX_DET = 100_000  # boxes per image
MAX_PROBES = 8  # an export makes two, or three for a dynamic batch
MAX_CALIBRATION = 10_000  # images; 256 by default
MAX_BATCH_PIXELS = 1 << 26  # of a fixed batch: 163 images of 640x640
MAX_OUTPUTS = 1 << 29  # output values of a fixed batch
MAX_LIVE = 400_000_000  # activations in memory at once, per image: 1.6 GB
MAX_ASKED = 2 * MAX_LIVE  # the limit if the user sets the size: all published models at 4096x2560
MAX_TOUCHED = 1 << 33  # values that all rows compute, per image

# The levels of the head.
MAX_LEVELS = 8
MAX_STRIDE = 1024
MAX_ANCHORS = 64  # per level
MAX_ANCHOR = 1e5  # pixels per side

# The rows.
MAX_ROWS = 1024
MAX_INPUTS = 64  # per row
MAX_CHANNELS = 65_536
MAX_KERNEL = 13
MAX_PARAMETERS = 1 << 30
