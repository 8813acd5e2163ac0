"""The pipeline `music-text-retrieval`: embeddings of songs and texts, and the songs that a text describes best.

This file travels with a model, so `pipeline(model=ID, trust_remote_code=True)` works where CoLLAP is not installed.

Dimensions: `A` audios, `B` texts, `Q` sentences of a text, `T` fused tokens of an audio, `W` frames of the score, `D`
shared width.
"""

import json
from collections.abc import Iterable, Mapping
from numbers import Integral
from os import PathLike
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

from .embed_audio import embed_audio
from .feature_extraction_collap import pad_audio_features
from .processing_collap import check_texts
from .songs_collap import Song, file_source, is_file, list_songs

TASK = "music-text-retrieval"


def pooled_tokens(audio_embeds: torch.Tensor) -> torch.Tensor:
    """Average a song's moments to a unit vector, whose cosine with a text is `mean_pooled_scores`.

    Args:
        audio_embeds: (..., T, D) as `get_audio_features` returns them: zero where the mask is False.

    Returns:
        (..., D).
    """
    return F.normalize(audio_embeds.sum(-2), dim=-1)


def pooled_texts(text_embeds: torch.Tensor) -> torch.Tensor:
    """Return one unit vector for each text: (B, Q, D) of its sentences, zeros where there are fewer -> (B, D)."""
    return text_embeds[:, 0] if text_embeds.shape[1] == 1 else pooled_tokens(text_embeds)


def join_texts(batches: list[torch.Tensor]) -> torch.Tensor:
    """Join texts of unequal numbers of sentences, (b, q, D) each, to (B, Q, D)."""
    most = max(batch.shape[1] for batch in batches)
    return torch.cat([F.pad(batch, (0, 0, 0, most - batch.shape[1])) for batch in batches])  # (B, Q, D)


