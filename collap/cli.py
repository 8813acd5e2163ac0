"""The command `collap`: one sub-command for each thing that is done with a model, a data set or a corpus.

A command's module is imported only when the command runs, so that `collap --help` answers at once.
"""

import importlib
import sys

COMMANDS = {
    "evaluate": ("collap.evaluation.retrieval", "measure retrieval of a model on a data set"),
    "precompute": ("collap.data.precompute", "store what the frozen audio encoders make of every song"),
    "publish": ("collap.hub.publish", "publish a model, a corpus or a metric on the Hub"),
    "doctor": ("collap.hub.doctor", "say whether a model is healthy"),
    "export": ("collap.hub.export", "write a model as ONNX graphs or torch.export archives"),
    "convert-beats": ("collap.hub.convert_beats", "convert an original BEATs checkpoint"),
    "convert-model": ("collap.hub.convert_model", "convert a model folder of an earlier release"),
    "corpus": ("collap.corpora.synthetic.songs", "render songs with captions and section times"),
}


def usage() -> str:
    """What `collap --help` prints."""
    lines = [f"  {name:15} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: collap COMMAND ...", "", *lines, "", "collap COMMAND --help says what it takes."])


def main(arguments: list[str] | None = None) -> int:
    """Runs a sub-command; returns its exit code, 2 for an unknown one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"error: {arguments[0]!r} is no command\n{usage()}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:]) or 0
