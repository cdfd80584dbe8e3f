"""Clean Collector Algorithm: pure functions on arrays. Stages 1 and 2 measured and decided, Frechet score, threshold."""

from sar2eo_dist.cca.profile import Assessment, Measurements, assess, decide, explain, measure

__all__ = ["Assessment", "Measurements", "assess", "decide", "explain", "measure"]
