"""Frozen towers, LoRA, learning rates, checkpointing and compilation on tiny models of both text towers."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from tiny import TEXTS, tiny_beats_config, tiny_model, tiny_processor, tiny_text_config, tiny_whisper_config
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoProcessor

from collap.models import save_model_folder
from collap.training.trainable import (
    add_lora,
    compile_encoders,
    enable_gradient_checkpointing,
    freeze,
    parameter_groups,
    save_model,
    trainable_summary,
)

TOWERS = ("text", "music", "speech")
TEXT_TOWERS = ("gpt2", "roberta")
FEW_SONGS = (1.0, 5.0, 3.0)


def inputs(text: str, seconds=FEW_SONGS):
    """As many texts as songs, all of another length."""
    generator = torch.Generator().manual_seed(0)
    songs = [torch.randn(round(16000 * length), generator=generator) * 0.1 for length in seconds]
    texts = [TEXTS[i % 2] + " and" * i for i in range(len(songs))]
    return tiny_processor(text)(text=texts, audio=songs, sampling_rate=16000)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.audio_tower.music.config.attention_dropout = 0.0
    return model


def model_with_lora(text: str, lora=("text", "music"), frozen=("speech",), base_model="base", **overrides):
    model = tiny_model(text, structure_layers=1, **overrides)
    freeze(model, list(frozen))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(model, list(lora), rank=4, base_model=base_model)
    return model


def train(model, batch, steps=2, learning_rate=1e-2):
    """Steps of AdamW; LoRA's A has no gradient before B has moved, so one step would not do."""
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate, weight_decay=0.01))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        optimizer.step()
    return model.eval()


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(0)  # dropout
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=tolerance, atol=tolerance, msg=name)


def saved_by_towers(model, batch) -> dict[str, int]:
    """Tensors that the forward pass of each tower keeps for the backward pass."""
    counts, inside = dict.fromkeys((*TOWERS, None), 0), [None]

    def leave(*_):
        inside.pop()

    for name in TOWERS:
        tower = model.encoders[name]
        tower.register_forward_pre_hook(lambda *_, name=name: inside.append(name))
        tower.register_forward_hook(leave)

    def pack(tensor):
        counts[inside[-1]] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batch, return_loss=True).loss.backward()
    return counts


class TestFreeze:
    @pytest.mark.parametrize("tower", TOWERS)
    def test_a_frozen_tower_stays_in_evaluation_mode_and_the_rest_trains(self, tower):
        model = tiny_model(
            music_config=tiny_beats_config(hidden_dropout=0.5, attention_dropout=0.5),
            speech_config=tiny_whisper_config(dropout=0.5, encoder_layerdrop=0.9),
        )
        batch = inputs("gpt2")
        freeze(model.train(), [tower])
        assert {module.training for module in model.encoders[tower].modules()} == {False}
        model.eval()
        expected = model.get_text_features(batch["input_ids"], batch["attention_mask"])
        for _ in range(2):
            model.train()
            for name in TOWERS:
                modules = list(model.encoders[name].modules())
                assert {module.training for module in modules} == {name != tower}
            model.eval()
        assert model.training is False and not any(module.training for module in model.modules())
        found = copy.deepcopy(model).train().get_text_features(batch["input_ids"], batch["attention_mask"])
        assert torch.equal(found, expected) == (tower == "text")

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    @pytest.mark.parametrize("frozen", [["text"], ["music", "speech"], list(TOWERS)])
    def test_nothing_of_a_frozen_tower_is_kept_for_the_backward_pass(self, text, frozen):
        model = tiny_model(text, structure_layers=1)
        freeze(model, frozen)
        for checkpointing in (False, True):
            if checkpointing:
                enable_gradient_checkpointing(model, ["all"])
            counts = saved_by_towers(copy.deepcopy(model).train(), inputs(text))
            assert {name for name, count in counts.items() if count == 0} == set(frozen)  # None: the heads

    def test_unknown_towers_are_refused_with_the_nearest(self):
        with pytest.raises(ValueError, match="'musik' is no part of the model; did you mean 'music'"):
            freeze(tiny_model(), ["speech", "musik"])

    def test_a_tower_is_either_frozen_or_has_lora(self):
        model = tiny_model()
        freeze(model, ["music"])
        with pytest.raises(ValueError, match="the music tower is frozen and cannot have LoRA"):
            add_lora(model, ["text", "music"], rank=2, base_model="base")
        add_lora(model, ["text"], rank=2, base_model="base")
        with pytest.raises(ValueError, match="the text tower has LoRA and cannot be frozen"):
            freeze(model, ["text"])


