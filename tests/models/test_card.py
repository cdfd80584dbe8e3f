"""The model card: all facts of a bundle, nothing that they do not say, equal facts to equal text."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest

from sar2eo_dist import config
from sar2eo_dist.models import bundle, card

INFO = bundle.BundleInfo(
    model="pix2pixhd", options={"ngf": 4, "norm": "instance"}, in_channels=3, out_channels=3, units="db",
    scaling={"sar": "fixed", "eo": "fixed", "third": "mean_db", "median": 3}, quantity="sigma0",
    sar_bands=("VV", "VH"), eo_bands=("B4", "B3", "B2"), data="d" * 32, code="sar2eo_dist 0.1.0", step=123456,
    metrics={"ssim": math.nan, "mae": 0.25}, weights_sha256="e" * 64, role="translate",
)  # fmt: skip


def lines(**changes):
    return card.text(dataclasses.replace(INFO, **changes), 182_443_267).splitlines()


def test_every_fact_is_on_the_page():
    found = lines()
    assert found[0] == "# pix2pixhd: radar to optical"
    for line in (
        "| network | `pix2pixhd`, 182,443,267 parameters |", "| trained | 123,456 steps |",
        f"| training data | digest `{'d' * 32}` |", "| code | `sar2eo_dist 0.1.0` |", "| ngf | `4` |",
        '| norm | `"instance"` |', f"| weights | `weights.safetensors`, sha256 `{'e' * 64}` |", "| mae | 0.25 |",
        "| ssim | not measured |",
        "- Channels: VV, VH in this order, then (VV + VH) / 2 in dB; sigma0 in dB.",
        "- First a median blur of 3 x 3 pixels.", "(N, 3, H, W) float32 in [-1, 1]: B4, B3, B2 in this order.",
        "from sar2eo_dist.models import bundle",
    ):  # fmt: skip
        assert line in found, line
    assert "None were recorded: the quality of this network was not measured." in lines(metrics={})
    assert "- No median blur." in lines(scaling={"sar": "fixed"})
    assert any("linear power" in line for line in lines(units="linear"))


def test_equal_facts_give_equal_text_in_whatever_order():
    turned = {k: dict(reversed(getattr(INFO, k).items())) for k in ("options", "scaling", "metrics")}
    assert lines(**turned) == lines()
    for change in ({"step": 1}, {"metrics": {}}, {"role": ""}, {"sar_bands": ("VH", "VV")}, {"quantity": "gamma0"}):
        assert lines(**change) != lines()


def test_every_scaling_of_the_config_has_words():
    hints = get_type_hints(config.Scaling)
    for name, words in (("sar", card.SAR), ("eo", card.EO), ("third", card.THIRD)):
        assert set(get_args(hints[name])) == set(words)
        for value, said in words.items():
            assert any(said in line for line in lines(scaling=INFO.scaling | {name: value}))
    assert any("as that version of the code defines it" in line for line in lines(scaling={"sar": "new"}))


@pytest.mark.parametrize(("change", "words", "shown"), [
    ({}, "non-commercial", False),
    ({"model": "restormer"}, "non-commercial", True),
    ({}, "for single patches", False),
    ({"scaling": INFO.scaling | {"sar": "tanh"}}, "for single patches", True),
    ({"role": "enhance"}, "The output of a translator: B4, B3, B2", True),
    ({"role": ""}, "does not record which", True),
    ({"in_channels": 13}, "does not say how the channels are made", True),
    ({"in_channels": 2}, "- Channels: VV, VH in this order; sigma0 in dB.", True),
    ({}, "real or synthetic, and of which region, is not recorded here", True),
])  # fmt: skip
def test_what_is_said_only_where_it_holds(change, words, shown):
    assert any(words in line for line in lines(**change)) == shown
