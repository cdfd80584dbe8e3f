"""The command line: exit codes, words on stderr, what --data finds."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from sar2eo_dist import lease, storage
from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, Sar2EoError, TooManyFailures
from sar2eo_dist.ledger import Entry, Ledger
from sar2eo_dist.pipeline import job, stage, units
from sar2eo_dist.pipeline.job import main, multiearth
from sar2eo_dist.pipeline.stage import Failure, Options, Summary, run_stage
from sar2eo_dist.pipeline.synthesise import with_world
from sar2eo_dist.records import Unit

UNITS = [Unit("shard", f"k{i}", "f", "i") for i in range(4)]


def verb(failing: int, seen: list[Options] | None = None, error: Exception | None = None):  # type: ignore[no-untyped-def]
    """A verb whose first units always fail."""

    def shard(cfg: Config, opts: Options) -> Summary:
        if seen is not None:
            seen.append(opts)
        if error:
            raise error

        def execute(todo, attempt):  # type: ignore[no-untyped-def]
            for unit in todo:
                bad = unit in UNITS[:failing]
                yield Failure(unit.id, "boom") if bad else Entry(unit, (), 0.1, attempt=attempt)

        return run_stage(cfg, opts, "shard", UNITS, execute, "")

    return shard


def run(tmp_path: Path, a_verb, *args: str) -> int:  # type: ignore[no-untyped-def]
    return main("shard", [a_verb], "about", ["--set", f"run.out={tmp_path}", *args])


def test_done_is_zero_and_the_config_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, verb(0)) == 0
    assert "shard: complete, 4/4 units" in capsys.readouterr().out
    assert load(str(tmp_path / "config.yaml")).run.out == str(tmp_path)
    assert run(tmp_path, verb(4)) == 0  # nothing is run again, so nothing can fail
    assert "all found done" in capsys.readouterr().out


def test_partial_is_zero_or_three_with_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "a", verb(1), "--set", "run.tolerance=0.3") == 0
    assert "partial, 3/4 units, 1 quarantined" in capsys.readouterr().out
    assert run(tmp_path / "b", verb(1), "--set", "run.tolerance=0.3", "--strict") == 3
    assert len(Ledger(str(tmp_path / "a")).done("shard")) == 3


def test_beyond_the_tolerance_is_one_and_the_summary_says_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, verb(2), "--set", "run.max_attempts=2") == 1
    assert "2 of 4 units failed 2 times" in capsys.readouterr().err
    summary = json.loads((tmp_path / "shard" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert [q["reason"] for q in summary["quarantined"]] == ["boom", "boom"]


def test_a_wrong_config_is_two_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "new", verb(0), "--set", "cca.bta=1") == 2
    assert "did you mean 'beta'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run(tmp_path, verb(0, error=ConfigError("nothing to do"))) == 2
    assert run(tmp_path, verb(0, error=TooManyFailures("x"))) == 1
    assert run(tmp_path, verb(0), "--limit", "-1") == 2
    with pytest.raises(SystemExit) as e:
        run(tmp_path, verb(0), "--nonsense")
    assert e.value.code == 2


def test_options_reach_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Options] = []
    assert run(tmp_path / "d", verb(0, seen), "--dry-run", "--limit", "2", "--fresh") == 0
    assert seen == [Options(dry_run=True, fresh=True, strict=False, limit=2)]
    assert "would run 2 of 2" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()
    assert run(tmp_path / "e", verb(0), "--limit", "2") == 0
    assert len(Ledger(str(tmp_path / "e")).done("shard")) == 2
    assert run(tmp_path / "e", verb(0), "--fresh") == 0
    assert "4/4 units in" in capsys.readouterr().out


def test_a_verb_that_raises_leaves_no_summary_that_says_complete(tmp_path: Path) -> None:
    assert run(tmp_path, verb(0)) == 0
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "summary.json").write_text('{"status": "complete"}')
    assert run(tmp_path, verb(0, error=Sar2EoError("the store burns"))) == 1
    summary = json.loads((tmp_path / "shard" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "the store burns" in summary["quarantined"][0]["reason"]


def test_fresh_plans_all_and_takes_back_only_what_it_redoes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, verb(0)) == 0
    assert run(tmp_path, verb(0), "--fresh", "--dry-run") == 0
    assert "would run 4 of 4" in capsys.readouterr().out
    assert len(Ledger(str(tmp_path)).done("shard")) == 4
    assert run(tmp_path, verb(0), "--fresh", "--limit", "1") == 0
    assert len(Ledger(str(tmp_path)).done("shard")) == 4


def test_damaged_outputs_of_finished_units_are_made_again(tmp_path: Path) -> None:
    made: list[str] = []

    def shard(cfg: Config, opts: Options) -> Summary:
        def execute(todo, attempt):  # type: ignore[no-untyped-def]
            for unit in todo:
                made.append(unit.key)
                yield Entry(unit, (storage.publish(cfg.run.out, f"shards/{unit.key}", b"data"),), 0.1)

        return run_stage(cfg, opts, "shard", UNITS, execute, "")

    assert run(tmp_path, shard) == 0
    (tmp_path / "shards" / "k1").unlink()
    (tmp_path / "shards" / "k2").write_bytes(b"da")
    assert run(tmp_path, shard) == 0
    assert made == ["k0", "k1", "k2", "k3", "k1", "k2"]
    assert Ledger(str(tmp_path)).audit(UNITS) == []


def test_a_store_that_stays_down_stops_the_run_and_one_that_comes_back_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failures of the outage alone for longer than OUTAGE_S; every answer, be it a failure of another kind, starts anew."""
    monkeypatch.setattr(stage, "OUTAGE_S", 0.15)
    tried: list[str] = []

    def shard(reasons: dict[str, str]):  # type: ignore[no-untyped-def]
        def verb(cfg: Config, opts: Options) -> Summary:
            def execute(todo, attempt):  # type: ignore[no-untyped-def]
                for unit in todo:
                    tried.append(unit.key)
                    time.sleep(0.1)
                    yield Failure(unit.id, reasons[unit.key]) if reasons.get(unit.key) else Entry(unit, (), 0.1)

            return run_stage(cfg, opts, "shard", UNITS, execute, "")

        verb.__name__ = "shard"
        return verb

    down = "Unavailable: store did not answer: s3://b/x"
    assert run(tmp_path / "a", shard(dict.fromkeys(("k0", "k1", "k2", "k3"), down))) == 1
    assert tried == ["k0", "k1", "k2"]  # 0.2 s after the first
    assert "resume with the same command. Unavailable" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "shard" / "summary.json").read_text())["status"] == "failed"
    tried.clear()
    assert run(tmp_path / "b", shard({"k0": down, "k2": "BadInput: torn"}), "--set", "run.tolerance=1") == 0
    assert tried[:4] == ["k0", "k1", "k2", "k3"]


