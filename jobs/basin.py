"""basin: The scheduled run: new scenes, the blocks they touch, grades, a dated report.

python jobs/basin.py --config jobs/configs/basin.yaml [--date YYYY-MM-DD] [--set a.b=c] [--dry-run] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.basin import basin
from sar2eo_dist.pipeline.job import main

if __name__ == "__main__":
    sys.exit(main("basin", [basin], "The scheduled run: new scenes, the blocks they touch, grades, a dated report."))
