"""Moments and reference sets: merging, what they hold, their files, and pytorch-fid's own."""

from __future__ import annotations

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from gaussians import maps_of, moments, peer, pooled
from hypothesis import given, settings
from hypothesis import strategies as st

from sar2eo_dist.cca.reference import KINDS, Moments, Reference
from sar2eo_dist.errors import ReferenceSetError
from sar2eo_dist.models import _torchvision


def npz(**arrays) -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, **arrays)
    return sink.getvalue()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from((0.0, 1e6)), st.data())
def test_moments_merge_in_any_cut_and_order(sizes, seed, offset, data):
    x = pooled(sum(sizes) + 2, 6, seed, offset)
    parts = [Moments.from_features(part) for part in np.split(x, np.cumsum(sizes))]
    while len(parts) > 1:  # any tree of merges
        i = data.draw(st.integers(0, len(parts) - 1))
        one = parts.pop(i)
        j = data.draw(st.integers(0, len(parts) - 1))
        parts[j] = parts[j].merge(one)
    (merged,) = parts
    assert merged.count == len(x)
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_of_float32_are_centred_in_float64():
    x = (pooled(50, 4, 0) + 4096).astype(np.float32)
    np.testing.assert_allclose(
        Moments.from_features(x).covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12
    )


@pytest.mark.parametrize(("n", "rank"), [(9, 8), (20, 19), (60, 20)])
def test_reference_holds_the_covariance(n, rank):
    x = pooled(n, 20, 5)
    r = Reference.from_features(x, "e", "p")
    assert (r.count, r.extractor, r.preprocessing, r.kind) == (n, "e", "p", "pooled")
    assert (r.factor.shape, r.factor.dtype) == ((20, rank), np.float32)
    np.testing.assert_allclose(r.factor @ r.factor.T, np.cov(x, rowvar=False), atol=1e-6)
    np.testing.assert_allclose(r.mean, x.mean(0), rtol=1e-12)
    assert r.trace == pytest.approx(np.trace(np.cov(x, rowvar=False)), rel=1e-12)


@pytest.mark.parametrize("images", [2, 12])
def test_reference_of_moments_in_parts(images):
    """Positions of images that come a pack at a time; of 2 images there are fewer samples than features."""
    maps = maps_of(images, 9, 40, 3)
    packs = [Moments.from_features(m.reshape(-1, 40)) for m in np.split(maps, 2)]
    r = Reference.from_moments(packs[0].merge(packs[1]), "e", "p", "positions", images)
    x = maps.reshape(-1, 40).astype(np.float64)
    assert (r.kind, r.count) == ("positions", images)
    assert r.factor.shape == (40, min(40, len(x) - 1))
    np.testing.assert_allclose(r.factor @ r.factor.T, np.cov(x, rowvar=False), atol=1e-6)
    np.testing.assert_allclose(r.mean, x.mean(0), rtol=1e-12)
    with pytest.raises(ReferenceSetError, match="2 images or more, not 1"):
        Reference.from_moments(Moments.from_features(x[:1]), "e", "p", "positions", 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [9, 30])
def test_reference_round_trip(n, kind):
    def made():
        x = Moments.from_features(pooled(n, 20, 5).astype(np.float32))
        return Reference.from_moments(x, "efficientnet_lite0", "299 px, bilinear", kind, n)

    r, data = made(), made().to_bytes()
    back = Reference.from_bytes(data)
    assert back.to_bytes() == data == r.to_bytes()
    for f in dataclasses.fields(Reference):
        assert np.array_equal(getattr(back, f.name), getattr(r, f.name)), f.name
    with np.load(io.BytesIO(data), allow_pickle=False) as z:
        assert all(z[name].dtype != object for name in z.files)


def test_digest_follows_everything():
    r = Reference.from_features(pooled(30, 9, 5), "e", "p")
    assert r.factor.shape == (9, 9)
    changes = [{"extractor": "f"}, {"preprocessing": "q"}, {"count": 8}, {"kind": "positions"}, {"mean": r.mean + 1}]
    changes += [{"trace": r.trace * (1 + 1e-15)}, {"factor": r.factor * 2}, {"factor": r.factor.reshape(9, 3, 3)[:, 0]}]
    flat = dataclasses.replace(r, mean=r.mean[:1], factor=r.factor.reshape(1, 81))
    tall = dataclasses.replace(r, mean=r.mean[:1], factor=r.factor.reshape(1, 81)[:, :80])
    others = [dataclasses.replace(r, **change) for change in changes] + [flat, tall]
    assert len({r.digest, *(o.digest for o in others)}) == 1 + len(others)
    assert r.digest == Reference.from_features(pooled(30, 9, 5), "e", "p").digest


def test_check():
    r = Reference.from_features(pooled(5, 4, 0), "inception", "p")
    r.check("inception", "p", "pooled")
    for made in (("efficientnet_lite0", "p", "pooled"), ("inception", "q", "pooled"), ("inception", "p", "positions")):
        with pytest.raises(ReferenceSetError) as e:
            r.check(*made)
        assert r.digest in str(e.value)
        assert repr(made) in str(e.value)
        assert "cca.extractor and cca.distance" in str(e.value)


