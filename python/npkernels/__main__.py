"""`python -m npkernels`: info, check, bench."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

FAMILIES = ("softmax", "attention", "grpo", "perturb")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    As those of a shell, 130 after Ctrl-C and 141 where nobody reads the output any more (``... | head``).
    """
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout:  # None where it is closed from the start
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("\npython -m npkernels: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is left in the buffer would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m npkernels", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, compiler, instruction sets, threads")

    check = commands.add_parser("check", help="compare every kernel with its reference", allow_abbrev=False)
    check.add_argument("--family", choices=FAMILIES, help="only the kernels of this family")
    check.add_argument("--kernel", type=_names, help="only these, separated by commas")
    check.add_argument(
        "--isa", type=_names, help="instruction sets, separated by commas; default: all of this CPU"
    )
    check.add_argument("--seed", type=_seed, default=0, help="of the random inputs; default 0")

    bench = commands.add_parser(
        "bench",
        help="time every kernel beside NumPy and the peers that are installed",
        allow_abbrev=False,
    )
    bench.add_argument("--quick", action="store_true", help="the shorter workloads, a minute or two")
    bench.add_argument("--family", choices=FAMILIES, help="only the kernels of this family")
    bench.add_argument(
        "--against",
        type=lambda text: _names(text) if text else [],
        help="peers, separated by commas, or '' for none; default: all that are installed",
    )
    bench.add_argument("--html", metavar="FILE", help="write a page of tables and plots (needs matplotlib)")
    bench.add_argument("--json", metavar="FILE", help="write the figures for machines")
    bench.add_argument("--threads", type=int, help="for npkernels and, as far as they can be told, the peers")
    bench.add_argument("--only", default="", help="only workloads whose name holds this text")

    options = parser.parse_args(arguments)
    if options.command == "info":
        from npkernels import show_config

        show_config()
        return 0
    if options.command == "check":
        from npkernels._cli.check import main as run
    else:
        from npkernels._cli.bench import main as run
    return run(parser, options)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has no name where one was expected: a,b,c")
    return names


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; expected an integer >= 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
