"""BEATs against the outputs of the original, and against a naive encoder written out in this file."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import REFERENCE, tiny_beats_config
from torch.nn import functional as F

import modeling_collap.modeling_beats as modeling_beats
from collap.hub.convert_beats import load_original
from modeling_collap import BeatsConfig, BeatsModel
from modeling_collap.modeling_beats import patch_mask_from_frame_mask, relative_position_buckets

# Variants that the released checkpoints, and with them the reference values, do not cover.
VARIANTS = {
    "gated": {"conv_bias": True},
    "not_gated": {"gated_relative_position": False},
    "no_relative_position": {"gated_relative_position": False, "relative_position_embedding": False},
    "pre_norm": {"layer_norm_first": True, "deep_norm": False},
    "plain_post_norm": {"deep_norm": False, "hidden_act": "relu"},
    "same_width_odd_kernel": {"embed_dim": 32, "conv_pos_kernel": 7},
}
NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feature_dropout"), 0.0)
FRAMES = 99  # 6 time patches, 48 tokens, 3 frames left over
ELEMENTS = 48**2  # of the attention mask of one segment and head


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "beats_tiny.safetensors")


@pytest.fixture
def original() -> BeatsModel:
    return load_original(REFERENCE / "beats_tiny.pt")[0].eval()


def frame_mask_of(reference: dict[str, torch.Tensor]) -> torch.Tensor:
    """(2, 323), True where the 160 samples of a frame hold audio: the rule of the original."""
    return patch_mask_from_frame_mask(~reference["padding_mask"], reference["fbank"].shape[1])


def variant(name: str, implementation: str = "sdpa", **overrides) -> BeatsModel:
    """A model in which every parameter matters: none is left at zero or one."""
    torch.manual_seed(0)
    config = tiny_beats_config(**{**VARIANTS[name], **NO_DROPOUT, **overrides})
    config._attn_implementation = implementation
    model = BeatsModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Three segments and their frame mask; two end in the middle of a time patch."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, FRAMES, 128, generator=generator), torch.arange(FRAMES) < torch.tensor([[FRAMES], [70], [21]])


def naive_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """T5's bucket of one `key - query`, in plain arithmetic."""
    half, side = num_buckets // 2, num_buckets // 2 if distance > 0 else 0
    exact, distance = half // 2, abs(distance)
    if distance < exact:
        return side + distance
    step = math.log(distance / exact) / math.log(max_distance / exact)
    return side + min(half - 1, exact + int(step * (half - exact)))


