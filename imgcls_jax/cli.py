"""The command line of every binary: flags, overrides of a config, one sentence and an exit code for an error."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from imgcls_jax import config as config_lib
from imgcls_jax import platform
from imgcls_jax.types import ConfigError, UserError, nearest

# The exit code of a command that has done all it could, but for images that cannot be read.
SOME_FAILED = 3

# Errors of the operating system that a user can mend; any other OSError is a bug and shows its traceback.
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "operation not permitted; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
}


def train_flags(argv: Sequence[str], usage: str, values: flags.FlagValues | None = None) -> tuple[ConfigDict, Path]:
    """Reads --config=FILE[:ARG], --workdir=W and any --config.KEY=VALUE.

    Args:
      argv: without the program's name.
      usage: what --help shows first.
      values: other flags of the binary, defined; they are read too.

    Returns:
      The locked config and the work directory (runs/FILE-ARG if none is given).

    Raises:
      ConfigError: for anything that is not understood, naming the nearest flag or key.
    """
    values = values or flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where the run is kept and continued from", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this help", short_name="h", flag_values=values)
    spec, rest = take_config(argv)
    if spec is None:
        if any(arg in ("-h", "--help", "-help") for arg in rest):
            print(usage.strip() + "\n" + values.main_module_help())
            raise SystemExit(0)
        raise ConfigError("--config is missing; pass --config=configs/NAME.py[:DATA], for example configs/vit.py.")
    config = config_lib.load(spec)
    known = override(config, rest, values)
    if values.help:
        print(usage.strip() + "\n\nKeys and their values in this config:")
        print("\n".join(f"  --config.{name}={value!r}" for name, value in known.items()))
        raise SystemExit(0)
    name = re.sub(r"[^\w.-]+", "_", re.sub(r"\.py(:|$)", r"\1", spec.removeprefix("configs/")).replace(":", "-"))
    return config, Path(values.workdir or f"runs/{name}")


def override(config: ConfigDict, argv: Sequence[str], values: flags.FlagValues) -> dict[str, Any]:
    """Sets keys of a config by flags --config.KEY=VALUE, and reads the other flags; returns the keys as they were.

    Raises:
      ConfigError: for anything that is not understood, naming the nearest flag or key.
    """
    known = dict(config_lib.leaves(config))
    for arg in argv:
        key = re.match(r"--?(?:no)?config\.([^=]*)", arg)
        if key and key[1] not in known:
            raise ConfigError(f"--config.{key[1]} is not a key of the config{_nearest_key(key[1], known)}.")
    sys_argv = ["main", *_set_from(config, argv)]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=sys_argv)
    parse(values, sys_argv, known)
    return known


def _set_from(config: ConfigDict, argv: Sequence[str]) -> list[str]:
    """Sets keys called `from`: --config.init.from=SOURCE, --config.teacher.from=W1,W2; returns the other arguments.

    The flags of ml_collections take a key for Python, in which `from` is a keyword, and do not parse it.
    """
    rest = []
    for arg in argv:
        group = re.match(r"--?config\.(\w+)\.from=", arg)
        if group:
            value, several = arg[group.end() :], isinstance(config[group[1]]["from"], tuple)
            config[group[1]]["from"] = tuple(filter(None, value.split(","))) if several else value
        else:
            rest.append(arg)
    return rest


# What other codebases call a key.
_SYNONYMS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "epochs": "total_epochs",
    "num_epochs": "total_epochs",
    "steps": "total_steps",
    "num_steps": "total_steps",
    "arch": "name",
    "label": "label_smoothing",
    "smoothing": "label_smoothing",
    "ema": "ema_decay",
    "resolution": "image_size",
    "stochastic_depth": "drop_path",
}


def _nearest_key(word: str, known: Iterable[str]) -> str:
    """The hint for an unknown key: by spelling, first within the group that was typed, or by a synonym."""
    group, _, leaf = word.rpartition(".")
    keys = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
    names = {**{other: keys[name] for other, name in _SYNONYMS.items() if name in keys}, **keys}
    close = difflib.get_close_matches(leaf, list(names), n=1, cutoff=0.6)
    return f" (did you mean '{names[close[0]]}'?)" if close else nearest(word, known)


class HelpWanted(Exception):
    """Raised by `parse` for --help, with what the flags are; `run` prints it under the program's own description."""


def parse(values: flags.FlagValues, argv: Sequence[str], known: dict[str, object] | None = None) -> list[str]:
    """Parses absl flags; returns the positional arguments.

    Raises:
      ConfigError: where absl has an error of its own.
      HelpWanted: for --help or -h, where `values` has no such flag itself.
    """
    if "help" not in values and any(arg in ("-h", "-help", "--help") for arg in argv):
        raise HelpWanted(values.get_help())
    try:
        rest = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        key = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if not key or known is None:
            raise ConfigError(f"{error}") from error
        now = known.get(key[1])
        kind = "a value of another type" if now is None else f"{type(now).__name__}, such as {now!r}"
        raise ConfigError(f"--config.{key[1]}={key[2]} has the wrong type: '{key[1]}' takes {kind}.") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if rest and known is not None:
        raise ConfigError(f"Unexpected argument '{rest[0]}'; flags are written --name=value.")
    return rest


def take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config, None if it is missing, and the other arguments."""
    rest, spec = list(argv), None
    for i, arg in enumerate(rest):
        if arg.startswith("--config="):
            spec = rest.pop(i).partition("=")[2]
            break
        if arg == "--config" and i + 1 < len(rest):
            rest.pop(i)
            spec = rest.pop(i)
            break
    return spec, rest


@contextlib.contextmanager
def whole_output() -> Iterator[None]:
    """For what is written to standard output, all of it by the end; UserError if nobody reads it any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        # What Python would still flush at its end has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError("Standard output was closed before all was written; let what reads it read on.") from error


def program(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """What stands at the end of every file that is a program: `run` with this process's arguments, then exit."""
    platform.restart_with_huge_pages()
    sys.exit(run(main, sys.argv[1:]))


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Calls `main`; a user's error becomes one sentence on standard error and its exit code, a bug a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # absl is the logger of jax, orbax and grain: their tracebacks would bury the one sentence that says it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return main(argv)
    except HelpWanted as wanted:
        print((sys.modules[main.__module__].__doc__ or "").strip() + f"\n{wanted}")
        return 0
    except KeyboardInterrupt:  # before or after training: there the signal is handled and the state saved
        print("error: interrupted; run the same command again.", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            traceback.print_exc()
            print(f"error: {type(error).__name__}: {error}; this is a bug in imgcls_jax.", file=sys.stderr)
        else:
            _keep_quiet_at_exit()
            print(f"error: {reason}.", file=sys.stderr)
        return 1


def _keep_quiet_at_exit() -> None:
    """What libraries still try to write when the process ends fails for the same reason, which has been said."""
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None


def _disk_error(error: BaseException | None) -> str | None:
    """A sentence for an error of the file system, wherever in the chain of causes it is; None for anything else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return f"Cannot write {error.filename or 'the work directory'}: {_DISK_ERRORS[error.errno]}"
        text = str(error)
        # tensorstore, under Orbax, raises its own type with the system's text inside.
        for number, sentence in _DISK_ERRORS.items():
            if f"errno: {errno.errorcode[number]}" in text or (
                number == errno.ENOSPC and "No space left on device" in text
            ):
                return f"Cannot write a checkpoint: {sentence}"
        error = error.__cause__ or error.__context__
    return None
