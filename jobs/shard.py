"""shard: Write the pairs that survived as sharded zarr.

python jobs/shard.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.shard import shard

if __name__ == "__main__":
    sys.exit(main("shard", [shard], "Write the pairs that survived as sharded zarr."))
