"""lineage: What a pixel of a mosaic is made from; make its block again.

python jobs/lineage.py --config jobs/configs/demo.yaml --at=-54.91,-4.41 [--remake]
"""

import sys

from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.lineage import lineage

if __name__ == "__main__":
    sys.exit(main("lineage", [lineage], "What a pixel of a mosaic is made from: scenes, bundles, config, code."))
