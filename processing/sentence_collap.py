"""CoLLAP in sentence-transformers: one vector per text and per song, which meet by their cosine.

`SentenceTransformer(ID, trust_remote_code=True)` finds the class below through `modules.json`; nothing else imports
this file. The cosine is the baseline `mean_pooled_scores`, for search over many songs: CoLLAP's own score weights the
moments of a song by the text, which no single vector can hold. `MultiVectorEncoder` refuses the folder: it would take
the best moment alone (MaxSim), which is not CoLLAP's score either.

Dimensions: `A` audios, `B` texts, `L` text tokens, `T` fused tokens of an audio, `D` shared width.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from sentence_transformers.base.modality import infer_batch_modality
from sentence_transformers.base.modules import InputModule
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor
from transformers.utils.peft_utils import find_adapter_config_file

from .decode_audio import load_audio
from .embed_audio import check_samples
from .feature_extraction_collap import pad_audio_features
from .pipeline_collap import pooled_tokens
from .processing_collap import MODALITY_CONFIG, check_texts
from .songs_collap import Song, file_source, is_file

# SentenceTransformerTrainer gathers the columns of a batch by names that it knows; this is Whisper's own.
BORDER_NAMES = {"speech_features": "input_features"}
AUDIO_SUFFIXES = (
    *(".wav", ".aif", ".aiff", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aac"),
    *(".m4a", ".mp4", ".mov", ".webm", ".mka", ".mkv"),
)


def check_is_description(text: str):
    """Refuse a text that is meant as a file: sentence-transformers takes for audio only what ends in wav, mp3, ogg,
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


def batch_modality(inputs: list, modalities: list[str]) -> str:
    """Tell texts from songs: what sentence-transformers does not know, a row of a data set or numbers, is a song."""
    try:
        return infer_batch_modality(inputs, modalities)
    except ValueError:
        return "audio"


def load_with_adapter(name: str, trust_remote_code: bool, where: dict, model_kwargs: dict):
    """Load a saved model; if the folder holds only an adapter of peft, load the model that it belongs to, and add it.

    Args:
        name: folder or Hub id.
        where: `token`, `cache_dir`, `revision` and `local_files_only` of `from_pretrained`.
        model_kwargs: more arguments for the model.
    """
    adapter = find_adapter_config_file(name, **where)
    if adapter is None:
        return AutoModel.from_pretrained(name, trust_remote_code=trust_remote_code, **{**where, **model_kwargs})
    base = json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"]
    where_base = {key: value for key, value in where.items() if key != "revision"}  # that of the adapter
    model = AutoModel.from_pretrained(base, trust_remote_code=trust_remote_code, **{**where_base, **model_kwargs})
    model.load_adapter(name, adapter_kwargs=where)
    return model


