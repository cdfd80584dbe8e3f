"""export: Write the pairs as two folders of images, for other people's trainers.

python jobs/export.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.export import export
from sar2eo_dist.pipeline.job import main

if __name__ == "__main__":
    sys.exit(main("export", [export], "Write the pairs as two folders of images, for other people's trainers."))
