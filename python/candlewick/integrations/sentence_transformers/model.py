"""`SentenceTransformer`: an `Embedder` with the interface of sentence-transformers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

import candlewick as cw

from .._opened import Opened, repository
from . import _loading, _torch, util
from ._torch import required_tensor, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

QUERY = ("query",)
DOCUMENT = ("document", "passage", "corpus")


class SentenceTransformer:
    """Turns texts into vectors, with the signatures of the class of this name in sentence-transformers.

    The model is loaded by the constructor. Keywords that say how torch is to compute have no effect; those that would
    change results and cannot be honoured are refused. Repositories without prompts have those that well-known models
    were trained with, for ``encode_query`` and ``encode_document``, as ``Embedder`` has them.

    Args:
        model_name_or_path: A hub id, a directory, a bare name such as ``"all-MiniLM-L6-v2"``, or an ``Embedder``.
        modules: Must be None: modules of torch cannot be run.
        device: As ``"cpu"``, ``"cuda:0"`` or ``"mps"``; None means the best there is.
        prompts: Prompts by name, besides those of the repository.
        default_prompt_name: The prompt that ``encode`` uses where none is named.
        cache_folder: Where downloads are kept.
        trust_remote_code: No effect: no code of a repository is ever run.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never touch the network.
        token: Access token for the hub.
        use_auth_token: The older name of ``token``.
        model_kwargs: ``dtype`` or ``torch_dtype``.
        processor_kwargs: ``model_max_length``.
        config_kwargs: Must be empty.
        model_card_data: No effect.
        backend: No effect: candlewick is the backend.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``, in place of the repository's.
        truncate_dim: Keep this many dimensions.
        tokenizer_kwargs: The older name of ``processor_kwargs``.

    Examples:
        >>> from candlewick.integrations.sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("candlewick/tiny")
        >>> vectors = model.encode(["The dog ran home.", "Bread is baked."], normalize_embeddings=True)
        >>> model.similarity(vectors, vectors).shape
        (2, 2)
    """

    def __init__(
        self,
        model_name_or_path: str | cw.Embedder | None = None,
        modules: None = None,
        device: Any = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | util.SimilarityFunction | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,  # noqa: ARG002
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        truncate_dim: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: Any = None,  # noqa: ARG002
        backend: str = "torch",
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if modules is not None or model_name_or_path is None:
            raise ValueError("modules of torch cannot be run by candlewick; give the name or directory of a model")
        if isinstance(model_name_or_path, cw.Embedder):
            self._opened: Opened[cw.Embedder] = Opened.of(model_name_or_path)
        else:
            options = _loading.options(
                device=device,
                cache_folder=cache_folder,
                revision=revision,
                local_files_only=local_files_only,
                token=token or use_auth_token,
                model_kwargs=model_kwargs,
                processor_kwargs=processor_kwargs or tokenizer_kwargs,
                config_kwargs=config_kwargs,
                backend=backend,
            )
            self._opened = Opened("embedder", repository(model_name_or_path), options)
        embedder = self._opened.get()
        #: Prompts by name; may be changed.
        self.prompts: dict[str, str] = {**embedder.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or embedder.default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(f"default_prompt_name {self.default_prompt_name!r} is none of {list(self.prompts)}")
        self.truncate_dim = truncate_dim
        self.similarity_fn_name = similarity_fn_name or embedder.similarity_fn_name

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,  # noqa: ARG002
        chunk_size: int | None = None,  # noqa: ARG002
        *,
        sentences: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Turn texts into vectors.

        Args:
            inputs: A text, or several.
            prompt_name: Name of the prompt to put before every text.
            prompt: The prompt itself; wins over the name.
            batch_size: The most texts of one pass. Without padding it matters little.
            show_progress_bar: Whether to show a bar; None means if the logger shows INFO.
            output_value: ``"sentence_embedding"``, ``"token_embeddings"``, or None for a dict of both per text.
            precision: ``"float32"``, which None means too, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
            convert_to_numpy: One array; False gives a list of vectors.
            convert_to_tensor: One tensor of torch, which has to be installed.
            device: Where to compute; the model moves there.
            normalize_embeddings: Whether vectors get length 1.
            truncate_dim: Keep this many dimensions.
            pool: No effect: one process uses the whole machine.
            chunk_size: No effect.
            sentences: The older name of ``inputs``.
            **kwargs: None are known.

        Returns:
            ``[dimension]`` for a text, ``[texts, dimension]`` for several.

        Raises:
            ValueError: An argument is out of range or unknown.
        """
        if kwargs:
            raise ValueError(f"encode() does not know the keywords {sorted(kwargs)}")
        if batch_size <= 0:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if device is not None and not isinstance(device, (list, tuple)):
            self.to(device)
        texts = inputs if inputs is not None else sentences
        single = isinstance(texts, str)
        options: dict[str, Any] = {
            "prompt": self._prompt(prompt_name, prompt),
            "batch_size": batch_size,
            "normalize": True if normalize_embeddings else None,
            "truncate_dim": truncate_dim if truncate_dim is not None else self.truncate_dim,
            "show_progress_bar": show_progress_bar,
        }
        texts = [texts] if single else list(texts)
        embedder = self._opened.get()
        if output_value != "sentence_embedding":
            found = self._tokens(embedder, texts, options, output_value)
            return found[0] if single else found
        vectors = embedder.encode(texts, precision=precision or "float32", **options)
        if convert_to_tensor:
            vectors = required_tensor(vectors)
        elif not convert_to_numpy:
            vectors = [tensor(vector) for vector in vectors]
        return vectors[0] if single else vectors

    def _tokens(
        self, embedder: cw.Embedder, texts: list[str], options: dict[str, Any], output_value: str | None
    ) -> list[Any]:
        if output_value not in ("token_embeddings", None):
            raise ValueError(f"output_value {output_value!r} is not 'sentence_embedding', 'token_embeddings' or None")
        plain = {key: value for key, value in options.items() if key not in ("normalize", "truncate_dim")}
        tokens = [tensor(matrix) for matrix in embedder.encode(texts, output="token", **plain)]
        if output_value == "token_embeddings":
            return tokens
        vectors = embedder.encode(texts, **options)
        return [
            {"token_embeddings": matrix, "sentence_embedding": tensor(vector)}
            for matrix, vector in zip(tokens, vectors, strict=True)
        ]

    def encode_query(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``encode``, with the prompt called ``"query"``, if there is one and none is given.

        Args:
            inputs: A text, or several.
            prompt_name: Name of another prompt.
            prompt: Another prompt.
            batch_size: As for ``encode``.
            show_progress_bar: As for ``encode``.
            output_value: As for ``encode``.
            precision: As for ``encode``.
            convert_to_numpy: As for ``encode``.
            convert_to_tensor: As for ``encode``.
            device: As for ``encode``.
            normalize_embeddings: As for ``encode``.
            truncate_dim: As for ``encode``.
            pool: As for ``encode``.
            chunk_size: As for ``encode``.
            **kwargs: ``sentences``, the older name of ``inputs``.

        Returns:
            As ``encode``.
        """
        prompt_name = self._role(QUERY, prompt_name, prompt)
        return self.encode(
            inputs,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            convert_to_numpy,
            convert_to_tensor,
            device,
            normalize_embeddings,
            truncate_dim,
            pool,
            chunk_size,
            **kwargs,
        )

    def encode_document(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``encode``, with the prompt called ``"document"``, ``"passage"`` or ``"corpus"``, if there is one.

        Args:
            inputs: A text, or several.
            prompt_name: Name of another prompt.
            prompt: Another prompt.
            batch_size: As for ``encode``.
            show_progress_bar: As for ``encode``.
            output_value: As for ``encode``.
            precision: As for ``encode``.
            convert_to_numpy: As for ``encode``.
            convert_to_tensor: As for ``encode``.
            device: As for ``encode``.
            normalize_embeddings: As for ``encode``.
            truncate_dim: As for ``encode``.
            pool: As for ``encode``.
            chunk_size: As for ``encode``.
            **kwargs: ``sentences``, the older name of ``inputs``.

        Returns:
            As ``encode``.
        """
        prompt_name = self._role(DOCUMENT, prompt_name, prompt)
        return self.encode(
            inputs,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            convert_to_numpy,
            convert_to_tensor,
            device,
            normalize_embeddings,
            truncate_dim,
            pool,
            chunk_size,
            **kwargs,
        )

    def _role(self, names: tuple[str, ...], prompt_name: str | None, prompt: str | None) -> str | None:
        if prompt_name is not None or prompt is not None:
            return prompt_name
        return next((name for name in names if name in self.prompts), None)

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = prompt_name or self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"there is no prompt {name!r} among {list(self.prompts)}")
        return self.prompts[name]

    @property
    def similarity_fn_name(self) -> str:
        """The measure of ``similarity``; may be set."""
        return str(self._similarity.value)

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | util.SimilarityFunction) -> None:
        self._similarity: util.SimilarityFunction = util.SimilarityFunction(value)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """How alike all vectors of one collection are to all of another.

        Args:
            embeddings1: A vector or several.
            embeddings2: A vector or several.

        Returns:
            ``[n, m]``; larger is more alike.
        """
        return util.SimilarityFunction.to_similarity_fn(self._similarity)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """How alike each vector is to the one in the same place of another collection.

        Args:
            embeddings1: Vectors.
            embeddings2: As many vectors.

        Returns:
            ``[n]``; larger is more alike.
        """
        return util.SimilarityFunction.to_similarity_pairwise_fn(self._similarity)(embeddings1, embeddings2)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors.

        Returns:
            The number of dimensions that ``encode`` gives.
        """
        dimension = self._opened.get().dimension
        return dimension if self.truncate_dim is None else min(dimension, self.truncate_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """A context in which vectors are cut.

        Args:
            truncate_dim: Keep this many dimensions; None keeps all.
        """
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    @property
    def max_seq_length(self) -> int:
        """The longest text in tokens; may be set."""
        return self._opened.get().max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value != self.max_seq_length:
            self._reopen(max_length=value)

    def get_max_seq_length(self) -> int:
        """The longest text in tokens.

        Returns:
            Their number.
        """
        return self.max_seq_length

    @property
    def tokenizer(self) -> cw.Tokenizer:
        """The tokenizer: candlewick's, not one of transformers."""
        return self._opened.get().tokenizer

    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        """Token ids of texts, filled up to the longest.

        Args:
            texts: The texts.

        Returns:
            ``input_ids`` and ``attention_mask``, each ``[texts, tokens]``.
        """
        rows = [row[: self.max_seq_length] for row in self.tokenizer.encode_batch(list(texts))]
        shape = (len(rows), max(map(len, rows), default=0))
        ids, mask = np.full(shape, self.tokenizer.pad_token_id or 0, np.int64), np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        return {"input_ids": tensor(ids), "attention_mask": tensor(mask)}

    preprocess = tokenize

    @property
    def device(self) -> Any:
        """Where the model is: a device of torch where the program has imported it, else a name such as ``"cpu"``."""
        return _torch.device(self._opened.get().device)

    @property
    def dtype(self) -> str:
        """What the weights are, such as ``"float32"``."""
        return self._opened.get().dtype

    def to(self, device: Any) -> Self:
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

    def cpu(self) -> Self:
        """Move the model to the processor.

        Returns:
            The model itself.
        """
        return self.to("cpu")

    def half(self) -> Self:
        """Hold the weights as float16.

        Returns:
            The model itself.
        """
        return self._reopen(dtype="float16")

    def bfloat16(self) -> Self:
        """Hold the weights as bfloat16.

        Returns:
            The model itself.
        """
        return self._reopen(dtype="bfloat16")

    def float(self) -> Self:
        """Hold the weights as float32.

        Returns:
            The model itself.
        """
        return self._reopen(dtype="float32")

    def eval(self) -> Self:
        """No effect: models here are always ready to be used.

        Returns:
            The model itself.
        """
        return self

    def _reopen(self, **changes: Any) -> Self:
        self._opened = Opened("embedder", self._opened.source, {**self._opened.options, **changes})
        self._opened.get()
        return self

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:  # noqa: ARG002
        """No effect: one process uses the whole machine.

        Args:
            target_devices: Not used.

        Returns:
            Something to give to ``encode``.
        """
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """No effect.

        Args:
            pool: What ``start_multi_process_pool`` gave.
        """

    def encode_multi_process(self, sentences: list[str], pool: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """As ``encode``.

        Args:
            sentences: The texts.
            pool: Not used.
            **kwargs: Keywords of ``encode``.

        Returns:
            As ``encode``.
        """
        return self.encode(sentences, pool=pool, **kwargs)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"candlewick's SentenceTransformer has no {name!r}; it encodes, and does not train")

    def __repr__(self) -> str:
        return f"SentenceTransformer({self.__dict__['_opened'].source!r}, candlewick)"
