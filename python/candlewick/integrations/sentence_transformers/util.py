"""Measures, searches and quantisation of vectors, with the signatures of ``sentence_transformers.util``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np

from ._torch import array, floats, tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = [
    "SimilarityFunction",
    "community_detection",
    "cos_sim",
    "dot_score",
    "euclidean_sim",
    "information_retrieval",
    "manhattan_sim",
    "normalize_embeddings",
    "pairwise_angle_sim",
    "pairwise_cos_sim",
    "pairwise_dot_score",
    "pairwise_euclidean_sim",
    "pairwise_manhattan_sim",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "pytorch_cos_sim",
    "quantize_embeddings",
    "semantic_search",
    "truncate_embeddings",
]

#: Numbers that are held at once where the differences of all pairs are needed.
_AT_ONCE = 1 << 22


def cos_sim(a: Any, b: Any) -> Any:
    """Cosines of all vectors of `a` with all of `b`.

    Args:
        a: A vector or several.
        b: A vector or several.

    Returns:
        ``[n, m]``.
    """
    return tensor(_unit(floats(a)) @ _unit(floats(b)).T)


def pytorch_cos_sim(a: Any, b: Any) -> Any:
    """The older name of `cos_sim`.

    Args:
        a: A vector or several.
        b: A vector or several.

    Returns:
        ``[n, m]``.
    """
    return cos_sim(a, b)


def dot_score(a: Any, b: Any) -> Any:
    """Dot products of all vectors of `a` with all of `b`.

    Args:
        a: A vector or several.
        b: A vector or several.

    Returns:
        ``[n, m]``.
    """
    return tensor(floats(a) @ floats(b).T)


def euclidean_sim(a: Any, b: Any) -> Any:
    """Negative Euclidean distances of all vectors of `a` from all of `b`.

    Args:
        a: A vector or several.
        b: A vector or several.

    Returns:
        ``[n, m]``.
    """
    return tensor(-_blocks(a, b, _euclidean, np.shape(array(b))[-1] // 256))


def manhattan_sim(a: Any, b: Any) -> Any:
    """Negative sums of absolute differences of all vectors of `a` from all of `b`.

    Args:
        a: A vector or several.
        b: A vector or several.

    Returns:
        ``[n, m]``.
    """
    width = np.shape(array(b))[-1]
    return tensor(-_blocks(a, b, lambda first, second: np.abs(first[:, None] - second[None]).sum(-1), width))


def pairwise_cos_sim(a: Any, b: Any) -> Any:
    """Cosines of vectors in the same place.

    Args:
        a: Vectors.
        b: As many vectors.

    Returns:
        ``[n]``.
    """
    return tensor((_unit(floats(a)) * _unit(floats(b))).sum(-1))


def pairwise_dot_score(a: Any, b: Any) -> Any:
    """Dot products of vectors in the same place.

    Args:
        a: Vectors.
        b: As many vectors.

    Returns:
        ``[n]``.
    """
    return tensor((floats(a) * floats(b)).sum(-1))


def pairwise_euclidean_sim(a: Any, b: Any) -> Any:
    """Negative Euclidean distances of vectors in the same place.

    Args:
        a: Vectors.
        b: As many vectors.

    Returns:
        ``[n]``.
    """
    return tensor(-np.sqrt(np.square(floats(a) - floats(b)).sum(-1)))


def pairwise_manhattan_sim(a: Any, b: Any) -> Any:
    """Negative sums of absolute differences of vectors in the same place.

    Args:
        a: Vectors.
        b: As many vectors.

    Returns:
        ``[n]``.
    """
    return tensor(-np.abs(floats(a) - floats(b)).sum(-1))


def pairwise_angle_sim(x: Any, y: Any) -> Any:
    """Differences of angles of vectors in the same place, the halves of a vector being the parts of complex numbers.

    The measure of AnglE (arXiv:2309.12871).

    Args:
        x: Vectors of even width.
        y: As many vectors.

    Returns:
        ``[n]``.
    """
    first, second = (np.array_split(floats(value), 2, axis=-1) for value in (x, y))
    z, w = first[0] + 1j * first[1], second[0] + 1j * second[1]
    quotient = z * w.conj() / np.square(np.abs(w)).sum(-1, keepdims=True)
    quotient /= np.linalg.norm(z, axis=-1, keepdims=True) / np.linalg.norm(w, axis=-1, keepdims=True)
    return tensor(np.abs((quotient.real + quotient.imag).sum(-1)).astype(np.float32))


class SimilarityFunction(enum.Enum):
    """The measures by name."""

    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    DOT = "dot"  # noqa: PIE796 - both names are theirs
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"

    @staticmethod
    def to_similarity_fn(similarity_function: str | SimilarityFunction) -> Callable[[Any, Any], Any]:
        """The function that compares all with all.

        Args:
            similarity_function: The measure or its name.

        Returns:
            The function.
        """
        return _ALL[SimilarityFunction(similarity_function)]

    @staticmethod
    def to_similarity_pairwise_fn(similarity_function: str | SimilarityFunction) -> Callable[[Any, Any], Any]:
        """The function that compares vectors in the same place.

        Args:
            similarity_function: The measure or its name.

        Returns:
            The function.
        """
        return _PAIRWISE[SimilarityFunction(similarity_function)]

    @staticmethod
    def possible_values() -> list[str]:
        """All names.

        Returns:
            The names.
        """
        return [measure.value for measure in SimilarityFunction]


_ALL: dict[SimilarityFunction, Callable[[Any, Any], Any]] = {
    SimilarityFunction.COSINE: cos_sim,
    SimilarityFunction.DOT_PRODUCT: dot_score,
    SimilarityFunction.EUCLIDEAN: euclidean_sim,
    SimilarityFunction.MANHATTAN: manhattan_sim,
}
_PAIRWISE: dict[SimilarityFunction, Callable[[Any, Any], Any]] = {
    SimilarityFunction.COSINE: pairwise_cos_sim,
    SimilarityFunction.DOT_PRODUCT: pairwise_dot_score,
    SimilarityFunction.EUCLIDEAN: pairwise_euclidean_sim,
    SimilarityFunction.MANHATTAN: pairwise_manhattan_sim,
}


def normalize_embeddings(embeddings: Any) -> Any:
    """Vectors at length 1.

    Args:
        embeddings: Vectors ``[n, width]``.

    Returns:
        As many vectors; those of zeros stay.
    """
    return tensor(_unit(floats(embeddings)))


def truncate_embeddings(embeddings: Any, truncate_dim: int | None) -> Any:
    """The first dimensions of vectors.

    Args:
        embeddings: A vector, several, or a list of vectors.
        truncate_dim: How many dimensions to keep; None keeps all.

    Returns:
        The shorter vectors.
    """
    return embeddings[..., :truncate_dim]


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[dict[str, Any]]]:
    """The vectors of a corpus that are most like each query.

    Args:
        query_embeddings: Vectors of queries, or of one.
        corpus_embeddings: Vectors of a corpus.
        query_chunk_size: Queries that are compared at once.
        corpus_chunk_size: Vectors of the corpus that are compared at once.
        top_k: How many to return for each query.
        score_function: The measure.

    Returns:
        For each query dicts of ``corpus_id`` and ``score``, best first.
    """
    queries, corpus = floats(query_embeddings), floats(corpus_embeddings)
    found = []
    for begin in range(0, len(queries), query_chunk_size):
        values, places = _best(
            queries[begin : begin + query_chunk_size], corpus, corpus_chunk_size, top_k, score_function
        )
        found += [
            [{"corpus_id": int(place), "score": float(value)} for value, place in zip(*row, strict=True)]
            for row in zip(values, places, strict=True)
        ]
    return found


def information_retrieval(*args: Any, **kwargs: Any) -> list[list[dict[str, Any]]]:
    """The older name of `semantic_search`.

    Args:
        *args: As there.
        **kwargs: As there.

    Returns:
        As there.
    """
    return semantic_search(*args, **kwargs)


def paraphrase_mining(
    model: Any,
    sentences: list[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[Any]]:
    """The pairs of texts that are most alike.

    Args:
        model: Something with ``encode``.
        sentences: The texts.
        show_progress_bar: As for ``encode``.
        batch_size: As for ``encode``.
        query_chunk_size: Texts that are compared at once.
        corpus_chunk_size: Texts that they are compared with at once.
        max_pairs: The most pairs to return.
        top_k: The most others to look at for each text.
        score_function: The measure; it must be symmetric.
        truncate_dim: As for ``encode``.
        prompt_name: As for ``encode``.
        prompt: As for ``encode``.

    Returns:
        Lists of score and two places, best first.
    """
    embeddings = model.encode(
        sentences,
        show_progress_bar=show_progress_bar,
        batch_size=batch_size,
        truncate_dim=truncate_dim,
        prompt_name=prompt_name,
        prompt=prompt,
    )
    return paraphrase_mining_embeddings(
        embeddings, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function
    )


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[Any]]:
    """The pairs of vectors that are most alike.

    Args:
        embeddings: Vectors.
        query_chunk_size: Vectors that are compared at once.
        corpus_chunk_size: Vectors that they are compared with at once.
        max_pairs: The most pairs to return.
        top_k: The most others to look at for each vector.
        score_function: The measure; it must be symmetric.

    Returns:
        Lists of score and two places, best first.
    """
    vectors = floats(embeddings)
    pairs: dict[tuple[int, int], float] = {}
    for begin in range(0, len(vectors), query_chunk_size):
        chunk = vectors[begin : begin + query_chunk_size]
        values, places = _best(chunk, vectors, corpus_chunk_size, top_k + 1, score_function)
        for row, (scores, others) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            place = begin + row
            nearest = [(other, score) for other, score in zip(others, scores, strict=True) if other != place]
            for other, score in nearest[:top_k]:
                pairs.setdefault((min(place, other), max(place, other)), score)
    best = sorted(pairs.items(), key=lambda item: item[1], reverse=True)[:max_pairs]
    return [[score, first, second] for (first, second), score in best]


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,  # noqa: ARG001
) -> list[list[int]]:
    """Groups of vectors whose cosine with one of them, the centre, reaches a threshold.

    Args:
        embeddings: Vectors.
        threshold: The least cosine.
        min_community_size: The least size of a group.
        batch_size: Vectors that are compared at once.
        show_progress_bar: No effect.

    Returns:
        Groups of places that do not overlap, the largest first; in each the centre first, then the nearest.
    """
    if len(embeddings) == 0:
        return []
    vectors = _unit(floats(embeddings))
    groups: list[tuple[int, npt.NDArray[np.int64]]] = []
    for begin in range(0, len(vectors), batch_size):
        scores = vectors[begin : begin + batch_size] @ vectors.T
        near = scores >= np.float32(threshold)
        for row in np.flatnonzero(near.sum(axis=1) >= min_community_size):
            members = np.flatnonzero(near[row])
            groups.append((begin + int(row), members[np.argsort(-scores[row, members], kind="stable")]))
    groups.sort(key=lambda group: len(group[1]), reverse=True)
    taken = np.zeros(len(vectors), dtype=bool)
    found = []
    for centre, group in groups:
        free = group[~taken[group]]
        if not taken[centre] and len(free) >= min_community_size:
            found.append([centre, *(member for member in free.tolist() if member != centre)])
            taken[free] = True
    return sorted(found, key=len, reverse=True)


def quantize_embeddings(
    embeddings: Any, precision: str, ranges: Any = None, calibration_embeddings: Any = None
) -> npt.NDArray[Any]:
    """Vectors in fewer bits.

    Args:
        embeddings: Vectors ``[n, width]``.
        precision: ``"float32"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
        ranges: Least and largest value of each dimension, ``[2, width]``, for ``"int8"`` and ``"uint8"``.
        calibration_embeddings: Vectors to take the ranges from, in place of those given.

    Returns:
        As many rows; of eight dimensions in a byte for ``"binary"`` and ``"ubinary"``.

    Raises:
        ValueError: The precision is unknown, the vectors are quantised already, or ranges would have to come from a
            single vector.
    """
    vectors = np.asarray(array(embeddings))
    if vectors.dtype in (np.uint8, np.int8):
        raise ValueError("the embeddings are quantised already")
    if precision == "float32":
        return vectors.astype(np.float32)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else _signed(bits)
    if precision not in ("int8", "uint8"):
        raise ValueError(f"precision {precision!r} is not one of float32, int8, uint8, binary, ubinary")
    if len(vectors) == 0:
        return np.zeros(vectors.shape, precision)
    if ranges is None:
        given = vectors if calibration_embeddings is None else np.asarray(array(calibration_embeddings))
        if calibration_embeddings is None and len(given) < 2:
            raise ValueError("ranges cannot be taken from one embedding; give ranges or calibration_embeddings")
        ranges = np.stack([given.min(axis=0), given.max(axis=0)])
    low, high = np.asarray(array(ranges), np.float32)
    steps = (high - low) / 255
    levels = np.floor((vectors - low) / np.where(steps == 0, 1, steps)).clip(0, 255).astype(np.uint8)
    return levels if precision == "uint8" else _signed(levels)


def _signed(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    return (levels.astype(np.int16) - 128).astype(np.int8)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _euclidean(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Distances of all pairs by their products, in float64 because of what cancels."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    squares = np.square(one).sum(-1)[:, None] + np.square(other).sum(-1)[None] - 2 * one @ other.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float64)


def _blocks(a: Any, b: Any, measure: Callable[[Any, Any], Any], cost: int) -> npt.NDArray[np.float32]:
    """A measure of all pairs that holds `cost` numbers for each, some rows and columns at a time."""
    first, second, cost = floats(a), floats(b), max(cost, 1)
    found = np.empty((len(first), len(second)), np.float32)
    columns = max(min(len(second), _AT_ONCE // cost, 8192), 1)
    rows = max(_AT_ONCE // (cost * columns), 1)
    for top in range(0, len(first), rows):
        for left in range(0, len(second), columns):
            block = measure(first[top : top + rows], second[left : left + columns])
            found[top : top + rows, left : left + columns] = block
    return found


def _best(
    queries: npt.NDArray[np.float32],
    corpus: npt.NDArray[np.float32],
    chunk: int,
    count: int,
    score: Callable[[Any, Any], Any],
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The best of a corpus for each query, best first: scores and places, each ``[queries, count]``."""
    values = np.empty((len(queries), 0), np.float32)
    places = np.empty((len(queries), 0), np.int64)
    for begin in range(0, len(corpus), chunk):
        part = np.asarray(array(score(tensor(queries), tensor(corpus[begin : begin + chunk]))))
        values = np.concatenate([values, part], axis=1)
        places = np.concatenate([places, np.broadcast_to(np.arange(begin, begin + part.shape[1]), part.shape)], axis=1)
        if values.shape[1] > count:
            kept = np.argpartition(-values, count - 1, axis=1)[:, :count]
            values, places = np.take_along_axis(values, kept, 1), np.take_along_axis(places, kept, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)