class TestLora:
    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_every_attention_and_feed_forward_projection_gets_an_update(self, text):
        model = model_with_lora(text, lora=TOWERS, frozen=())
        found = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
        attention = [f"self_attn.{name}_proj" for name in "qkv"] + ["self_attn.out_proj"]
        of_text = {
            "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
            "roberta": [f"attention.self.{name}" for name in ("query", "key", "value")]
            + ["attention.output.dense", "intermediate.dense", "output.dense"],
        }
        layers = {
            "text_tower.encoder.h" if text == "gpt2" else "text_tower.encoder.encoder.layer": of_text[text],
            "audio_tower.music.layers": [*attention, "feed_forward.fc1", "feed_forward.fc2"],
            "audio_tower.speech.layers": [*attention, "fc1", "fc2"],
        }
        assert found == {f"{path}.{i}.{name}" for path, names in layers.items() for i in (0, 1) for name in names}

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_it_starts_as_the_model_itself(self, text):
        batch = inputs(text)
        expected = tiny_model(text, structure_layers=1)(**batch).logits_per_audio
        assert torch.equal(model_with_lora(text)(**batch).logits_per_audio, expected)

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    @pytest.mark.parametrize(("lora", "frozen"), [(["text", "speech"], ["music"]), (["music"], []), ([], ["text"])])
    def test_training_changes_exactly_what_should_train(self, text, lora, frozen):
        model = tiny_model(text, structure_layers=1)
        freeze(model, frozen)
        if lora:
            add_lora(model, lora, rank=4, base_model="base")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(model, inputs(text))
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        constant = {"score_parameters.log_attention_temperature", "audio_tower.speech.embed_positions.weight"}
        paths = {"text": "text_tower.encoder.", "music": "audio_tower.music.", "speech": "audio_tower.speech."}
        fixed = tuple(paths[tower] for tower in [*lora, *frozen])
        expected = {name for name in before if ".lora_" in name or not name.startswith(fixed)} - constant
        assert changed == expected

    def test_a_rank_below_one_and_no_towers_are_refused(self):
        with pytest.raises(ValueError, match="rank of LoRA must be at least 1, found 0"):
            add_lora(tiny_model(), ["text"], rank=0, base_model="base")
        with pytest.raises(ValueError, match="did you mean 'speech'"):
            add_lora(tiny_model(), ["speach"], rank=1, base_model="base")

    def test_accelerate_saves_and_restores_its_state(self, tmp_path):
        accelerator = Accelerator(cpu=True)
        model = model_with_lora("gpt2")
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.01))
        model, optimizer = accelerator.prepare(model, optimizer)
        batch = inputs("gpt2")
        train(model, batch)
        accelerator.save_state(str(tmp_path / "state"))
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(model, batch)
        accelerator.load_state(str(tmp_path / "state"))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        other = model_with_lora("gpt2", seed=1)
        other.load_state_dict(load_file(tmp_path / "state" / "model.safetensors"))
        assert torch.equal(other(**batch).logits_per_audio, model(**batch).logits_per_audio)


class TestSaveModel:
    @pytest.mark.parametrize("text", TEXT_TOWERS)
    @pytest.mark.parametrize("lora", [("text", "music"), TOWERS, ("speech",)])
    def test_lora_is_saved_as_a_plain_model_and_as_an_adapter(self, text, lora, tmp_path):
        base, folder = tmp_path / "base", tmp_path / "tuned"
        plain, batch = tiny_model(text, structure_layers=1), inputs(text)
        save_model_folder(plain, tiny_processor(text), base)
        model = model_with_lora(text, lora, frozen={"speech"} - set(lora), base_model=base)
        train(model, batch)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = model(**batch).logits_per_audio
        assert (plain(**batch).logits_per_audio - expected).abs().max() > 0.1

        save_model(model, tiny_processor(text), folder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(model(**batch).logits_per_audio, expected)
        assert load_file(folder / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
        assert json.loads((folder / "config.json").read_text()) == json.loads((base / "config.json").read_text())
        loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(loaded(**batch).logits_per_audio, expected, rtol=1e-5, atol=1e-5)
        assert AutoProcessor.from_pretrained(folder)(text="a song")["input_ids"].shape[0] == 1

        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base) and config["peft_type"] == "LORA"
        adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder / "adapter").eval()
        torch.testing.assert_close(adapted(**batch).logits_per_audio, expected, rtol=1e-5, atol=1e-5)

    def test_the_adapter_holds_nothing_that_did_not_train(self, tmp_path):
        save_model(model_with_lora("gpt2"), tiny_processor("gpt2"), tmp_path)
        names = {
            name.removeprefix("base_model.model.")
            for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        }
        assert not any(name.startswith("audio_tower.speech") for name in names)
        assert all(".lora_" in name for name in names if name.startswith(("text_tower.encoder", "audio_tower.music")))

    def test_without_lora_it_is_the_model_and_its_processor(self, tmp_path):
        model = tiny_model("gpt2")
        freeze(model, ["speech"])
        save_model(model, tiny_processor("gpt2"), tmp_path / "a")
        save_model_folder(model, tiny_processor("gpt2"), tmp_path / "b")
        files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
        assert files[0] == files[1]


