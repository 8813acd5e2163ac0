"""CoLLAP in sentence-transformers: one vector per text and per song, which meet by their cosine.

`SentenceTransformer(ID, trust_remote_code=True)` finds the class below through `modules.json`; nothing else imports
this file. The cosine is the baseline `mean_pooled_scores`, for search over many songs: CoLLAP's own score weights the
moments of a song by the text, which no single vector can hold. `MultiVectorEncoder` refuses the folder: it would take
the best moment alone (MaxSim), which is not CoLLAP's score either.

Dimensions: `A` songs, `B` texts, `T` fused tokens of a song, `D` shared width.
"""

import os

import torch
from sentence_transformers.base.modality import infer_batch_modality
from sentence_transformers.base.modules import InputModule
from transformers import AutoModel, AutoProcessor

from .decode_audio import load_audio
from .embed_audio import check_samples
from .pipeline_collap import is_file, pooled_tokens, waveform_features
from .processing_collap import check_texts

AUDIO_SUFFIXES = (
    *(".wav", ".aif", ".aiff", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aac"),
    *(".m4a", ".mp4", ".mov", ".webm", ".mka", ".mkv"),
)


def check_is_description(text: str):
    """Refuses a text that is meant as a file: sentence-transformers takes for audio only what ends in wav, mp3, ogg,
    flac or aac and is there, and any other path for a text.

    Raises:
        ValueError: the text is a file, or a single word that ends as one.
    """
    if os.path.isfile(text):
        found = "is a file"
    elif len(text.split()) == 1 and text.strip().lower().endswith(AUDIO_SUFFIXES):
        found = "is the name of an audio file that is not there"
    else:
        return
    raise ValueError(f'{text!r} {found}, and would be read as a description; for its sound give {{"audio": path}}')


class CoLLAPEmbedder(InputModule):
    """The only module of a CoLLAP `SentenceTransformer`.

    Args:
        model: a `CoLLAPModel`.
        processor: its `CoLLAPProcessor`.
    """

    def __init__(self, model, processor):
        super().__init__()
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict | None = None,
        processor_kwargs: dict | None = None,
        config_kwargs: dict | None = None,
        backend: str = "torch",
        **kwargs,
    ) -> "CoLLAPEmbedder":
        """Called by sentence-transformers, with the arguments of its `Module.load`.

        Raises:
            ValueError: for another backend than torch.
        """
        if backend != "torch":
            raise ValueError(f"CoLLAP runs in sentence-transformers with backend='torch' only, found {backend!r}")
        shared = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        model = AutoModel.from_pretrained(
            model_name_or_path, **{**shared, **(config_kwargs or {}), **(model_kwargs or {})}
        )
        processor = AutoProcessor.from_pretrained(model_name_or_path, **{**shared, **(processor_kwargs or {})})
        return cls(model, processor)

    @property
    def modalities(self) -> list[str]:
        return ["text", "audio"]

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that are read."""
        return self.processor.max_text_tokens

    def get_embedding_dimension(self) -> int:
        return self.model.config.projection_dim

    def preprocess(
        self, inputs: list, prompt: str | None = None, processing_kwargs: dict | None = None, **kwargs
    ) -> dict[str, torch.Tensor]:
        """Model inputs of texts or of songs.

        Args:
            inputs: texts; or songs, each in one of the forms of sentence-transformers (the path of a wav, mp3, ogg,
                flac or aac file, samples, a dict of `array` and `sampling_rate`, a decoder of torchcodec) or a dict
                of one of them as `audio`, which takes the path of a file of any name.
            prompt: put before each text; songs have none.
            processing_kwargs: `{"audio": {"sampling_rate": Hz}}` for samples without a rate of their own.

        Raises:
            ValueError: as `CoLLAPProcessor`, and for a path that would be read as a text.
            AudioFileError: names a file that cannot be read.
        """
        if infer_batch_modality(inputs, self.modalities) == "text":
            for text in check_texts(inputs):
                check_is_description(text)
            return dict(self.processor(text=[(prompt or "") + text for text in inputs]))
        rate = (processing_kwargs or {}).get("audio", {}).get("sampling_rate")
        songs = [self._song_features(song, rate, index) for index, song in enumerate(inputs)]
        return {
            name: torch.nn.utils.rnn.pad_sequence([song[name][0] for song in songs], batch_first=True)
            for name in songs[0]
        }

    def _song_features(self, song, sampling_rate: int | None, index: int):
        song = song["audio"] if isinstance(song, dict) and "audio" in song else song
        extractor = self.processor.feature_extractor
        if is_file(song):
            samples = load_audio(song, extractor.sampling_rate)
            check_samples(samples, song, extractor.sampling_rate)
            song, sampling_rate = samples, extractor.sampling_rate
        return waveform_features(extractor, song, sampling_rate, index)

    def forward(self, features: dict[str, torch.Tensor], **kwargs) -> dict[str, torch.Tensor]:
        """Adds `sentence_embedding` (B or A, D); and of songs `token_embeddings` (A, T, D) with their
        `attention_mask` (A, T)."""
        if "input_ids" in features:
            features["sentence_embedding"] = self.model.get_text_features(
                features["input_ids"], features["attention_mask"]
            )
            return features
        names = self.processor.feature_extractor.model_input_names
        embeds, mask = self.model.get_audio_features(**{name: features[name] for name in names})
        features.update(token_embeddings=embeds, attention_mask=mask, sentence_embedding=pooled_tokens(embeds))
        return features

    def save(self, output_path: str, *args, **kwargs):
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
