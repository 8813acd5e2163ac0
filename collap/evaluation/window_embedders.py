"""Models of short clips from transformers, CLAP and PE-A, on whole songs: by the windows of `collap.clap`.

Dimensions: `B` texts, `M` samples, `T` windows of a song, `D` shared width.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, ClapModel

from collap import clap
from collap.data.guarded_reading import Source, stream_audio
from collap.models import naming_device
from modeling_collap import CoLLAPConfig, attention_pooled_scores
from processing.embed_audio import check_samples

from .embedders import Embedder, Read, blocks_of, every_segment, files_digest, shown

TEXT_BATCH = 32


def window_frames(window_seconds: float) -> dict[str, int]:
    """Return frames of CoLLAP's default length, `kernel_size` and `stride` in windows; at least one."""
    seconds = {"kernel_size": CoLLAPConfig.kernel_seconds, "stride": CoLLAPConfig.stride_seconds}
    return {name: max(1, int(length / window_seconds)) for name, length in seconds.items()}


class WindowEmbedder(Embedder):
    """Embed songs by windows; subclasses say how one is embedded.

    Args:
        reading: `"mean"`: the mean of all windows, each by its length; `"first"`: the first window alone; `"tokens"`:
            all windows, scored as the tokens of a song by CoLLAP's attention, with frames of its default length and
            equal weights of both terms.
    """

    READINGS = ("mean", "first", "tokens")
    WINDOW_SECONDS: float
    UNIT = True  # whether its vectors are compared by their cosine, else by their product

    def __init__(self, name: str, reading: str = "mean", device: str = "cpu", dtype: str = "float32"):
        self.name, self.reading = shown(name, reading, self.READINGS), reading
        self.weights = files_digest(name)
        model = self.load(name, dtype)
        with naming_device(device):
            self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        self.sampling_rate = self.processor.feature_extractor.sampling_rate
        self.window_seconds = self.token_seconds = self.WINDOW_SECONDS
        self.frames = window_frames(self.window_seconds)
        window = f"{self.window_seconds:g} s"
        self.settings = {
            "window": f"the first {window}" if reading == "first" else f"all of {window}, the last one shorter",
            "text tokens": self.max_text_tokens(),
            "precision": dtype,
        }
        score = "cosine" if self.UNIT else "product"
        self.score_settings = {"score": score if reading == "first" else f"{score} with the mean window by length"}
        if reading == "tokens":
            self.settings["windows as"] = "tokens"
            self.score_settings = self._attention_settings()

    def load(self, name: str, dtype: str):
        """Load the model."""
        return AutoModel.from_pretrained(name, dtype=dtype, trust_remote_code=False)

    def max_text_tokens(self) -> int:
        """Return how many tokens of a text are read."""
        raise NotImplementedError

    def encode_texts(self, inputs: dict) -> torch.Tensor:
        """Encode tokenised texts: (B, D)."""
        raise NotImplementedError

    def encode_windows(self, windows: list[np.ndarray]) -> torch.Tensor:
        """Encode windows of one length: (windows, D)."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        found, limit = [], self.max_text_tokens()
        for start in range(0, len(texts), TEXT_BATCH):
            batch = texts[start : start + TEXT_BATCH]
            inputs = self.processor.tokenizer(
                batch, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(self.model.device)
            found.append(self.encode_texts(inputs).float().cpu())
        return torch.cat(found)  # (B, D)

    def embed_audio(self, samples: np.ndarray) -> torch.Tensor:
        return self._embed(blocks_of(samples)(None, self.sampling_rate, self.window_seconds))

    def embed_file(self, source: Source, stride: int = 1, read: Read = stream_audio) -> torch.Tensor:
        read = every_segment(read, self.window_seconds, stride)

        def checked() -> Iterator[np.ndarray]:
            for index, block in enumerate(read(source, self.sampling_rate, block_seconds=self.window_seconds)):
                check_samples(block, source, self.sampling_rate, is_start=index == 0)
                yield block

        return self._embed(checked())

    @torch.no_grad()
    def _embed(self, blocks: Iterable[np.ndarray]) -> torch.Tensor:
        """Embed a song that comes window by window."""
        windows = clap.real_windows(blocks, round(clap.MIN_SECONDS * self.sampling_rate))
        windows = itertools.islice(windows, 1) if self.reading == "first" else windows
        found, lengths = clap.embed_windows(windows, self.encode_windows)  # (T, D), (T,)
        if self.reading == "tokens":
            return F.normalize(found, dim=-1)
        return clap.mean_window(found, lengths).unsqueeze(0)  # (1, D)

    def token_starts(self, num_tokens: int, stride: int = 1) -> torch.Tensor:
        return torch.arange(num_tokens) * float(stride * self.window_seconds)

    def score(self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
        if self.reading == "tokens":
            mask = torch.ones(1, len(audio_embeds), dtype=torch.bool)
            texts = F.normalize(text_embeds, dim=-1)
            return attention_pooled_scores(texts, audio_embeds.unsqueeze(0), mask, **self.frames, **GAMMAS)[0]
        if self.UNIT:
            return super().score(text_embeds, audio_embeds)
        return text_embeds @ audio_embeds[0]

    def _attention_settings(self) -> dict:
        return {"score": "attention, paper", "attention temperature": 1.0, "reduction": "mean", **self.frames}


GAMMAS = {"gamma_kernel": 1.0, "gamma_temporal": 1.0, "attention_temperature": 1.0, "reduction": "mean"}


class ClapEmbedder(WindowEmbedder):
    """Embed with a `ClapModel` (HTSAT), fused or not; a fused one never sees its three random crops."""

    WINDOW_SECONDS = clap.WINDOW_SECONDS

    def __init__(self, name: str, *arguments):
        super().__init__(name, *arguments)
        if self.reading != "tokens":
            self.paper_row = "Larger CLAP" if "larger_clap" in name else "HTSAT (RoBERTa)"

    def load(self, name: str, dtype: str):
        return ClapModel.from_pretrained(name, dtype=dtype, trust_remote_code=False)

    def max_text_tokens(self) -> int:
        return clap.max_clap_tokens(self.model, self.processor.tokenizer)

    def encode_texts(self, inputs: dict) -> torch.Tensor:
        return clap.encode_clap_texts(self.model, inputs)

    def encode_windows(self, windows: list[np.ndarray]) -> torch.Tensor:
        return clap.encode_clap_windows(self.model, self.processor.feature_extractor, windows)


class PeAudioEmbedder(WindowEmbedder):
    """Embed with a `PeAudioModel`, by windows as long as the clips it was trained on; compared by their product, as in
    its own forward pass."""

    WINDOW_SECONDS = 30.0
    UNIT = False

    def max_text_tokens(self) -> int:
        return min(self.processor.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    def encode_texts(self, inputs: dict) -> torch.Tensor:
        # Not get_text_audio_embeds: it does not ask for the hidden states that it reads.
        arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        output = self.model.text_model(**arguments, output_hidden_states=True)
        return self.model.text_audio_head(output.hidden_states[-1][:, 0])  # (B, D)

    def encode_windows(self, windows: list[np.ndarray]) -> torch.Tensor:
        inputs = self.processor.feature_extractor(windows, sampling_rate=self.sampling_rate, return_tensors="pt")
        values = inputs["input_values"].to(self.model.device, self.model.dtype)  # (windows, 1, M)
        return self.model.get_audio_embeds(values, inputs["padding_mask"].to(self.model.device))


WINDOWED = {"clap": ClapEmbedder, "pe_audio": PeAudioEmbedder}
