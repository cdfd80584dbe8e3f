"""What another tolerance would give: how many images and pairs there are within each number of days."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sar2eo_dist.pairing.match import Rule, candidates, check, kept, smallest

FIELDS = ("days", "eo_images", "combinations")


def horizon(max_days: int) -> int:
    """Days that the curve looks ahead: twice the tolerance, at least 30 and at most 90."""
    return min(max(30, 2 * max_days), 90)


def curve(sar: pa.Table, eo: pa.Table, cfg: Rule) -> pa.Table:
    """Yield against tolerance, from the same tables as `match`: int64 columns days, eo_images, combinations.

    One row for each d = 0 .. `horizon(cfg.max_days)`: kept EO images with a SAR image of their place within d days, and
    pairs of mode `all` within d days. So neither ever falls, and the row of max_days, where the curve reaches it, counts
    the pairs of `nearest` and of `all`. Raises ConfigError as `match` does.
    """
    check(cfg)
    last = horizon(cfg.max_days)
    images, combinations = np.zeros(last + 1, np.int64), np.zeros(last + 1, np.int64)
    for e, _, gap, _ in candidates(*kept(sar, eo), cfg, last):
        combinations += np.bincount(gap, minlength=last + 1)
        best = smallest(e, gap)
        one_each = np.diff(e[best], prepend=-1) != 0
        images += np.bincount(gap[best][one_each], minlength=last + 1)
    columns = np.arange(last + 1, dtype=np.int64), np.cumsum(images), np.cumsum(combinations)
    return pa.table(dict(zip(FIELDS, columns, strict=True)))
