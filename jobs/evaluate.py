"""evaluate: Measure the held-out pairs beside trivial baselines and write the report.

python jobs/evaluate.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.job import main

if __name__ == "__main__":
    sys.exit(main("evaluate", [evaluate], "Measure the held-out pairs beside trivial baselines and write the report."))
