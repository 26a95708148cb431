"""Train on your own data set, then evaluate the best weights.

    python examples/train_custom.py data.yaml --out runs/mine
    python examples/train_custom.py data.yaml --weights yolov7-tiny.pt --recipe finetune

Expects images with labels (YOLO, COCO or Pascal VOC) and the splits train and val; `y7edge data
check data.yaml` finds errors in them. Needs torch: pip install "y7edge[train]".
"""

import argparse
import sys

from y7edge import Detector, Y7EdgeError
from y7edge.data.dataset import load
from y7edge.evaluation.evaluate import evaluate
from y7edge.train import RECIPES, TrainConfig, for_terminal, train


def main() -> None:
    """Train a model, and print the mAP of its best weights for each class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data.yaml, or a folder of COCO or Pascal VOC files")
    parser.add_argument("--model", default="yolov7-tiny", help="name of a variant")
    parser.add_argument("--weights", help="checkpoint to start from; default: random weights")
    parser.add_argument("--recipe", choices=RECIPES, default="small-data")
    parser.add_argument("--imgsz", type=int, default=320, help="side of the input, pixels")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--split", default="val", help="split to evaluate on")
    parser.add_argument("--out", help="folder of the run; default: the next free runs/trainN")
    args = parser.parse_args()

    config = TrainConfig(
        data=args.data,
        model=args.model,
        weights=args.weights,
        recipe=RECIPES[args.recipe].recipe,
        imgsz=args.imgsz,
        epochs=args.epochs,
        batch=args.batch,
        out=args.out,
    )
    result = train(config, progress=for_terminal())  # Ctrl-C saves the state: `train --resume`

    dataset = load(args.data, splits=[args.split])
    with Detector(result.best) as detector:  # the checkpoint in PyTorch; export it for a robot
        metrics = evaluate(detector.detect_for_evaluation, dataset.split(args.split), dataset.names)
    for one in metrics.per_class:
        print(f"{one.name}: mAP@0.5:0.95 {one.ap50_95:.3f}, {one.labels} labels")
    print(f"all: mAP@0.5 {metrics.map50:.3f}, mAP@0.5:0.95 {metrics.map50_95:.3f}")
    print(f"next: y7edge export {result.best} --out mine.onnx")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; y7edge train --resume FOLDER continues the run")
    except Y7EdgeError as error:
        sys.exit(f"error: {error}")