def test_what_is_refused():
    x = pooled(5, 4, 0)
    for few in (x[:0], x[:1]):
        with pytest.raises(ReferenceSetError, match=f"{len(few)} images"):
            Reference.from_features(few, "e", "p")
    with pytest.raises(ReferenceSetError, match="not 1"):
        _ = Moments.from_features(x[:1]).covariance
    bad = x.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ReferenceSetError, match="1 of 5 images are not finite, first: image 3"):
        Reference.from_features(bad, "e", "p")
    with pytest.raises(ReferenceSetError, match=r"\(4,\)"):
        Reference.from_features(x[0], "e", "p")
    with pytest.raises(ReferenceSetError, match="4 and 3"):
        Moments.from_features(x).merge(Moments.from_features(x[:, :3]))
    with pytest.raises(ReferenceSetError, match="kind 'maps'"):
        Reference.from_moments(Moments.from_features(x), "e", "p", "maps", 5)


def test_bytes_that_are_no_reference():
    r = Reference.from_features(pooled(5, 8, 0), "e", "p")
    data = r.to_bytes()
    flipped = bytearray(data)
    flipped[data.index(r.mean.tobytes())] ^= 1
    for bad in (b"", b"no", data[:-30], data[: len(data) // 2], bytes(flipped)):
        with pytest.raises(ReferenceSetError, match="bytes are no reference set"):
            Reference.from_bytes(bad)
    with np.load(io.BytesIO(data)) as z:
        whole = {name: z[name] for name in z.files}
    Reference.from_bytes(npz(**whole))
    for name, value in {
        "mean": r.mean + 1,
        "count": np.int64(6),
        "kind": np.frombuffer(b"positions", np.uint8),
    }.items():
        with pytest.raises(ReferenceSetError, match="corrupt: digest"):
            Reference.from_bytes(npz(**whole | {name: value}))
    for name in set(whole) - {"kind"}:
        with pytest.raises(ReferenceSetError):
            Reference.from_bytes(npz(**{k: v for k, v in whole.items() if k != name}))
    with pytest.raises(ReferenceSetError, match="older version .* build it again"):
        Reference.from_bytes(npz(**{k: v for k, v in whole.items() if k != "kind"}))
    with pytest.raises(ReferenceSetError, match="pytorch-fid's statistics"):
        Reference.from_bytes(npz(mu=r.mean, sigma=np.eye(8)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_never_read(data):
    whole = Reference.from_features(pooled(3, 4, 0), "e", "p").to_bytes()
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ReferenceSetError):
        # a bit that no reader looks at (a time stamp) may change; what is read then is the same
        assert Reference.from_bytes(bytes(broken)).to_bytes() == whole


def statistics_of_path(path) -> tuple[np.ndarray, np.ndarray]:
    """pytorch-fid's own loader."""
    _torchvision.ensure()
    from pytorch_fid.fid_score import compute_statistics_of_path

    return compute_statistics_of_path(str(path), None, 1, 2048, "cpu")


@pytest.mark.parametrize("n", [9, 50])
def test_pytorch_fid_reads_what_we_write(tmp_path, n):
    x, y = pooled(n, 12, 1), pooled(40, 12, 2, 0.1)
    (tmp_path / "ours.npz").write_bytes(Reference.from_features(x, "inception", "p").to_pytorch_fid())
    mu, sigma = statistics_of_path(tmp_path / "ours.npz")
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(x, rowvar=False), atol=1e-6 * sigma.max())
    assert peer(mu, sigma, *moments(y)) == pytest.approx(peer(*moments(x), *moments(y)), rel=1e-5)


@pytest.mark.parametrize("n", [9, 50])
def test_what_pytorch_fid_writes_is_read(tmp_path, n):
    x = pooled(n, 12, 1)
    mu, sigma = moments(x)
    r = Reference.from_pytorch_fid(npz(mu=mu, sigma=sigma), "p")  # np.savez_compressed, as save_fid_stats
    assert (r.extractor, r.preprocessing, r.kind, r.count) == ("inception", "p", "pooled", 0)
    assert np.array_equal(r.mean, mu)
    assert r.trace == pytest.approx(np.trace(sigma), rel=1e-12)
    np.testing.assert_allclose(r.factor @ r.factor.T, sigma, atol=1e-6 * sigma.max())
    assert Reference.from_bytes(r.to_bytes()).digest == r.digest
    (tmp_path / "again.npz").write_bytes(r.to_pytorch_fid())
    again = statistics_of_path(tmp_path / "again.npz")
    assert np.array_equal(again[0], mu)
    np.testing.assert_allclose(again[1], sigma, atol=1e-6 * sigma.max())


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_bad_pytorch_fid_statistics():
    mu, sigma = moments(pooled(9, 4, 1))
    skew, negative = sigma.copy(), sigma - np.eye(4) * np.trace(sigma)
    skew[0, 1] += 1
    for bad, why in {
        b"": "no reference set",
        npz(mu=mu): r"wanted arrays mu and sigma, found \['mu'\]",
        npz(mu=mu, sigma=sigma[:3]): r"sigma \(3, 4\)",
        npz(mu=mu[None], sigma=sigma): r"mu \(1, 4\)",
        npz(mu=mu, sigma=sigma * 1j): "complex128",
        npz(mu=mu.astype(str), sigma=sigma): "<U",
        npz(mu=mu, sigma=np.array([[Bomb()]])): "no reference set .*allow_pickle",
        npz(mu=mu[:0], sigma=sigma[:0, :0]): "empty or not finite",
        npz(mu=mu, sigma=sigma * np.nan): "empty or not finite",
        npz(mu=mu, sigma=skew): "sigma is no covariance",
        npz(mu=mu, sigma=negative): "sigma is no covariance",
    }.items():
        with pytest.raises(ReferenceSetError, match=why):
            Reference.from_pytorch_fid(bad, "p")
