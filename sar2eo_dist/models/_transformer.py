"""Restormer's transformer block (arXiv 2111.09881, section 3): attention between channels, and a gated feed-forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sar2eo_dist.models._network import exact, single
from sar2eo_dist.models._norm import LayerNorm
from sar2eo_dist.models.statistics import Tapped, pixels

_PIECE = 1 << 16  # pixels in one matrix product of q k^T: over a million, float32 would lose four digits
_TINY = 1e-24  # of a squared length: q and k are divided by at least 1e-12, as torch's normalize does


class Attention(Tapped):
    """MDTA: attention between channels, (C/h x C/h) a head, from q and k of unit length along the pixels.

    Lengths divide the small matrix of products, not q and k, and the matrix that attention makes is multiplied into the
    output convolution's weight, so that a pixel passes through one matrix instead of two. Statistics (`Tapped`): the
    sums over pixels of q k^T, q^2 and k^2.
    """

    keys = ("qk", "q2", "k2")

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, dim * 3, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(dim * 3, dim * 3, 3, padding=1, groups=dim * 3, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        qkv = self.qkv_dwconv(self.qkv(x))
        qk, q2, k2 = self.sums(qkv) if self.given is None else (t.to(x.device) for t in self.outside((h, w)))
        if self.taken is not None and self.found is not None:
            part = self.taken(qkv)
            found = dict(zip(self.keys, (t.detach() for t in self.sums(part)), strict=True))
            self.found.update({**found, "count": pixels(part)})
            self.end()
        with exact(x):
            lengths = q2.clamp_min(_TINY).sqrt().unsqueeze(-1) * k2.clamp_min(_TINY).sqrt().unsqueeze(-2)
            attention = (qk / lengths * self.temperature).softmax(dim=-1)  # (N, heads, C/heads, C/heads)
            weight = single(self.project_out.weight).view(c, self.num_heads, -1).transpose(0, 1)  # (heads, C, C/heads)
            mixing = (weight @ attention).transpose(1, 2).reshape(-1, c, c)  # (N, C, C)
        v = _rows(qkv)[..., 2 * c :]  # (N, H W, C)
        if qkv.is_contiguous(memory_format=torch.channels_last):
            y = (v @ mixing.transpose(1, 2).to(v.dtype)).transpose(1, 2)
        else:
            y = mixing.to(v.dtype) @ v.transpose(1, 2)
        y = y.unflatten(2, (h, w))  # type: ignore[no-untyped-call]
        return y if self.project_out.bias is None else y + self.project_out.bias.view(1, -1, 1, 1).to(y.dtype)  # type: ignore[no-any-return]

    def sums(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv (N, 3 C, H, W) to the sums over pixels: q k^T (N, heads, c, c), q^2 and k^2 (N, heads, c), float32."""
        q, k, _ = _rows(qkv).chunk(3, dim=-1)  # (N, H W, C)
        wide = torch.float64 if q.dtype is torch.float64 else torch.float32
        heads = (self.num_heads, -1)
        q2, k2 = (t.square().sum(1, dtype=wide).unflatten(-1, heads) for t in (q, k))  # type: ignore[no-untyped-call]
        one, other = (t.unflatten(-1, heads).transpose(1, 2) for t in (q, k))  # type: ignore[no-untyped-call]
        pieces = zip(one.split(_PIECE, 2), other.split(_PIECE, 2), strict=True)
        return torch.stack([single(a.transpose(-2, -1) @ b) for a, b in pieces]).sum(0), q2, k2


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H W, C), a view; pixels are rows in memory where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class FeedForward(nn.Module):
    """GDFN: exact GELU of one half gates the other."""

    def __init__(self, dim: int, ffn_expansion_factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(dim * ffn_expansion_factor)
        self.project_in = nn.Conv2d(dim, hidden * 2, 1, bias=bias)
        self.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(functional.gelu(gate) * value)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int, expansion: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, norm)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = LayerNorm(dim, norm)
        self.ffn = FeedForward(dim, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))  # type: ignore[no-any-return]
