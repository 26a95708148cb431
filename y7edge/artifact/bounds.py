"""How large a model, its input and its description may be, in checkpoints as in manifests.

A file of a kilobyte can describe a model of any size. So whatever is read is compared with these
bounds before anything is allocated or looped over. The largest published model, yolov7-e6e at
1920x1920, has about half of ``MAX_LIVE`` and a fifth or less of the other bounds.
"""

MAX_CLASSES = 65_536
MAX_NAME = 256  # letters of a class or model name
MAX_HEADER = 16 << 20  # bytes of a checkpoint's header, before its tensors
MAX_DEPTH = 32  # of entries inside of entries

# The input, and what is computed from it.
MIN_SIDE, MAX_SIDE = 8, 16_384  # pixels
MAX_PIXELS = 1 << 25  # of one image: 8192x4096
MAX_BATCH = 1024
MAX_DET = 100_000  # boxes of an image
MAX_PROBES = 8  # an export makes two, and one more for a dynamic batch
MAX_BATCH_PIXELS = 1 << 26  # of all images of a fixed batch: 163 of 640x640
MAX_OUTPUTS = 1 << 29  # values of all outputs of a fixed batch
MAX_LIVE = 400_000_000  # values of the maps that are kept at once, for one image: 1.6 GB
MAX_ASKED = 2 * MAX_LIVE  # where a user asks for the size: all published models at 4096x2560
MAX_TOUCHED = 1 << 33  # values that all rows read and write, for one image

# The levels of the head.
MAX_LEVELS = 8
MAX_STRIDE = 1024
MAX_ANCHORS = 64  # of a level
MAX_ANCHOR = 1e5  # pixels of a side

# The rows.
MAX_ROWS = 1024
MAX_INPUTS = 64  # of a row
MAX_CHANNELS = 65_536
MAX_KERNEL = 13
MAX_PARAMETERS = 1 << 30
