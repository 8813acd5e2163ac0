#!/usr/bin/env bash
# `make demo`: render songs, train both small variants from random weights, find held-out songs from their descriptions.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export HF_HUB_OFFLINE=1 HF_DATASETS_CACHE=data/demo_cache TOKENIZERS_PARALLELISM=false
SONGS=data/demo_songs
BACKBONES=data/demo_backbones

$PYTHON -m processing.corpora.synthetic_songs $SONGS
$PYTHON -m demo.small_backbones $BACKBONES --captions $SONGS/train/metadata.jsonl

for text in gpt2 roberta; do
  $PYTHON train.py configs/demo.yaml --text $BACKBONES/$text --output_dir runs/demo/collap-$text
  $PYTHON evaluate_retrieval.py --model runs/demo/collap-$text/best --dataset $SONGS --split test \
    --text_column captions --song_column song_id --sections_column sections --output_dir results/demo/collap-$text
done

$PYTHON -m demo.summary results/demo