def naive_attention(weights: dict, layer: str, hidden: torch.Tensor, real: list[int], config: BeatsConfig):
    """One segment, (P, hidden), head by head and query by query, over the real keys only."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{layer}self_attn.{name}.weight"].T + weights[f"{layer}self_attn.{name}.bias"]

    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    query, key, value = (linear(hidden, name) for name in ("q_proj", "k_proj", "v_proj"))
    rows = []
    for q in range(len(hidden)):
        row = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            gate = 1.0
            if config.gated_relative_position:
                eight = linear(query[q, part], "gate_proj")
                reset, update = eight[:4].sum().sigmoid(), eight[4:].sum().sigmoid()
                gate = reset * (update * weights[f"{layer}self_attn.gate_scale"][0, head, 0, 0] - 1) + 2
            logits = []
            for k in real:
                bias = 0.0
                if config.relative_position_embedding:
                    bucket = naive_bucket(k - q, config.num_buckets, config.max_distance)
                    bias = weights["relative_position_bias.embedding.weight"][bucket, head]
                logits.append(query[q, part] @ key[k, part] / math.sqrt(width) + gate * bias)
            row.append(torch.stack(logits).softmax(0) @ value[real, part])
        rows.append(torch.cat(row))
    return linear(torch.stack(rows), "out_proj")


def naive_beats(model: BeatsModel, fbank: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """The encoder for one segment, (F, 128) and (F,) -> (P, hidden), one patch and one query at a time."""
    config, w = model.config, dict(model.named_parameters())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + config.layer_norm_eps).sqrt()
        return x * w[name + ".weight"] + w[name + ".bias"]

    tokens = []
    for t in range(len(fbank) // 16):
        for f in range(8):
            patch = fbank[16 * t : 16 * t + 16, 16 * f : 16 * f + 16]
            token = (w["patch_embedding.weight"][:, 0] * patch).sum((-1, -2))
            tokens.append(token + w["patch_embedding.bias"] if config.conv_bias else token)
    hidden = norm(torch.stack(tokens), "patch_norm")
    if config.embed_dim != config.hidden_size:
        hidden = hidden @ w["feature_projection.weight"].T + w["feature_projection.bias"]

    share = len(fbank) // len(hidden)
    real = [p for p in range(len(hidden)) if frame_mask[p * share : (p + 1) * share].any()]
    hidden = torch.stack([h if p in real else torch.zeros_like(h) for p, h in enumerate(hidden)])

    kernel, per_group = config.conv_pos_kernel, config.hidden_size // config.conv_pos_groups
    positions = w["positional_conv.conv.bias"].expand(len(hidden), -1)
    for p in range(len(hidden)):
        for offset in range(kernel):
            source = p + offset - kernel // 2
            if 0 <= source < len(hidden):
                groups = hidden[source].view(config.conv_pos_groups, 1, per_group)
                taps = w["positional_conv.conv.weight"][:, :, offset].view(config.conv_pos_groups, per_group, per_group)
                positions = positions.index_add(0, torch.tensor([p]), (taps * groups).sum(-1).view(1, -1))
    hidden = hidden + F.gelu(positions)

    if not config.layer_norm_first:
        hidden = norm(hidden, "layer_norm")
    activation = {"gelu": F.gelu, "relu": F.relu}[config.hidden_act]
    scale = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0

    def feed_forward(x: torch.Tensor, layer: str) -> torch.Tensor:
        names = [f"{layer}feed_forward.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
        inner = activation(x @ w[names[0]].T + w[names[1]])
        return inner @ w[names[2]].T + w[names[3]]

    for layer in (f"layers.{i}." for i in range(config.num_hidden_layers)):
        first, second = layer + "self_attn_layer_norm", layer + "final_layer_norm"
        if config.layer_norm_first:
            hidden = hidden + naive_attention(w, layer, norm(hidden, first), real, config)
            hidden = hidden + feed_forward(norm(hidden, second), layer)
        else:
            hidden = norm(hidden * scale + naive_attention(w, layer, hidden, real, config), first)
            hidden = norm(hidden * scale + feed_forward(hidden, layer), second)
    return norm(hidden, "layer_norm") if config.layer_norm_first else hidden


@pytest.mark.parametrize("elements", [1, 160**2, 3 * 160**2, 5 * 160**2, 2**22])
def test_agrees_with_the_original_with_blocks_of_any_size(reference, original, monkeypatch, elements):
    monkeypatch.setattr(modeling_beats, "CACHED_MASK_ELEMENTS", elements)
    with torch.no_grad():
        alone = original(reference["fbank"][:1]).last_hidden_state
        padded = original(reference["fbank"], frame_mask_of(reference)).last_hidden_state
    torch.testing.assert_close(alone, reference["output_unpadded_first"], atol=1e-4, rtol=0)
    torch.testing.assert_close(padded, reference["output_padded"], atol=1e-4, rtol=0)


def test_eager_agrees_with_the_original(reference, original, monkeypatch):
    original.set_attn_implementation("eager")
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # not to be called
    with torch.no_grad():
        alone = original(reference["fbank"][:1]).last_hidden_state
        padded = original(reference["fbank"], frame_mask_of(reference)).last_hidden_state
    torch.testing.assert_close(alone, reference["output_unpadded_first"], atol=1e-4, rtol=0)
    torch.testing.assert_close(padded, reference["output_padded"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bfloat16_is_within_two_percent_of_float32(reference, original, implementation):
    original.set_attn_implementation(implementation)
    original.to(torch.bfloat16)
    with torch.no_grad():
        alone = original(reference["fbank"][:1]).last_hidden_state
        padded = original(reference["fbank"], frame_mask_of(reference)).last_hidden_state
    for found, expected in ((alone, reference["output_unpadded_first"]), (padded, reference["output_padded"])):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() / expected.norm() < 2e-2


def test_autocast_is_within_two_percent_of_float32(reference, original):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = original(reference["fbank"][:1]).last_hidden_state
    expected = reference["output_unpadded_first"]
    assert (found.float() - expected).norm() / expected.norm() < 2e-2


@pytest.mark.parametrize("name", VARIANTS)
def test_agrees_with_a_naive_encoder(name):
    model, (fbank, frame_mask) = variant(name).double(), inputs()
    fbank, frame_mask = (
        fbank[1:, :51].double(),
        frame_mask[1:, :51],
    )  # 24 tokens; one segment full, one with 11 real tokens
    with torch.no_grad():
        found = model(fbank, frame_mask).last_hidden_state
        for n in range(2):
            torch.testing.assert_close(found[n], naive_beats(model, fbank[n], frame_mask[n]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("elements", [1, 3 * ELEMENTS, 2**22])
@pytest.mark.parametrize("name", VARIANTS)
def test_sdpa_equals_eager_in_value_and_gradient(monkeypatch, name, elements):
    monkeypatch.setattr(modeling_beats, "CACHED_MASK_ELEMENTS", elements)
    fbank, frame_mask = inputs()
    target = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(2))
    outputs, gradients = {}, {}
    for implementation in ("sdpa", "eager"):
        model = variant(name, implementation).double()
        audio = fbank.double().requires_grad_()
        outputs[implementation] = model(audio, frame_mask).last_hidden_state
        (outputs[implementation] * target).sum().backward()
        gradients[implementation] = {"input": audio.grad, **{n: p.grad for n, p in model.named_parameters()}}
    # Eager attention takes its softmax in float32 whatever the model's type: hence not to 1e-12.
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"], atol=1e-5, rtol=1e-5)
    largest = gradients["eager"]["input"].abs().max()
    for parameter, gradient in gradients["eager"].items():
        error = (gradients["sdpa"][parameter] - gradient).abs().max()
        assert error <= 1e-5 * max(largest, gradient.abs().max()), parameter


@pytest.mark.parametrize("elements", [1, ELEMENTS, 3 * ELEMENTS, 2**22])
def test_no_block_of_the_mask_is_larger_than_allowed(monkeypatch, elements):
    sizes = []
    attention = F.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **kwargs):
        sizes.append(attn_mask.numel())
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(modeling_beats, "CACHED_MASK_ELEMENTS", elements)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    variant("gated", num_attention_heads=4)(*inputs())
    assert max(sizes) <= max(elements, ELEMENTS)  # one head of one segment is the least that can be computed
    assert sum(sizes) == 2 * 3 * 4 * ELEMENTS


def test_token_mask_follows_the_rule_of_the_original(reference):
    # 2 time patches, 16 tokens of 2 frames each; 19 frames of audio reach into the tenth token.
    mask = patch_mask_from_frame_mask(torch.arange(32)[None] < 19, 16)
    assert mask.tolist() == [[True] * 10 + [False] * 6]
    # The 3 frames that do not fill a share are dropped, though they are all that is left of the audio.
    assert not patch_mask_from_frame_mask(torch.arange(35)[None] >= 32, 16).any()
    found = patch_mask_from_frame_mask(frame_mask_of(reference), 160)
    assert torch.equal(found, ~reference["output_padding_mask"])
    assert 0 < int(found[1].sum()) < 160


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_has_no_effect_on_audio(implementation):
    model, (fbank, frame_mask) = variant("gated", implementation), inputs()
    token_mask = patch_mask_from_frame_mask(frame_mask, 48)
    junk = fbank.masked_fill(torch.arange(FRAMES)[None, :, None] >= torch.tensor([99, 80, 32])[:, None, None], 1e3)
    with torch.no_grad():
        clean, dirty = model(fbank, frame_mask).last_hidden_state, model(junk, frame_mask).last_hidden_state
    torch.testing.assert_close(clean[token_mask], dirty[token_mask], atol=1e-6, rtol=0)


def test_a_mask_of_ones_is_no_mask_and_the_tuple_holds_the_same():
    model, (fbank, _) = variant("gated"), inputs()
    with torch.no_grad():
        expected = model(fbank).last_hidden_state
        masked = model(fbank, torch.ones(3, FRAMES, dtype=torch.long)).last_hidden_state
        (plain,) = model(fbank, return_dict=False)
    assert torch.equal(plain, expected)
    torch.testing.assert_close(masked, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 64)])
def test_relative_position_buckets(num_buckets, max_distance):
    buckets = relative_position_buckets(1000, num_buckets, max_distance)
    expected = [naive_bucket(distance, num_buckets, max_distance) for distance in range(-999, 1000)]
    assert buckets.tolist() == expected
    assert set(expected) == set(range(num_buckets)) - {num_buckets // 2}  # "0 to the right" does not occur


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients():
    fbank, frame_mask = inputs()
    gradients, calls = {}, {}
    for checkpointing in (False, True):
        model = variant("gated").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls[checkpointing] = 0

        def count(*_, key=checkpointing):
            calls[key] += 1

        model.layers[1].self_attn.register_forward_hook(count)
        model(fbank, frame_mask).last_hidden_state.square().sum().backward()
        gradients[checkpointing] = {name: p.grad for name, p in model.named_parameters()}
    assert calls == {False: 1, True: 2}
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, msg=name)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NO_DROPOUT)
def test_each_dropout_acts_in_training_only(name, implementation):
    torch.manual_seed(0)
    config = tiny_beats_config(**{**NO_DROPOUT, name: 0.5})
    config._attn_implementation = implementation
    model, (fbank, _) = BeatsModel(config), inputs()
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(fbank).last_hidden_state, model(fbank).last_hidden_state)
        model.eval()
        assert torch.equal(model(fbank).last_hidden_state, model(fbank).last_hidden_state)


def test_hidden_dropout_is_on_the_embedding_and_on_both_branches_of_a_layer():
    fbank, _ = inputs()
    with torch.no_grad():
        # Everything dropped: only the residual path and its norms are left of the encoder.
        pre_norm = variant("pre_norm", hidden_dropout=1.0).train()
        expected = pre_norm.layer_norm.bias.expand(3, 48, 32)
        torch.testing.assert_close(pre_norm(fbank).last_hidden_state, expected)
        post_norm = variant("gated", hidden_dropout=1.0).train()
        expected = torch.zeros(3, 48, 32)
        for layer in post_norm.layers:
            expected = layer.self_attn_layer_norm(expected * 4**0.25)
            expected = layer.final_layer_norm(expected * 4**0.25)
        torch.testing.assert_close(post_norm(fbank).last_hidden_state, expected)


def test_initial_weights_follow_deepnet():
    torch.manual_seed(0)
    model = BeatsModel(tiny_beats_config(hidden_size=128, intermediate_size=256))
    attention, feed_forward = model.layers[0].self_attn, model.layers[0].feed_forward
    beta = (8 * 2) ** -0.25
    xavier, wide = (2 / 256) ** 0.5, (2 / 384) ** 0.5  # sqrt(2 / (fan in + fan out))
    for projection, std in (
        (attention.q_proj, xavier),
        (attention.v_proj, beta * xavier),
        (attention.out_proj, beta * xavier),
        (feed_forward.fc1, beta * wide),
        (model.positional_conv.conv, (4 / (16 * 128)) ** 0.5),
    ):
        assert projection.weight.std().item() == pytest.approx(std, rel=0.05)
    assert torch.equal(attention.gate_scale, torch.ones(1, 2, 1, 1))


@pytest.mark.parametrize("shape", [(2, 99, 64), (2, 15, 128), (99, 128)])
def test_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"at least 16 frames, 128 mel bins.*found \(" + ", ".join(map(str, shape))):
        BeatsModel(tiny_beats_config())(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_mel_bins": 120}, r"num_mel_bins \(120\) must be a multiple of patch_size \(16\)"),
        ({"num_attention_heads": 5}, r"hidden_size \(32\) must be a multiple of num_attention_heads \(5\)"),
        ({"conv_pos_groups": 3}, r"hidden_size \(32\) must be a multiple of conv_pos_groups \(3\)"),
        ({"layer_norm_first": True}, "layer_norm_first and deep_norm exclude each other"),
        ({"relative_position_embedding": False}, "gated_relative_position needs relative_position_embedding=True"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_beats_config(**settings)


def test_configuration_keeps_every_setting(tmp_path):
    default = BeatsConfig()
    other = {
        "num_mel_bins": 64,
        "patch_size": 8,
        "embed_dim": 24,
        "conv_bias": True,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "relu",
        "hidden_dropout": 0.2,
        "attention_dropout": 0.3,
        "activation_dropout": 0.4,
        "feature_dropout": 0.5,
        "layer_norm_first": True,
        "deep_norm": False,
        "conv_pos_kernel": 16,
        "conv_pos_groups": 4,
        "relative_position_embedding": False,
        "num_buckets": 32,
        "max_distance": 64,
        "gated_relative_position": False,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.01,
    }
    BeatsConfig(**other).save_pretrained(tmp_path)
    loaded = BeatsConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in other} == other
    assert not [name for name, value in other.items() if getattr(default, name) == value]
    assert BeatsModel(loaded).patch_embedding.bias is not None
