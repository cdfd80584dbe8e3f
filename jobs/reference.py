"""reference: Build the cloud reference set of the Frechet stage, or show the archive's cloudiest tiles to choose it from.

python jobs/reference.py --config jobs/configs/demo.yaml [--candidates N] [--set a.b=c] [--dry-run] [--fresh] [--audit]
"""

import sys

from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.reference import reference

if __name__ == "__main__":
    sys.exit(
        main(
            "reference",
            [reference],
            "Build the cloud reference set of the Frechet stage, or show the archive's cloudiest tiles to choose it from.",
        )
    )
