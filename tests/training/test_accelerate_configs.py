"""The files in configs/accelerate: Accelerate's own reader, and its launcher with two fresh processes on a CPU."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from runs import start_processes
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModel

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "configs" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))

# Two steps on a batch of four songs; saves the losses, and the model as `save_pretrained` writes it.
STEPS = """
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny import tiny_model

from modeling_collap import CoLLAPModel


def two_steps(accelerator, folder, text):
    model = tiny_model(text, structure_layers=1, segment_batch_size=8)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    generator, songs = torch.Generator().manual_seed(0), 4 // accelerator.num_processes
    batch = {
        "input_ids": torch.randint(5, 200, (4, 7), generator=generator),
        "music_features": torch.randn(4, 2, 198, 128, generator=generator),
        "speech_features": torch.randn(4, 2, 40, 200, generator=generator),
    }
    own = slice(accelerator.process_index * songs, (accelerator.process_index + 1) * songs)
    batch = {name: tensor[own] for name, tensor in batch.items()}

    def loss():
        return model(**batch, return_loss=True, gather_negatives=True).loss

    loss.batch, losses = batch, []
    for _ in range(2):
        losses.append(loss())
        accelerator.backward(losses[-1])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        save_file({"losses": torch.stack(losses).detach()}, folder / "losses.safetensors")
        with torch.device("meta"):  # FSDP2 gives the model another class, which would be saved by that name
            clean = CoLLAPModel(accelerator.unwrap_model(model).config)
        clean.save_pretrained(folder / "model", state_dict=state)
    return model, loss


"""
# Accelerate turns to FSDP with GPUs only. All but that decision works on a CPU, so the script takes it.
LAUNCHED = """
import copy

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import register_fsdp_forward_method

from tiny import tiny_processor
from collap.training.distributed import prepare, whole_model
from modeling_collap import CoLLAPOutput
from steps import take_step
from collap.training.trainable import save_model
from collap.training.tracking import step_metrics

accelerator, folder = Accelerator(), Path(sys.argv[1])
two_steps(accelerator, folder / "ddp", "gpt2")
print(f"{accelerator.distributed_type} {accelerator.num_processes} processes")

AcceleratorState._reset_state()
accelerator = Accelerator()
PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # of the environment
model, loss = two_steps(accelerator, folder / "fsdp", "roberta")
print(f"{accelerator.distributed_type} {accelerator.num_processes} processes")

for name in ("get_text_features", "get_audio_features", "score"):
    register_fsdp_forward_method(model, name)
text = model.get_text_features(torch.arange(10, 17)[None])
audio = model.get_audio_features(torch.ones(1, 2, 198, 128), torch.ones(1, 2, 40, 200))
score = model.score(text, *audio).detach()
output = CoLLAPOutput(torch.ones(1), torch.ones(1, 2), None, text, *audio)
metrics = step_metrics(model, output, [{"lr": 0.1}], 1.0)
gamma = torch.tensor([metrics["train/gamma_kernel"]])
before = loss().item()
accelerator.save_state(folder / "state")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(0.5)
changed = loss().item()
accelerator.load_state(folder / "state")
assert loss().item() == before != changed, (before, changed)


class Batch:
    # What a step of train.py asks of a batch.

    song_ids = text_ids = None

    def __len__(self):
        return len(loss.batch["input_ids"])

    def text_inputs(self, part, device):
        return {"input_ids": loss.batch["input_ids"][part]}

    def audio_inputs(self, part, device, feature_extractor):
        return {name: loss.batch[name][part] for name in ("music_features", "speech_features")}


accelerator.free_memory()  # clipping compares with the first model that was prepared
trained = tiny_model("roberta", structure_layers=1)
optimizer = torch.optim.SGD([one for one in trained.parameters() if one.requires_grad], lr=0.1)
config = copy.deepcopy(trained.config)
trained, optimizer = prepare(accelerator, trained, optimizer, batch_size=4, max_grad_norm=1.0)
steps = []
for micro_batch_size in (None, 1):
    step = take_step(accelerator, trained, Batch(), None, micro_batch_size)
    norm = float(accelerator.clip_grad_norm_(trained.parameters(), 1.0))
    steps.append(torch.tensor([step.loss.item(), norm]))
    optimizer.zero_grad()
assert accelerator.unwrap_model(trained).get_text_features(torch.arange(10, 17)[None]).shape == (1, 32)
whole, state = whole_model(accelerator, trained, config)
assert type(whole).__name__ == "CoLLAPModel"
if accelerator.is_main_process:
    save_file({"steps": torch.stack(steps)}, folder / "steps.safetensors")
    save_model(whole, tiny_processor("roberta"), folder / "prepared", state)
share = torch.tensor([sum(one.to_local().numel() for one in model.parameters()) / model.num_parameters()])
if accelerator.is_main_process:
    save_file({"score": score, "gamma": gamma, "share": share}, folder / "more.safetensors")