def test_parameter_groups_separate_rates_and_decay_of_what_trains():
    model = model_with_lora("roberta", lora=["speech"], frozen=["text"])
    groups = {group["name"]: group for group in parameter_groups(model, 1e-3, 0.1, 2e-3, 3e-4)}
    assert set(groups) == {"audio", "audio, no decay", "heads", "heads, no decay"}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of = {name: {names[id(parameter)] for parameter in group["params"]} for name, group in groups.items()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(name for found in of.values() for name in found) == sorted(trained)
    assert [groups[name]["lr"] for name in ("audio", "audio, no decay", "heads")] == [3e-4, 3e-4, 1e-3]
    assert groups["audio"]["weight_decay"] == 0.1 and groups["audio, no decay"]["weight_decay"] == 0.0
    assert "audio_tower.music.layers.0.self_attn.gate_scale" in of["audio, no decay"]
    assert "audio_tower.speech.layers.1.fc1.lora_B.default.weight" in of["audio"]
    assert of["heads, no decay"] >= {"score_parameters.log_gamma_kernel", "text_tower.projection.bias"}
    assert of["heads"] >= {"audio_tower.adapter.weight", "structure.frame_layers.0.query_key_value.weight"}

    groups = {group["name"]: group for group in parameter_groups(tiny_model(), 1e-3, 0.1, text_learning_rate=2e-3)}
    assert {name: groups[name]["lr"] for name in ("text", "audio", "heads")} == {
        "text": 2e-3,
        "audio": 1e-3,
        "heads": 1e-3,
    }


def test_the_summary_counts_every_part():
    model = model_with_lora("gpt2", lora=["text"], frozen=["music"])

    def millions(*prefixes, trained=False):
        chosen = [
            p for name, p in model.named_parameters() if name.startswith(prefixes) and (p.requires_grad or not trained)
        ]
        return f"{sum(p.numel() for p in chosen) / 1e6:.2f}"

    lines = trainable_summary(model).splitlines()
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(p.numel() for p in model.parameters())
    assert (
        lines[0] == f"trains {millions('', trained=True)} of {millions('')} million parameters ({100 * share:.1f} %):"
    )
    heads = ("text_tower.projection", "audio_tower.adapter", "structure", "score_parameters")
    assert [line.split() for line in lines[1:]] == [
        ["text", "LoRA", millions("text_tower.encoder", trained=True), "of", millions("text_tower.encoder")],
        ["music", "frozen", "0.00", "of", millions("audio_tower.music")],
        ["speech", "full", millions("audio_tower.speech", trained=True), "of", millions("audio_tower.speech")],
        ["heads", "full", millions(*heads, trained=True), "of", millions(*heads)],
    ]


class TestGradientCheckpointing:
    def blocks(self, model, text) -> dict[str, torch.nn.Module]:
        """A module inside of a layer of every part."""
        return {
            "text": model.text_tower.encoder.h[1].mlp
            if text == "gpt2"
            else model.text_tower.encoder.encoder.layer[1].output,
            "music": model.audio_tower.music.layers[1].feed_forward,
            "speech": model.audio_tower.speech.layers[1].self_attn,
            "structure": model.structure.frame_layers[0].feed_forward,
        }

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    @pytest.mark.parametrize("parts", [["text"], ["music", "structure"], ["speech"], ["all"]])
    def test_the_named_parts_are_computed_again_and_nothing_changes(self, text, parts):
        batch = inputs(text)
        expected = loss_and_gradients(tiny_model(text, structure_layers=1, segment_batch_size=100).train(), batch)
        model = tiny_model(text, structure_layers=1, segment_batch_size=100).train()
        enable_gradient_checkpointing(model, parts)
        calls = []
        for name, block in self.blocks(model, text).items():
            block.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        assert_same(loss_and_gradients(model, batch), expected, tolerance=1e-6)
        again = {name for name in set(calls) if calls.count(name) == 2}
        assert again == ({*TOWERS, "structure"} if parts == ["all"] else set(parts))

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_with_lora_and_a_frozen_tower(self, text):
        batch = inputs(text)
        model = train(model_with_lora(text), batch, steps=1).train()
        expected = loss_and_gradients(model, batch)
        enable_gradient_checkpointing(model, ["all"])
        assert_same(loss_and_gradients(model, batch), expected, tolerance=1e-6)

    def test_frozen_towers_missing_layers_and_unknown_names_are_refused(self):
        model = tiny_model()
        freeze(model, ["speech"])
        for parts, message in [
            (["speech"], "the speech tower is frozen: it keeps no activations"),
            (["structure"], "structure has no transformer layers"),
            (["struct"], "'struct' is no part of the model; did you mean 'structure'"),
        ]:
            with pytest.raises(ValueError, match=message):
                enable_gradient_checkpointing(model, parts)
        enable_gradient_checkpointing(model, ["all"])


class TestCompile:
    @pytest.fixture(autouse=True)
    def forget(self):
        """Compiled graphs and torch's settings of one test are not those of another."""
        torch._dynamo.reset()
        counters.clear()
        with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
            yield

    def check(self, model, batch, backend):
        keys = list(model.state_dict())
        expected = loss_and_gradients(without_dropout(model).train(), batch)
        compile_encoders(model, backend)
        assert_same(loss_and_gradients(model, batch), expected)
        assert list(model.state_dict()) == keys

    @pytest.mark.parametrize("text", ["gpt2", pytest.param("roberta", marks=pytest.mark.slow)])
    def test_it_computes_the_same_and_other_lengths_do_not_compile_again(self, text):
        model = tiny_model(text, segment_batch_size=100)
        self.check(model, inputs(text, (2.0, 4.0)), "eager")
        graphs = [counters["stats"]["unique_graphs"]]
        for seconds in [(4.0, 4.0), (6.0, 4.0, 2.0), (8.0, 8.0), (7.0, 3.0), (3.0, 9.0), (1.0, 2.0, 15.0)]:
            model(**inputs(text, seconds), return_loss=True).loss.backward()
            graphs.append(counters["stats"]["unique_graphs"])
        # One for each tower, and one of the music tower with padding; two layers share it.
        assert graphs == [3, 3, 3, 3, 4, 4, 4] and not counters["graph_break"]

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_backends_that_trace_the_backward_pass(self, text, backend):
        self.check(tiny_model(text), inputs(text), backend)

    def test_an_unknown_backend_is_refused_with_the_known(self):
        with pytest.raises(ValueError, match="unknown backend 'inducter' of torch.compile; .*'inductor'"):
            compile_encoders(tiny_model(), "inducter")


DDP_SECONDS = (3.1, 1.2, 6.9, 2.5)


def share(songs: slice):
    """Of four songs; each process pads its own."""
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(round(16000 * length), generator=generator) * 0.1 for length in DDP_SECONDS]
    texts = [*TEXTS, "drums", "a loud guitar"]
    return tiny_processor("gpt2")(text=texts[songs], audio=waveforms[songs], sampling_rate=16000)


