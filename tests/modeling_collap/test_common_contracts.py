"""What transformers' clients expect of every model, for CoLLAPModel (GPT-2 and RoBERTa) and BeatsModel.

The common tests of transformers 5.23 (ModelTesterMixin and ConfigTester of its source release) were run against both by
hand. What they ask for and no other file here asks for is below. Of those tests, these do not apply:

- `test_get_text_features_*`, `test_get_audio_features_*`: both return tensors, (B, D), and (A, T, D) with a mask, and
  not an output with a pooler.
- `test_hidden_states_output`, `test_attention_outputs`, `test_retain_grad_hidden_states_attentions` of CoLLAPModel:
  three encoders have no common list of hidden states; those of the text encoder are in `text_model_output`, those of
  the audio encoders are returned by the encoders themselves. BeatsModel passes them.
- `test_eager_matches_sdpa_inference_*` of CoLLAPModel: draws integers for every input, bool masks among them;
  test_modeling_collap.py compares both kinds of attention. BeatsModel passes them.
- `test_model_outputs_equivalence` of CoLLAPModel: subtracts outputs, of which `audio_token_mask` is bool. Below.
- `test_model_weights_reload_no_missing_tied_weights`: loads a folder without the model's weights, which is refused.
- `test_model_get_set_embeddings` of BeatsModel: its patch embedding is a convolution, as in vision models.
- `test_training*` of BeatsModel: an encoder without a head has no loss.
- Skipped there: generation, rotary positions, experts, tied weights, `inputs_embeds`, resizing of positions, which
  neither has; flash and flex attention, which BEATs' bias excludes; what needs a GPU or DeepSpeed. The source release
  lacks the mixins for generation and export.
"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import TEXTS, tiny_beats_config, tiny_model, tiny_processor
from torch import nn

from modeling_collap import BeatsConfig, BeatsModel, CoLLAPModel

TEXT_ENCODERS = ("gpt2", "roberta")


def beats() -> BeatsModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BeatsModel(tiny_beats_config()).eval()


def beats_inputs() -> dict[str, torch.Tensor]:
    """Three segments of 4 time patches with 8 patches each; the second half of the last one is padding."""
    features = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 64, dtype=torch.long)
    mask[2, 32:] = 0
    return {"input_features": features, "attention_mask": mask}


def collap_inputs(text: str = "gpt2") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    songs = [0.1 * torch.randn(length, generator=generator) for length in (40_000, 20_000)]
    return dict(tiny_processor(text)(text=TEXTS, audio=songs, sampling_rate=16000))


CASES = {
    "beats": (beats, beats_inputs),
    "collap": (tiny_model, collap_inputs),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tuple_holds_what_the_output_holds(case):
    make_model, make_inputs = CASES[case]
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        expected = model(**inputs).to_tuple()
        by_argument = model(**inputs, return_dict=False)
        model.config.return_dict = False
        by_configuration = model(**inputs)
    for found in (by_argument, by_configuration):
        assert type(found) is tuple and len(found) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_hidden_states_of_beats():
    model, inputs = beats(), beats_inputs()
    with torch.no_grad():
        plain = model(**inputs)
        output = model(**inputs, output_hidden_states=True)
        some = model(**inputs, output_hidden_states=[0, -1]).hidden_states
    assert plain.hidden_states is None and torch.equal(plain.last_hidden_state, output.last_hidden_state)
    assert [states.shape for states in output.hidden_states] == 3 * [(3, 32, 32)]  # of the patches, and of two layers
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert some[1] is None and torch.equal(some[0], output.hidden_states[0])


def test_attentions_of_beats_are_those_of_eager_attention():
    model, inputs = beats(), beats_inputs()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == 2 * [(3, 2, 32, 32)]
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 32))
        assert not weights[2, ..., 16:].any()  # padding


@pytest.mark.parametrize("text", TEXT_ENCODERS)
def test_hidden_states_and_attentions_of_the_text_encoder(text):
    model, inputs = tiny_model(text), collap_inputs(text)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(**inputs)
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        model.config.output_hidden_states = True
        by_configuration = model(**inputs)
    assert plain.text_model_output is None
    found, length = output.text_model_output, inputs["input_ids"].shape[1]
    assert [states.shape for states in found.hidden_states] == 3 * [(2, length, 32)]
    assert [weights.shape for weights in found.attentions] == 2 * [(2, 2, length, length)]
    assert len(by_configuration.text_model_output.hidden_states) == 3
    torch.testing.assert_close(output.logits_per_audio, plain.logits_per_audio)


def test_what_clients_pass_besides_has_no_effect_and_a_misspelt_input_is_refused():
    model, inputs = tiny_model(), collap_inputs()
    nothing = {"inputs_embeds": None, "labels": None, "use_cache": True, "num_items_in_batch": 2}
    nothing["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(**inputs, **nothing).logits_per_audio, model(**inputs).logits_per_audio)
    with pytest.raises(TypeError, match="unexpected argument 'speech_feature'"):
        model(**inputs, speech_feature=inputs["speech_features"])


@pytest.mark.parametrize("text", TEXT_ENCODERS)
@pytest.mark.parametrize("size", [310, 290])
def test_token_embeddings_are_resized_and_saved(text, size, tmp_path):
    model = tiny_model(text)
    before = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(size)
    weight, kept = model.get_input_embeddings().weight, min(size, len(before))
    assert weight.shape == (size, 32) and torch.equal(weight[:kept], before[:kept])
    assert model.config.text_config.vocab_size == size
    model.save_pretrained(tmp_path)
    last = torch.tensor([[size - 1, 5]])
    with torch.no_grad():
        expected = model.get_text_features(last)
        # Weights in a mapped file lie otherwise in memory, which moves the last digit on some processors.
        torch.testing.assert_close(CoLLAPModel.from_pretrained(tmp_path).get_text_features(last), expected)


def test_input_embeddings_are_replaced():
    words, patches = nn.Embedding(300, 32), nn.Conv2d(1, 24, kernel_size=16, stride=16, bias=False)
    for model, embeddings, kind in ((tiny_model(), words, nn.Embedding), (beats(), patches, nn.Conv2d)):
        assert isinstance(model.get_input_embeddings(), kind)
        model.set_input_embeddings(embeddings)
        assert model.get_input_embeddings() is embeddings


def test_peft_adapts_a_model_for_feature_extraction(tmp_path):
    inputs = collap_inputs()
    with torch.no_grad():
        expected = tiny_model()(**inputs, return_loss=True).loss
    settings = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_model(), settings).eval()
    loss = model(**inputs, return_loss=True).loss
    torch.testing.assert_close(loss.detach(), expected)  # an update begins at zero
    loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained and all(".lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1)
        changed = model(**inputs).logits_per_audio
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()(**inputs).logits_per_audio
    torch.testing.assert_close(again, changed)


def test_a_part_of_a_configuration_is_read_from_the_folder_of_the_whole(model_folder):
    config = BeatsConfig.from_pretrained(model_folder)
    assert config.to_diff_dict().get("num_buckets") == tiny_beats_config().num_buckets == 32
