"""Compute the features of the demo's songs once, for both variants, before they train side by side.

Takes the arguments of `train.py`: `python -m demo.cache_features configs/demo.yaml --text data/demo_backbones/gpt2`.
"""

import sys

from collap.data.feature_cache import cache_features
from collap.data.sources import open_dataset
from collap.training.settings import parse_config
from train import build_model_and_processor


def main():
    config = parse_config(sys.argv[1:])
    _, processor = build_model_and_processor(config)
    for split in (config.train_split, config.eval_split):
        dataset = open_dataset(config.dataset, split, config.audio_column, config.text_column)
        cache_features(dataset, processor.feature_extractor, config.audio_column, config.num_workers)


if __name__ == "__main__":
    main()
