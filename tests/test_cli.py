"""What a user reads when the disk is full: one sentence, whoever noticed."""

import importlib
import sys
import threading

import pytest

from imgcls_jax import cli
from imgcls_jax.types import UserError


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """What an error of the disk silences for the rest of the process comes back."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def fill_the_disk():
    """A real ENOSPC: the device that is always full."""
    with open("/dev/full", "w") as file:
        file.write("x")


def test_a_full_disk_is_one_sentence(capsys):
    assert cli.run(lambda argv: fill_the_disk(), []) == 1
    assert capsys.readouterr().err.strip() == (
        "error: Cannot write the work directory: the disk is full; free some space and run the same command again."
    )


def test_a_full_disk_is_seen_behind_the_errors_of_the_libraries(capsys):
    """The text is what Orbax raised on a file system of 3 MB."""

    def main(argv):
        try:
            raise ValueError(
                'RESOURCE_EXHAUSTED: Error writing local file "w/checkpoints/20.orbax-checkpoint-tmp/x": Failed '
                "to write 4211 bytes to file 9: No space left on device [os_error_code='28']"
            )
        except ValueError as error:
            raise RuntimeError("save failed") from error

    assert cli.run(main, []) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: Cannot write a checkpoint: the disk is full; free some space and run the same command again."
    ]


def test_a_bug_shows_its_traceback_and_a_mistake_does_not(capsys):
    def bug(argv):
        raise KeyError("x")

    def mistake(argv):
        raise UserError("Say what.")

    assert cli.run(bug, []) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].endswith("this is a bug in imgcls_jax.")
    assert cli.run(mistake, []) == 1
    assert capsys.readouterr().err == "error: Say what.\n"


def test_ctrl_c_before_training_is_130(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    assert cli.run(interrupted, []) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["EACCES", "EROFS"])
def test_errors_of_permission_name_the_file(capsys, number):
    import errno

    def main(argv):
        raise OSError(getattr(errno, number), "no", "/some/where")

    assert cli.run(main, []) == 1
    assert "Cannot write /some/where" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eval", "explain", "export", "models", "predict", "probe", "report"])
def test_every_program_says_what_it_takes(name, capsys):
    module = importlib.import_module(f"imgcls_jax.{name}")
    module = module if hasattr(module, "main") else importlib.import_module(f"imgcls_jax.{name}.__main__")
    for flag in ("--help", "-h"):
        assert cli.run(module.main, [flag]) == 0
        out = capsys.readouterr().out
        assert out.startswith(module.__doc__.strip()) and f"python -m imgcls_jax.{name}" in out
        assert "--[no]" in out or "--workdir" in out.removeprefix(module.__doc__)
