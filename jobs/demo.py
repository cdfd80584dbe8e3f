"""demo: the whole main job from one YAML, the five verbs in turn (and the synthetic world before them, where it is on).

python jobs/demo.py --config jobs/configs/demo.yaml [--data FOLDER] [--set a.b=c] [--dry-run] [--fresh]
"""

import sys

from sar2eo_dist.pipeline.collect import collect
from sar2eo_dist.pipeline.evaluate import evaluate
from sar2eo_dist.pipeline.job import main
from sar2eo_dist.pipeline.shard import shard
from sar2eo_dist.pipeline.synthesise import synthesise
from sar2eo_dist.pipeline.train import train
from sar2eo_dist.pipeline.translate import translate

if __name__ == "__main__":
    verbs = [synthesise, collect, shard, train, translate, evaluate]
    sys.exit(main("demo", verbs, "Run the whole main job from one config."))
