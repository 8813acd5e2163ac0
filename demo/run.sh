#!/usr/bin/env bash
# `make demo`: render songs, train both small variants from random weights, find held-out songs from their descriptions,
# and search them as a library.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
SONGS=data/demo_songs
BACKBONES=data/demo_backbones
VARIANTS="gpt2 roberta"
export HF_HUB_OFFLINE=1 HF_DATASETS_CACHE=data/demo_cache HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false

# The last line that a log shows: progress bars overwrite themselves.
latest() { tail -c 400 "$1" | tr '\r' '\n' | tail -n 1 | cut -c 1-110; }

echo "1/5 rendering songs of 1 to 5 minutes, with captions and section times: $SONGS"
$PYTHON -m collap corpus render $SONGS --train 800 --validation 50 --test 100

echo "2/5 backbones with random weights, and the features of all songs: $BACKBONES"
$PYTHON -m demo.small_backbones $BACKBONES --captions $SONGS/train/metadata.jsonl
OMP_NUM_THREADS=1 $PYTHON -m demo.cache_features configs/demo.yaml --text $BACKBONES/gpt2

echo "3/5 training collap-gpt2 and collap-roberta side by side, one core each (logs: runs/demo/*.log)"
mkdir -p runs/demo
started=()
for text in $VARIANTS; do
  OMP_NUM_THREADS=1 $PYTHON train.py configs/demo.yaml --text $BACKBONES/$text --output_dir runs/demo/collap-$text \
    --resume latest >runs/demo/collap-$text.log 2>&1 &
  started+=($!)
done
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT
while [ -n "$(jobs -r)" ]; do
  for _ in 1 2 3 4 5 6; do [ -z "$(jobs -r)" ] || sleep 5; done
  for text in $VARIANTS; do echo "    $text  $(latest runs/demo/collap-$text.log)"; done
done
for job in "${started[@]}"; do
  wait "$job" || { echo "training failed:"; tail -n 5 runs/demo/*.log; exit 1; }
done
trap - EXIT
grep -ah "^epoch\|epoch [0-9]*:" runs/demo/*.log | tr '\r' '\n' | grep "^epoch" || true

search() {
  OMP_NUM_THREADS=1 $PYTHON -m collap index $SONGS/test --model runs/demo/collap-gpt2/best --index results/demo/music.index
  OMP_NUM_THREADS=1 $PYTHON -m demo.searches results/demo/music.index $SONGS/test
}
rm -rf results/demo/music.index
search >runs/demo/search.txt 2>runs/demo/search.log & # meanwhile
searching=$!

echo "4/5 finding 100 songs that no model has heard, and what both models know of the order within 30 of them"
evaluate() {
  OMP_NUM_THREADS=1 $PYTHON -m collap evaluate --model runs/demo/collap-$1/best --dataset $SONGS --split test \
    --text_column captions --song_column song_id --sections_column sections --output_dir results/demo/collap-$1
  OMP_NUM_THREADS=1 $PYTHON -m collap evaluate --suite temporal --songs 30 --model runs/demo/collap-$1/best \
    --dataset $SONGS --split test --text_column captions --sections_column sections --output_dir results/demo/collap-$1
}
started=()
for text in $VARIANTS; do
  evaluate $text >runs/demo/evaluate-$text.log 2>&1 &
  started+=($!)
done
for job in "${started[@]}"; do
  wait "$job" || { tail -n 5 runs/demo/evaluate-*.log; exit 1; }
done

$PYTHON -m demo.summary results/demo
echo
ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 $PYTHON -m accelerate.commands.launch --multi_gpu --num_processes 2 \
  --main_process_port 0 evaluate_retrieval.py --suite demo/suite.yaml --data_root data --output_dir results/demo/suite \
  --models runs/demo/collap-{gpt2,roberta}/best{,@mean} random 2>runs/demo/suite.log || { tail -n 5 runs/demo/suite.log; exit 1; }

echo
echo "5/5 a library of these songs, searched with collap-gpt2: which song, and which seconds of it"
wait $searching || { tail -n 5 runs/demo/search.log; exit 1; }
cat runs/demo/search.txt
