"""`python -m sar2eo_dist.models`: what every preset costs; with --budget, windows and batches that fit a memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch

from sar2eo_dist import models
from sar2eo_dist.errors import ConfigError, Sar2EoError
from sar2eo_dist.models import cost

GIB = 1 << 30
SIDE = 256


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sar2eo_dist.models", description=__doc__)
    parser.add_argument("--budget", type=float, metavar="GIB", help="memory of the device: propose windows and batches")
    parser.add_argument("--model", help="one translator; default: all")
    parser.add_argument("--preset", help="one preset; default: all")
    parser.add_argument("--bands", type=int, nargs=2, default=(3, 3), metavar=("IN", "OUT"), help="default: 3 3")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing in training")
    args = parser.parse_args(argv)
    try:
        cases = list(_cases(args))
        if not cases:
            raise ConfigError(f"no preset {args.preset!r}: leave --preset out to see what there is")
        for line in _table(cases):
            print(line, flush=True)
        if args.budget:
            for line in _proposals(cases, args.budget):
                print(line, flush=True)
    except Sar2EoError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return 2
    return 0


def _cases(args: argparse.Namespace) -> Iterator[cost.Case]:
    for name in [args.model] if args.model else models.translators():
        for preset in models.translator(name).PRESETS:
            if args.preset in (None, preset):
                bands = (args.bands[0], args.bands[1])
                yield cost.Case(name, {"preset": preset}, bands, args.precision, args.checkpointing)


def _table(cases: list[cost.Case]) -> Iterator[str]:
    line = f"{'model':<11}{'preset':<13}{'parameters':>12}{'critic':>11}{'kMAC/px':>10}{'GMAC/window':>13}{'step':>9}"
    yield line + "  peak memory"
    yield f"{'':<47}{'forward':>10}{f'{SIDE} px':>13}{'forwards':>9}  forward, training step of one window"
    for case in cases:
        module = models.translator(case.model)
        with torch.device("meta"):
            net = module.build(case.options, *case.bands)
            nets = module.Trainer(net, case.options, 1e-4, 1).networks
        critic = sum(cost.parameters(n) for n in nets.values() if n is not net)
        forward, step = cost.macs(case, SIDE), cost.macs(case, SIDE, train=True)
        memory = [_size(cost.memory(case, SIDE, 1, train)) for train in (False, True)]
        yield (
            f"{case.model:<11}{case.options['preset']:<13}{cost.parameters(net):>12,}{critic:>11,}"
            f"{forward / SIDE**2 / 1e3:>10,.1f}{forward / 1e9:>13.2f}{step / forward:>9.1f}  {memory[0]}, {memory[1]}"
        )


def _proposals(cases: list[cost.Case], budget: float) -> Iterator[str]:
    for case in cases:
        for verb, train in (("translate", False), ("train", True)):
            yield f"\n{verb} with {case.model} {case.options['preset']}, {case.precision}, in {budget:g} GiB:"
            try:
                rows = cost.propose(case, int(budget * GIB), train)
            except Sar2EoError as e:
                yield f"  nothing fits: {e}"
                continue
            yield from (f"  window {r.window:>5}  batch {r.batch:>4}  {_size(r.bytes)}" for r in rows)


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
