"""Ask a language model of transformers, of any architecture: one that hears about audio, any one about words.

The way of all: a chat of one turn with audio and prompt, by the processor's own template. Three things are particular.
Qwen2-Audio and Qwen2.5-Omni cut what is longer than their feature extractor's window without a word: they are given
the pieces of a recording one after the other. Of the Omni models only the half that writes is loaded. A processor
without a chat template, as MOSS-Music's, takes prompt and audio as they are, one at a time.

Dimensions: `N` samples, `A` questions, `K` tokens, `V` words of the vocabulary.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, LogitsProcessor, LogitsProcessorList
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.generation.logits_process import TopPLogitsWarper

from collap.files import flat
from collap.models import naming_device, weights_digest
from processing.resample_audio import resample

from .licences import model_licence
from .tracks import RATE

CUT_AT_WINDOW = {"qwen2_audio", "qwen2_5_omni"}  # processors that truncate audio at their feature extractor's window
TOP_P = 0.9


class SeededSampling(LogitsProcessor):
    """Draw words so that an answer depends on its own seed alone, whatever stands beside it in the batch.

    The largest of logits with Gumbel noise is a draw from their softmax (Gumbel, 1954): greedy search then samples.

    Args:
        seeds: of every question.
        temperature: above 0.
    """

    def __init__(self, seeds: list[int], temperature: float):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, TopPLogitsWarper(TOP_P)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return logits (A, V) with noise."""
        scores = self.top_p(input_ids, scores.float() / self.temperature)
        draws = torch.stack([torch.rand(scores.shape[1], generator=one) for one in self.generators])  # (A, V)
        return scores - torch.log(-torch.log(draws.clamp_min(1e-20))).to(scores.device)


def find_class(config, name: str, trust_remote_code: bool):
    """Return the class that a checkpoint was saved from, or that the code in its folder gives it.

    Of an Omni model it is that of the half that writes.

    Raises:
        ValueError: transformers has no such class, and code in the folder may not run.
    """
    saved = (config.architectures or [""])[0]
    if hasattr(config, "thinker_config") and "Thinker" not in saved:
        saved = saved.replace("ForConditionalGeneration", "ThinkerForConditionalGeneration")
    if hasattr(transformers, saved):
        return getattr(transformers, saved)
    entries = getattr(config, "auto_map", None) or {}
    kinds = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModel")
    own = next((entries[kind] for kind in kinds if kind in entries), None)
    if own is None or not trust_remote_code:
        raise ValueError(f"{name}: transformers {transformers.__version__} has no class {saved!r} for it")
    return get_class_from_dynamic_module(own, name)


