"""``python -m points fit --config configs/train.yaml``."""

from points import Classifier, Rings
from treadle.cli import main

if __name__ == "__main__":
    main(Classifier, Rings)
