"""collect: Stream Sentinel tiles through the Clean Collector Algorithm; write verdicts, calibration and pairs.

python jobs/collect.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.job import main

if __name__ == "__main__":
    sys.exit(
        main(
            "collect",
            [collect],
            "Stream Sentinel tiles through the Clean Collector Algorithm; write verdicts, calibration and pairs.",
        )
    )
