"""Compute the features of the demo's songs once, for both variants, before they train side by side.

Takes the arguments of `train.py`: `python -m demo.cache_features configs/demo.yaml --text data/demo_backbones/gpt2`.
"""

import sys

from collap.data.feature_cache import cache_features
from collap.data.sources import open_dataset
from collap.training.run import build_model_and_processor
from collap.training.settings import parse_settings


def main():
    settings = parse_settings(sys.argv[1:])
    data = settings.data
    _, processor = build_model_and_processor(settings.model, settings.optimisation.segment_batch_size)
    for split in (data.train_split, data.eval_split):
        dataset = open_dataset(data.dataset, split, data.audio_column, data.text_column)
        cache_features(dataset, processor.feature_extractor, data.audio_column, data.num_workers)


if __name__ == "__main__":
    main()
