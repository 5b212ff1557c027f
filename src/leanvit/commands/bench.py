"""`leanvit bench`: measured speed."""

import json
from typing import Any

from leanvit.commands.words import add_common
from leanvit.config import look_up
from leanvit.config.bench import (
    BENCH_CONFIGS,
    BenchAllConfig,
    BenchDataConfig,
    BenchForwardConfig,
    BenchStepConfig,
)
from leanvit.config.convert import replace_options
from leanvit.config.words import Parser, add_options, parse_options


def bench(arguments: list[str]) -> int:
    """`leanvit bench NAME`: measured speed."""
    if not arguments:
        raise ValueError(f"Name what to measure: {', '.join(BENCH_CONFIGS)}.")
    if arguments[0].startswith("-"):
        print("usage: leanvit bench NAME [options]\n\nNAME is one of:")
        for name, kind in BENCH_CONFIGS.items():
            print(f"  {name:8} {kind.__doc__}")
        return 0
    config = look_up("bench", arguments[0], BENCH_CONFIGS)()
    parser = Parser(
        prog=f"leanvit bench {arguments[0]}",
        description=config.__doc__,
        allow_abbrev=False,
        add_help=False,
    )
    add_common(parser)
    names, rest = parser.parse_known_args(arguments[1:])
    if names.help:
        add_options(parser, config)
        print(parser.format_help())
        return 0
    options = parse_options(config, rest)
    config = replace_options(config, options)
    report: Any
    if isinstance(config, BenchDataConfig):
        from leanvit.bench.data import bench_data

        report = bench_data(config)
    elif isinstance(config, BenchForwardConfig):
        from leanvit.bench.forward import bench_forward

        report = bench_forward(config)
    elif isinstance(config, BenchStepConfig):
        from leanvit.bench.step import bench_step

        report = bench_step(config)
    elif isinstance(config, BenchAllConfig):
        from leanvit.bench.everything import bench_all

        report = bench_all(config)
    else:
        from leanvit.bench.loss import bench_loss

        report = bench_loss(config)
    print(json.dumps(report.to_dict(), indent=2) if names.json else report)
    return 0