def test_an_audit_share_hashes_so_many_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shard(cfg: Config, opts: Options) -> Summary:
        def execute(todo, attempt):  # type: ignore[no-untyped-def]
            for unit in todo:
                yield Entry(unit, (storage.publish(cfg.run.out, f"shards/{unit.key}", b"data"),), 0.1)

        return run_stage(cfg, opts, "shard", UNITS, execute, "")

    assert run(tmp_path, shard) == 0
    for unit in UNITS:
        (tmp_path / "shards" / unit.key).write_bytes(b"Data")  # the same size
    assert run(tmp_path, shard) == 0  # a plain resume does not look inside
    capsys.readouterr()
    assert run(tmp_path, shard, "--audit", "0.5") == 0
    assert "outputs of 2 of 4 units hashed again, 2 faults" in capsys.readouterr().out
    assert run(tmp_path, shard, "--audit", "--dry-run") == 1
    assert "2 audit failure(s)" in capsys.readouterr().err
    assert run(tmp_path, shard, "--audit", "1.5") == 2
    assert run(tmp_path, shard, "--audit", "--fresh") == 2
    assert Ledger(str(tmp_path)).audit(UNITS)
    assert run(tmp_path, shard, "--audit") == 0
    assert Ledger(str(tmp_path)).audit(UNITS) == []


@pytest.mark.cluster
def test_a_unit_that_kills_its_worker_is_quarantined_and_the_others_are_done(ray_session: None, tmp_path: Path) -> None:
    def work(unit: Unit, payload: object, attempt: int) -> Entry:
        if unit.key == "k1":
            os._exit(1)
        return Entry(unit, (), 0.1, attempt=attempt)

    def execute(todo, attempt):  # type: ignore[no-untyped-def]
        yield from units.run(work, [(u, None) for u in todo], attempt)

    cfg = load(overrides=[f"run.out={tmp_path}", "run.max_attempts=2", "run.tolerance=0.5"])
    summary = run_stage(cfg, Options(), "shard", UNITS, execute, "")
    assert summary.status == "partial"
    assert [q["key"] for q in summary.quarantined] == ["k1"]
    assert "worker died" in summary.quarantined[0]["reason"]


