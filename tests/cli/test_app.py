"""The application as a whole: it answers at once, knows its commands, and ends quietly or with one line."""

import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robustviz import checkpoints, cli
from robustviz.cli.app import COMMANDS, app
from robustviz.records import RunRecord

PYTHON = [sys.executable, "-c"]
MAIN = "import sys; from robustviz.cli import main; sys.argv[1:] = {words!r}; main()"


def output(program, **pipes):
    return subprocess.run([*PYTHON, program], capture_output=True, text=True, check=True, **pipes).stdout


@pytest.mark.parametrize("words", [["--help"], [], ["--version"]])
def test_help_loads_no_torch(words):
    program = f"""
import sys
from robustviz.cli import run
try:
    run({words!r})
except SystemExit as end:
    assert not end.code
print("loaded:", *sorted({{"torch", "numpy", "matplotlib", "pandas", "sklearn", "umap"}} & sys.modules.keys()))
"""
    assert output(program).strip().split("\n")[-1] == "loaded:"


def test_evaluation_is_light():
    program = (
        "import sys, robustviz.evaluation; print(*{'matplotlib', 'pandas', 'sklearn', 'umap'} & sys.modules.keys())"
    )
    assert output(program) == "\n"


def test_every_command_has_a_file_and_every_file_a_command():
    helpers = {"__init__", "__main__", "app", "defense", "measure", "options", "output", "own", "target"}
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - helpers
    assert files == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_list_is_the_first_of_the_docstring(name):
    command = app[name].default_command
    assert command.__name__ == name.replace("-", "_")
    assert command.__module__ == f"robustviz.cli.{command.__name__}"
    assert inspect.getdoc(command).split("\n")[0] == COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_every_option_and_shows_its_whole_docstring(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.run([name, "--help"])
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    description = inspect.getdoc(app[name].default_command).split("\n\nArgs:")[0].replace("`", "")
    for paragraph in description.split("\n\n"):
        assert " ".join(paragraph.split()) in page
    for argument in app[name].assemble_argument_collection(parse_docstring=True):
        if argument.name == "*":
            continue  # the options of a dataclass
        assert argument.parameter.help, f"{name} {argument.name} is not explained"


@pytest.mark.parametrize("words", [["checkpoints"], ["--help"], ["evaluate", "--help"]])
def test_a_reader_that_leaves_is_no_error(words):
    program = MAIN.format(words=words)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PYTHON, program], **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("words", "closed"), [(["checkpoints"], ">&-"), (["--help"], ">&-"), (["evaluate", "nope"], ">&- 2>&-")]
)
def test_a_closed_output_is_no_error(words, closed):
    done = subprocess.run(
        f"exec {sys.executable} -m robustviz.cli {' '.join(words)} {closed}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "nope" in words else 0)


def test_help_of_an_unknown_command_names_the_nearest():
    with pytest.raises(ValueError, match=r'Unknown command "evalate".*"evaluate".*; see robustviz --help'):
        cli.run(["evalate"])


def test_what_is_refused_is_said_in_one_line(monkeypatch):
    def forged(words):
        raise ValueError("two\n  lines")

    monkeypatch.setattr(cli, "run", forged)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == "robustviz: two lines"


def test_the_options_that_say_what_is_measured_are_written_once():
    from dataclasses import fields

    from robustviz.cli.target import Target

    shared = [field.name for field in fields(Target)]
    for name in ("evaluate", "attack-suite", "diagnose", "features"):
        command = app[name].default_command
        assert inspect.signature(command).parameters["target"].annotation is Target
        assert not set(shared) & set(inspect.signature(command).parameters)
        taken = {argument.name: argument.parameter.help for argument in app[name].assemble_argument_collection()}
        assert {f"--{word.replace('_', '-')}" for word in shared} <= taken.keys()


def test_a_checkpoint_that_is_nearly_named_is_suggested():
    with pytest.raises(FileNotFoundError, match=r"no checkpoint digits-standart; did you mean digits-standard\? give"):
        cli.run(["evaluate", "digits-standart"])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint zebra; give a"):
        cli.run(["evaluate", "zebra"])


def test_commands_that_are_suggested_can_be_pasted(tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="fetch it with `robustviz fetch svhn --root 'my sets'`"):
        cli.run(["evaluate", "digits-pgd", "--data", "svhn", "--root", "my sets"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.run(["train", "--epochs", "1", "--images", "50", "--test-images", "10", "--out", "my run"])
    assert "attack it with: robustviz evaluate 'my run'\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", checkpoints.shipped())
def test_the_command_that_trained_a_shipped_network_can_still_be_run(name):
    """Every part of it: a network that began with another one names both commands."""
    record = RunRecord.load(checkpoints.find(name).with_suffix(".json"))
    for line in record.command.split("&&"):
        words = shlex.split(line)
        assert words[:2] == ["robustviz", "train"]
        command, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
        assert command.__name__ == "train"
        assert bound.arguments
