"""Text-to-audio and audio-to-text retrieval of a CoLLAP model on a data set; the same as `collap evaluate`.

python evaluate_retrieval.py --model runs/demo/collap-gpt2/best --dataset data/demo_songs --text_column captions
"""

import sys

from collap.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
