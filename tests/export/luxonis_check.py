"""Validate an NN Archive's configuration with luxonis-ml, in the interpreter that has it.

python luxonis_check.py CONFIG.json
"""

import json
import sys
from pathlib import Path

from luxonis_ml.nn_archive.config import Config
from luxonis_ml.nn_archive.config_building_blocks.base_models.head_metadata import HeadYOLOMetadata

config = Config(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
(head,) = config.model.heads
assert isinstance(head.metadata, HeadYOLOMetadata), type(head.metadata)
print(config.model_dump_json(exclude_none=True))
