r"""Align the sentences of a text with the time of a song: scores that know which comes after which.

`c[q, w]` is the cosine of sentence q with the mean token of frame w; here frames follow one another without overlap. A
text of Q sentences and a song of W frames have

    r^S = 1/Q  sum_q  sum_w  softmax over w (c[q, .] / tau_S)[w]  c[q, w]       each sentence wherever it fits best
    r^M = tau_M / W  (log sum_pi exp(sum_w c[pi(w), w] / tau_M) - log number of paths)           all of them in order

A path pi gives every frame a sentence: it begins with the first, ends with the last, leaves none out and never goes
back. The sum over all paths is the forward algorithm of hidden Markov models and of CTC; divided by their number it is
a soft maximum over orderly readings of the song, which neither Q nor W shifts. With one sentence both forget time: r^M
is then the mean of its cosines. With a `blank`, a cosine that belongs to no sentence, a path may also leave frames
before, between and after the sentences to nobody, so that a text may be silent about parts of a song.

    >>> first, second = torch.eye(2)
    >>> text = torch.stack([first, second])[None]
    >>> songs = torch.stack([torch.stack([first, second]), torch.stack([second, first])])
    >>> cosines, frame_mask = frame_cosines(text, songs, torch.ones(2, 2, dtype=torch.bool), frame_size=1)
    >>> monotone_scores(cosines, sentence_mask(text), frame_mask, temperature=0.3).flatten()  # in this order, or not
    tensor([1., 0.])
    >>> free_scores(cosines, sentence_mask(text), frame_mask, temperature=0.1).flatten()
    tensor([1.0000, 1.0000])

Pure functions of embeddings. Dimensions: `A` audios, `B` texts, `Q` sentences of a text, `T` fused tokens of an audio,
`H` tokens of a frame, `W` frames, `D` shared width, `J` states of a path: Q, or 2 Q + 1 with blanks.
"""

import numpy as np
import torch
from torch.nn import functional as F

from .scoring_collap import in_tiles, softmax_mean

NOWHERE = -torch.inf  # logarithm of the weight of what no path does
TILE_CELLS = 2**22  # numbers that a processor works on at a time: paths take frame by frame, and that fits in its cache


def sentence_mask(sentence_embeds: torch.Tensor) -> torch.Tensor:
    """Tell the sentences (B, Q, D) from the rows of zeros that pad shorter texts: (B, Q) bool."""
    return sentence_embeds.detach().ne(0).any(-1)


def pool_sentences(sentence_embeds: torch.Tensor) -> torch.Tensor:
    """Return the direction of the mean of each text's sentences, (B, Q, D) -> (B, D) unit vectors."""
    if sentence_embeds.shape[1] == 1:
        return sentence_embeds[:, 0]
    return F.normalize(sentence_embeds.sum(1), dim=-1)


