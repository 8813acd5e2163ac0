"""Structure layers: nothing at the start, then what plain loops over frames and pairs of frames say."""

import math

import torch
from tiny import tiny_config, tiny_model
from torch.nn import functional as F

from modeling_collap import CoLLAPModel
from modeling_collap.structure_collap import StructureLayers, rotary_angles, rotate

SETTINGS = {"structure_layers": 2, "structure_heads": 2, "alignment_frame_seconds": 0.64}  # frames of 4 tokens


def awake_layers() -> StructureLayers:
    """In float64, with weights large enough for attention to matter."""
    layers, generator = StructureLayers(tiny_config(**SETTINGS)).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layers


def two_songs() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (2, 14, 32) and their mask: 14 tokens are 4 frames, the last of 2 tokens; 5 are 2, the last of 1."""
    tokens = torch.randn(2, 14, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return tokens.requires_grad_(), torch.arange(14) < torch.tensor([[14], [5]])


def turned(vector: torch.Tensor, place: int) -> torch.Tensor:
    """Multiply the pairs (i, i + E / 2) of a vector (E,), as complex numbers, by their turn at a place."""
    half = len(vector) // 2
    pairs = torch.complex(vector[:half], vector[half:])
    turns = [complex(math.cos(angle), math.sin(angle)) for i in range(half) for angle in [place * 1e4 ** (-i / half)]]
    pairs = pairs * torch.tensor(turns, dtype=torch.complex128)
    return torch.cat([pairs.real, pairs.imag])


def naive_layer(layer, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    """One layer on the frames of one song, one head, one query and one key at a time."""
    projected = [layer.query_key_value(layer.attention_norm(frame)).view(3, layer.num_heads, -1) for frame in frames]
    new = []
    for w, frame in enumerate(frames):
        contexts = []
        for head in range(layer.num_heads):
            query = turned(projected[w][0, head], w)
            products = torch.stack([query @ turned(other[1, head], v) for v, other in enumerate(projected)])
            weights = (products / math.sqrt(len(query))).softmax(0)
            contexts.append(sum(weight * other[2, head] for weight, other in zip(weights, projected, strict=True)))
        frame = frame + layer.attention_out(torch.cat(contexts))
        new.append(frame + layer.feed_forward(layer.feed_forward_norm(frame)))
    return new


def test_layers_do_what_a_loop_over_frames_does():
    layers, (tokens, mask) = awake_layers(), two_songs()
    found = layers(tokens, mask)
    rows = []
    for song, real in zip(tokens, mask, strict=True):
        own = song[real]
        frames = before = [part.mean(0) for part in own.split(4)]
        for layer in layers.frame_layers:
            frames = naive_layer(layer, frames)
        rows += [own[t] + frames[t // 4] - before[t // 4] for t in range(len(own))]
    expected = torch.stack(rows)
    # Angles are float32.
    torch.testing.assert_close(found[mask], expected, atol=1e-5, rtol=0)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    inputs = [tokens, *layers.parameters()]
    pairs = zip(*(torch.autograd.grad((one * weights).sum(), inputs) for one in (found[mask], expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert one.any()


def test_products_of_turned_vectors_depend_on_their_distance_alone():
    query, key = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    angles = rotary_angles(3000, 16)
    assert angles.shape == (3000, 8)
    products = rotate(query.expand(3000, -1), angles) @ rotate(key.expand(3000, -1), angles).T
    torch.testing.assert_close(products[7, 3], products[2804, 2800], atol=1e-3, rtol=0)
    assert (products[7, 3] - products[7, 4]).abs() > 1e-2


@torch.no_grad()
def test_new_layers_change_nothing_to_the_bit():
    plain, layered = tiny_model(), CoLLAPModel(tiny_config(**SETTINGS)).eval()
    missing = layered.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 24 and all(name.startswith("structure.frame_layers.") for name in missing)
    features = torch.randn(2, 3, 198, 128), torch.randn(2, 3, 40, 200)
    for found, expected in zip(layered.get_audio_features(*features), plain.get_audio_features(*features), strict=True):
        assert torch.equal(found, expected)


def test_one_step_wakes_all_parts_of_new_layers():
    model, (tokens, mask) = CoLLAPModel(tiny_config(**SETTINGS)), two_songs()
    tokens, target = tokens.detach().float(), F.normalize(torch.ones(32), dim=0)
    optimizer = torch.optim.SGD(model.structure.parameters(), lr=0.1)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        (model.normalize_tokens(tokens, mask) @ target).sum().backward()
        reached.append({name for name, one in model.structure.named_parameters() if one.grad.any()})
        optimizer.step()
    outputs = {"attention_out", "feed_forward.2"}
    assert {name.split(".", 2)[2].rsplit(".", 1)[0] for name in reached[0]} == outputs
    assert reached[1] == {name for name, _ in model.structure.named_parameters()}
