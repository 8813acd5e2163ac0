"""The cached step against the plain full batch on one process: same loss, same gradients, for 1, 2 and 4 processes."""

import math
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from steps import take_step
from tiny import tiny_model, tiny_processor

from collap.training.step import micro_batches, random_state, replayed_random_state
from modeling_collap import scoring_collap
from modeling_collap.loss_collap import contrastive_loss

# Settings of the model by what they are called here; texts of the last are scored by sentences.
KINDS = {
    "symmetric": {"loss_direction": "symmetric"},
    "audio_to_text": {"loss_direction": "audio_to_text"},
    "sentences": {"alignment": "monotone", "path_blank": True, "alignment_frame_seconds": 0.5},
    "located": {"alignment": "monotone", "alignment_frame_seconds": 0.5, "location_weight": 3.0},
    "ordered": {"alignment": "monotone", "alignment_frame_seconds": 0.5, "location_weight": 0.5},
}
# Of the eight songs: the micro-batches of each process are padded to other numbers of segments.
SECONDS = (3.1, 1.2, 6.9, 2.5, 0.7, 4.4, 5.0, 2.1)
WORDS = ("slow", "piano and drums", "a choir sings over strings, then a loud guitar", "drums")
TEXTS = [f"{word} {number}" for number in range(2) for word in WORDS]
MORE_LINES = ("", "\nthen loud drums", "\nthen a slow piano\nthen nothing")  # no process has as many as the next
MICRO_BATCHES = {1: (None, 1, 3, 5), 2: (None, 1, 3), 4: (None, 1)}  # by processes, with the first settings
FEW_MICRO_BATCHES = {1: (3,), 2: (None, 3), 4: (1,)}  # with the others
WIDTH, TOKENS = 32, 48  # D, and tokens of the longest song


