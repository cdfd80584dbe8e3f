"""The command line: exit codes, words on stderr, what --data finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sar2eo_dist.config import Config, load
from sar2eo_dist.errors import ConfigError, TooManyFailures
from sar2eo_dist.ledger import Entry, Ledger
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
    cfg = with_world(load(overrides=["synthetic.enabled=true", "data.scene=s3://b/x.tif", "data.units=db"]))
    assert cfg.data.s1.endswith("/sent1")
    assert cfg.data.scene == "s3://b/x.tif"
    assert cfg.data.units == "db"
    assert cfg.cca.reference.endswith("/reference")
    assert with_world(load()).data.s1 == ""
