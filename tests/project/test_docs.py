"""Commands and code in README.md and docs: every command is one that there is, with options that it knows."""

import re
import shlex
from pathlib import Path

import pytest

from collap.cli import COMMANDS, parse
from collap.training.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "demo" / "run.sh", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "collap" / "hub" / "spaces").glob("*/README.md"))


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of every `collap` and every train.py in a block of shell commands."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [text] if page.suffix == ".sh" else re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            line = re.sub(r"^(\$PYTHON|OMP_NUM_THREADS=1 \$PYTHON) -m ", "", line.strip())
            line = re.split(r" >(?!=)", line)[0]  # a file for the output; not the >= of a filter
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
            if words and (words[0] == "collap" or "train.py" in words):
                found.append((page.name, words))
    return found


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_every_command_is_one_that_there_is(page, words):
    """Only read, not run."""
    if words[0] == "collap":
        name = next(name for name in COMMANDS if words[1 : 1 + len(name.split())] == name.split())
        assert parse(name, words[1 + len(name.split()) :])
        return
    arguments = words[words.index("train.py") + 1 :]
    if "--plan" not in arguments:
        arguments += ["--dataset", "songs", "--music", "beats"]  # where the page leaves out the rest
    parse_settings([str(ROOT / word) if word.startswith("configs/") else word for word in arguments])


def test_the_pages_show_every_command():
    shown = {" ".join(words[1:3]) for _, words in commands() if words[0] == "collap"}
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in COMMANDS:
        assert any(f"{words} ".startswith(f"{name} ") for words in shown) or f"`collap {name}" in text, name


def test_every_link_leads_to_a_file():
    for page in PAGES:
        for target in re.findall(r"\]\(((?!https?:|#|\{)[^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"
