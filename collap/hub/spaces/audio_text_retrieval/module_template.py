"""Retrieval between audio and text, in either direction: R@k, median rank and mAP with a bootstrap interval by song.

The metric takes ranks, not scores. A row of P scores per query would pass through evaluate's Arrow cache and come back
as Python lists: 12 times the matrix's own size when measured at 2000 x 2000, so 4.6 GB for 10k x 10k, although only
the C ranks per query are ever used. So `ranks_of_correct` reduces each chunk of score rows to those ranks, the chunk
is thrown away, and `predictions` are the ranks, `references` the gallery size of each query:

    metric = evaluate.load("you/audio_text_retrieval", keep_in_memory=True)
    for start in range(0, Q, 512):
        scores = ...                                                                   # (512, P), any score
        ranks = metric.ranks_of_correct(scores, correct[start : start + 512], first_query=start)
        metric.add_batch(predictions=ranks, references=[P] * len(ranks))
    results = metric.compute(groups=song_of_query)

Dimensions: `Q` queries, `P` items in the pool, `C` correct items of one query, `G` songs, `R` resamples, `V` values of
a query that are averaged. The functions are those of `collap/evaluation/metrics.py`, from which this file was made.
"""

import datasets
import evaluate

from collap.evaluation.metrics import MEASURES, Hashable, Sequence, ranks_of_correct, retrieval_metrics

_DESCRIPTION = """
Retrieval between audio and text: R@k, median rank of the first correct item, mean average precision over the full
ranking. A query may have several correct items. Each figure comes with a percentile bootstrap interval, in which songs
are resampled with all their queries, and with its value for random scores.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[int]]`): for each query the 1-based ranks of its correct items, from `ranks_of_correct`.
    references (`list[int]`): for each query the number of gallery items it was ranked against; the same for all.
    groups (`list`): for each query the label of its song; required.
    k (`list[int]`): cut-offs of R@k. A cut-off above the gallery size is left out. Default (1, 5, 10, 20, 100).
    num_bootstrap (`int`): number of bootstrap resamples. Default 1000.
    seed (`int`): seed of the bootstrap. Default 0.
    confidence (`float`): coverage of the intervals, between 0 and 1. Default 0.95.
Returns:
    `dict`, with "value", "low", "high" (None when there is one song only) and "chance" of each figure:
{figures}
    and "pool_size", "num_queries", "num_songs", "num_bootstrap", "seed" and "confidence".
Examples:
    >>> metric = evaluate.load("you/audio_text_retrieval")
    >>> ranks = metric.ranks_of_correct([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3]], correct=[[0], [0, 2]])
    >>> metric.compute(predictions=ranks, references=[3, 3], groups=["song a", "song b"], k=[1])["R@1"]["value"]
    50.0
""".replace("{figures}", "\n".join(f'    - "{one.name}" ({one.unit}): {one.meaning}' for one in MEASURES))

_CITATION = """
@article{wu2024collap,
  title   = {CoLLAP: Contrastive Long-form Language-Audio Pretraining with Musical Temporal Structure Augmentation},
  author  = {Wu, Junda and Li, Warren and Novack, Zachary and Namburi, Amit and Chen, Carol and McAuley, Julian},
  journal = {arXiv preprint arXiv:2410.02271},
  year    = {2024}
}
"""


class AudioTextRetrieval(evaluate.Metric):
    """The metric module; `evaluate.load` finds it by this folder. See the top of the file and `retrieval_metrics`."""

    # Reached from a loaded metric, whose module has no importable name.
    ranks_of_correct = staticmethod(ranks_of_correct)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    # Not int64: evaluate would truncate scores given by mistake, and they could pass as ranks.
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[int]],
        references: list[int],
        groups: Sequence[Hashable] | None = None,
        k: Sequence[int] = (1, 5, 10, 20, 100),
        num_bootstrap: int = 1000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> dict:
        if groups is None:
            raise ValueError("groups is missing: give compute() one song label per query; the interval is by song.")
        gallery_sizes = sorted(set(references))
        if len(gallery_sizes) != 1:
            raise ValueError(f"all queries must share one gallery, found the sizes {gallery_sizes}.")
        return retrieval_metrics(predictions, gallery_sizes[0], groups, k, num_bootstrap, seed, confidence)
