"""The command line: one table of commands. Torch is imported when a command runs, not before."""

import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import leanvit
from leanvit.commands.bench import bench
from leanvit.commands.models import analyze, backbones, convert, embed, evaluate
from leanvit.commands.runs import check, pretrain, replay
from leanvit.config import look_up
from leanvit.core.errors import GoneError, RunError, Stopped

USAGE = """leanvit: turn a folder of unlabelled images into a small, strong vision backbone.

  leanvit check RECIPE --data FOLDER            what a run would see, need and take
  leanvit pretrain RECIPE --data FOLDER --out DIR       images to backbone
  leanvit replay RUN [--step N]                 one step of a run once more, looked into
  leanvit evaluate knn MODEL --data FOLDER      classes by neighbours (linear, layers, lowshot)
  leanvit evaluate finetune MODEL --data FOLDER classes by training all weights
  leanvit evaluate transfer MODEL --data FOLDER classes of up to 24 data sets, beside a paper's
  leanvit evaluate segment MODEL --data FOLDER  a class for every pixel
  leanvit evaluate detect MODEL --data FOLDER   boxes, and masks, of objects
  leanvit evaluate robust MODEL --data FOLDER   classes under noise, blur and weather
  leanvit evaluate correspondence MODEL --data FOLDER   regions found again in a second view
  leanvit evaluate compare RUN [RUN ...]        what was found of several backbones, side by side
  leanvit analyze report MODEL [MODEL ...] --data FOLDER    a page of what they learned
  leanvit analyze attention MODEL [MODEL ...] --data FOLDER   cka, layers, rank, pca, ... too
  leanvit embed MODEL --data FOLDER --out FILE  features to .npz, .parquet, .safetensors or .csv
  leanvit convert MODEL [--to FORMAT --out PATH]        weights of other codes in, other formats out
  leanvit backbones [NAME ...]                  the networks that have a name, in figures
  leanvit bench loss | forward | data           time and memory, beside other code
  leanvit --version

Every command answers --help, and --json prints its result as one JSON object on stdout.
--data is a folder of any depth, a list file, a .zip, .tar, .tsv or .parquet file, WebDataset
shards, torchvision:NAME@FOLDER, or `sample`, photographs that come with the package.
MODEL is the folder of a run, a backbone file, a checkpoint of another code (docs/weights.md),
timm:NAME.TAG for trained weights of timm, or the name of an untrained backbone, also timm:NAME."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    2 for a mistake in the request, 1 for a failed run, 128 and its number for a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(f"leanvit {leanvit.__version__}")
        return 0
    try:
        return look_up("command", arguments[0], COMMANDS)(arguments[1:])
    except ValueError as error:
        _complain(error)
        return 2
    except Stopped as stop:
        _end_at_once_if_interrupted()
        _complain(stop)
        return 128 + stop.signal
    except RunError as error:
        _complain(error)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None
        return 0
    except KeyboardInterrupt as stop:
        _end_at_once_if_interrupted()
        _complain(stop)
        return 130


def _end_at_once_if_interrupted() -> None:
    """Let Ctrl-C end the process from here on: Python would raise wherever it is tidying up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _complain(error: BaseException) -> None:
    """Say what went wrong: once, where several processes were started and all would say it."""
    from leanvit.core.console import warn
    from leanvit.core.launch import launch

    text = str(error) or "interrupted"
    try:
        here = launch()
    except ValueError:  # this may be the error
        here = None
    if here is None or here.world == 1:
        warn(text)
        return
    from leanvit.core.distributed import speaking

    with speaking(text, of_another=isinstance(error, GoneError)) as mine:
        if mine:
            who = f"rank {here.rank}: " if here.rank else ""
            warn(f"{who}{text}")


COMMANDS: Mapping[str, Callable[[list[str]], int]] = MappingProxyType(
    {
        "check": check,
        "pretrain": pretrain,
        "replay": replay,
        "evaluate": evaluate,
        "analyze": analyze,
        "embed": embed,
        "convert": convert,
        "backbones": backbones,
        "bench": bench,
    }
)
