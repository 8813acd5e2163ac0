"""Embed what is measured: texts, and the songs of a data set.

Dimensions: `B` texts, `Q` sentences of a text, `T` fused tokens, `D` shared width.
"""

import torch
from torch.nn import functional as F

from collap.data.feature_cache import CACHED_COLUMN, load_cached_features
from collap.data.guarded_reading import stream_audio
from collap.data.rows import audio_source, named_audio, naming_row
from processing.embed_audio import embed_audio, embed_segments

from .songs import first_read_alike


@torch.no_grad()
def embed_texts(model, processor, texts: list[str | list[str]], batch_size: int = 32) -> torch.Tensor:
    """Embed texts, strings or lists of sentences, float32 on the model's device.

    Those that are read alike have, bit for bit, the same vectors.

    Returns:
        (B, Q, D), zeros where a text has fewer sentences; Q is 1 for a model that reads texts whole.
    """
    first = first_read_alike(processor, texts)
    distinct = sorted(set(first))
    embeds = []
    for start in range(0, len(distinct), batch_size):
        batch = [texts[text] for text in distinct[start : start + batch_size]]
        embeds.append(model.get_sentence_features(**processor(text=batch, device=model.device)))
    most = max(batch.shape[1] for batch in embeds)
    embeds = [F.pad(batch, (0, 0, 0, most - batch.shape[1])) for batch in embeds]  # (batch, Q, D)
    place = {text: index for index, text in enumerate(distinct)}
    return torch.cat(embeds)[[place[text] for text in first]]  # (B, Q, D)


def embed_row(model, processor, dataset, row: int, audio_column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed the audio of a row, from its cached features if it has them: (1, T, D), and its token mask (1, T).

    Raises:
        AudioFileError: names the row and its file.
    """
    if CACHED_COLUMN in dataset.column_names:
        with naming_row(row, named_audio(dataset, row, audio_column)):
            return embed_segments(model, [load_cached_features(dataset.select_columns(CACHED_COLUMN)[row])])
    audio = dataset[row][audio_column]
    with naming_row(row, audio):
        return embed_audio(model, processor.feature_extractor, audio_source(audio), stream_audio)