def partial_model(compiled: bool):
    """LoRA on music, the rest frozen or trained in full; not at its start, where LoRA's A has no gradient. One layer is
    enough to compile."""
    frozen, layers = (["text", "speech"], 1) if compiled else (["speech"], 2)
    parts = {
        "text_config": tiny_text_config(),
        "music_config": tiny_beats_config(num_hidden_layers=layers),
        "speech_config": tiny_whisper_config(encoder_layers=layers),
    }
    parts["text_config"].num_hidden_layers = layers
    model = without_dropout(model_with_lora("gpt2", ["music"], frozen, **parts))
    train(model, share(slice(0, 4)), steps=1)
    return model.train()


def work(rank: int, folder: str):
    """One of two processes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    batch, result = share(slice(2 * rank, 2 * rank + 2)), {}
    for compiled in (False, True):
        model = partial_model(compiled)
        if compiled:
            enable_gradient_checkpointing(model, ["all"])
            compile_encoders(model, "eager")
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.01))
        for step in range(2):  # the second would fail if the first had left a parameter without gradient
            optimizer.zero_grad()
            wrapped(**batch, return_loss=True, gather_negatives=True).loss.backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
            result[f"gradients {compiled} {step}"] = gradients
            optimizer.step()
        result[f"state {compiled}"] = model.state_dict()
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_the_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for compiled in (False, True):
        model = partial_model(compiled)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        _, expected = loss_and_gradients(model, share(slice(0, 4)))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert expected.keys() == trained
        for of_process in found:
            for name, gradient in of_process[f"gradients {compiled} 0"].items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
        states = [of_process[f"state {compiled}"] for of_process in found]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
        assert {name for name, tensor in states[0].items() if not torch.equal(tensor, before[name])} == trained
