"""What each profile keeps and drops: real patches, real scenes pixel by pixel labelled, the synthetic world. `make bench`.

A tile is called cloudy by a profile if any rule rejects it; a peer's mask calls it cloudy above the same share, 0.005. AUC is
of a score that rises with cloud: white_fraction for `recommended`; max_dn, which alpha judges, for the published ones.
Patches and labelled scenes were looked at while the rule of `recommended` took its form (cca/cloud.py); the clear scene
"nz" was too, "spain" and the synthetic world of this seed were judged afterwards.
"""

from __future__ import annotations

from pathlib import Path

import cloud_scenes
import numpy as np

from sar2eo_dist.cca import Assessment, assess
from sar2eo_dist.sections import CCA

PROFILES = ("none", "paper", "released", "recommended")
SEED = 909  # no threshold was derived with it
SHARES = ((0, 0.002), (0.002, 0.02), (0.02, 0.08), (0.08, 0.3), (0.3, 0.8), (0.8, 1.01))


def judged(bands: np.ndarray, qa60: np.ndarray | None, level: str) -> dict[str, Assessment]:
    return {p: assess(bands, qa60, CCA(profile=p, level=level)) for p in PROFILES}


def test_labelled_patches(samples: Path) -> None:
    print("\nMultiEarth patches (L2A), what rejects each")
    print(f"{'date':12}{'label':8}" + "".join(f"{p:>13}" for p in PROFILES) + "  white_fraction   light    haze")
    right = dict.fromkeys(PROFILES, 0)
    for date, label, bands, qa60 in cloud_scenes.patches(samples):
        found = judged(bands, qa60, "l2a")
        m = found["recommended"]
        print(f"{date:12}{label:8}" + "".join(f"{found[p].reason or 'kept':>13}" for p in PROFILES)
              + f"{m.white_fraction:>16.5f}{m.light:>8.0f}{m.haze:>8.1f}")  # fmt: skip
        for p in PROFILES:
            right[p] += (found[p].reason == "") == (label == "clear")
    print(f"{'right of 8':20}" + "".join(f"{right[p]:>13}" for p in PROFILES))
    assert right["recommended"] == 8


def test_labelled_scenes(samples: Path) -> None:
    print(f"\n{cloud_scenes.SIDE} px tiles of L1C scenes: cloudy >= 5 % cloud, clear <= 0.5 %, the rest left out")
    head = f"{'scene':13}{'label':14}{'tiles':>6}{'cloudy':>7}  {'judge':14}{'precision':>10}{'recall':>8}{'AUC':>7}"
    print(head + "  dropped clear")
    for name in ("ukis", "s2cloudless", "nz", "spain"):
        bands, masks = cloud_scenes.scene(samples, name)
        for label in masks:
            if (name, label) == ("ukis", "ukis-csmask"):
                continue  # a person's mask is there
            found, shares = cloud_scenes.tiles(bands, masks, label)
            cloudy = shares[label] >= cloud_scenes.CLOUDY
            seen = [judged(t, None, "l1c") for t in found]
            judges = {}
            for p in PROFILES:
                score = "white_fraction" if p == "recommended" else "max_dn"
                values = np.array([getattr(s[p], score) if p != "none" else 0.0 for s in seen])
                judges[p] = (np.array([bool(s[p].reason) for s in seen]), values)
            judges |= {k: (v > cloud_scenes.CLEAR, v) for k, v in shares.items() if k != label}
            for judge, (dropped, score) in judges.items():
                hits, wrong = int((dropped & cloudy).sum()), int((dropped & ~cloudy).sum())
                precision, recall = hits / max(1, dropped.sum()), hits / max(1, cloudy.sum())
                print(
                    f"{name:13}{label:14}{len(found):>6}{cloudy.sum():>7}  {judge:14}{precision:>10.3f}{recall:>8.3f}"
                    f"{cloud_scenes.auc(score, cloudy):>7.3f}{wrong:>8} of {(~cloudy).sum()}"
                )


def test_synthetic_world() -> None:
    views = list(cloud_scenes.world(SEED, 300))
    found = [judged(v.bands, v.qa60, "l2a") for v in views]
    labels, share = np.array([v.label for v in views]), np.array([v.cloud_fraction for v in views])
    dropped = {p: np.array([bool(f[p].reason) for f in found]) for p in PROFILES}
    print(f"\nsynthetic world, seed {SEED}, {len(views)} windows of 256 px: share dropped")
    print(f"{'':34}{'windows':>8}" + "".join(f"{p:>13}" for p in PROFILES))
    day = (labels != "night") & (labels != "swath_edge")
    groups = {f"label {name}": labels == name for name in sorted(set(labels))}
    groups |= {
        f"cloud {100 * a:g} to {100 * min(b, 1):g} %, by day, whole": day & (share >= a) & (share < b)
        for a, b in SHARES
    }
    groups |= {"of them haze, cloud < 0.2 %": (labels == "haze") & (share < 0.002)}
    for name, rows in groups.items():
        print(f"{name:34}{rows.sum():>8}" + "".join(f"{dropped[p][rows].mean():>13.3f}" for p in PROFILES))
    clear = labels == "clear"
    assert dropped["recommended"][clear].mean() < 0.02
    assert dropped["recommended"][day & (share >= 0.08)].mean() > 0.98