def sentence_spans() -> torch.Tensor:
    """Half a song for each of two sentences; text 1 says nothing of its one, and a third sentence is of no place."""
    spans = torch.full((len(TEXTS), 3, 2), torch.nan, dtype=torch.float64)
    for song, seconds in enumerate(SECONDS):
        spans[song, 0], spans[song, 1] = torch.tensor([[0.0, seconds / 2], [seconds / 2, seconds]])
    spans[1] = torch.nan
    for song in range(len(TEXTS)):
        spans[song, 1 + MORE_LINES[song // 3].count("\n") :] = torch.nan
    return spans


def sentence_orders() -> torch.Tensor:
    """The first two sentences exchanged, of texts that have them."""
    lines = [1 + MORE_LINES[song // 3].count("\n") for song in range(len(TEXTS))]
    return torch.tensor([{1: [-1] * 3, 2: [1, 0, -1], 3: [1, 0, 2]}[count] for count in lines])


LABELS = {
    "located": lambda: {"sentence_spans": sentence_spans()},
    "ordered": lambda: {"sentence_spans": sentence_spans(), "sentence_orders": sentence_orders()},
}


class Batch:
    """What the step asks of a batch, in double precision."""

    def __init__(self, processor, songs: slice, kind: str = ""):
        generator = torch.Generator().manual_seed(0)
        waveforms = [torch.randn(round(16000 * seconds), generator=generator) * 0.1 for seconds in SECONDS]
        texts = [text + MORE_LINES[index // 3] for index, text in enumerate(TEXTS)] if processor.split_texts else TEXTS
        self.processor, self.texts, self.waveforms = processor, texts[songs], waveforms[songs]
        self.labels = LABELS.get(kind, dict)()
        self.labels = {name: values[songs] for name, values in self.labels.items()}
        self.song_ids = self.text_ids = None

    def __len__(self) -> int:
        return len(self.texts)

    def text_inputs(self, part: slice, device) -> dict:
        inputs = dict(self.processor(text=self.texts, device=device))
        for name, values in self.labels.items():  # of no more sentences than these texts have
            inputs[name] = values[:, : inputs["input_ids"].shape[1]]
        return {name: tensor[part] for name, tensor in inputs.items()}

    def audio_inputs(self, part: slice, device, feature_extractor) -> dict:
        inputs = feature_extractor(self.waveforms[part], sampling_rate=16000, device=device)
        return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


@contextmanager
def in_double_precision():
    """The model casts embeddings to float32 by `.float()`; here that means float64, so that 1e-6 can be asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def double_model(kind: str = "symmetric"):
    """Without dropout."""
    return tiny_model("gpt2", structure_layers=1, learn_attention_temperature=True, **KINDS[kind]).double()


def processor_of(kind: str):
    return tiny_processor("gpt2", **KINDS[kind])


def gradients(model) -> dict[str, torch.Tensor]:
    named = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in named.items() if gradient is not None}


def micro_batch_sizes(kind: str, num_processes: int) -> tuple[int | None, ...]:
    return (MICRO_BATCHES if kind == "symmetric" else FEW_MICRO_BATCHES)[num_processes]


def plain_loss_and_gradients(kind: str) -> dict[str, torch.Tensor]:
    """One process, one graph over the whole batch."""
    model, processor = double_model(kind), processor_of(kind)
    batch, whole = Batch(processor, slice(None), kind), slice(None)
    inputs = batch.text_inputs(whole, "cpu") | batch.audio_inputs(whole, "cpu", processor.feature_extractor)
    output = model(**inputs, return_loss=True)
    output.loss.backward()
    return {"loss": output.loss.detach(), "scores": output.logits_per_audio.detach()} | gradients(model)


def step_results(accelerator: Accelerator, kind: str, micro_batch_size: int | None) -> dict[str, torch.Tensor]:
    model, processor = double_model(kind), processor_of(kind)
    prepared = accelerator.prepare(model)
    songs = len(TEXTS) // accelerator.num_processes
    start = accelerator.process_index * songs
    batch = Batch(processor, slice(start, start + songs), kind)
    for _ in range(min(accelerator.num_processes, 2)):  # a second fails if one left DDP waiting
        model.zero_grad()
        step = take_step(accelerator, prepared, batch, processor.feature_extractor, micro_batch_size)
    assert step.has_gradients
    return {"loss": step.loss, "scores": step.scores} | gradients(prepared)


def sizes_that_travel(accelerator: Accelerator) -> list[int]:
    """Numbers in every tensor that a cached step hands to torch.distributed in Python (DDP's buckets are gradients)."""
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "all_reduce"):
            original = getattr(dist, name)

            def recording(*args, original=original, **kwargs):
                tensors = args[0] if isinstance(args[0], list) else [args[0]]
                sizes.append(sum(tensor.numel() for tensor in tensors))
                return original(*args, **kwargs)

            patch.setattr(dist, name, recording)
        step_results(accelerator, "symmetric", 1)
    return sizes


def work(rank: int, world: int, folder: str):
    """One of several processes: everything that the tests compare is written to `folder`."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()  # of the process that this one is forked from
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    with in_double_precision():
        results = {
            (kind, size): step_results(accelerator, kind, size)
            for kind in KINDS
            for size in micro_batch_sizes(kind, world)
        }
        results["sizes"] = sizes_that_travel(accelerator)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=sorted(MICRO_BATCHES))
def processes(request, tmp_path_factory) -> list[dict]:
    """What each of 1, 2 or 4 processes found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(work, (request.param, str(folder)), nprocs=request.param, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def plain() -> dict[str, dict]:
    with in_double_precision():
        return {kind: plain_loss_and_gradients(kind) for kind in KINDS}


@pytest.fixture
def accelerator():
    """A fresh one: its state is shared within a process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_has_the_loss_and_gradients_of_the_plain_full_batch(processes, plain, kind):
    expected = plain[kind]
    trained = {name for name, parameter in double_model(kind).named_parameters() if parameter.requires_grad}
    assert expected.keys() == trained | {"loss", "scores"}
    for found in processes:
        for size in micro_batch_sizes(kind, len(processes)):
            result = found[kind, size]
            assert result.keys() == expected.keys()
            for name, value in expected.items():
                error = (result[name] - value).norm()
                # A key's bias has no gradient (softmax ignores it): rounding noise, without a scale of its own.
                assert error <= 1e-6 * max(value.norm().item(), 1e-6), (name, size)


def test_the_batch_is_one_in_which_the_comparison_means_something(plain):
    """The directions differ, every song's score does, and no tower's gradient is noise."""
    assert abs(plain["symmetric"]["loss"] - plain["audio_to_text"]["loss"]) > 1e-4
    assert plain["symmetric"]["scores"].std() > 0.1
    for name in ("text_tower.projection.weight", "audio_tower.adapter.weight", "score_parameters.log_gamma_kernel"):
        assert plain["symmetric"][name].norm() > 1e-3
        assert (plain["symmetric"][name] - plain["audio_to_text"][name]).norm() > 1e-4
    assert plain["located"]["loss"] > plain["sentences"]["loss"] + 1
    assert plain["ordered"]["loss"] > plain["sentences"]["loss"] + 0.1
    for name in ("log_gamma_sentences", "log_gamma_path", "blank"):
        assert plain["sentences"][f"score_parameters.{name}"].norm() > 1e-3


def test_only_text_embeddings_and_scores_travel(processes):
    songs = len(TEXTS)
    allowed = {songs * WIDTH, songs * songs}
    for found in processes:
        if len(processes) > 1:
            assert set(found["sizes"]) == allowed  # gathered texts and their gradient; gathered scores
        assert all(size < songs // len(processes) * TOKENS * WIDTH for size in found["sizes"])


def test_dropout_of_the_second_pass_is_that_of_the_first(accelerator):
    """The reference draws the same masks in the same order, in one graph over all micro-batches."""
    processor = tiny_processor("gpt2")
    batch, parts = Batch(processor, slice(0, 4)), micro_batches(4, 3)
    with in_double_precision():
        model = double_model().train()
        torch.manual_seed(5)
        texts = torch.cat([model(**batch.text_inputs(part, "cpu")).text_embeds for part in parts])
        audios = [batch.audio_inputs(part, "cpu", processor.feature_extractor) for part in parts]
        scores = torch.cat([model(**audio, text_embeds=texts).logits_per_audio for audio in audios])
        loss = contrastive_loss(scores)
        loss.backward()
        expected, drawn_next = gradients(model), torch.rand(3)

        model = double_model().train()
        torch.manual_seed(5)
        step = take_step(accelerator, model, batch, processor.feature_extractor, micro_batch_size=3)
        assert torch.equal(torch.rand(3), drawn_next)  # the replay leaves no trace in the generator
    torch.testing.assert_close(step.loss, loss.detach())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-12)


def test_the_replayed_state_is_left_behind():
    torch.manual_seed(0)
    state = random_state(torch.device("cpu"))
    first = torch.rand(2)
    following = random_state(torch.device("cpu"))
    with replayed_random_state(state, torch.device("cpu")):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), following[0])


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_a_loss_that_is_not_finite_or_above_the_limit_has_no_gradients(accelerator, micro_batch_size):
    processor = tiny_processor("gpt2")
    batch = Batch(processor, slice(0, 4))
    arguments = (batch, processor.feature_extractor, micro_batch_size)
    with in_double_precision():
        model = double_model()
        step = take_step(accelerator, model, *arguments, limit=1e-3)
        assert not step.has_gradients and step.loss > 1e-3 and not gradients(model)
        torch.nn.init.constant_(model.audio_tower.adapter.bias, math.nan)
        step = take_step(accelerator, model, *arguments)
        assert not step.has_gradients and step.loss.isnan() and not gradients(model)


def test_texts_are_scored_in_chunks_when_there_are_many(accelerator, monkeypatch):
    """The same gradients with and without the bound on the memory of the scores."""
    processor = tiny_processor("gpt2")
    batch, found = Batch(processor, slice(0, 4)), []
    for cells in (scoring_collap.CELLS_AT_A_TIME, 1000):
        monkeypatch.setattr(scoring_collap, "CELLS_AT_A_TIME", cells)
        with in_double_precision():
            for size in (None, 3):
                model = double_model()
                take_step(accelerator, model, batch, processor.feature_extractor, size)
                found.append(gradients(model))
    for result in found[1:]:
        for name, gradient in result.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-6, atol=1e-12)


def test_micro_batches_cover_every_song_once():
    assert micro_batches(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert micro_batches(4, None) == micro_batches(4, 9) == [slice(0, 4)]


def bytes_kept_for_backward(accelerator, micro_batch_size: int | None, songs: int) -> int:
    """The most that the graph holds at any time, in bytes of saved tensors."""
    processor = tiny_processor("gpt2")
    model, batch = double_model(), Batch(processor, slice(0, songs))
    held = {"now": 0, "peak": 0}

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            held["now"] += tensor.nbytes
            held["peak"] = max(held["peak"], held["now"])

        def __del__(self):
            held["now"] -= self.tensor.nbytes

    with in_double_precision(), torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        take_step(accelerator, model, batch, processor.feature_extractor, micro_batch_size)
    return held["peak"]


def test_activations_are_those_of_one_micro_batch_whatever_the_batch(accelerator):
    plain = [bytes_kept_for_backward(accelerator, None, songs) for songs in (4, 8)]
    cached = [bytes_kept_for_backward(accelerator, 1, songs) for songs in (4, 8)]
    assert plain[1] > 1.5 * plain[0]
    assert cached[1] < 1.1 * cached[0] and cached[1] < 0.5 * plain[1]


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_loss_scale_reaches_every_gradient_once(accelerator, micro_batch_size):
    """float16 training scales the loss; the texts' gradient passes through two backward calls."""
    processor = tiny_processor("gpt2")
    batch, found = Batch(processor, slice(0, 4)), []
    with in_double_precision():
        for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
            model, accelerator.scaler = double_model(), scaler
            take_step(accelerator, model, batch, processor.feature_extractor, micro_batch_size)
            found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], 1024 * gradient, rtol=1e-6, atol=1e-9)
