"""evaluate --against: another run beside this one: pictures of the pairs that changed most by both, then the page."""

from __future__ import annotations

import dataclasses
import json
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from sar2eo_dist import storage
from sar2eo_dist.config import Config, explained
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.evaluation.compare import match, paired
from sar2eo_dist.pipeline.held_out import STAGE, make_pictures, pairs_of, prepare
from sar2eo_dist.pipeline.measure import TRUE, Sample, Setup
from sar2eo_dist.pipeline.stage import Options
from sar2eo_dist.report import compare as page
from sar2eo_dist.sources.ranged import ranged

COLUMNS = ["rank", "sar_key", "eo_key", "place", "method", "mae"]
PICTURES = f"{STAGE}/against.json"


def against(cfg: Config, opts: Options, root: str, setup: Setup, samples: dict[int, Sample]) -> tuple[str, str]:
    """(path of the page, words for the terminal). Raises Sar2EoError where the other run was not evaluated."""
    other = storage.absolute(opts.against)
    pictures = ""
    try:
        shown = _pictures(cfg, opts, root, other, setup, samples)
        storage.put(storage.join(root, PICTURES), json.dumps(shown, indent=1).encode())
        pictures = PICTURES
    except Sar2EoError as e:  # its figures are enough for the page
        print(f"evaluate: no pictures of the pairs that changed: {e}", file=sys.stderr)
    return page.write(root, other, pictures)


def _pictures(
    cfg: Config, opts: Options, root: str, other: str, setup: Setup, samples: dict[int, Sample]
) -> list[dict[str, object]]:
    a, b = _final(root), _final(other)
    keys = [list(zip(t["sar_key"].to_pylist(), t["eo_key"].to_pylist(), strict=True)) for t in (a, b)]
    both = match(*keys)
    mine, theirs = a.take(both.this), b.take(both.other)
    p = paired(mine["mae"].to_numpy(), theirs["mae"].to_numpy(), mine["place"].to_pylist())
    rows = sorted({int(p.at[i]) for part in p.extremes(page.SHOWN) for i in part})
    if not rows:
        return []
    here = [samples[r] for r in mine["rank"].take(rows).to_pylist()]
    config = _config(other).model_copy(update={"resources": cfg.resources})
    there, _ = prepare(config.model_copy(update={"run": config.run.model_copy(update={"out": other})}), other)
    there = dataclasses.replace(there, root=root)  # where its pictures go
    order = theirs["rank"].take(rows).to_pylist()
    found = dict(zip(sorted(order), pairs_of(config, other, there, sorted(order), near=False), strict=True))
    others = [found[r] for r in order]
    drawn = make_pictures(cfg, opts, setup, here, "changed")[1]
    again = make_pictures(cfg, opts, there, others, "changed there")[1]
    out: list[dict[str, object]] = []
    for x, y in zip(here, others, strict=True):
        images = {}
        if x.rank in drawn:
            own = drawn[x.rank]
            images = {"sar": f"{own}_sar.png", "true": f"{own}_{TRUE}.png", "this": f"{own}_{last(setup)}.png"}
        if y.rank in again:
            images["other"] = f"{again[y.rank]}_{last(there)}.png"
        out.append({"sar_key": x.pair.sar_key, "eo_key": x.pair.eo_key, "images": images})
    return out


def last(setup: Setup) -> str:
    """The method whose image is the run's result."""
    return "enhanced" if len(setup.bundles) > 1 else "translated"


def _final(root: str) -> pa.Table:
    """The rows of a run's last network."""
    with ranged(storage.join(root, STAGE, "metrics.parquet")) as f:
        table = pq.read_table(f, columns=COLUMNS)
    methods = set(table["method"].unique().to_pylist())
    method = "enhanced" if "enhanced" in methods else "translated"
    return table.filter(pc.equal(table["method"], method))


def _config(run: str) -> Config:
    uri = storage.join(run, "config.yaml")
    try:
        return Config.model_validate(yaml.safe_load(storage.read_bytes(uri)))
    except (yaml.YAMLError, ValidationError) as e:
        said = explained(e) if isinstance(e, ValidationError) else str(e)
        raise ConfigError(f"the other run's config does not read: {said}: {uri}") from e
