"""check: Does it run the first time? Looks at this machine and, with a config, at store, inputs and cluster.

python jobs/check.py [--config run.yaml] [--data FOLDER] [--set a.b=c]
"""

import sys

from sar2eo_dist.pipeline.check import main

if __name__ == "__main__":
    sys.exit(main())
