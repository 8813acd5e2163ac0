"""Serve an index of music as a page, as a container or a Space is started; the same as `collap serve`.

python app.py --index music.index --library Music

Without options they are taken from the environment: COLLAP_INDEX (index), COLLAP_LIBRARY, COLLAP_ENGINE and PORT
(7860). A Space tells the name that it is asked by in SPACE_HOST, and is shown in a frame of huggingface.co.
"""

import os
import sys

from collap.cli import main


def arguments(environment: dict[str, str]) -> list[str]:
    """Return the options of `collap serve` that an environment asks for."""
    options = ["--host", "0.0.0.0", "--port", environment.get("PORT", "7860")]
    options += ["--index", environment.get("COLLAP_INDEX", "index")]
    for name in ("library", "engine"):
        if value := environment.get(f"COLLAP_{name.upper()}"):
            options += [f"--{name}", value]
    if name := environment.get("SPACE_HOST"):
        options += ["--allow_host", name, "--embedded_in", "https://huggingface.co"]
    return options


if __name__ == "__main__":
    sys.exit(main(["serve", *(sys.argv[1:] or arguments(dict(os.environ)))]))
