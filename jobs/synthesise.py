"""synthesise: Write the synthetic world that the demo runs on.

python jobs/synthesise.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.synthesise import synthesise

if __name__ == "__main__":
    sys.exit(main("synthesise", [synthesise], "Write the synthetic world that the demo runs on."))