class TransformersWriter:
    """Answer questions about audio by a model of transformers.

    Args:
        name: folder or Hub id.
        device, dtype: as torch names them.
        pieces: what is said before a prompt where a recording is given in `{count}` pieces of `{seconds}` seconds.
        trust_remote_code: whether code in the folder may run.

    Raises:
        OSError, ValueError: there is no such model, or it does not take audio; one line.
    """

    def __init__(self, name: str, device: str, dtype: str, pieces: str, trust_remote_code: bool = False):
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:  # the Omni models' processors need torchvision
            raise OSError(f"{name}: no such folder, and no captioner that can be read ({flat(error, 300)})") from error
        model = _load(find_class(config, name, trust_remote_code), config, name, dtype)
        if not model.can_generate():
            raise ValueError(f"{name}: a {config.model_type!r} model, which writes no text")
        with naming_device(device):
            self.model = model.to(device).eval()
        self.processor, self.pieces, self.kind = processor, pieces, config.model_type
        self.has_template = getattr(processor, "apply_chat_template", None) is not None
        self.extractor = getattr(processor, "feature_extractor", None)
        shown = Path(name).name if Path(name).exists() else name  # with captions goes no path of this machine
        self.name, self.licence = f"{shown}@{_version(name, config)}", model_licence(name)

    @property
    def chats(self) -> bool:
        """Tell whether it can be asked without audio."""
        return self._tokenizer().chat_template is not None

    @torch.inference_mode()
    def write(
        self,
        prompts: list[str],
        audios: list[np.ndarray | None],
        seeds: list[int],
        temperature: float,
        max_tokens: int,
    ) -> list[str]:
        """Return an answer to each of A prompts about its audio (N,) at `RATE`, None for no audio in all of them.

        Args:
            temperature: 0 for the likeliest words.
        """
        if not self.has_template and len(prompts) > 1:
            alone = zip(prompts, audios, seeds, strict=True)
            return [self.write([one], [audio], [seed], temperature, max_tokens)[0] for one, audio, seed in alone]
        inputs = self._inputs(prompts, audios)
        sampling = LogitsProcessorList([SeededSampling(seeds, temperature)] if temperature else [])
        written = self._generate(inputs, max_new_tokens=max_tokens, logits_processor=sampling)
        written = written[:, inputs["input_ids"].shape[1] :]  # (A, K)
        return self._tokenizer().batch_decode(written, skip_special_tokens=True)

    @torch.inference_mode()
    def first_scores(self, prompt: str, audio: np.ndarray) -> np.ndarray:
        """Return the logits (V,) of the first word of an answer."""
        found = self._generate(
            self._inputs([prompt], [audio]), max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
        return found.logits[0][0].float().cpu().numpy()

    def _generate(self, inputs: dict, **options):
        plainly = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}
        return self.model.generate(**inputs, **plainly, **options)

    def _tokenizer(self):
        return getattr(self.processor, "tokenizer", self.processor)

    def _inputs(self, prompts: list[str], audios: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return the model's inputs, padded on the left, on its device and in its precision."""
        if audios[0] is None:
            return self._text_inputs(prompts)
        rate = getattr(self.extractor, "sampling_rate", RATE)
        heard = [
            one if rate == RATE else np.concatenate(list(resample(iter([(0, one)]), RATE, rate, 0))) for one in audios
        ]
        if self.has_template:
            self._tokenizer().padding_side = "left"
            chats = [self._chat(*one) for one in zip(prompts, heard, strict=True)]
            inputs = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        else:
            inputs = self.processor(text=prompts[0], audio=heard, return_tensors="pt")
            inputs["audio_input_mask"] = inputs["input_ids"] == self.processor.audio_token_id
        device, dtype = self.model.device, self.model.dtype
        return {
            name: one.to(device, dtype if one.is_floating_point() else None)
            for name, one in inputs.items()
            if isinstance(one, torch.Tensor)
        }

    def _text_inputs(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Return the model's inputs of questions without audio."""
        tokenizer = self._tokenizer()
        tokenizer.padding_side = "left"
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        )
        return inputs.to(self.model.device)

    def _chat(self, prompt: str, audio: np.ndarray) -> list[dict]:
        """Return one turn: the audio, in pieces if it must be, and the prompt."""
        size = self.extractor.n_samples if self.kind in CUT_AT_WINDOW else len(audio)
        parts = [audio[first : first + size] for first in range(0, len(audio), size)]
        if len(parts) > 1:
            seconds = size / self.extractor.sampling_rate
            told = self.pieces.replace("{count}", str(len(parts))).replace("{seconds}", f"{seconds:g}")
            prompt = f"{told} {prompt}"
        content = [{"type": "audio", "audio": one} for one in parts]
        return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]


def _load(model_class, config, name: str, dtype: str):
    """Load a model, of an Omni model the half that writes.

    Raises:
        ValueError: weights are missing, for which transformers would draw random ones.
    """
    half = getattr(config, "thinker_config", config)
    model, told = model_class.from_pretrained(name, config=half, dtype=dtype, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{name}: has no weights for {len(missing)} parts of the model, such as {missing[0]}")
    return model


def _version(name: str, config) -> str:
    """Return what tells a model's weights from others of its name: a commit of the Hub, or a digest."""
    commit = getattr(config, "_commit_hash", None)
    return commit[:12] if commit and not Path(name).exists() else weights_digest(name)
