"""Clean Collector Algorithm: pure functions on arrays. Stages 1 and 2 (`assess`), Frechet score, threshold."""

from sar2eo_dist.cca.profile import Measurements, assess

__all__ = ["Measurements", "assess"]
