"""Scaling of whole batches in torch against radiometry, image by image: every variant, with and without holes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sar2eo_dist import radiometry
from sar2eo_dist.errors import BadInput, ConfigError
from sar2eo_dist.training.scaling import exchanges, scale_eo, scale_sar

SARS, THIRDS = ("minmax", "tanh", "tanh_fixed", "fixed"), ("ratio_stretched", "difference_db", "mean_db")
BOUND = {"minmax": 0, "fixed": 0, "tanh_fixed": 1e-6, "tanh": 1e-5}  # of tanh, the last bits are the library's

#: few distinct values, so that ties, constant images and MAD = 0 occur; the ends of int16; nodata
count_values = st.one_of(
    st.integers(-3500, 500), st.sampled_from([-1200, -1200, -1201, 0, 32767, -32767]), st.just(radiometry.DB_NODATA)
)
sizes = st.tuples(st.integers(1, 3), st.just(2), st.integers(1, 7), st.integers(1, 6))
count_batches = sizes.flatmap(
    lambda s: st.one_of(
        hnp.arrays(np.int16, s, elements=count_values),
        hnp.arrays(np.int16, s, elements=count_values, fill=st.sampled_from([-1013, radiometry.DB_NODATA])),
    )
)


def close(counts, scaling):
    got = scale_sar(torch.from_numpy(counts), scaling)
    want = np.stack([radiometry.scale_sar(radiometry.decode_db(image), scaling) for image in counts])
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=BOUND[scaling.sar])


@given(count_batches, st.sampled_from(SARS), st.sampled_from(THIRDS), st.sampled_from((0, 3, 5)))
@settings(max_examples=150, deadline=None)
def test_sar_equals_radiometry(counts, sar, third, median):
    close(counts, SimpleNamespace(sar=sar, third=third, median=median))


@pytest.mark.parametrize("sar", SARS)
def test_sar_of_real_looking_patches(sar):
    rng = np.random.default_rng(0)
    db = 10 * np.log10(rng.gamma(4, 0.25, (2, 2, 40, 33))) + np.array([-8, -14])[:, None, None]
    counts = radiometry.encode_db(db)
    counts[1, 0, :9] = counts[1, 1, 20:, 30] = radiometry.DB_NODATA
    for third, median in itertools.product(THIRDS, (0, 3, 5)):
        close(counts, SimpleNamespace(sar=sar, third=third, median=median))


@given(
    sizes.flatmap(
        lambda s: st.tuples(
            hnp.arrays(
                np.uint16, (s[0], 3, *s[2:]), elements=st.one_of(st.integers(0, 65535), st.sampled_from([7, 3000]))
            ),
            hnp.arrays(bool, (s[0], *s[2:])),
        )
    ),
    st.sampled_from(("minmax", "fixed")),
)
@settings(max_examples=60, deadline=None)
def test_eo_equals_radiometry(arrays, eo):
    dn, valid = arrays
    scaling = SimpleNamespace(eo=eo)
    got = scale_eo(torch.from_numpy(dn), torch.from_numpy(valid), scaling).numpy()
    np.testing.assert_array_equal(
        got, np.stack([radiometry.scale_eo(*a, scaling) for a in zip(dn, valid, strict=True)])
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9])
def test_the_network_sorts(n):
    """By the 0-1 principle: what sorts all sequences of zeros and ones sorts everything."""
    rows = np.array(list(itertools.product((0, 1), repeat=n)))
    columns = list(rows.T)
    for i, j in exchanges(n):
        assert i < j
        columns[i], columns[j] = np.minimum(columns[i], columns[j]), np.maximum(columns[i], columns[j])
    np.testing.assert_array_equal(np.stack(columns, 1), np.sort(rows, 1))


def test_the_network_of_25_sorts():
    rows = np.random.default_rng(0).integers(0, 9, (4000, 25))
    columns = list(rows.T)
    for i, j in exchanges(25):
        columns[i], columns[j] = np.minimum(columns[i], columns[j]), np.maximum(columns[i], columns[j])
    np.testing.assert_array_equal(np.stack(columns, 1), np.sort(rows, 1))


def test_impossible_input_is_named():
    good = SimpleNamespace(sar="fixed", third="mean_db", median=3, eo="fixed")
    counts = torch.zeros((1, 2, 4, 4), dtype=torch.int16)
    with pytest.raises(BadInput, match=r"\(2, 4, 4\)"):
        scale_sar(counts[0], good)
    with pytest.raises(BadInput, match="float32"):
        scale_sar(counts.float(), good)
    with pytest.raises(BadInput, match="valid mask"):
        scale_eo(torch.zeros((1, 3, 4, 4)), torch.ones((1, 4, 5), dtype=torch.bool), good)
    for key, value in {"sar": "z-score", "third": "sum", "median": 7}.items():
        with pytest.raises(ConfigError, match=str(value)):
            scale_sar(counts, SimpleNamespace(**{**vars(good), key: value}))
    with pytest.raises(ConfigError, match="tanh"):
        scale_eo(torch.zeros((1, 3, 4, 4)), torch.ones((1, 4, 4), dtype=torch.bool), SimpleNamespace(eo="tanh"))
