"""`CrossEncoder`: a `Reranker` with the interface of sentence-transformers."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

import candlewick as cw

from .._opened import Opened
from . import _loading, _torch
from ._torch import array, required_tensor, tensor


class CrossEncoder:
    """Scores pairs of texts, with the signatures of the class of this name in sentence-transformers.

    Args:
        model_name_or_path: A hub id, a directory, or a ``Reranker``.
        num_labels: If given, it must be what the checkpoint has.
        max_length: The longest pair in tokens.
        activation_fn: What scores go through: ``torch.nn.Sigmoid()`` or another class of torch, its name, or any
            function; None means as the repository says.
        device: As ``"cpu"``, ``"cuda:0"`` or ``"mps"``; None means the best there is.
        cache_folder: Where downloads are kept.
        trust_remote_code: No effect: no code of a repository is ever run.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never touch the network.
        token: Access token for the hub.
        model_kwargs: ``dtype`` or ``torch_dtype``.
        processor_kwargs: ``model_max_length``.
        config_kwargs: Must be empty.
        model_card_data: No effect.
        backend: No effect: candlewick is the backend.
        prompts: Prompts by name, besides those of the repository.
        default_prompt_name: The prompt that is used where none is named.
        **older: Keywords of older versions of that library.
    """

    def __init__(
        self,
        model_name_or_path: str | cw.Reranker | None = None,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Any = None,
        device: Any = None,
        *,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,  # noqa: ARG002
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: Any = None,  # noqa: ARG002
        backend: str = "torch",
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        **older: Any,
    ) -> None:
        def named(value: Any, *names: str) -> Any:
            """What was given under the name of today or an older one."""
            found = [older.pop(name) for name in names if name in older]
            return value if value is not None or not found else found[0]

        model_name_or_path = named(model_name_or_path, "model_name")
        cache_folder = named(cache_folder, "cache_dir")
        activation_fn = named(activation_fn, "default_activation_function")
        model_kwargs = named(model_kwargs, "automodel_args")
        processor_kwargs = named(processor_kwargs, "tokenizer_kwargs", "tokenizer_args")
        config_kwargs = named(config_kwargs, "config_args")
        if older:
            raise TypeError(f"CrossEncoder() got an unexpected keyword argument {min(older)!r}")
        if model_name_or_path is None:
            raise ValueError("give the name or directory of a model")
        if isinstance(model_name_or_path, cw.Reranker):
            self._opened: Opened[cw.Reranker] = Opened.of(model_name_or_path)
        else:
            options = _loading.options(
                device=device,
                cache_folder=cache_folder,
                revision=revision,
                local_files_only=local_files_only,
                token=token,
                model_kwargs=model_kwargs,
                processor_kwargs=processor_kwargs,
                config_kwargs=config_kwargs,
                backend=backend,
            )
            if max_length is not None:
                options["max_length"] = max_length
            self._opened = Opened("reranker", str(model_name_or_path), options)
        reranker = self._opened.get()
        #: Prompts by name; may be changed.
        self.prompts: dict[str, str] = {**reranker.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or reranker.default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(f"default_prompt_name {self.default_prompt_name!r} is none of {list(self.prompts)}")
        labels = reranker.num_labels
        if num_labels not in (None, labels):
            raise ValueError(f"num_labels is {num_labels}, but the checkpoint has a head of {labels}")
        #: What scores go through where ``predict`` is not told; None means as the repository says.
        self.activation_fn = activation_fn

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: dict[str, Any] | None = None,  # noqa: ARG002
        chunk_size: int | None = None,  # noqa: ARG002
        *,
        sentences: Any = None,
        activation_fct: Any = None,
        num_workers: int | None = None,  # noqa: ARG002
    ) -> Any:
        """Score pairs of texts.

        Args:
            inputs: A pair, or several.
            prompt_name: Name of the prompt to put before the first text of every pair.
            prompt: The prompt itself; wins over the name.
            batch_size: The most pairs of one pass.
            show_progress_bar: Whether to show a bar; None means if the logger shows INFO.
            activation_fn: As for the class.
            apply_softmax: Whether the scores of several labels become probabilities.
            convert_to_numpy: One array; False gives a list.
            convert_to_tensor: One tensor of torch, which has to be installed.
            device: Where to compute; the model moves there.
            pool: No effect: one process uses the whole machine.
            chunk_size: No effect.
            sentences: The older name of ``inputs``.
            activation_fct: The older name of ``activation_fn``.
            num_workers: No effect.

        Returns:
            A score for a pair; ``[pairs]`` for several, ``[pairs, labels]`` for a model of several labels.
        """
        if prompt is None:
            name = prompt_name or self.default_prompt_name
            if name is not None and name not in self.prompts:
                raise ValueError(f"there is no prompt {name!r} among {list(self.prompts)}")
            prompt = self.prompts[name] if name is not None else ""
        if batch_size <= 0:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if device is not None and not isinstance(device, (list, tuple)):
            self.to(device)
        pairs = inputs if inputs is not None else sentences
        pairs = pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
        # A single pair is a sequence of two texts; a list of pairs is not.
        single = len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
        chosen = activation_fn or activation_fct or self.activation_fn
        activation, function = _activation(chosen)
        scores = self._opened.get().predict(
            [tuple(pairs)] if single else [tuple(pair) for pair in pairs],
            prompt=prompt,
            activation="identity" if function is not None else activation,
            apply_softmax=bool(apply_softmax) and function is None,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        if function is not None:
            scores = np.asarray(array(function(tensor(scores))), np.float32)
            if apply_softmax and scores.ndim > 1:
                powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
                scores = powers / powers.sum(axis=-1, keepdims=True)
        if convert_to_tensor:
            scores = required_tensor(scores)
        elif not convert_to_numpy:
            scores = [tensor(np.asarray(score)) for score in scores]
        return scores[0] if single else scores

    def rank(
        self,
        query: str,
        documents: list[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        device: Any = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        **older: Any,
    ) -> list[dict[str, Any]]:
        """Order documents by how well they answer a query.

        Args:
            query: The query.
            documents: The documents.
            top_k: How many to return; None means all.
            return_documents: Whether to return the texts too.
            prompt_name: As for ``predict``, like all keywords that follow.
            prompt: As for ``predict``.
            batch_size: As for ``predict``.
            show_progress_bar: As for ``predict``.
            activation_fn: As for ``predict``.
            device: As for ``predict``.
            pool: As for ``predict``.
            chunk_size: As for ``predict``.
            **older: Keywords of older versions, which have no effect there either.

        Returns:
            Dicts with ``corpus_id``, ``score`` and perhaps ``text``, best first.

        Raises:
            ValueError: The model has several labels.
        """
        function = older.pop("activation_fct", None)
        unknown = sorted(older.keys() - {"apply_softmax", "convert_to_numpy", "convert_to_tensor", "num_workers"})
        if unknown:
            raise TypeError(f"rank() got an unexpected keyword argument {unknown[0]!r}")
        if self.num_labels != 1:
            raise ValueError("rank() needs a model of one label; use predict()")
        scores = self.predict(
            [(query, document) for document in documents],
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            activation_fn or function,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        )
        rows: list[dict[str, Any]] = [
            {"corpus_id": index, "score": score} | ({"text": documents[index]} if return_documents else {})
            for index, score in enumerate(scores.tolist())
        ]
        return sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return self._opened.get().num_labels

    @property
    def max_length(self) -> int:
        """The longest pair in tokens; may be set."""
        return self._opened.get().max_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        if value != self.max_length:
            self._reopen(max_length=value)

    max_seq_length = max_length

    @property
    def tokenizer(self) -> cw.Tokenizer:
        """The tokenizer: candlewick's, not one of transformers."""
        return self._opened.get().tokenizer

    @property
    def device(self) -> Any:
        """Where the model is: a device of torch where the program has imported it, else a name such as ``"cpu"``."""
        return _torch.device(self._opened.get().device)

    def to(self, device: Any) -> CrossEncoder:
        """Move the model.

        Args:
            device: The device.

        Returns:
            The model itself.
        """
        name = _loading.device_name(device)
        if name.removesuffix(":0") != self._opened.get().device.removesuffix(":0"):
            self._reopen(device=name)
        return self

    def eval(self) -> CrossEncoder:
        """No effect: models here are always ready to be used.

        Returns:
            The model itself.
        """
        return self

    def _reopen(self, **changes: Any) -> None:
        self._opened = Opened("reranker", self._opened.source, {**self._opened.options, **changes})
        self._opened.get()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"candlewick's CrossEncoder has no {name!r}; it scores, and does not train")

    def __repr__(self) -> str:
        return f"CrossEncoder({self.__dict__['_opened'].source!r}, candlewick)"


def _activation(given: Any) -> tuple[str | None, Any]:
    """The activation by candlewick's name, or a function for everything else."""
    if given is None:
        return None, None
    if isinstance(given, str):
        return given.rpartition(".")[2], None
    name = type(given).__name__.lower()
    if name in ("identity", "sigmoid"):
        return name, None
    if callable(given):
        return None, given
    raise ValueError(f"activation_fn {given!r} is neither the name of a class of torch nor a function")