class CoLLAPEmbedder(InputModule):
    """Embed texts and songs; the only module of a CoLLAP `SentenceTransformer`.

    Args:
        model: a `CoLLAPModel`.
        processor: its `CoLLAPProcessor`.
    """

    config_file_name = "sentence_bert_config.json"

    def __init__(self, model, processor):
        super().__init__()
        self.model = model
        self.processor = processor

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
        """Load a folder or Hub id; called by sentence-transformers, with the arguments of its `Module.load`.

        Raises:
            ValueError: for another backend than torch.
        """
        if backend != "torch":
            raise ValueError(f"CoLLAP runs in sentence-transformers with backend='torch' only, found {backend!r}")
        where = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        options = {**(config_kwargs or {}), **(model_kwargs or {})}
        trust = options.pop("trust_remote_code", trust_remote_code)
        model = load_with_adapter(model_name_or_path, trust, where, options)
        shared = {**where, "trust_remote_code": trust_remote_code}
        processor = AutoProcessor.from_pretrained(model_name_or_path, **{**shared, **(processor_kwargs or {})})
        return cls(model, processor)

    @property
    def modalities(self) -> list[str]:
        """Name what is embedded."""
        return list(MODALITY_CONFIG)

    @property
    def tokenizer(self):
        """Return the tokenizer of the processor."""
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        self.processor.tokenizer = tokenizer

    @property
    def max_seq_length(self) -> int:
        """Return how many tokens of a text are read; what is set is saved with the processor."""
        return self.processor.max_text_tokens

    @max_seq_length.setter
    def max_seq_length(self, length: int | None):
        tower = self.model.config.text_positions
        if length is not None and (length < 1 or (tower is not None and length > tower)):
            raise ValueError(f"max_seq_length must be from 1 to the {tower} tokens of the text tower, found {length}")
        self.processor.max_text_tokens = tower if length is None else length

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.model.config.projection_dim

    def get_config_dict(self) -> dict:
        """Return what `sentence_bert_config.json` says: which modalities are embedded, and by which method."""
        return {"modality_config": MODALITY_CONFIG}

    def preprocess(
        self, inputs: list, prompt: str | None = None, processing_kwargs: dict | None = None, **kwargs
    ) -> dict[str, torch.Tensor]:
        """Turn texts or songs into the inputs of [`forward`].

        Args:
            inputs: texts; or songs, each in one of the forms of sentence-transformers (the path of a wav, mp3, ogg,
                flac or aac file, samples, a dict of `array` and `sampling_rate`, a decoder of torchcodec), a row of
                `datasets` or a list of numbers; or a dict of one of them as `audio`, which takes the path of a file of
                any name.
            prompt: put before each text; songs have none.
            processing_kwargs: `{"audio": {"sampling_rate": Hz}}` for samples without a rate of their own;
                `{"text": {"max_length": tokens}}` and other `text_kwargs` of [`CoLLAPProcessor`].

        Raises:
            ValueError: as `CoLLAPProcessor`, and for a path that would be read as a text.
            AudioFileError: names a file that cannot be read.
        """
        options = processing_kwargs or {}
        modality = batch_modality(inputs, self.modalities)
        inputs = [one[modality] if isinstance(one, Mapping) and modality in one else one for one in inputs]
        if modality == "text":
            for text in check_texts(inputs):
                check_is_description(text)
            texts = [(prompt or "") + text for text in inputs]
            return dict(self.processor(text=texts, text_kwargs=options.get("text")))
        rate = options.get("audio", {}).get("sampling_rate")
        songs = pad_audio_features([self._song_features(song, rate, index) for index, song in enumerate(inputs)])
        return {BORDER_NAMES.get(name, name): values for name, values in songs.items()}

    def _song_features(self, song: Song, sampling_rate: int | None, index: int) -> dict[str, torch.Tensor]:
        extractor, name = self.processor.feature_extractor, f"audio[{index}]"
        if not is_file(song):
            return extractor.song_features(song, sampling_rate, name=name)
        source, rate = file_source(song), extractor.sampling_rate
        samples = load_audio(source, rate)
        check_samples(samples, source, rate)
        return extractor.song_features(samples, rate, name=name)

    def forward(self, features: dict[str, torch.Tensor], **kwargs) -> dict[str, torch.Tensor]:
        """Add `sentence_embedding` (B or A, D); and `token_embeddings`, unit vectors with their `attention_mask`: of
        the tokens of texts (B, L, D), or of their sentences (B, Q, D) if the model reads these, and of the moments of
        songs (A, T, D)."""
        if "input_ids" in features:
            embed = self._embed_texts if features["input_ids"].ndim == 2 else self._embed_sentences
            features.update(embed(features["input_ids"], features["attention_mask"]))
            return features
        names = self.processor.feature_extractor.model_input_names
        embeds, mask = self.model.get_audio_features(**{name: features[BORDER_NAMES.get(name, name)] for name in names})
        features.update(token_embeddings=embeds, attention_mask=mask, sentence_embedding=pooled_tokens(embeds))
        return features

    def _embed_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        tower = self.model.text_tower
        encoded, mask = tower.encode(input_ids, attention_mask)
        hidden_states = encoded.last_hidden_state  # (B, L, hidden)
        tokens = F.normalize(tower.projection(hidden_states).float(), dim=-1)  # (B, L, D)
        return {"token_embeddings": tokens, "sentence_embedding": tower.pool(hidden_states, mask)}

    def _embed_sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        sentences = self.model.get_sentence_features(input_ids, attention_mask)  # (B, Q, D)
        return {
            "token_embeddings": sentences,
            "attention_mask": attention_mask.any(-1).long(),  # (B, Q)
            "sentence_embedding": pooled_tokens(sentences),  # (B, D)
        }

    def save(self, output_path: str, *args, **kwargs):
        """Write model (or its adapter), processor and `sentence_bert_config.json`."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)
