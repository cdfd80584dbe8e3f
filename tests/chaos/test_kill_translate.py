"""kill -9 of actors, of tasks, of the driver and of a node while a mosaic is made; other worker counts, other blocks.

Every object (blocks, overviews, VRT, STAC, quick-look) equals, to the byte, that of one undisturbed process without Ray.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import killed_translate as chaos
import numpy as np
import pytest
import ray
import small_mosaic
import yaml
import zarr

from sar2eo_dist.config import Config
from sar2eo_dist.ledger import Ledger
from sar2eo_dist.pipeline import cluster
from sar2eo_dist.pipeline.stage import Options, Summary
from sar2eo_dist.pipeline.translate import translate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LONG = pytest.mark.skipif("not config.getoption('--benchmark')", reason="more kills, lost nodes, workers: make chaos")
ROOT = Path(__file__).resolve().parents[2]
PLACE = np.s_[..., 196 * 256 : 199 * 256, 118 * 256 : 121 * 256]  # the nine blocks


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mosaic")


@pytest.fixture(scope="module")
def alone(base: Path) -> tuple[Config, Summary, dict[str, str]]:
    """The undisturbed run: config, summary, objects."""
    cfg = small_mosaic.small(base)
    with small_mosaic.without_ray():
        summary = translate(cfg, Options())
    found = small_mosaic.objects(Path(cfg.run.out))
    assert summary.status == "complete"
    assert summary.counts["blocks"] == 9
    assert 0 < summary.counts["valid pixels"] < summary.counts["pixels"]
    for kind in ("/rgb/c/", "/valid/c/", "/overviews/", "/cog/", "/looks/", "/statistics/", "mosaic.vrt",
                 "stac/collection.json", "quicklook.png"):  # fmt: skip
        assert any(kind in path for path in found), kind
    return cfg, summary, found


def written(cfg: Config, to: Path) -> str:
    to.write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    return str(to)


@pytest.mark.usefixtures("ray_session")
def test_killed_actors_tasks_and_drivers_change_no_byte(
    alone: tuple[Config, Summary, dict[str, str]], tmp_path: Path
) -> None:
    cfg, summary, whole = alone
    out, rng = tmp_path / "run", random.Random()
    cfg = small_mosaic.elsewhere(cfg, out)
    config = written(cfg, tmp_path / "config.yaml")
    command = [sys.executable, "jobs/translate.py", "--config", config,
               "--set", f"resources.address={ray.get_runtime_context().gcs_address}"]  # fmt: skip
    killed: Counter[str] = Counter()
    over = threading.Event()

    def hunt(kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            killed[kind] += chaos.worker(os.getpid(), kind, rng, lambda: not over.is_set())
            over.wait(rng.uniform(0, 0.5))

    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    hunter = threading.Thread(target=hunt, args=(("task", "actor"),))
    hunter.start()
    wanted, limit = rng.randint(1, 6), time.monotonic() + 150  # of the nine
    while len(Ledger(str(out)).done("translate")) < wanted and driver.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    over.set()
    hunter.join()
    assert driver.poll() is None, f"it ended before it could be killed:\n{driver.communicate()[0].decode()}"
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert chaos.faults(out, whole) == []
    finished = len(Ledger(str(out)).done("translate"))
    assert wanted <= finished < 9, "killed too late to show anything"
    over.clear()
    hunter = threading.Thread(target=hunt, args=(("actor", "task"),))
    hunter.start()
    again = translate(cfg, Options())
    over.set()
    hunter.join()
    assert killed["actor"] >= 1, killed
    assert killed["task"] >= 1, killed
    assert (again.status, again.done, again.digest) == ("complete", 9, summary.digest)
    assert again.resumed >= finished
    assert chaos.faults(out, whole) == []
    assert small_mosaic.objects(out) == whole


@LONG
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("translators", [2, 4])  # one is what the killed runs have
def test_the_number_of_translators_changes_no_byte(
    alone: tuple[Config, Summary, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, translators: int
) -> None:
    """Each reserves a share of the two CPUs that the session has."""
    feed = cluster.Feed(translators, translators, 1.6 / translators, 0, 2, 0.2)
    monkeypatch.setattr(cluster, "feed", lambda *_: feed)
    again = translate(small_mosaic.elsewhere(alone[0], tmp_path / "run"), Options())
    assert (again.status, again.digest) == ("complete", alone[1].digest)
    assert small_mosaic.objects(tmp_path / "run") == alone[2]


def test_the_size_of_blocks_changes_no_pixel(alone: tuple[Config, Summary, dict[str, str]], base: Path) -> None:
    cfg = small_mosaic.small(base, f"run.out={base / 'larger'}", "translate.block=512")
    with small_mosaic.without_ray():
        larger = translate(cfg, Options())
    stores = [zarr.open_group(Path(c.run.out) / s.outputs["mosaic"], mode="r") for c, s in (alone[:2], (cfg, larger))]
    assert [s["rgb"].metadata.chunk_grid.chunk_shape[-1] for s in stores] == [256, 512]
    for array in ("valid", "rgb"):
        small, large = (s[array][PLACE] for s in stores)
        assert small.any()
        assert not small.all()
        assert (small == large).all()


@LONG
@pytest.mark.timeout(1500)
def test_twenty_kills_on_a_cluster_that_loses_nodes(base: Path, tmp_path: Path) -> None:
    kills, seed = int(os.environ.get("SAR2EO_KILLS", "20")), random.randrange(1 << 30)
    script = str(Path(__file__).with_name("killed_translate.py"))
    config = written(small_mosaic.small(base), tmp_path / "config.yaml")
    begin = time.monotonic()
    ran = subprocess.run([sys.executable, script, config, str(tmp_path / "run"), str(kills), str(seed)],
                         capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 0, f"seed {seed}: {ran.stderr[-3000:]}"
    told = json.loads(ran.stdout.splitlines()[-1])
    print(f"\n{told['killed']} killed in {time.monotonic() - begin:.0f} s, seed {seed}")
    assert sum(told["killed"].values()) >= kills
    assert (told["faults"], told["exit"]) == ([], 0), f"seed {seed}"
    assert told["objects"] == told["whole"]
