"""One self-contained HTML page about a run: what ran, what was kept and why, what was learned, how good it is."""

from sar2eo_dist.report.page import build, write

__all__ = ["build", "write"]
