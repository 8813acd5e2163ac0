"""The command `collap`: its help at once, slips named, one vocabulary."""

import subprocess
import sys
import time

import pytest

from collap.cli import COMMANDS, TOKEN_DTYPES, main, parse, parser_of, run_command
from collap.corpora.synthetic.songs import SPLITS
from collap.data.token_cache import DTYPES
from collap.hub.export import SUFFIXES

HEAVY = ("torch", "transformers", "datasets", "numpy", "huggingface_hub", "matplotlib")
HELP = """
import sys
from collap.cli import COMMANDS, main

for arguments in ([], *(name.split() for name in COMMANDS), ["data"]):
    try:
        code = main([*arguments, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0, arguments
print("imported:", *sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


def collap(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "collap", *arguments], capture_output=True, text=True)


def test_the_help_of_every_command_needs_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP, *HEAVY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    for name in COMMANDS:
        assert f"  {name} " in done.stdout and f"usage: collap {name} " in done.stdout


def test_help_answers_in_under_half_a_second():
    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        assert collap(*arguments).returncode == 0
        return time.perf_counter() - started

    for command in ("--help", "evaluate --help", "doctor --help"):
        assert min(seconds(*command.split()) for _ in range(3)) < 0.5  # the others' turns on this machine do not count


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "usage: collap COMMAND"),
        (["evaluat"], 2, "error: 'evaluat' is no command; did you mean 'evaluate'?"),
        (["convert_beats"], 2, "did you mean 'convert-beats'?"),
        (["dance"], 2, "'dance' is no command; expected one of evaluate, precompute,"),
        (["data", "chek"], 2, "'data chek' is no command; did you mean 'data check'?"),
        (["data"], 2, "data check"),
        (["data", "--help"], 0, "data check"),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(capsys, arguments, code, said):
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate --modle x", "unknown option '--modle'; did you mean '--model'?"),
        ("evaluate --model x --dataset_confg y", "unknown option '--dataset_confg'; did you mean '--dataset_config'?"),
        ("precompute --dataset d --output=x", "unknown option '--output'; did you mean '--output_dir'?"),
        ("evaluate --mod x", "unknown option '--mod'; did you mean '--model'?"),  # cut short is not completed
        ("doctor x --zzz", "unknown option '--zzz'; expected one of"),
        ("evaluate --model x", "the following arguments are required: --dataset"),
        ("doctor x --dtype int4", "invalid choice: 'int4'"),
    ],
)
def test_a_wrong_option_ends_with_2(capsys, command, said):
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_words_after_two_dashes_are_no_options():
    assert parse("doctor", ["--", "--odd-folder"]).model == "--odd-folder"


def test_a_data_set_is_named_by_the_same_options_everywhere():
    shared = {"--dataset", "--dataset_config", "--revision", "--audio_column", "--output_dir"}
    for command in ("evaluate", "precompute"):
        assert shared <= parser_of(command).known_options
    assert "--split" in parser_of("evaluate").known_options and "--splits" in parser_of("precompute").known_options


def test_the_choices_in_the_help_are_those_of_the_modules():
    assert tuple(DTYPES) == TOKEN_DTYPES
    assert tuple(parser_of("export")._option_string_actions["--format"].choices) == tuple(SUFFIXES)
    assert {f"--{split}" for split in SPLITS} <= parser_of("corpus render").known_options


def test_what_a_command_cannot_do_is_one_line(capsys, tmp_path):
    assert run_command("export", [str(tmp_path), str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert run_command("evaluate", ["--model", "x", "--dataset", str(tmp_path / "nowhere")]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'nowhere'}: no such file or folder; a Hub id has the form owner/name\n"
    )


def test_a_package_that_lacks_is_named(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("collap.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)  # as where it is not installed
    assert run_command("evaluate", ["--model", "x", "--dataset", "y"]) == 1
    assert capsys.readouterr().err == "error: collap evaluate needs matplotlib: pip install matplotlib\n"