accelerator.end_training()
"""


def fsdp_environment() -> dict[str, str]:
    """What the launcher makes of fsdp2.yaml, in float32."""
    flags = ["--config_file", str(FOLDER / "fsdp2.yaml"), "--mixed_precision", "no", "--main_process_port", "0"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*flags, "script.py"]))
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    return {name: value for name, value in environment.items() if name.startswith("FSDP_")}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A folder with what two processes made, first as cpu_ddp.yaml says, then as fsdp2.yaml does; and their output."""
    folder = tmp_path_factory.mktemp("launched")
    for name in ("ddp", "fsdp"):
        (folder / name).mkdir()
    no_garbage = "import gc\n\ngc.disable()\n"  # to look for in what is imported, which takes a fifth of the time
    (folder / "script.py").write_text(no_garbage + STEPS + LAUNCHED)
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**fsdp_environment(), "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}

    def launch(arguments: list[str]):
        os.environ.update(environment)
        launch_command(launch_command_parser().parse_args(arguments))

    command = ["--main_process_port", "0", "--config_file", str(FOLDER / "cpu_ddp.yaml")]
    (launcher,) = start_processes([*command, str(folder / "script.py"), str(folder)], log := folder / "log", 1, launch)
    launcher.join()
    assert launcher.exitcode == 0, log.read_text()[-3000:]
    return folder, log.read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder for each text tower: what one process makes of the same batch."""
    from accelerate import Accelerator

    folder, names = tmp_path_factory.mktemp("alone"), {}
    exec(STEPS, names)
    for text in ("gpt2", "roberta"):
        (folder / text).mkdir()
        names["two_steps"](Accelerator(cpu=True), folder / text, text)
    return folder


def assert_same(found: Path, expected: Path):
    """The same losses and weights, and a folder that the Auto classes load."""
    first, second = (load_file(folder / "losses.safetensors")["losses"] for folder in (found, expected))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (found, expected))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-6)
    start = tiny_model("gpt2", structure_layers=1).state_dict()
    assert not torch.equal(first["audio_tower.adapter.weight"], start["audio_tower.adapter.weight"])
    assert type(AutoModel.from_pretrained(found / "model")).__name__ == "CoLLAPModel"


def test_ddp_of_two_processes_trains_as_one(alone, launched):
    folder, printed = launched
    assert printed.count("MULTI_CPU 2 processes") == 2
    assert_same(folder / "ddp", alone / "gpt2")


def test_fsdp2_of_two_processes_trains_as_one(alone, launched):
    """Each holds half of the weights; methods other than `forward` work once registered; a saved state is exact."""
    folder, printed = launched
    assert printed.count("FSDP 2 processes") == 2
    assert_same(folder / "fsdp", alone / "roberta")
    more = load_file(folder / "more.safetensors")
    assert 0.4 < more["share"].item() < 0.6
    model = AutoModel.from_pretrained(folder / "fsdp" / "model").eval()
    with torch.no_grad():
        texts = model.get_text_features(torch.arange(10, 17)[None])
        score = model.score(texts, *model.get_audio_features(torch.ones(1, 2, 198, 128), torch.ones(1, 2, 40, 200)))
        gamma = model.score_parameters.gammas()["kernel"]
    torch.testing.assert_close(more["score"], score, rtol=0, atol=1e-5)
    torch.testing.assert_close(more["gamma"], gamma, rtol=1e-6, atol=0)


def test_fsdp2_takes_the_steps_of_train_py(alone, launched):
    """Whole and in micro-batches, with the loss of one process; what is saved is the plain model."""
    folder, _ = launched
    (whole_loss, whole_norm), (cached_loss, cached_norm) = load_file(folder / "steps.safetensors")["steps"].tolist()
    first_loss = load_file(alone / "roberta" / "losses.safetensors")["losses"][0].item()
    assert whole_loss == pytest.approx(first_loss, rel=1e-6) and cached_loss == pytest.approx(first_loss, rel=1e-6)
    assert cached_norm == pytest.approx(whole_norm, rel=1e-4) and whole_norm > 0.01
    start = tiny_model("roberta", structure_layers=1).state_dict()
    saved = AutoModel.from_pretrained(folder / "prepared").state_dict()
    assert saved.keys() == start.keys() and all(torch.equal(saved[name], value) for name, value in start.items())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_file(path):
    """Its reader refuses unknown keys at the top only; the others become arguments of `accelerate launch`."""
    config = load_config_from_file(str(path))
    arguments = {action.dest for action in launch_command_parser()._actions}
    nested = [*config.fsdp_config, *config.deepspeed_config]
    assert set(nested) <= arguments, sorted(set(nested) - arguments)
    assert config.num_processes % config.num_machines == 0
    assert config.mixed_precision == ("no" if path.stem == "cpu_ddp" else "bf16")


def test_the_files_are_the_documented_ones():
    distributed = {path.stem: str(load_config_from_file(str(path)).distributed_type) for path in CONFIGS}
    assert distributed == {
        "cpu_ddp": "DistributedType.MULTI_GPU",
        "deepspeed_zero2": "DistributedType.DEEPSPEED",
        "fsdp2": "DistributedType.FSDP",
        "multi_gpu_ddp": "DistributedType.MULTI_GPU",
        "multi_node": "DistributedType.MULTI_GPU",
        "single_gpu_bf16": "DistributedType.NO",
    }


@pytest.mark.parametrize(("text", "own"), [("gpt2", "GPT2Block"), ("roberta", "RobertaLayer")])
def test_the_layers_that_fsdp2_spreads_are_in_every_model(text, own):
    """Accelerate stops at a class that the model does not have; `own` is what the file's comment says to add."""
    path = FOLDER / "fsdp2.yaml"
    config = yaml.safe_load(path.read_text())["fsdp_config"]
    classes = {type(module).__name__ for module in tiny_model(text).modules()}
    assert {*config["fsdp_transformer_layer_cls_to_wrap"].split(","), own} <= classes
    assert own in path.read_text()
