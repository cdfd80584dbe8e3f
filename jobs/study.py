"""study: Train and evaluate several variants of one config with several seeds, and print one table (the paper's Table 1).

python jobs/study.py --config jobs/configs/table1.yaml [--set study.seeds=[0,1,2]] [--set a.b=c] [--dry-run]
"""

import sys

from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.study import study
from sar2eo_dist.pipeline.synthesise import synthesise

if __name__ == "__main__":
    verbs = [synthesise, collect, shard, study]
    sys.exit(main("study", verbs, "Train and evaluate several variants of one config, and print one table."))
