"""translate: Translate a whole scene, block by block, and MultiEarth targets, patch by patch.

python jobs/translate.py --config jobs/configs/demo.yaml [--set a.b=c] [--dry-run] [--limit N] [--fresh] [--audit] [--strict]
"""

import sys

from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.translate import translate

if __name__ == "__main__":
    sys.exit(
        main(
            "translate", [translate], "Translate a whole scene, block by block, and MultiEarth targets, patch by patch."
        )
    )
