"""How a command runs under Hydra: its flags (--help, --cfg, --info, --multirun, --config-dir, ...) and a configuration for the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from launch.config import CONF, ConfigError, choices, compose_config, explain, resolved
from launch.overrides import prepare
from launch.schema import SCHEMAS, explained, groups_of, register
from search.fields import later_defaults

_FLAGS = {
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc", "--version"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i"), True),
}
"""Hydra's flags, and whether a value follows. --experimental-rerun is none of them: it reads a pickle, which may run any code."""
_QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
"""Results have folders of their own, and commands their own words."""


class JobFailed(RuntimeError):
    """A run of several that did not end well; what it printed says why."""


def run_with_hydra(command: str, name: str, words: Sequence[str], task: Callable[[dict[str, Any]], int]) -> int:
    """Run a command's task on its configuration, or what Hydra's flags ask for; returns the exit code.

    Args:
        command: For messages.
        name: Of the primary configuration; ``--config-name`` may name another of its kind.
        words: From the command line.
        task: Takes the resolved configuration, and returns an exit code.

    Raises:
        ConfigError: A word, key or value that is not allowed.
        JobFailed: One of several runs failed.
    """
    flags, overrides = _split(command, words)
    several = "--multirun" in flags or "-m" in flags
    outcome: list[int | BaseException] = []

    def job(composed: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # perhaps in another process, by a launcher
            print(f"run {HydraConfig.get().job.num}: {' '.join(HydraConfig.get().overrides.task)}", flush=True)
            if code := task(resolved(name, composed)):
                raise JobFailed(f"exit code {code}")
            return
        try:
            outcome.append(task(resolved(name, composed)))
        except Exception as error:  # else Hydra would print it
            outcome.append(error)

    folder = _value(flags, "--config-dir", "-cd")
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"--config-dir is {folder!r}, which is no folder; give the folder of your own configuration")
    register()
    known = choices(*([Path(folder)] if folder is not None else []))
    completing = "--shell-completion" in flags or "-sc" in flags
    prepared = list(overrides) if completing else [*prepare(name, overrides, known, several), *_QUIET]
    if "--help" in flags or "-h" in flags:
        _store_help(command, name)
        prepared.append(f"hydra/help=dato_{command}")
    if several:
        prepared = ["hydra.sweep.dir=${output}/multirun/${now:%Y-%m-%d_%H-%M-%S}", *prepared]
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], *flags, *prepared]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised, and said by us
    try:
        with explain(name):
            hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(job)()
    except SystemExit as end:  # of --help, and of flags that do not fit together
        return end.code if isinstance(end.code, int) else 2
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
    (found,) = outcome or (0,)
    if isinstance(found, BaseException):
        raise found
    return found


def _split(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, _ = word.partition("=")
        if flag in _FLAGS and bool(equals) <= _FLAGS[flag]:
            flags.append(word)
            if _FLAGS[flag] and not equals and left and not left[0].startswith("-") and "=" not in left[0]:
                flags.append(left.pop(0))
        elif word.startswith("-") and not equals:
            raise ConfigError(f"{word!r} is not a flag of dato {command}; write key=value, such as seed=1, or one of {', '.join(f for f in _FLAGS if f.startswith('--'))}")
        else:
            overrides.append(word)
    return flags, overrides


def _value(flags: Sequence[str], *names: str) -> str | None:
    for i, flag in enumerate(flags):
        if flag in names:
            return flags[i + 1] if i + 1 < len(flags) else ""
        if flag.partition("=")[0] in names:
            return flag.partition("=")[2]
    return None


def described(name: str) -> list[tuple[str, str, str]]:
    """Every key of a primary configuration: its name, its default as one writes it, and its meaning."""
    values = compose_config(name, [])
    for section, group in groups_of(SCHEMAS[name]).items():
        values[section] = {**{k: list(v) if isinstance(v, tuple) else v for k, v in later_defaults(group).items()}, **values[section]}
    found = []
    for key, text in explained(SCHEMAS[name]).items():
        section, _, inner = key.rpartition(".")
        value = values[section][inner] if section else values[key]
        found.append((key, "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace("'", "").replace("None", "null"), text))
    return found


def _store_help(command: str, name: str) -> None:
    from launch.__main__ import COMMANDS

    lines = [f"dato {command} [key=value ...]: {COMMANDS[command]}", "", f"Groups, such as dato {command} model=sd15:"]
    lines += [f"  {group}: {', '.join(names)}" for group, names in choices().items()]
    lines += ["", f"Keys with their defaults, such as dato {command} model.steps=25; what a model, data set or experiment sets is shown by --cfg job:"]
    lines += [f"  {key}={value}\n      {text}" for key, value, text in described(name)]
    template = "\n".join(lines).replace("$", "$$") + "\n\nFlags:\n$FLAGS_HELP"
    ConfigStore.instance().store(group="hydra/help", name=f"dato_{command}", node=OmegaConf.create({"app_name": "dato", "header": "", "footer": "", "template": template}))