def test_ready_pairs_are_not_collected(tmp_path: Path) -> None:
    ran: list[str] = []

    def collect(cfg: Config, opts: Options) -> str:
        ran.append("collect")
        return ""

    def shard(cfg: Config, opts: Options) -> str:
        ran.append("shard")
        return ""

    args = ["--set", f"run.out={tmp_path}", "--set", "data.kind=folder_pair"]
    assert main("demo", [collect, shard], "about", args) == 0
    assert ran == ["shard"]
    assert main("demo", [collect, shard], "about", args[:2]) == 0
    assert ran == ["shard", "collect", "shard"]


def test_data_finds_both_layouts(tmp_path: Path) -> None:
    for name in ("sent1_x.nc", "sent2_x.nc", "target.nc"):
        (tmp_path / name).write_bytes(b"x")
    found = dict(o.split("=", 1) for o in multiearth(str(tmp_path)))
    assert found["data.kind"] == "multiearth_netcdf"
    assert found["data.target"].endswith("target.nc")
    for sensor in "12":
        (tmp_path / f"sent{sensor}").mkdir()
        (tmp_path / f"sent{sensor}" / "a.tiff").write_bytes(b"x")
    found = dict(o.split("=", 1) for o in multiearth(str(tmp_path)))
    assert (found["data.kind"], found["data.s1"]) == ("multiearth_tiff", str(tmp_path / "sent1"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no sent1/"):
        multiearth(str(tmp_path / "empty"))


def test_the_synthetic_world_fills_in_what_is_not_set() -> None:
    cfg = with_world(load(overrides=["synthetic.enabled=true", "data.scenes=s3://b/x.tif", "data.units=db"]))
    assert cfg.data.s1.endswith("/sent1")
    assert cfg.data.scenes == "s3://b/x.tif"
    assert cfg.data.units == "db"
    assert cfg.cca.reference.endswith("/reference")
    assert with_world(load()).data.s1 == ""


def test_sigterm_stops_cleanly_and_the_summary_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def shard(cfg: Config, opts: Options) -> Summary:
        def execute(todo, attempt):  # type: ignore[no-untyped-def]
            yield Entry(todo[0], (), 0.1)
            os.kill(os.getpid(), signal.SIGTERM)  # as `ray job stop` does
            time.sleep(30)

        return run_stage(cfg, opts, "shard", UNITS, execute, "")

    try:
        assert run(tmp_path, shard) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "the same command resumes it" in capsys.readouterr().err
    assert json.loads((tmp_path / "shard/summary.json").read_text())["status"] == "stopped"
    assert len(Ledger(str(tmp_path)).done("shard")) == 1
    assert run(tmp_path, verb(0)) == 0  # the lease was given back
    assert "4/4 units (1 found done)" in capsys.readouterr().out


def test_a_run_folder_in_use_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lease.held(str(tmp_path), "jobs/basin.py", 3.0, "night-1"):
        assert run(tmp_path, verb(0), "--set", "run.lease_s=3") == 1
        assert "LeaseHeld: in use by jobs/basin.py" in capsys.readouterr().err
        assert run(tmp_path, verb(0), "--dry-run") == 0
    assert not (tmp_path / "shard").exists()


def test_an_older_image_than_the_one_that_wrote_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "__version__", "0.10.1")
    assert run(tmp_path, verb(0)) == 0
    monkeypatch.setattr(job, "__version__", "0.9.12")
    assert run(tmp_path, verb(0)) == 2
    assert "0.10.1 has written this run folder: use its image or a newer one" in capsys.readouterr().err
    monkeypatch.setattr(job, "__version__", "0.11.0")
    assert run(tmp_path, verb(0)) == 0


def test_a_job_whose_folder_was_taken_over_leaves_the_others_summary_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was cut off for longer than its lease: it ends by name, and says nothing of a folder that is no longer its own."""
    theirs = tmp_path / "shard/summary.json"

    def shard(cfg: Config, opts: Options) -> Summary:
        other = lease.Holder("x", "jobs/other.py", "", "now", "elsewhere", "another machine", 1, "")
        number, _ = lease.newest_of(str(tmp_path))
        storage.put(str(theirs), b"{}")
        assert storage.put_if_absent(lease._uri(str(tmp_path), number + 1), other.to_json())
        time.sleep(30)
        raise AssertionError("it was not told")

    assert run(tmp_path, shard, "--set", "run.lease_s=3") == 1
    assert "LeaseLost: another job took this run folder over" in capsys.readouterr().err
    assert theirs.read_text() == "{}"
