"""grade: Compare finished mosaics with clear Sentinel-2 tiles of later days.

python jobs/grade.py --config run/config.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.grade import grade
from sar2eo_dist.pipeline.job import main

if __name__ == "__main__":
    sys.exit(main("grade", [grade], "Compare finished mosaics with clear Sentinel-2 tiles of later days."))
