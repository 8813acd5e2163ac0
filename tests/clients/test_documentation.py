"""docs/clients.md, as it is printed: all blocks in order in one fresh process; `test_mteb.py` and
`test_mteb_models.py` run those of mteb."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tiny import tiny_model, tiny_processor

from collap.models import save_model_folder

ROOT = Path(__file__).parents[2]
# Runs after the blocks, in their namespace: what the guide says has come true.
CHECKS = """
import re
import torch

adapter = __import__("pathlib").Path("runs/adapter")
assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in adapter.iterdir()}
batch = collate([pairs["test"][0], pairs["test"][1]])
with torch.no_grad():
    scores = [one.eval()(**batch).logits_per_audio for one in (adapted, again)]
assert torch.equal(*scores) and (scores[0] - scores[0][0, 0]).abs().max() > 0
final = SentenceTransformer("runs/sentence/final", trust_remote_code=True, device="cpu")
assert (final.encode(["a flute solo"]) == sentence_model.encode(["a flute solo"])).all()
assert len(texts) == 2 and texts[0].shape[1] == moments[0].shape[1] == 32
assert sentence_model.max_seq_length == 64 and final.max_seq_length == 128
"""


def python_blocks() -> list[str]:
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


def test_the_guide_runs_as_printed(corpus, tmp_path):
    save_model_folder(tiny_model("gpt2"), tiny_processor("gpt2"), tmp_path / "runs" / "demo" / "collap-gpt2" / "best")
    shutil.copytree(corpus, tmp_path / "data" / "demo_songs")
    blocks = [block for block in python_blocks() if "mteb" not in block]
    assert len(blocks) == 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*blocks, CHECKS])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf_home"), "ACCELERATE_USE_CPU": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^\d\.\d+$", done.stdout, flags=re.M), "eval_loss was printed"
