"""Retrieval on the evaluation split during training, and the best model by it."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from collap.evaluation.embedding import embed_row, embed_texts
from collap.evaluation.metrics import measure_of
from collap.evaluation.retrieval import (
    make_results,
    retrieval_figures,
    score_songs,
)
from collap.evaluation.songs import RetrievalSet, collect_songs
from collap.files import replace_text, restore_folder
from collap.training.settings import DataSettings
from processing.decode_audio import AudioFileError


def summary(figures: dict) -> dict[str, float]:
    """Flatten figures for the tracker: eval/text_to_audio/R@5, ..."""
    return {
        f"eval/{direction}/{name}": figure["value"]
        for direction, values in figures.items()
        for name, figure in values.items()
        if isinstance(figure, dict)
    }


def one_line(figures: dict) -> str:
    """Return what the terminal shows of an evaluation."""
    parts = []
    for direction, values in figures.items():
        known = [measure_of(name) for name in ("R@1", "R@5", "mAP") if name in values]
        shown = [f"{one.title} {one.show(values[one.name]['value'])}" for one in known]
        parts.append(f"{direction.replace('_', '-')} {' '.join(shown)} ({values['num_queries']} queries)")
    return f"{', '.join(parts)}, in %"


def _step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl; beyond every step if a full disk has cut the line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class Evaluations:
    """Measure recall on the evaluation split after epochs, and keep the best model by the mean mAP of both directions.

    Args:
        model: unwrapped; evaluated in place.
        eval_set: from `open_dataset`, perhaps with cached features; None for no evaluation.
        token_cache: of `eval_set`, instead of its audio.
        settings: of the data.
        seed: of the bootstrap.
        save: writes the model folder of that name, with the results of its evaluation; called by all processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model,
        processor,
        eval_set,
        token_cache,
        settings: DataSettings,
        output_dir: str,
        seed: int,
        save: Callable,
    ):
        self.accelerator, self.model, self.processor = accelerator, model, processor
        self.eval_set, self.token_cache, self.settings = eval_set, token_cache, settings
        self.output_dir, self.seed, self.save = output_dir, seed, save
        self.lines = Path(output_dir) / "metrics.jsonl"
        self.best, self.best_step, self.started = -math.inf, None, time.time()

    def state_dict(self) -> dict:
        best = self.best if math.isfinite(self.best) else None
        return {"best": best, "best_step": self.best_step, "seconds": time.time() - self.started}

    def load_state_dict(self, state: dict):
        self.best_step = state["best_step"]
        self.best = -math.inf if state["best"] is None else state["best"]
        self.started = time.time() - state["seconds"]

    def forget_from(self, step: int):
        """Drop what a killed run wrote after the checkpoint that it is resumed from: it will be written again; so will
        the evaluation of that step itself, which follows its checkpoint."""
        if self.accelerator.is_main_process:
            self.lines.parent.mkdir(parents=True, exist_ok=True)
            restore_folder(self.lines.with_name("best"))
            lines = self.lines.read_text().splitlines() if self.lines.exists() else []
            replace_text(self.lines, "".join(f"{line}\n" for line in lines if _step_of(line) < step))

    def best_figure(self) -> dict | None:
        """Return metric, value and step of the best evaluation so far."""
        if not math.isfinite(self.best):
            return None
        return {"metric": "mean mAP of both directions, %", "value": self.best, "step": self.best_step}

    @torch.no_grad()
    def _embed(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed one row: (1, T, D), and its token mask (1, T)."""
        if self.token_cache is not None:
            fused_tokens = self.token_cache[row].unsqueeze(0).to(self.model.device)  # (1, T, M)
            return self.model.get_audio_features(fused_tokens=fused_tokens)
        return embed_row(self.model, self.processor, self.eval_set, row, self.settings.audio_column)

    def _readable(self, rows: dict[int, int], read: list[int], bad: list[str]) -> Iterator[tuple]:
        """Yield the embeddings of those of `rows` whose files can be read, and note their songs in `read`; the others
        are named in `bad`."""
        for song, row in rows.items():
            try:
                embeds = self._embed(row)
            except AudioFileError as error:
                bad.append(str(error))
            else:
                read.append(song)
                yield embeds

    def _score_rows(self, songs: RetrievalSet) -> tuple[dict[int, np.ndarray], list[str]]:
        """Return song -> scores (B,) of all processes, and the songs that cannot be read.

        Every process embeds its share of the songs, or with FSDP2 all of them, because each layer needs the part of its
        weights that every process holds.
        """
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        step = slice(None) if self.accelerator.is_fsdp2 else slice(process, None, processes)
        own = dict(list(enumerate(songs.rows))[step])
        read, bad = [], []
        with self.accelerator.autocast():
            text_embeds = embed_texts(self.model, self.processor, songs.texts)
            audios = self._readable(own, read, bad)
            scores = score_songs(self.model, text_embeds, audios)["collap"]
        found = list(zip(read, scores, strict=True))
        return dict(gather_object(found)), sorted(set(gather_object(bad)))

    def figures(self, say: Callable[[str], None]) -> dict | None:
        """Return the retrieval figures on the main process, over the songs that can be read.

        Raises:
            ValueError: on every process, if too many cannot.
        """
        songs = collect_songs(self.eval_set, self.settings.text_column, self.settings.song_column)
        rows, bad = self._score_rows(songs)
        if len(bad) > self.settings.max_bad_share * len(songs.rows):
            raise ValueError(
                f"{len(bad)} of {len(songs.rows)} songs to evaluate cannot be read: {'; '.join(bad[:3])}; repair them, "
                f"or allow a larger max_bad_share (now {self.settings.max_bad_share})"
            )
        if not self.accelerator.is_main_process:
            return None
        for message in bad:
            say(f"not evaluated: {message}")
        texts = [text for text, song in enumerate(songs.song_of_text) if song in rows]
        matrix = np.stack([rows[song][texts] for song in sorted(rows)])  # (A, B)
        return retrieval_figures(matrix, songs.subset(sorted(rows)), self.seed)

    def run(self, epoch: int, step: int, say: Callable[[str], None]):
        """Measure, log, and save `best/` if this is it; without an evaluation split the last model is the best."""
        score, figures = math.inf, None
        if self.eval_set is not None:
            was_training = self.model.training
            self.model.eval()
            figures = self.figures(say)
            self.model.train(was_training)
            if self.accelerator.is_main_process:
                score = self._log(figures, epoch, step)
                say(f"epoch {epoch}: {one_line(figures)}")
            (score, *_) = gather_object([score])  # that of the main process
        if self.eval_set is None or score > self.best:
            self.best_step = step
            self.best = score if self.eval_set is not None else self.best
            self.save("best", self._results(figures) if figures else None)

    def _results(self, figures: dict) -> dict:
        """Return results as `collap evaluate` writes them."""
        settings = self.settings
        data = {"dataset": settings.dataset, "dataset_config": settings.dataset_config, "revision": settings.revision}
        names = {"model": self.output_dir, "split": settings.eval_split, "text_column": settings.text_column}
        return make_results({"collap": figures}, **data, **names)

    def _log(self, figures: dict, epoch: int, step: int) -> float:
        values = summary(figures)
        self.accelerator.log(values, step=step)
        seconds = round(time.time() - self.started, 1)
        line = {"epoch": epoch, "step": step, "processes": self.accelerator.num_processes, "seconds": seconds, **values}
        with self.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return sum(values[f"eval/{direction}/mAP"] for direction in figures) / len(figures)
