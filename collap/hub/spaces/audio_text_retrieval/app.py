"""The page of the metric's Space: its card.

`evaluate.utils.launch_gradio_widget` cannot show this metric: it builds its table with a part of gradio that later
versions removed, and it has no place for `groups`, which every call needs.
"""

from pathlib import Path

import gradio
from evaluate.utils.gradio import parse_readme

with gradio.Blocks(title="Audio-text retrieval") as page:
    gradio.Markdown(parse_readme(Path(__file__).with_name("README.md")))

page.launch()
