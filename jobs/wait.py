"""wait: Wait for a job that was submitted to a cluster, and judge it by its summary.json.

python jobs/wait.py SUBMISSION_ID [--address URL] [--config FILE] [--set a.b=c] [--timeout SECONDS] [--strict]
"""

import sys

from sar2eo_dist.pipeline.wait import main

if __name__ == "__main__":
    sys.exit(main())