def pool_frames(
    audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor, frame_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens of every `frame_size` in a row; the last frame of an audio may hold fewer.

    Args:
        audio_embeds: (A, T, D).
        audio_token_mask: (A, T) bool, real tokens first.

    Returns:
        (A, W, D), zeros where there is no frame; (A, W) bool.
    """
    counts = _frame_counts(audio_token_mask, frame_size)  # (A, W)
    means = _gathered_means if torch.compiler.is_exporting() else _FrameMeans.apply
    return means(audio_embeds, audio_token_mask, frame_size), counts > 0


def _frame_counts(audio_token_mask: torch.Tensor, frame_size: int) -> torch.Tensor:
    """Count the real tokens of every frame: (A, T) bool, real tokens first -> (A, W)."""
    starts = torch.arange(0, audio_token_mask.shape[1], frame_size, device=audio_token_mask.device)  # (W,)
    return (audio_token_mask.sum(1, keepdim=True) - starts).clamp(0, frame_size)


def _gathered_means(audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor, frame_size: int) -> torch.Tensor:
    """Do what [`_FrameMeans`] does in operations that hold for every T, as a graph needs them."""
    counts = _frame_counts(audio_token_mask, frame_size).unsqueeze(-1)  # (A, W, 1)
    place = torch.arange(counts.shape[1] * frame_size, device=audio_embeds.device)  # (W H,)
    tokens = audio_embeds[:, place.clamp(max=audio_embeds.shape[1] - 1)]  # (A, W H, D)
    is_padding = place >= audio_token_mask.sum(1, keepdim=True)  # (A, W H)
    tokens = tokens.masked_fill(is_padding.unsqueeze(-1), 0.0)
    return tokens.unflatten(1, (-1, frame_size)).sum(2) / counts.clamp(min=1)  # (A, W, D)


class _FrameMeans(torch.autograd.Function):
    """Compute the frames of [`pool_frames`]. Tokens are read once, in place; the gradient is written once, where
    autograd would go through a copy of all tokens for every step."""

    @staticmethod
    def forward(ctx, audio_embeds, audio_token_mask, frame_size: int):
        ctx.save_for_backward(audio_token_mask)
        ctx.frame_size = frame_size
        counts = _frame_counts(audio_token_mask, frame_size).unsqueeze(-1)  # (A, W, 1)
        whole = audio_embeds.shape[1] // frame_size
        sums = audio_embeds[:, : whole * frame_size].unflatten(1, (whole, frame_size)).sum(2)  # (A, T // H, D)
        sums = F.pad(sums, (0, 0, 0, counts.shape[1] - whole))  # (A, W, D)
        # One frame of every audio, its last, may hold padding, or be cut.
        tokens = audio_token_mask.sum(1, keepdim=True)  # (A, 1)
        last = torch.div(tokens, frame_size, rounding_mode="floor")  # (A, 1)
        place = last * frame_size + torch.arange(frame_size, device=tokens.device)  # (A, H)
        index = place.clamp(max=audio_embeds.shape[1] - 1).unsqueeze(-1).expand(-1, -1, audio_embeds.shape[-1])
        rest = audio_embeds.gather(1, index).masked_fill((place >= tokens).unsqueeze(-1), 0.0).sum(1)  # (A, D)
        sums = torch.where(counts == frame_size, sums, rest.unsqueeze(1))  # (A, W, D)
        return (sums / counts.clamp(min=1)).masked_fill(counts == 0, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (audio_token_mask,) = ctx.saved_tensors
        counts = _frame_counts(audio_token_mask, ctx.frame_size).unsqueeze(-1)  # (A, W, 1)
        shares = (gradient / counts.clamp(min=1)).unsqueeze(2)  # (A, W, 1, D)
        starts = torch.arange(counts.shape[1] * ctx.frame_size, device=gradient.device)  # (W H,)
        is_real = (starts < audio_token_mask.sum(1, keepdim=True)).unflatten(1, (-1, ctx.frame_size))  # (A, W, H)
        spread = (shares * is_real.unsqueeze(-1)).flatten(1, 2)  # (A, W H, D)
        return spread[:, : audio_token_mask.shape[1]], None, None


def frame_cosines(
    sentence_embeds: torch.Tensor, audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor, frame_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean cosine of every sentence with the tokens of every frame.

    The tokens are averaged first, not the cosines: the same number for a `frame_size`th of the work.

    Args:
        sentence_embeds: (B, Q, D) unit vectors, zeros where a text has fewer sentences.
        audio_embeds, audio_token_mask, frame_size: as in [`pool_frames`].

    Returns:
        (A, B, Q, W), (A, W) bool.
    """
    frames, frame_mask = pool_frames(audio_embeds, audio_token_mask, frame_size)
    return sentence_cosines(sentence_embeds, frames), frame_mask


def sentence_cosines(sentence_embeds: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of every sentence (B, Q, D) with every frame (A, W, D): (A, B, Q, W).

    It lies in memory as (A, W, Q, B): what follows goes along frames and sentences, for all texts at once.
    """
    texts, sentences, _ = sentence_embeds.shape
    cosines = frames @ sentence_embeds.transpose(0, 1).flatten(0, 1).T  # (A, W, Q B)
    return cosines.unflatten(2, (sentences, texts)).permute(0, 3, 2, 1)  # (A, B, Q, W)


def free_scores(
    cosines: torch.Tensor, is_sentence: torch.Tensor, frame_mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Score every audio with every text, each sentence where it fits best: r^S.

    Args:
        cosines: (A, B, Q, W).
        is_sentence: (B, Q) bool.
        frame_mask: (A, W) bool.
        temperature: tau_S.

    Returns:
        (A, B).
    """
    by_frame = cosines.permute(0, 3, 2, 1)  # (A, W, Q, B)
    attended = softmax_mean(by_frame, temperature, frame_mask[:, :, None, None], dim=1)  # (A, Q, B)
    return (attended * is_sentence.T).sum(1) / is_sentence.sum(-1)  # (A, B)


def monotone_scores(
    cosines: torch.Tensor,
    is_sentence: torch.Tensor,
    frame_mask: torch.Tensor,
    temperature: float,
    blank: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score every audio with every text, its sentences in order: r^M.

    Where an audio has fewer frames than a text has sentences, its frames count several times.

    Args:
        cosines, is_sentence, frame_mask: as in [`free_scores`]; sentences and frames come first, padding last.
        temperature: tau_M.
        blank: cosine of a frame that no sentence describes, scalar; None for paths without such frames.

    Returns:
        (A, B).
    """
    emissions, num_frames, num_states = path_emissions(cosines / temperature, is_sentence, frame_mask, blank)
    by_frame = _by_frame(emissions, None if blank is None else blank / temperature)  # (W, J, A, B)
    total = _PathLogSum.apply(by_frame, num_frames, num_states, blank is not None)  # (A, B)
    return temperature * (total - log_path_count(num_frames, num_states, blank is not None)) / num_frames


def path_emissions(
    cosines: torch.Tensor, is_sentence: torch.Tensor, frame_mask: torch.Tensor, blank: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay out what paths collect: the frames that every pair of audio and text has, and the states.

    Args:
        cosines, is_sentence, frame_mask, blank: as in [`monotone_scores`].

    Returns:
        (A, B, Q, at least W) cosines, of the audios that are shorter than their text repeated; (A, B) frames of every
        pair; (B,) states of every text.
    """
    sentences = is_sentence.sum(-1)  # (B,)
    frames = frame_mask.sum(-1, keepdim=True).expand(-1, len(sentences))  # (A, B)
    repeats = -(-sentences // frames.clamp(min=1))  # (A, B)
    if (repeats > 1).any():
        place = torch.arange(int((frames * repeats).max()), device=cosines.device) // repeats.unsqueeze(-1)
        place = place.clamp(max=cosines.shape[-1] - 1).unsqueeze(2).expand(-1, -1, cosines.shape[2], -1)
        cosines, frames = cosines.gather(-1, place), frames * repeats  # (A, B, Q, more than W)
    return cosines, frames, sentences if blank is None else 2 * sentences + 1


def _by_frame(emissions: torch.Tensor, blank: torch.Tensor | None) -> torch.Tensor:
    """Lay out what a path gains, (A, B, Q, W), by frame and state: (W, J, A, B).

    A blank, scalar, is put before, between and after the sentences; with None the states are the sentences.
    """
    by_frame = emissions.permute(3, 2, 0, 1).contiguous()  # (W, Q, A, B)
    if blank is None:
        return by_frame
    frames, sentences, *pairs = by_frame.shape
    states = blank.reshape(()).expand(frames, 2 * sentences + 1, *pairs).clone()  # (W, J, A, B)
    states[:, 1::2] = by_frame
    return states


def log_path_count(num_frames: torch.Tensor, num_states: torch.Tensor, has_blanks: bool) -> torch.Tensor:
    """Return the logarithm of how many paths there are: binom(W - 1, Q - 1), or binom(W + Q, 2 Q) with blanks.

    Args:
        num_frames: (A, B) W.
        num_states: (B,) J.

    Returns:
        (A, B) float32.
    """
    chosen = num_states - 1
    total = num_frames + chosen // 2 if has_blanks else num_frames - 1
    log_factorials = [torch.lgamma(number.double() + 1) for number in (total, chosen, total - chosen)]
    return (log_factorials[0] - log_factorials[1] - log_factorials[2]).float()


def _arrive(scores: torch.Tensor, has_blanks: bool) -> torch.Tensor:
    """Take one step of all paths, (J, A, B): stay, or come from the state before, or from the sentence before."""
    arrived = scores.clone()
    arrived[1:] = torch.logaddexp(scores[1:], scores[:-1])
    if has_blanks:  # past a blank, to a sentence: the states of odd number
        arrived[3::2] = torch.logaddexp(arrived[3::2], scores[1:-2:2])
    return arrived


def _endings(num_states: torch.Tensor, size: int, has_blanks: bool) -> torch.Tensor:
    """Mark the states in which a path may end: (J, 1, B) bool."""
    states = torch.arange(size, device=num_states.device).view(-1, 1, 1)
    last = num_states - 1  # (B,)
    return (states == last) | (states == last - 1) if has_blanks else states == last


def path_log_weights(by_frame: torch.Tensor, num_frames: torch.Tensor, has_blanks: bool):
    """Return the logarithm of the weight of all beginnings of paths that are in a state at a frame.

    Args:
        by_frame: (W, J, A, B) logarithm of what a path gains in every state at every frame.
        num_frames: (A, B) W of every pair; later frames are not gone through.
        has_blanks: whether every second state, from the first on, is a blank.

    Returns:
        (W, J, A, B).
    """
    weights = torch.empty_like(by_frame)
    weights[0].fill_(NOWHERE)
    starts = 2 if has_blanks else 1
    weights[0, :starts] = by_frame[0, :starts]
    is_over = torch.arange(len(by_frame), device=by_frame.device).view(-1, 1, 1) >= num_frames  # (W, A, B)
    for w in range(1, len(by_frame)):
        arrived = _arrive(weights[w - 1], has_blanks).add_(by_frame[w])
        torch.where(is_over[w], weights[w - 1], arrived, out=weights[w])
    return weights


def path_log_rests(by_frame: torch.Tensor, num_frames: torch.Tensor, num_states: torch.Tensor, has_blanks: bool):
    """Return the logarithm of the weight of all that may follow a state at a frame, without its own gain: (W, J, A, B).

    Args:
        by_frame, num_frames, has_blanks: as in [`path_log_weights`].
        num_states: (B,) J of every text.
    """
    endings = torch.zeros_like(by_frame[0])  # (J, A, B)
    endings.masked_fill_(~_endings(num_states, len(endings), has_blanks), NOWHERE)
    rests = torch.empty_like(by_frame)
    rests[-1] = endings
    is_end = torch.arange(len(by_frame), device=by_frame.device).view(-1, 1, 1) >= num_frames - 1  # (W, A, B)
    for w in range(len(by_frame) - 2, -1, -1):
        left = (rests[w + 1] + by_frame[w + 1]).flip(0)  # the same steps, seen from the end
        torch.where(is_end[w], endings, _arrive(left, has_blanks).flip(0), out=rests[w])
    return rests


class _PathLogSum(torch.autograd.Function):
    """Compute the logarithm of the weight of all paths, (A, B). Its gradient is the share of the paths in each state at
    each frame, by the forward-backward algorithm: a second loop, where autograd would go through every step of the
    first."""

    @staticmethod
    def forward(ctx, by_frame, num_frames, num_states, has_blanks: bool):
        weights = path_log_weights(by_frame, num_frames, has_blanks)  # (W, J, A, B)
        endings = _endings(num_states, by_frame.shape[1], has_blanks)  # (J, 1, B)
        total = weights[-1].masked_fill(~endings, NOWHERE).logsumexp(0)  # (A, B)
        ctx.save_for_backward(by_frame, num_frames, num_states, weights, total)
        ctx.has_blanks = has_blanks
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        by_frame, num_frames, num_states, weights, total = ctx.saved_tensors
        return _shares(by_frame, num_frames, num_states, ctx.has_blanks, weights, total) * gradient, None, None, None


def _shares(by_frame, num_frames, num_states, has_blanks, weights, total) -> torch.Tensor:
    """Return the share of all paths that are in a state at a frame: (W, J, A, B), zero after an audio's end."""
    shares = path_log_rests(by_frame, num_frames, num_states, has_blanks).add_(weights).sub_(total).exp_()
    is_frame = torch.arange(len(weights), device=weights.device).view(-1, 1, 1) < num_frames  # (W, A, B)
    return shares.mul_(is_frame.unsqueeze(1))


def best_path(cosines: torch.Tensor, blank: float | None = None) -> torch.Tensor:
    """Return the best path of one song and one text.

    Args:
        cosines: (Q, W) of the sentences and frames that there are; W >= Q.
        blank: as in [`monotone_scores`].

    Returns:
        (W,) the sentence of every frame; -1 where a blank stands for none.
    """
    level = None if blank is None else torch.tensor(blank, dtype=torch.float32)
    gains = _by_frame(cosines.detach()[None, None].float(), level)[..., 0, 0].numpy()  # (W, J)
    frames, states = gains.shape
    came = np.full((3, states), -np.inf, np.float32)  # weights of paths that stay, that come from the state before, ...
    steps = np.zeros((frames, states), np.int64)
    weights = np.where(np.arange(states) < (1 if blank is None else 2), gains[0], -np.inf)  # (J,)
    for w in range(1, frames):
        came[0], came[1, 1:] = weights, weights[:-1]
        if blank is not None:  # ... and past a blank
            came[2, 3::2] = weights[1:-2:2]
        steps[w], weights = came.argmax(0), came.max(0) + gains[w]
    state = states - 1 if blank is None or weights[-1] >= weights[-2] else states - 2
    path = [state]
    for w in range(frames - 1, 0, -1):
        state -= int(steps[w, state])
        path.append(state)
    found = torch.tensor(path[::-1])  # (W,)
    return found if blank is None else torch.where(found % 2 == 1, found // 2, -1)


def alignment_scores(
    sentence_embeds: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_token_mask: torch.Tensor,
    frame_size: int,
    gamma_sentences: torch.Tensor | float,
    gamma_path: torch.Tensor | float | None = None,
    sentence_temperature: float = 0.1,
    path_temperature: float = 0.3,
    blank: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Score every audio with the sentences of every text: `gamma_S r^S + gamma_M r^M`.

    Padding never changes a score. Memory is O(A * texts * J * W), of which the product is bounded.

    Args:
        sentence_embeds: (B, Q, D) unit vectors, zeros where a text has fewer sentences.
        audio_embeds: (A, T, D) unit vectors.
        audio_token_mask: (A, T) bool, real tokens first.
        frame_size: tokens of a frame.
        gamma_sentences, gamma_path: weights of the two scores; None to leave the paths out.
        sentence_temperature, path_temperature: tau_S and tau_M. With infinite ones both scores are the mean cosine of
            sentences and frames.
        blank: as in [`monotone_scores`].
        chunk_size: texts scored at a time; None for as many as bounded memory allows.

    Returns:
        (A, B).
    """
    frames, frame_mask = pool_frames(audio_embeds, audio_token_mask, frame_size)  # (A, W, D), (A, W)

    def score(sentences, is_sentence, frames, frame_mask):
        cosines = sentence_cosines(sentences, frames)  # (A, B, Q, W)
        free = free_scores(cosines, is_sentence, frame_mask, sentence_temperature)  # (A, B)
        if gamma_path is None:
            return gamma_sentences * free
        if path_temperature == torch.inf:  # every path alike
            return (gamma_sentences + gamma_path) * free
        paths = monotone_scores(cosines, is_sentence, frame_mask, path_temperature, blank)  # (A, B)
        return gamma_sentences * free + gamma_path * paths

    cells = frame_mask.shape[1] * (2 * sentence_embeds.shape[1] + 1)  # W J
    texts, audios = (sentence_embeds, sentence_mask(sentence_embeds)), (frames, frame_mask)
    return in_tiles(score, texts, audios, cells, chunk_size, TILE_CELLS)  # (A, B)
