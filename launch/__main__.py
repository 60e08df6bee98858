"""The ``dato`` command: one module per subcommand, errors as one message."""

from __future__ import annotations

import errno
import importlib
import io
import keyword
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import conf
from search.run import interrupt

COMMANDS = {
    "search": "find strategies for a pipeline; without arguments, for the small model that ships with the package",
    "evaluate": "strategy=[...]: strategies and the paper's rivals on one model and data set, as its Tables 1, 2 and 5",
    "ablate": "table=3|4|...: the paper's Tables 3 and 4, and ablations of our own; without arguments, lists them",
    "transfer": "strategy=[...] targets=[...]: strategies on several models, as a matrix",
    "figures": "[strategy=...]: the paper's Figures 1, 2 and 4 as one HTML page",
    "status": "folder=<search folder>: how a running search stands, from another shell",
    "report": "folder=<search folder>[,<another>...] [watch=true]: the HTML report of searches, finished or not; watch=true serves that of a running one",
    "export": "folder=<search folder> [to=folder|file|registry ...]: winners and their cards for another team",
    "import": "source=<file, card, https or models:/...> name=<name> [to=folder|file|registry]: a strategy handed over",
    "retarget": "folder=<search folder>: measure this device's cost table and choose winners anew from everything evaluated",
    "doctor": "takes the keys of search, and time=true: what that search needs of every machine, what is missing, what to do, how long it takes",
    "sync": "folder=<search folder>: complete MLflow's view of a search that ran while MLflow was away",
    "strategies": "[model=sd15] [calls=51]: the presets, with their calls by depth and the speedup that arithmetic allows, and the MACs of each depth",
    "bench": "<what> [key=value ...]: the measurements behind the README's figures; without arguments, lists them",
}
"""Each command, with its line of help, is run by the module of `launch` with its name (import by import_: a keyword)."""
UNDER_HYDRA = ("search", "evaluate", "ablate", "transfer", "figures", "doctor")
"""Commands of a configuration: they take Hydra's flags, such as --help, --cfg job, --multirun and --config-dir."""
_EXTRAS = {
    **dict.fromkeys(("hydra", "omegaconf", "ray", "pymoo", "mlflow", "plotly", "rich", "sklearn", "torchmetrics"), ("searching, MLflow and reports need", "search")),
    **dict.fromkeys(("DeepCache", "optuna", "tomesd"), ("comparing with other packages needs", "search,baselines")),
}
"""What a missing module is for, and the extra that brings it."""

_CONTINUE = ("search", "evaluate", "ablate", "transfer", "figures", "sync")
"""Commands that go on where they were."""

USAGE = """usage: dato <command> [key=value ...]

{commands}

Every key, with its meaning and default, is in {conf}/README.md, and shown by dato <command> --help. Completion of a shell: eval "$(dato -sc install=bash)".
Examples:
  dato search
  dato search --multirun seed=0,1,2
  dato search model=sd15
  dato search model=sd15 data=folder data.prompts=prompts.txt data.images=photos protocol.features=inception
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code: 0, 1 for a failed search, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    with interrupt.heard():
        code = _main(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        interrupt.let_die()
    return code


def _main(arguments: list[str]) -> int:
    # Ray's and Hugging Face's own chatter says nothing that a person could act on here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A tracking server that is away holds a search up for seconds, not for the minutes of MLflow's own defaults.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks is shown, not a reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command in ("help", "-h", "--help"):
        folder = Path(conf.__file__).parent
        print(USAGE.format(commands="\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items()), conf=folder))
        return 0 if arguments else 2
    if command in ("-sc", "--shell-completion"):
        command, rest = completed(arguments)
        if command not in UNDER_HYDRA:
            print(" ".join(COMMANDS))
            return 0
    if command not in COMMANDS:
        print(f"dato: there is no command {command!r}; there are {', '.join(COMMANDS)}, help", file=sys.stderr)
        return 2
    if rest and rest[0] in ("-h", "--help") and command not in UNDER_HYDRA:
        return _main(["help"])
    stopped = "stopped; the same command " + ("continues" if command in _CONTINUE else "begins anew")
    try:
        with interrupt.at_once(stopped):
            module = importlib.import_module(f"launch.{command}_" if keyword.iskeyword(command) else f"launch.{command}")
        return module.run(rest)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return interrupt.exit_code()
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        if missing not in _EXTRAS:
            raise
        needs, extra = _EXTRAS[missing]
        print(f"dato {command}: {error.name} is not installed; {needs}: pip install 'dato-search[{extra}]'", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"dato {command}: {error.strerror}: {str(error.filename)[:60]}...; give a shorter path", file=sys.stderr)
        return 2
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"dato {command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def completed(arguments: list[str]) -> tuple[str, list[str]]:
    """The command to complete, and the arguments for it: Hydra's completion is of programs without commands, so it is shown a line without one."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments[1:] and not arguments[1].startswith("query="):
        return "search", arguments  # (un)install: the same for all
    command = words[1] if len(words) > 2 else ""
    os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    return command, arguments


def _is_ours(error: Exception) -> bool:
    """Whether an error is one of the messages that are written for people."""
    return type(error).__module__.split(".")[0] in ("dato", "search", "launch", "analysis") or type(error) is ValueError


if __name__ == "__main__":
    sys.exit(main())
