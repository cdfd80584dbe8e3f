"""The whole main job with its scenes and its run folder in a real S3 server, which is killed on the way.

Everything it leaves equals a local run's: pixels, weights and features to the byte, tables but for where their rows lie.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ceph_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sar2eo_dist import storage

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("not config.getoption('--benchmark')", reason="the main job twice: make chaos"),
]
SCRIPT = str(Path(__file__).with_name("stored_job.py"))
#: tells of a run or of where it lies, and so differs: its objects, and its tables' columns
TELLS = re.compile(
    r"/ledger/|/lease/|(summary|forecast|rates|archive|samples|record)\.json$|config\.yaml$|\.html$|\.jsonl$|/calibrations?[./]"
    r"|\.pt$|tfevents|/(objects|units)\.parquet$"
)
IDS = re.compile(rb"[0-9a-f]{12,}")
PLACES = {"uris", "digest", "sar_digest", "eo_digest", "sar_uris", "eo_uris", "unit", "scored_by", "sample"}


def contents(root: str) -> Counter[tuple[str, str]]:
    """(name without ids, sha256) of every object of a finished job."""
    found: Counter[tuple[str, str]] = Counter()
    for info in storage.list_files(root):
        path, data = info.uri[len(root) :], storage.read_bytes(info.uri)
        if TELLS.search(path):
            continue
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            table = table.drop_columns(sorted(PLACES & set(table.column_names))).replace_schema_metadata()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table.combine_chunks())
            data = sink.getvalue().to_pybytes()
        if path.endswith((".json", ".md", ".vrt", ".tif")):  # they name their inputs by digests
            data = IDS.sub(b"#", data.replace(root.encode(), b""))
        found[IDS.sub(b"#", path.encode()).decode(), hashlib.sha256(data).hexdigest()] += 1
    return found


def run(root: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, SCRIPT, root], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def test_a_job_in_a_real_store_leaves_what_a_local_one_does(ceph: ceph_server.Server, tmp_path: Path) -> None:
    root, over, down = ceph.bucket("job"), threading.Event(), list[float]()

    def kills() -> None:
        """kill -9 of the whole server, 20 s without one, and it is there again; three times."""
        for _ in range(3):
            if over.wait(random.uniform(20, 60)):
                return
            begin = time.monotonic()
            ceph.kill()
            time.sleep(20)
            ceph.restart()
            down.append(time.monotonic() - begin)

    killer = threading.Thread(target=kills)
    killer.start()
    try:
        stored = run(root)
    finally:
        over.set()
        killer.join()
    local = run(str(tmp_path))
    print(
        f"\nS3 {stored['seconds']:.0f} s, of these without a server {sum(down):.0f} s; local {local['seconds']:.0f} s"
    )
    assert {status for status, _ in stored["verbs"].values()} == {"complete"}
    assert len(down) == 3, "it was killed too seldom"
    ours, theirs = contents(root), contents(str(tmp_path))
    assert ours == theirs, [*(ours - theirs), *(theirs - ours)][:10]
    assert ours.total() > 300
    kinds = Counter(name.rpartition(".")[2] for name, _ in ours.elements())
    for kind in ("tiff", "parquet", "png", "json", "safetensors"):
        assert kinds[kind], kinds
