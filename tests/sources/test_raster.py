"""GeoTIFFs read by windows, beyond what the tests of scenes need."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from scene_files import DN, H, W, cog, put

from sar2eo_dist.sources.raster import Raster


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"memory://{tmp_path}"


def test_a_raster_outlives_the_thread_that_opened_it(root: str) -> None:
    """rasterio keeps what GDAL reads from in the context of a thread: read or closed later, memory would be gone."""
    uri, kept = put(root, "a.tif", cog(DN)), []

    def opened() -> None:
        kept.append(Raster(uri))
        kept[-1].read([1], 0, 0, 10, 10)

    for _ in range(3):
        thread = threading.Thread(target=opened)
        thread.start()
        thread.join()
    gc.collect()
    for raster in kept:
        np.testing.assert_array_equal(raster.read([1, 2, 3], 0, 0, H, W)[0], DN)
    raster.close()
    del raster
    kept.clear()
    gc.collect()
