"""train: Train the translator (SAR to EO), then the enhancer on its output, with Ray Train.

python jobs/train.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.train import train

if __name__ == "__main__":
    sys.exit(
        main("train", [train], "Train the translator (SAR to EO), then the enhancer on its output, with Ray Train.")
    )