class MusicTextRetrievalPipeline(Pipeline):
    """Embed songs and texts, or rank songs by how well they fit a text.

    ```python
    retrieve = pipeline("music-text-retrieval", model="you/collap-gpt2", trust_remote_code=True)
    retrieve("a choir over strings, then a loud guitar", ["one.mp3", "two.flac"], return_moments=True)
    # [{"index": 1, "score": 5.3, "start": 64.8, "end": 74.7}, {"index": 0, "score": 2.1, "start": 0.0, "end": 9.9}]
    library = retrieve(audio=["one.mp3", "two.flac"], return_tokens=True)  # embedded once
    retrieve("a slow song with piano", library)
    ```
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Song | Iterable[Song] | None = None,
        sampling_rate: int | None = None,
        return_tokens: bool | None = None,
        return_moments: bool | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> dict[str, torch.Tensor] | list[dict] | list[list[dict]]:
        """Embed or rank; all but text and audio may be given to `pipeline(...)`, too, for calls that leave them out.

        Args:
            text: one text or several.
            audio: one song, or a list or column of songs, each the path or the bytes of a file, an open file, a row of
                `datasets` (with `bytes`, `path`, or samples as `array` or `raw` and their `sampling_rate`), a decoder
                of torchcodec, or samples as [`CoLLAPFeatureExtractor`] takes them; or what a call with `return_tokens`
                returned. Files are decoded as by `load_audio` (`pip install av soundfile`) and embedded block by block,
                so their length is not limited by memory.
            sampling_rate: Hz of samples that do not say their own.
            return_tokens: whether to return the embeddings of every moment of the songs too; not by default.
            return_moments: whether to say where each song fits the text best; not by default.
            top_k: songs to return for a text; all by default.
            batch_size: texts to embed at a time; 1 by default.

        Returns:
            Only text: `text_embeds` (B, D). Only audio: `pooled_audio_embeds` (A, D), for fast search by cosine, and
            with `return_tokens` what the score reads, `audio_embeds` (A, T, D) and `audio_token_mask` (A, T). All unit
            vectors, float32, on the CPU.
            Text and audio: for each text the songs from the best to the worst, each a dict of `index` in `audio`,
            `score` of the model, and with `return_moments` `start` and `end` in seconds of the frame that fits best;
            a single list for a single text. If the model reads texts by sentences, `sentences` holds the seconds of
            each, in order, on the best way to lay them along the song.

        Raises:
            ValueError: without text and audio, for a text or audio that cannot be embedded, and for another `top_k`.
            AudioFileError: names a file that cannot be read.
        """
        if text is None and audio is None:
            raise ValueError("found neither text nor audio; expected at least one of them")
        _, forward, of_all = self._sanitize_parameters(
            sampling_rate=sampling_rate, return_moments=return_moments, return_tokens=return_tokens, top_k=top_k
        )
        of_all = {**self._postprocess_params, **of_all}
        if text is not None:
            texts = [{"text": one} for one in check_texts(text)]
            embedded = [out["text_embeds"] for out in self._run(texts, batch_size=batch_size)]
            text_embeds = join_texts(embedded)  # (B, Q, D)
            if audio is None:
                return {"text_embeds": pooled_texts(text_embeds)}
        songs = song_inputs(audio)
        if text is None:
            embedded = self._run(songs, **forward)
            return join_songs([out["audio_embeds"] for out in embedded], of_all.get("return_tokens", False))
        scored = self._run(songs, text_embeds=text_embeds, **forward)
        rankings = [ranking(scored, i, of_all.get("top_k")) for i in range(len(text_embeds))]
        return rankings[0] if isinstance(text, str) else rankings

    def _run(self, inputs: list[dict], batch_size: int | None = 1, **forward) -> list[dict]:
        return super().__call__(inputs, batch_size=batch_size, **forward)

    def _sanitize_parameters(
        self, text_embeds=None, sampling_rate=None, return_moments=None, return_tokens=None, top_k=None
    ) -> tuple[dict, dict, dict]:
        """Sort the options of `pipeline()` or of a call that are not None: none for `preprocess`, those of `_forward`,
        and those of the joined results."""
        if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
            raise ValueError(f"top_k must be a whole number of at least 1, found {top_k}")
        forward = {"text_embeds": text_embeds, "sampling_rate": sampling_rate, "return_moments": return_moments}
        of_all = {"return_tokens": return_tokens, "top_k": top_k}
        return {}, *({name: value for name, value in some.items() if value is not None} for some in (forward, of_all))

    def preprocess(self, inputs: dict):
        return self.processor(text=inputs["text"]) if "text" in inputs else inputs

    def _forward(
        self,
        inputs: dict,
        text_embeds: torch.Tensor | None = None,
        sampling_rate: int | None = None,
        return_moments: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Embed texts or one song; a song is scored at once, so that only one song's moments are held."""
        if "input_ids" in inputs:
            return {"text_embeds": self.model.get_sentence_features(inputs["input_ids"], inputs["attention_mask"])}
        tokens = inputs.get("audio_embeds")
        if tokens is None:
            tokens = self._embed(inputs["audio"], sampling_rate, inputs["index"])  # (T, D)
        if text_embeds is None:
            return {"audio_embeds": tokens}
        text_embeds, song = text_embeds.to(tokens.device), tokens.unsqueeze(0)  # (B, Q, D), (1, T, D)
        mask = torch.ones(song.shape[:2], dtype=torch.bool, device=song.device)  # (1, T)
        scores = {"scores": self.model.score(text_embeds, song, mask)[0]}  # (B,)
        if return_moments:
            scores["moments"] = best_moments(self.model, pooled_texts(text_embeds), song, mask)  # (B, 2)
            if text_embeds.shape[1] > 1:
                scores["path"] = self.model.localize(text_embeds, song, mask).path[0]  # (B, Q, 2)
        return scores

    def _embed(self, song: Song, sampling_rate: int | None, index: int) -> torch.Tensor:
        """Return one song's real tokens, (T, D)."""
        if is_file(song):
            embeds, mask = embed_audio(self.model, self.feature_extractor, file_source(song))  # (1, T, D), (1, T)
        else:
            features = self.feature_extractor.song_features(song, sampling_rate, self.device, f"audio[{index}]")
            embeds, mask = self.model.get_audio_features(**pad_audio_features([features]))  # (1, T, D), (1, T)
        return embeds[mask]  # (T, D)

    def postprocess(self, outputs: dict, **of_all) -> dict:
        return outputs

    def save_pretrained(self, save_directory: str | PathLike, **kwargs):
        """Write model, processor and this pipeline; the base class would leave out the processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        add_pipeline(save_directory)


def song_inputs(audio: Song | Iterable[Song]) -> list[dict]:
    """Turn the argument `audio` into inputs of the pipeline, one for each song.

    Raises:
        ValueError: for an empty list, or embeddings that were returned without their tokens.
    """
    if isinstance(audio, Mapping) and "pooled_audio_embeds" in audio:
        missing = [name for name in ("audio_embeds", "audio_token_mask") if name not in audio]
        if missing:
            raise ValueError(
                f"found embedded songs without {', '.join(missing)}; the score reads every moment of a song: embed "
                "them with return_tokens=True, and keep all that it returns"
            )
        songs = zip(audio["audio_embeds"], audio["audio_token_mask"], strict=True)
        return [{"audio_embeds": embeds[mask]} for embeds, mask in songs]  # (T, D)
    return [{"audio": song, "index": index} for index, song in enumerate(list_songs(audio))]


def join_songs(songs: list[torch.Tensor], return_tokens: bool) -> dict[str, torch.Tensor]:
    """Join songs of (T, D) each to the result of the pipeline; its padding is zero."""
    joined = {"pooled_audio_embeds": torch.stack([pooled_tokens(song) for song in songs])}  # (A, D)
    if return_tokens:
        real = [torch.ones(len(song), dtype=torch.bool) for song in songs]
        joined["audio_embeds"] = torch.nn.utils.rnn.pad_sequence(songs, batch_first=True)  # (A, T, D)
        joined["audio_token_mask"] = torch.nn.utils.rnn.pad_sequence(real, batch_first=True)  # (A, T)
    return joined


def best_moments(
    model, text_embeds: torch.Tensor, audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor
) -> torch.Tensor:
    """Find the frame of one song that each text fits best, by its start and end in seconds.

    Args:
        text_embeds: (B, D).
        audio_embeds, audio_token_mask: (1, T, D) and (1, T), without padding.

    Returns:
        (B, 2).
    """
    found = model.localize(text_embeds, audio_embeds, audio_token_mask)
    best = found.scores[0].masked_fill(~found.frame_mask, -torch.inf).argmax(-1)  # (B,)
    last_token = model.token_start_seconds(audio_embeds.shape[1], best.device)[-1]
    # The only frame of a song shorter than a frame reaches beyond its end.
    return found.frame_seconds[best].clamp(max=last_token + model.config.token_seconds)  # (B, 2)


def ranking(songs: list[dict[str, torch.Tensor]], text: int, top_k: int | None) -> list[dict]:
    """Sort songs, each with its `scores` (B,) and perhaps `moments` (B, 2), from the best for one text to the worst."""
    scores = torch.stack([song["scores"][text] for song in songs])  # (A,)
    hits = []
    for index in scores.argsort(descending=True, stable=True)[:top_k].tolist():
        hit = {"index": index, "score": scores[index].item()}
        if "moments" in songs[index]:
            # Tokens start at multiples of 0.02 s; float32 would print 11.4399.
            hit["start"], hit["end"] = [round(seconds, 2) for seconds in songs[index]["moments"][text].tolist()]
        if "path" in songs[index]:
            spans = songs[index]["path"][text]  # (Q, 2)
            hit["sentences"] = [[round(edge, 2) for edge in span] for span in spans[~spans.isnan().any(-1)].tolist()]
        hits.append(hit)
    return hits


def add_pipeline(folder: str | PathLike):
    """Add to a saved model what `pipeline(model=folder, trust_remote_code=True)` reads: this file, those that it
    imports, and the entry in config.json."""
    custom_object_save(MusicTextRetrievalPipeline, folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    implementation = f"{Path(__file__).stem}.{MusicTextRetrievalPipeline.__name__}"
    config["custom_pipelines"] = {TASK: {"impl": implementation, "pt": ["AutoModel"]}}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
