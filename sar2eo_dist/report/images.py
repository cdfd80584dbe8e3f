"""Pictures inside the page: tiles and files as small data URIs, within a budget, so that the page stays light."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sar2eo_dist import sources, storage
from sar2eo_dist.errors import AccessDenied, BadInput, Sar2EoError, Unavailable
from sar2eo_dist.radiometry import display
from sar2eo_dist.records import TileRef
from sar2eo_dist.report.load import part
from sar2eo_dist.report.text import redact

DN_RANGE = (0, 3000)  # display range of B4, B3, B2; the same for every tile, so that brightness can be compared
ERROR_WHITE = 500  # DN of typical error that 255 of an error quick-look stands for
BUDGET = 7_000_000  # bytes of data URIs in one page; what is over is named, not shown


@dataclass(frozen=True, slots=True)
class Picture:
    """A data URI with its size in pixels, or the reason why there is none (`missing`)."""

    uri: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""


def stretch(bands: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """EO (3, H, W) in DN (B4, B3, B2) -> (H, W, 3) uint8 RGB, DN 0..3000 clipped, brightened by radiometry.display."""
    low, high = DN_RANGE
    share = (bands.astype(np.float32) - low) / (high - low)
    return display(np.round(255 * np.clip(np.nan_to_num(share), 0, 1)).astype(np.uint8)).transpose(1, 2, 0)


def brightened(image: Image.Image) -> Image.Image:
    """A picture that holds data (DN 0..3000 as 0..255), shown as the other pictures are."""
    return Image.fromarray(display(np.asarray(image.convert("RGB"))))


@dataclass(slots=True)
class Album:
    """Embeds pictures until the budget is spent. `skipped` counts those left out for it."""

    run: str
    spent: int = 0
    skipped: int = 0
    _outage: dict[str, str] = field(default_factory=dict)

    def tile(self, ref: TileRef, side: int = 160) -> Picture:
        """An optical tile, read through `sources`; a tile that cannot be read is a Picture with its reason."""
        if ref.kind in self._outage:  # a store that is away costs one round of retries, not one a tile
            return Picture(missing=self._outage[ref.kind])
        try:
            pixels = stretch(sources.read_eo(ref).bands)
        except BadInput as e:
            return Picture(missing=redact(e.detail))
        except (AccessDenied, Unavailable) as e:
            self._outage[ref.kind] = f"source not reachable ({redact(str(e))})"
            return Picture(missing=self._outage[ref.kind])
        except Sar2EoError as e:
            return Picture(missing=redact(f"{type(e).__name__}: {e}"))
        return self._embed(Image.fromarray(pixels), side, 80)

    def file(
        self, path: str, side: int = 1024, quality: int = 88, see: Callable[[Image.Image], Image.Image] | None = None
    ) -> Picture:
        """A picture file of the run folder (path relative to it), made no larger than `side` pixels.

        see: what to show of it, where that is not the picture itself.
        """
        try:
            with Image.open(io.BytesIO(storage.read_bytes(part(self.run, path)))) as opened:
                opened.load()
                return self._embed(see(opened) if see else opened, side, quality)
        except Sar2EoError as e:
            return Picture(missing=redact(f"{type(e).__name__}: {e}"))
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as e:
            return Picture(missing=redact(f"unreadable picture, {type(e).__name__}: {e} ({path})"))

    def _embed(self, image: Image.Image, side: int, quality: int) -> Picture:
        seen = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if seen.mode == "RGBA" and seen.getchannel("A").getextrema() == (255, 255):
            seen = seen.convert("RGB")
        if max(seen.size) > side:
            seen.thumbnail((side, side), Image.Resampling.BOX)
        sink = io.BytesIO()
        if seen.mode == "RGBA":  # no data stays transparent, so that it shows on either theme
            seen.save(sink, "WEBP", quality=quality, method=4)
            kind = "webp"
        else:
            seen.save(sink, "JPEG", quality=quality, optimize=True, subsampling=0 if quality > 85 else 2)
            kind = "jpeg"
        text = f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"
        if self.spent + len(text) > BUDGET:
            self.skipped += 1
            return Picture(missing="left out to keep the page light")
        self.spent += len(text)
        return Picture(text, seen.width, seen.height)
