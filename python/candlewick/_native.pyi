"""
The compiled part of candlewick; use the names that `candlewick` exports.
"""

from _typeshed import SupportsGetItem, SupportsLenAndGetItem
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex, final

__all__ = ["__version__", "Adapter", "AdapterInfo", "AdapterRegistry", "DecodeStream", "Embedder", "Generation", "Generator", "LoraConfig", "Model", "Reranker", "StepMetrics", "StreamToken", "TokenStream", "Tokenizer", "Trainer", "_connect", "_selftest"]

__version__: Final[str]

@final
class Adapter:
    """
    An adapter in memory: its configuration and tensors, without a model.

    A trainer gives one, ``AdapterRegistry.add`` takes one.
    """
    def __repr__(self, /) -> str: ...
    @staticmethod
    def load(directory: str | PathLike[str]) -> Adapter:
        """
        Reads an adapter from a directory of PEFT or mlx-lm.

        Args:
            directory: The directory.

        Returns:
            The adapter.

        Raises:
            AdapterError: The files ask for something that cannot be honoured.
        """
    @property
    def num_parameters(self, /) -> int:
        """
        Number of values.
        """
    @property
    def rank(self, /) -> int:
        """
        Columns of the low-rank factors.
        """
    def save(self, /, directory: str | PathLike[str], *, format: str = "peft") -> None:
        """
        Writes the adapter for PEFT or for mlx-lm.

        Args:
            directory: Where to; it is made if it is not there.
            format: ``"peft"`` for ``adapter_config.json`` and ``adapter_model.safetensors``, or ``"mlx"`` for
                ``adapter_config.json`` and ``adapters.safetensors``.

        Raises:
            InvalidArgumentError: The format cannot express the adapter.
        """

@final
class AdapterInfo:
    """
    What is known of a registered adapter.

    Attributes:
        name: The name it is registered under.
        rank: Columns of its low-rank factors; of a combination their sum.
        alpha: Its alpha.
        target_modules: The modules it adapts.
        num_parameters: Number of its values.
        size_in_bytes: Bytes it takes beside the model.
        generation: A hash of its content; adapters of the same generation compute the same.
        base_model: The model it says it was made for, or None.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs__(self, /) -> tuple: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, name: str, rank: SupportsIndex, alpha: SupportsFloat | SupportsIndex, target_modules: SupportsGetItem[int, str], num_parameters: SupportsIndex, size_in_bytes: SupportsIndex, generation: str, base_model: str | None) -> AdapterInfo: ...
    def __repr__(self, /) -> str: ...
    @property
    def alpha(self, /) -> float:
        """
        The alpha.
        """
    @property
    def base_model(self, /) -> str | None:
        """
        The model it was made for.
        """
    @property
    def generation(self, /) -> str:
        """
        A hash of the content.
        """
    @property
    def name(self, /) -> str:
        """
        The name.
        """
    @property
    def num_parameters(self, /) -> int:
        """
        Number of values.
        """
    @property
    def rank(self, /) -> int:
        """
        Columns of the factors.
        """
    @property
    def size_in_bytes(self, /) -> int:
        """
        Bytes beside the model.
        """
    @property
    def target_modules(self, /) -> list[str]:
        """
        The modules it adapts.
        """

@final
class AdapterRegistry:
    """
    The adapters of one model by name, and which of them is active.

    Adapters never change the model: they come with each request, which keeps the version it started with whatever is
    loaded, replaced or unloaded meanwhile.

    Registries of one model that are alive at the same time see the same adapters. Once the last of them is gone, requests
    can still name what it held, but nothing is active any more (except for a ``Generator`` made while it was, which keeps
    that), and the next registry starts empty.

    Args:
        model: The model, or an embedder.
        max_adapters: The most adapters to hold.

    Examples:
        >>> import candlewick as cw
        >>> model = cw.Model.from_pretrained("candlewick/tiny")
        >>> registry = cw.AdapterRegistry(model)
        >>> len(registry), registry.active
        (0, None)
    """
    def __contains__(self, name: Any, /) -> bool: ...
    def __getitem__(self, name: str, /) -> AdapterInfo: ...
    def __iter__(self, /) -> Any: ...
    def __len__(self, /) -> int: ...
    def __new__(cls, /, model: Any, *, max_adapters: "SupportsIndex" = 16) -> AdapterRegistry: ...
    def __repr__(self, /) -> str: ...
    def activate(self, /, name: str) -> None:
        """
        Makes an adapter the one that requests use which do not name one.

        Args:
            name: The adapter.
        """
    @property
    def active(self, /) -> str | None:
        """
        The name of the active adapter, or None.
        """
    def add(self, /, name: str, adapter: Adapter) -> AdapterInfo:
        """
        Registers an adapter that is in memory, replacing what had the name before.

        Args:
            name: The name to register it under.
            adapter: The adapter, such as ``trainer.adapter``.

        Returns:
            What is known of it.

        Raises:
            AdapterError: It does not fit the model; nothing has changed.
        """
    def combine(self, /, name: str, weights: dict[str, SupportsFloat | SupportsIndex]) -> AdapterInfo:
        """
        Registers the exact weighted sum of what other adapters change.

        Args:
            name: The name to register it under.
            weights: The weight of each adapter, by name.

        Returns:
            What is known of it.
        """
    def deactivate(self, /) -> None:
        """
        Goes back to the bare model.
        """
    def load(self, /, name: str, path_or_hub_id: str | PathLike[str]) -> AdapterInfo:
        """
        Loads an adapter, replacing what had the name before.

        Args:
            name: The name to register it under.
            path_or_hub_id: A directory of PEFT or of mlx-lm, or a hub id.

        Returns:
            What is known of it.

        Raises:
            AdapterError: It cannot be applied as its files say; nothing has changed.
            ModelNotFoundError: Neither disk nor hub has it.
        """
    def names(self, /) -> list[str]:
        """
        The names of all adapters, in the order of their loading.
        """
    def unload(self, /, name: str) -> None:
        """
        Forgets an adapter. Requests under way keep it to their end.

        Args:
            name: The adapter.
        """
    def using(self, /, name: str) -> Any:
        """
        A context in which an adapter is active; the earlier one comes back at its end.

        Args:
            name: The adapter.
        """

@final
class DecodeStream:
    """
    Decodes a stream of token ids; the pieces together are the full decode.
    """
    def flush(self, /) -> str:
        """
        What was held back, now that nothing follows.
        """
    def step(self, /, id: SupportsIndex) -> str:
        """
        Text that became final with this id; may be empty.

        Args:
            id: The next token id.

        Raises:
            InvalidArgumentError: The id is not in the vocabulary.
        """

@final
class Embedder:
    """
    Turns texts into vectors, with models in the layout of sentence-transformers.

    Embedders are immutable: any number of threads and tasks may share one.

    Examples:
        >>> import candlewick as cw
        >>> embedder = cw.Embedder.from_pretrained("candlewick/tiny")
        >>> vectors = embedder.encode(["A cat sat on the mat.", "The cat sat on a mat."])
        >>> vectors.shape == (2, embedder.dimension)
        True
        >>> embedder.similarity(vectors, vectors).shape
        (2, 2)
    """
    def __enter__(self, /) -> Embedder: ...
    def __exit__(self, /, *_exc) -> None: ...
    def __reduce__(self, /) -> Any: ...
    def __repr__(self, /) -> str: ...
    def _repr_html_(self, /) -> str: ...
    def aencode(self, /, texts: Any, *, prompt_name: str | None = None, prompt: str | None = None, batch_size: SupportsIndex | None = None, normalize: bool | None = None, truncate_dim: SupportsIndex | None = None, precision: str = "float32", truncation: str = "warn", output: str = "sentence", show_progress_bar: bool | None = None, adapter: Any | None = None) -> Any:
        """
        As ``encode``, from an event loop, which is not blocked; concurrent callers share batches.

        Args:
            texts: A text, or any iterable of texts.
            prompt_name: As for ``encode``, like all keywords that follow.
            prompt: As for ``encode``.
            batch_size: As for ``encode``.
            normalize: As for ``encode``.
            truncate_dim: As for ``encode``.
            precision: As for ``encode``.
            truncation: As for ``encode``.
            output: As for ``encode``.
            show_progress_bar: As for ``encode``; True computes these texts by themselves.
            adapter: As for ``encode``.

        Returns:
            As ``encode``.
        """
    def aencode_document(self, /, texts: Any, *, prompt_name: str | None = None, prompt: str | None = None, batch_size: SupportsIndex | None = None, normalize: bool | None = None, truncate_dim: SupportsIndex | None = None, precision: str = "float32", truncation: str = "warn", output: str = "sentence", show_progress_bar: bool | None = None, adapter: Any | None = None) -> Any:
        """
        As ``aencode``, with the prompt for documents, if there is one.

        Args:
            texts: A text, or any iterable of texts.
            prompt_name: As for ``encode``, like all keywords that follow.
            prompt: As for ``encode``.
            batch_size: As for ``encode``.
            normalize: As for ``encode``.
            truncate_dim: As for ``encode``.
            precision: As for ``encode``.
            truncation: As for ``encode``.
            output: As for ``encode``.
            show_progress_bar: As for ``encode``; True computes these texts by themselves.
            adapter: As for ``encode``.

        Returns:
            As ``encode``.
        """
    def aencode_query(self, /, texts: Any, *, prompt_name: str | None = None, prompt: str | None = None, batch_size: SupportsIndex | None = None, normalize: bool | None = None, truncate_dim: SupportsIndex | None = None, precision: str = "float32", truncation: str = "warn", output: str = "sentence", show_progress_bar: bool | None = None, adapter: Any | None = None) -> Any:
        """
        As ``aencode``, with the prompt for queries, if there is one.

        Args:
            texts: A text, or any iterable of texts.
            prompt_name: As for ``encode``, like all keywords that follow.
            prompt: As for ``encode``.
            batch_size: As for ``encode``.
            normalize: As for ``encode``.
            truncate_dim: As for ``encode``.
            precision: As for ``encode``.
            truncation: As for ``encode``.
            output: As for ``encode``.
            show_progress_bar: As for ``encode``; True computes these texts by themselves.
            adapter: As for ``encode``.

        Returns:
            As ``encode``.
        """
    @property
    def architecture(self, /) -> str:
        """
        The ``model_type`` of the configuration.
        """
    def close(self, /) -> None:
        """
        Gives the memory back once no call uses the embedder any more. Closing twice does nothing.
        """
    @property
    def default_prompt_name(self, /) -> str | None:
        """
        The name of the prompt that ``encode`` uses where none is named.
        """
    @property
    def device(self, /) -> str:
        """
        The device of the weights, such as ``"cpu"``.
        """
    @property
    def dimension(self, /) -> int:
        """
        Width of the vectors.
        """
    @property
    def dtype(self, /) -> str:
        """
        The dtype of the weights, such as ``"float32"``.
        """
    def encode(self, /, texts: Any, *, prompt_name: str | None = None, prompt: str | None = None, batch_size: SupportsIndex | None = None, normalize: bool | None = None, truncate_dim: SupportsIndex | None = None, precision: str = "float32", truncation: str = "warn", output: str = "sentence", show_progress_bar: bool | None = None, adapter: Any | None = None) -> Any:
        """
        Turns texts into vectors.

        Longer texts share no batch-mates' padding: nothing is padded, so the batch never changes a result.

        Args:
            texts: A text, or any iterable of texts.
            prompt_name: Name of the prompt to put before every text.
            prompt: The prompt itself; wins over the name.
            batch_size: The most texts of one pass; None lets the number of tokens decide.
            normalize: Whether vectors have length 1; None means as the repository says.
            truncate_dim: Keep this many dimensions; None means as the repository says.
            precision: ``"float32"``, ``"int8"``, ``"uint8"``, ``"binary"`` or ``"ubinary"``.
            truncation: Texts that are too long are cut and counted in a log message (``"warn"``), cut (``"silent"``),
                or refused (``"error"``).
            output: ``"sentence"`` for one vector per text, ``"token"`` for a matrix of token vectors per text.
            show_progress_bar: Whether to show a bar; None means if the logger shows INFO.
            adapter: Name of an adapter of ``AdapterRegistry(embedder)``; None is the active one, False none.

        Returns:
            A text gives an array ``[dimension]``; several give ``[texts, dimension]``, none ``[0, dimension]``. With
            ``output="token"`` one array ``[tokens, hidden]`` for each text.

        Raises:
            TypeError: Something is not a text.
            ContextLengthError: A text is too long, with ``truncation="error"``.
            InvalidArgumentError: A keyword is out of range.
        """
    def encode_document(self, /, texts: Any, *, prompt_name: str | None = None, prompt: str | None = None, batch_size: SupportsIndex | None = None, normalize: bool | None = None, truncate_dim: SupportsIndex | None = None, precision: str = "float32", truncation: str = "warn", output: str = "sentence", show_progress_bar: bool | None = None, adapter: Any | None = None) -> Any:
        """
        As ``encode``, with the prompt for documents, if there is one.

        Args:
            texts: A text, or any iterable of texts.
            prompt_name: As for ``encode``, like all keywords that follow.
            prompt: As for ``encode``.
            batch_size: As for ``encode``.
            normalize: As for ``encode``.
            truncate_dim: As for ``encode``.
            precision: As for ``encode``.
            truncation: As for ``encode``.
            output: As for ``encode``.
            show_progress_bar: As for ``encode``.
            adapter: As for ``encode``.

        Returns:
            As ``encode``.
        """
    def encode_query(self, /, texts: Any, *, prompt_name: str | None = None, prompt: str | None = None, batch_size: SupportsIndex | None = None, normalize: bool | None = None, truncate_dim: SupportsIndex | None = None, precision: str = "float32", truncation: str = "warn", output: str = "sentence", show_progress_bar: bool | None = None, adapter: Any | None = None) -> Any:
        """
        As ``encode``, with the prompt for queries, if there is one.

        Args:
            texts: A text, or any iterable of texts.
            prompt_name: As for ``encode``, like all keywords that follow.
            prompt: As for ``encode``.
            batch_size: As for ``encode``.
            normalize: As for ``encode``.
            truncate_dim: As for ``encode``.
            precision: As for ``encode``.
            truncation: As for ``encode``.
            output: As for ``encode``.
            show_progress_bar: As for ``encode``.
            adapter: As for ``encode``.

        Returns:
            As ``encode``.
        """
    @staticmethod
    def from_pretrained(source: str | PathLike[str], *, device: str = "auto", dtype: str = "auto", pooling: str | Iterable[str] | None = None, normalize: bool | None = None, max_length: SupportsIndex | None = None, prompts: dict | None = None, default_prompt_name: str | None = None, truncate_dim: SupportsIndex | None = None, revision: str | None = None, cache_dir: str | PathLike[str] | None = None, token: str | None = None, local_files_only: bool = False, memory_limit_bytes: SupportsIndex | None = None, show_progress_bar: bool | None = None) -> Embedder:
        """
        Loads an embedding model.

        Args:
            source: A directory or hub id in the layout of sentence-transformers or transformers, such as
                ``"sentence-transformers/all-MiniLM-L6-v2"``, or ``"candlewick/tiny"``, which is bundled.
            device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.
            dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            pooling: ``"cls"``, ``"mean"``, ``"max"``, ``"mean_sqrt_len_tokens"``, ``"weightedmean"``, ``"lasttoken"``, or
                a list of them, in place of the repository's.
            normalize: Whether vectors have length 1; None means as the repository says.
            max_length: The longest text in tokens; None means as the repository says.
            prompts: Prompts by name, in place of the repository's of the same names.
            default_prompt_name: The prompt that ``encode`` uses where none is named.
            truncate_dim: Keep this many dimensions; None means as the repository says.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where downloads are kept, instead of the hub's standard cache.
            token: Access token for the hub, instead of ``HF_TOKEN`` or the stored one.
            local_files_only: Never touch the network.
            memory_limit_bytes: Refuse weights that need more than this.
            show_progress_bar: Whether to show downloads; None means if the logger shows INFO.

        Returns:
            The embedder.

        Raises:
            ModelNotFoundError: Neither disk nor hub has it.
            UnsupportedModelError: Its architecture is not among those that candlewick has.
            ConfigError: A configuration field or a module cannot be honoured.
            CheckpointError: Tensors are missing, malformed or of the wrong shape.
            InvalidArgumentError: A keyword is out of range.
        """
    @property
    def max_length(self, /) -> int:
        """
        The longest text in tokens.
        """
    @property
    def num_parameters(self, /) -> int:
        """
        Number of parameters in use.
        """
    @property
    def prompts(self, /) -> dict:
        """
        Prompts by name.
        """
    def similarity(self, /, a: Any, b: Any) -> Any:
        """
        How alike vectors are, by the measure that the model was trained for.

        Args:
            a: One vector ``[dimension]`` or several ``[n, dimension]``.
            b: One vector or several, ``[m, dimension]``.

        Returns:
            A float32 array ``[n, m]``; larger is more alike.
        """
    @property
    def similarity_fn_name(self, /) -> str:
        """
        The measure of ``similarity``: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``.
        """
    @property
    def size_in_bytes(self, /) -> int:
        """
        Bytes that the weights take in memory.
        """
    @property
    def source(self, /) -> str:
        """
        What the embedder was loaded from.
        """
    @property
    def tokenizer(self, /) -> Tokenizer:
        """
        The tokenizer.
        """

@final
class Generation:
    """
    A finished generation.

    Attributes:
        text: The text, without a stop token or stop string.
        token_ids: The generated ids, with the stop token.
        finish_reason: ``"stop"``, ``"length"`` or ``"cancelled"``.
        stop_reason: The token id or the stop string that ended it, or None.
        prompt_tokens: Tokens of the prompt.
        generated_tokens: Tokens generated.
        cached_tokens: Tokens of the prompt whose keys and values were already there.
        prompt_tokens_per_second: Speed of computing the rest of the prompt.
        tokens_per_second: Speed of generating, after the first token.
        time_to_first_token_s: Seconds from the request to its first token.
        logprobs: For each token ``(logprob, [(token_id, logprob), ...])`` where asked for, else None.
        adapter: Name of the adapter it used, or None.
    """
    def __getnewargs__(self, /) -> tuple: ...
    def __new__(cls, /, text: str, token_ids: SupportsGetItem[int, SupportsIndex], finish_reason: str, stop_reason: SupportsIndex | str | None, prompt_tokens: SupportsIndex, cached_tokens: SupportsIndex, speeds: tuple[SupportsFloat | SupportsIndex, SupportsFloat | SupportsIndex, SupportsFloat | SupportsIndex], logprobs: SupportsGetItem[int, tuple[SupportsFloat | SupportsIndex, SupportsGetItem[int, tuple[SupportsIndex, SupportsFloat | SupportsIndex]]]] | None, adapter: str | None) -> Generation: ...
    def __repr__(self, /) -> str: ...
    def __str__(self, /) -> str: ...
    @property
    def adapter(self, /) -> str | None:
        """
        Name of the adapter.
        """
    @property
    def cached_tokens(self, /) -> int:
        """
        Tokens of the prompt that were reused.
        """
    @property
    def finish_reason(self, /) -> str:
        """
        Why it ended.
        """
    @property
    def generated_tokens(self, /) -> int:
        """
        Tokens generated.
        """
    @property
    def logprobs(self, /) -> list[tuple[float, list[tuple[int, float]]]] | None:
        """
        Log-probabilities where asked for.
        """
    @property
    def prompt_tokens(self, /) -> int:
        """
        Tokens of the prompt.
        """
    @property
    def prompt_tokens_per_second(self, /) -> float:
        """
        Speed of computing the prompt.
        """
    @property
    def stop_reason(self, /) -> int | str | None:
        """
        What ended it.
        """
    @property
    def text(self, /) -> str:
        """
        The text.
        """
    @property
    def time_to_first_token_s(self, /) -> float:
        """
        Seconds to the first token.
        """
    @property
    def token_ids(self, /) -> list[int]:
        """
        The generated ids.
        """
    @property
    def tokens_per_second(self, /) -> float:
        """
        Speed of generating.
        """

@final
class Generator:
    """
    Generates text with a model.

    Every keyword can be given here and again with each call, where it wins. None means the model's
    ``generation_config.json``, else greedy decoding. Penalties, bias, temperature, top_k, top_p and min_p apply in
    this order, as in transformers.

    Args:
        model: The model.
        max_new_tokens: The most tokens to generate.
        temperature: Divides the logits; 0 is greedy.
        top_k: Sample from this many most probable tokens; 0 is off.
        top_p: Sample from the smallest set of tokens that has this probability; 1 is off.
        min_p: Sample from tokens at least this probable relative to the best; 0 is off.
        repetition_penalty: Above 1 discourages tokens of prompt and output, once each.
        presence_penalty: Subtracted from the logits of tokens of the output.
        frequency_penalty: Subtracted from them once for each occurrence.
        logit_bias: Added to the logits, by token id.
        seed: Makes sampling repeatable, whatever else runs at the same time.
        stop: A string, or several, that end the text before them.
        stop_token_ids: Further ids that end the text.
        ignore_eos: Whether to go on after an end-of-sequence token.
        logprobs: How many of the most probable tokens to report with each one.
        adapter: Name of a registered adapter; None is the active one, False the bare model.

    Examples:
        >>> import candlewick as cw
        >>> generator = cw.Generator(cw.Model.from_pretrained("candlewick/tiny"), max_new_tokens=6)
        >>> generator.generate("Once upon a time").generated_tokens
        6
    """
    def __new__(cls, /, model: Model, *, max_new_tokens: "SupportsIndex | None" = 256, temperature: SupportsFloat | SupportsIndex | None = None, top_k: SupportsIndex | None = None, top_p: SupportsFloat | SupportsIndex | None = None, min_p: SupportsFloat | SupportsIndex | None = None, repetition_penalty: SupportsFloat | SupportsIndex | None = None, presence_penalty: SupportsFloat | SupportsIndex | None = 0.0, frequency_penalty: SupportsFloat | SupportsIndex | None = 0.0, logit_bias: dict[SupportsIndex, SupportsFloat | SupportsIndex] | None = None, seed: SupportsIndex | None = None, stop: str | Iterable[str] | None = None, stop_token_ids: SupportsGetItem[int, SupportsIndex] | None = None, ignore_eos: bool | None = False, logprobs: "SupportsIndex | None" = 0, adapter: Any | None = None) -> Generator: ...
    def __repr__(self, /) -> str: ...
    def agenerate(self, /, prompt: Any, *, max_new_tokens: SupportsIndex | None = None, temperature: SupportsFloat | SupportsIndex | None = None, top_k: SupportsIndex | None = None, top_p: SupportsFloat | SupportsIndex | None = None, min_p: SupportsFloat | SupportsIndex | None = None, repetition_penalty: SupportsFloat | SupportsIndex | None = None, presence_penalty: SupportsFloat | SupportsIndex | None = None, frequency_penalty: SupportsFloat | SupportsIndex | None = None, logit_bias: dict[SupportsIndex, SupportsFloat | SupportsIndex] | None = None, seed: SupportsIndex | None = None, stop: str | Iterable[str] | None = None, stop_token_ids: SupportsGetItem[int, SupportsIndex] | None = None, ignore_eos: bool | None = None, logprobs: SupportsIndex | None = None, adapter: Any | None = None) -> Any:
        """
        As ``generate``, for ``await``; the event loop is never blocked.

        Args:
            prompt: As for ``generate``.
            max_new_tokens: As for the class, like all keywords that follow.
            temperature: As for the class.
            top_k: As for the class.
            top_p: As for the class.
            min_p: As for the class.
            repetition_penalty: As for the class.
            presence_penalty: As for the class.
            frequency_penalty: As for the class.
            logit_bias: As for the class.
            seed: As for the class.
            stop: As for the class.
            stop_token_ids: As for the class.
            ignore_eos: As for the class.
            logprobs: As for the class.
            adapter: As for ``generate``.

        Returns:
            A coroutine that gives a ``Generation``, or a list of them. Cancelling it cancels the generation.
        """
    def generate(self, /, prompt: Any, *, max_new_tokens: SupportsIndex | None = None, temperature: SupportsFloat | SupportsIndex | None = None, top_k: SupportsIndex | None = None, top_p: SupportsFloat | SupportsIndex | None = None, min_p: SupportsFloat | SupportsIndex | None = None, repetition_penalty: SupportsFloat | SupportsIndex | None = None, presence_penalty: SupportsFloat | SupportsIndex | None = None, frequency_penalty: SupportsFloat | SupportsIndex | None = None, logit_bias: dict[SupportsIndex, SupportsFloat | SupportsIndex] | None = None, seed: SupportsIndex | None = None, stop: str | Iterable[str] | None = None, stop_token_ids: SupportsGetItem[int, SupportsIndex] | None = None, ignore_eos: bool | None = None, logprobs: SupportsIndex | None = None, adapter: Any | None = None) -> Any:
        """
        Generates to the end.

        Args:
            prompt: A text, a list of token ids, or a list of messages ``{"role": ..., "content": ...}``; or a list of
                such prompts, which are computed together.
            max_new_tokens: As for the class, like all keywords that follow.
            temperature: As for the class.
            top_k: As for the class.
            top_p: As for the class.
            min_p: As for the class.
            repetition_penalty: As for the class.
            presence_penalty: As for the class.
            frequency_penalty: As for the class.
            logit_bias: As for the class.
            seed: As for the class.
            stop: As for the class.
            stop_token_ids: As for the class.
            ignore_eos: As for the class.
            logprobs: As for the class.
            adapter: As for the class; a list of prompts may come with a list of names.

        Returns:
            A ``Generation``, or a list of them in the order of the prompts.

        Raises:
            InvalidArgumentError: A keyword or the prompt is out of range.
            ContextLengthError: The prompt leaves no room for a token.
            OutOfMemoryError: The request would exceed the model's ``memory_limit_bytes``.
        """
    @property
    def model(self, /) -> Model:
        """
        The model.
        """
    def stream(self, /, prompt: Any, *, max_new_tokens: SupportsIndex | None = None, temperature: SupportsFloat | SupportsIndex | None = None, top_k: SupportsIndex | None = None, top_p: SupportsFloat | SupportsIndex | None = None, min_p: SupportsFloat | SupportsIndex | None = None, repetition_penalty: SupportsFloat | SupportsIndex | None = None, presence_penalty: SupportsFloat | SupportsIndex | None = None, frequency_penalty: SupportsFloat | SupportsIndex | None = None, logit_bias: dict[SupportsIndex, SupportsFloat | SupportsIndex] | None = None, seed: SupportsIndex | None = None, stop: str | Iterable[str] | None = None, stop_token_ids: SupportsGetItem[int, SupportsIndex] | None = None, ignore_eos: bool | None = None, logprobs: SupportsIndex | None = None, adapter: Any | None = None) -> TokenStream:
        """
        Generates token by token.

        Args:
            prompt: A text, a list of token ids, or a list of messages.
            max_new_tokens: As for the class, like all keywords that follow.
            temperature: As for the class.
            top_k: As for the class.
            top_p: As for the class.
            min_p: As for the class.
            repetition_penalty: As for the class.
            presence_penalty: As for the class.
            frequency_penalty: As for the class.
            logit_bias: As for the class.
            seed: As for the class.
            stop: As for the class.
            stop_token_ids: As for the class.
            ignore_eos: As for the class.
            logprobs: As for the class.
            adapter: As for the class.

        Returns:
            A ``TokenStream``, for ``for`` as well as ``async for``.

        Raises:
            InvalidArgumentError: A keyword or the prompt is out of range.
            ContextLengthError: The prompt leaves no room for a token.
        """

@final
class LoraConfig:
    """
    What is adapted, and how: LoRA, rsLoRA or DoRA, in the words of PEFT's ``LoraConfig``.

    Args:
        rank: Columns of the low-rank factors (PEFT's ``r``).
        alpha: The change is scaled by ``alpha / rank`` (PEFT's ``lora_alpha``).
        dropout: Probability that an input of the adapter is zeroed while training, at least 0 and below 1.
        target_modules: Names of modules (whole paths or their ends), a regular expression that whole paths match, or
            ``"all-linear"`` for every linear layer but the head.
        exclude_modules: Names or a regular expression of modules that are left alone all the same.
        use_rslora: Scale by ``alpha / sqrt(rank)`` instead (Kalajdzievski 2023).
        use_dora: Learn the length of each output's weights separately (Liu et al. 2024).
        rank_pattern: Other ranks, by regular expressions for the ends of paths.
        alpha_pattern: Other alphas, likewise.
        layers_to_transform: The number of the only layer to adapt, or a list of them.
        layers_pattern: The name before a layer's number in module paths, or a list of such names.
        modules_to_save: Names of modules that are trained and saved whole, such as ``"lm_head"``.
        bias: Which biases of the model are trained too: ``"none"``, ``"lora_only"`` or ``"all"``.
        lora_bias: Whether the second factor has a bias of its own.
        init_lora_weights: True for PEFT's start (uniform and zero), or ``"gaussian"``.

    Raises:
        InvalidArgumentError: A value is out of range.

    Examples:
        >>> import candlewick as cw
        >>> cw.LoraConfig(rank=16, alpha=32, target_modules="all-linear")
        LoraConfig(rank=16, alpha=32.0, target_modules='all-linear')
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs_ex__(self, /) -> tuple: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, rank: "SupportsIndex" = 8, *, alpha: SupportsFloat | SupportsIndex = 16.0, dropout: SupportsFloat | SupportsIndex = 0.0, target_modules: str | Iterable[str] | None = ..., exclude_modules: str | Iterable[str] | None = None, use_rslora: bool = False, use_dora: bool = False, rank_pattern: dict | None = None, alpha_pattern: dict | None = None, layers_to_transform: SupportsIndex | SupportsGetItem[int, SupportsIndex] | None = None, layers_pattern: str | Iterable[str] | None = None, modules_to_save: str | Iterable[str] | None = None, bias: str = "none", lora_bias: bool = False, init_lora_weights: bool | str = ...) -> LoraConfig: ...
    def __repr__(self, /) -> str: ...
    @property
    def alpha(self, /) -> float:
        """
        The change is scaled by ``alpha / rank``.
        """
    @property
    def alpha_pattern(self, /) -> dict:
        """
        Other alphas, likewise.
        """
    @property
    def bias(self, /) -> str:
        """
        Which biases of the model are trained too.
        """
    @property
    def dropout(self, /) -> float:
        """
        Probability that an input of the adapter is zeroed while training.
        """
    @property
    def exclude_modules(self, /) -> str | list[str] | None:
        """
        What is left alone all the same.
        """
    @staticmethod
    def from_peft(config: Any) -> LoraConfig:
        """
        Reads a configuration of PEFT.

        Args:
            config: A ``peft.LoraConfig``, or the dictionary of an ``adapter_config.json``.

        Returns:
            The same in candlewick's words.

        Raises:
            AdapterError: It asks for something that cannot be honoured.
        """
    @property
    def init_lora_weights(self, /) -> Any:
        """
        How the factors start: True, or ``"gaussian"``.
        """
    @property
    def layers_pattern(self, /) -> list[str]:
        """
        The names before a layer's number in module paths.
        """
    @property
    def layers_to_transform(self, /) -> list[int] | None:
        """
        The numbers of the only layers to adapt, or None for all.
        """
    @property
    def lora_bias(self, /) -> bool:
        """
        Whether the second factor has a bias of its own.
        """
    @property
    def modules_to_save(self, /) -> list[str]:
        """
        Modules that are trained and saved whole.
        """
    @property
    def rank(self, /) -> int:
        """
        Columns of the low-rank factors.
        """
    @property
    def rank_pattern(self, /) -> dict:
        """
        Other ranks, by regular expressions for the ends of paths.
        """
    @property
    def target_modules(self, /) -> str | list[str]:
        """
        What is adapted.
        """
    def to_peft(self, /) -> Any:
        """
        The dictionary that PEFT keeps as ``adapter_config.json``.
        """
    @property
    def use_dora(self, /) -> bool:
        """
        Whether the length of each output's weights is learnt separately.
        """
    @property
    def use_rslora(self, /) -> bool:
        """
        Whether the scale is ``alpha / sqrt(rank)``.
        """

@final
class Model:
    """
    A language model with its tokenizer and configuration.

    Models are immutable: any number of threads, tasks and generators may share one.

    Examples:
        >>> import candlewick as cw
        >>> model = cw.Model.from_pretrained("candlewick/tiny")
        >>> model.architecture
        'qwen2'
        >>> model.logits([1, 2, 3]).shape == (3, model.vocab_size)
        True
    """
    def __enter__(self, /) -> Model: ...
    def __exit__(self, /, *_exc) -> None: ...
    def __reduce__(self, /) -> Any: ...
    def __repr__(self, /) -> str: ...
    def _repr_html_(self, /) -> str: ...
    @property
    def architecture(self, /) -> str:
        """
        The ``model_type`` of the configuration.
        """
    def close(self, /) -> None:
        """
        Gives the memory back once no generation uses the model any more. Closing twice does nothing.
        """
    @property
    def config(self, /) -> dict:
        """
        ``config.json`` as read.
        """
    @property
    def context_length(self, /) -> int:
        """
        The longest sequence in tokens.
        """
    @property
    def device(self, /) -> str:
        """
        The device of the weights, such as ``"cpu"``.
        """
    @property
    def dtype(self, /) -> str:
        """
        What most weights are stored as: a dtype such as ``"bfloat16"``, or a format such as ``"q4_0"``.
        """
    @staticmethod
    def from_pretrained(source: str | PathLike[str], *, device: str = "auto", dtype: str = "auto", quantize: str | None = None, importance: str | PathLike[str] | None = None, revision: str | None = None, cache_dir: str | PathLike[str] | None = None, token: str | None = None, local_files_only: bool = False, memory_limit_bytes: SupportsIndex | None = None, show_progress_bar: bool | None = None) -> Model:
        """
        Loads a model.

        Args:
            source: A directory in Hugging Face layout, a hub id such as ``"Qwen/Qwen2.5-0.5B-Instruct"``, a ``.gguf``
                file, ``"org/name:file.gguf"``, or ``"candlewick/tiny"``, which is bundled and works offline.
            device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.
            dtype: ``"auto"`` (the checkpoint's; quantised weights stay quantised), ``"float32"``, ``"bfloat16"`` or
                ``"float16"``.
            quantize: None, or the name of a weight format to convert to while loading, such as ``"q8_0"``, ``"q4_0"`` or
                ``"q4_k_m"``.
            importance: An importance matrix made by llama.cpp's ``llama-imatrix`` (either file format), to quantise by.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where downloads are kept, instead of the hub's standard cache.
            token: Access token for the hub, instead of ``HF_TOKEN`` or the stored one.
            local_files_only: Never touch the network.
            memory_limit_bytes: Refuse work that would need more than this for weights and caches.
            show_progress_bar: Whether to show downloads; None means if the logger shows INFO.

        Returns:
            The model.

        Raises:
            ModelNotFoundError: Neither disk nor hub has it.
            UnsupportedModelError: Its architecture is not among those that candlewick has.
            ConfigError: A configuration field cannot be honoured.
            CheckpointError: Tensors are missing, malformed or of the wrong shape.
            DeviceError: The device is not there.
            OutOfMemoryError: The weights alone exceed ``memory_limit_bytes``.
        """
    @property
    def generation_defaults(self, /) -> dict:
        """
        ``generation_config.json`` as read, or an empty dict.
        """
    def hidden_states(self, /, input_ids: Any, *, adapter: Any | None = None) -> Any:
        """
        Hidden states of every position after the last norm.

        Args:
            input_ids: One list of token ids, or a list of such lists of any lengths.
            adapter: Name of a registered adapter; None is the active one, False the bare model.

        Returns:
            A float32 array ``[seq, hidden]``, or a list of such arrays.

        Raises:
            InvalidArgumentError: A list is empty, or an id is not in the vocabulary.
            ContextLengthError: A list is longer than ``context_length``.
        """
    def logits(self, /, input_ids: Any, *, adapter: Any | None = None) -> Any:
        """
        Logits of every position.

        Args:
            input_ids: One list of token ids, or a list of such lists of any lengths.
            adapter: Name of a registered adapter; None is the active one, False the bare model.

        Returns:
            A float32 array ``[seq, vocab]``, or a list of such arrays.

        Raises:
            InvalidArgumentError: A list is empty, or an id is not in the vocabulary.
            ContextLengthError: A list is longer than ``context_length``.
        """
    def merge(self, /, adapter: Any) -> Model:
        """
        A model whose weights compute what this one computes with an adapter.

        Args:
            adapter: The name of a registered adapter, a directory of PEFT or mlx-lm, or an ``Adapter``.

        Returns:
            A new model; weights that the adapter does not touch are shared.

        Raises:
            AdapterError: The adapter cannot be applied as its files say.
        """
    @property
    def num_parameters(self, /) -> int:
        """
        Number of parameters; tied ones count once.
        """
    def quantize(self, /, format: str, *, importance: str | PathLike[str] | None = None) -> Model:
        """
        The same model with its weights in a quantised format.

        As llama.cpp does, the head keeps at least six bits, and matrices whose rows are no multiple of 256 take a format
        of shorter blocks instead of a K format.

        Args:
            format: ``"q8_0"``, ``"q4_0"``, ``"q4_k"``, ``"q6_k"``, … or a mixture such as ``"q4_k_m"``.
            importance: An importance matrix made by llama.cpp's ``llama-imatrix`` (either file format): values that meet
                large activations are then kept better.

        Returns:
            A new model; this one stays as it is.

        Raises:
            InvalidArgumentError: There is no such format; the message lists all. Or the importance matrix is of a model with
                other widths.
            CheckpointError: Weights are not finite, or the importance matrix cannot be read.

        Examples:
            >>> import candlewick as cw
            >>> model = cw.Model.from_pretrained("candlewick/tiny")
            >>> model.quantize("q8_0").dtype
            'q8_0'
        """
    def save_gguf(self, /, path: str | PathLike[str]) -> None:
        """
        Writes the model and its tokenizer to one GGUF file, which candlewick and llama.cpp read.

        Weights keep the format they are held in.

        Args:
            path: The file; an old one is replaced once the new one is complete.

        Raises:
            InvalidArgumentError: The model or its tokenizer has something that GGUF cannot express.

        Examples:
            >>> import pathlib, tempfile
            >>> import candlewick as cw
            >>> model = cw.Model.from_pretrained("candlewick/tiny", quantize="q4_0")
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     path = pathlib.Path(directory) / "tiny.gguf"
            ...     model.save_gguf(path)
            ...     cw.Model.from_pretrained(path).dtype
            'q4_0'
        """
    def save_pretrained(self, /, directory: str | PathLike[str]) -> None:
        """
        Writes the model as a directory in Hugging Face layout, which `from_pretrained` and transformers read.

        Quantised weights are written as the plain values they stand for.

        Args:
            directory: Created where it is missing.

        Examples:
            >>> import tempfile
            >>> import candlewick as cw
            >>> model = cw.Model.from_pretrained("candlewick/tiny")
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model.save_pretrained(directory)
            ...     cw.Model.from_pretrained(directory).num_parameters == model.num_parameters
            True
        """
    @property
    def size_in_bytes(self, /) -> int:
        """
        Bytes that the weights take in memory.
        """
    @property
    def source(self, /) -> str:
        """
        What the model was loaded from.
        """
    @property
    def tokenizer(self, /) -> Tokenizer:
        """
        The tokenizer.

        Raises:
            ModelNotFoundError: The checkpoint came without one.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        Number of different tokens the model can give.
        """

@final
class Reranker:
    """
    Scores how well documents answer a query, with cross-encoders that read both texts at once.

    Rerankers are immutable: any number of threads and tasks may share one.
    """
    def __enter__(self, /) -> Reranker: ...
    def __exit__(self, /, *_exc) -> None: ...
    def __reduce__(self, /) -> Any: ...
    def __repr__(self, /) -> str: ...
    def _repr_html_(self, /) -> str: ...
    @property
    def architecture(self, /) -> str:
        """
        The ``model_type`` of the configuration.
        """
    def close(self, /) -> None:
        """
        Gives the memory back once no call uses the reranker any more. Closing twice does nothing.
        """
    @property
    def default_prompt_name(self, /) -> str | None:
        """
        The name of the prompt that is used where none is named.
        """
    @property
    def device(self, /) -> str:
        """
        The device of the weights, such as ``"cpu"``.
        """
    @property
    def dtype(self, /) -> str:
        """
        The dtype of the weights, such as ``"float32"``.
        """
    @staticmethod
    def from_pretrained(source: str | PathLike[str], *, device: str = "auto", dtype: str = "auto", max_length: SupportsIndex | None = None, revision: str | None = None, cache_dir: str | PathLike[str] | None = None, token: str | None = None, local_files_only: bool = False, memory_limit_bytes: SupportsIndex | None = None, show_progress_bar: bool | None = None) -> Reranker:
        """
        Loads a cross-encoder.

        Args:
            source: A directory or hub id of a sequence-classification model, such as
                ``"cross-encoder/ms-marco-MiniLM-L6-v2"``.
            device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.
            dtype: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            max_length: The longest pair in tokens; None means the tokenizer's limit.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where downloads are kept, instead of the hub's standard cache.
            token: Access token for the hub, instead of ``HF_TOKEN`` or the stored one.
            local_files_only: Never touch the network.
            memory_limit_bytes: Refuse weights that need more than this.
            show_progress_bar: Whether to show downloads; None means if the logger shows INFO.

        Returns:
            The reranker.

        Raises:
            ModelNotFoundError: Neither disk nor hub has it.
            UnsupportedModelError: Candlewick has no classification head for its architecture.
            CheckpointError: Tensors are missing, such as those of the head, malformed or of the wrong shape.
        """
    @property
    def max_length(self, /) -> int:
        """
        The longest pair in tokens.
        """
    @property
    def num_labels(self, /) -> int:
        """
        Number of labels.
        """
    def predict(self, /, pairs: Any, *, prompt_name: str | None = None, prompt: str | None = None, activation: str | None = None, apply_softmax: bool = False, batch_size: SupportsIndex | None = None, truncation: str = "warn", show_progress_bar: bool | None = None) -> Any:
        """
        Scores pairs of texts.

        Args:
            pairs: A pair of texts, or any iterable of pairs.
            prompt_name: Name of the prompt to put before the first text of every pair.
            prompt: The prompt itself; wins over the name.
            activation: A class of torch such as ``"sigmoid"``, ``"identity"``, ``"tanh"`` or ``"softmax"``; None means as
                the repository says, else a sigmoid for one label.
            apply_softmax: Whether the scores of several labels become probabilities.
            batch_size: The most pairs of one pass; None lets the number of tokens decide.
            truncation: Pairs that are too long are cut and counted in a log message (``"warn"``), cut (``"silent"``), or
                refused (``"error"``).
            show_progress_bar: Whether to show a bar; None means if the logger shows INFO.

        Returns:
            A float32 array ``[pairs]``, or ``[pairs, labels]`` for a model of several labels; without the first dimension
            for a single pair.

        Raises:
            TypeError: Something is not a pair of texts.
            ContextLengthError: A pair is too long, with ``truncation="error"``.
        """
    @property
    def prompts(self, /) -> dict:
        """
        Prompts by name.
        """
    def rank(self, /, query: str, documents: Any, *, top_k: SupportsIndex | None = None, return_documents: bool = False, prompt_name: str | None = None, prompt: str | None = None, activation: str | None = None, batch_size: SupportsIndex | None = None, truncation: str = "warn", show_progress_bar: bool | None = None) -> list:
        """
        Orders documents by how well they answer a query.

        Args:
            query: The query.
            documents: The documents.
            top_k: How many to return; None means all.
            return_documents: Whether to return the texts too.
            prompt_name: As for ``predict``, like all keywords that follow.
            prompt: As for ``predict``.
            activation: As for ``predict``.
            batch_size: As for ``predict``.
            truncation: As for ``predict``.
            show_progress_bar: As for ``predict``.

        Returns:
            Dicts with ``"corpus_id"`` (the place among the documents), ``"score"`` and perhaps ``"text"``, best first.

        Raises:
            InvalidArgumentError: The model has several labels.
        """
    @property
    def source(self, /) -> str:
        """
        What the reranker was loaded from.
        """
    @property
    def tokenizer(self, /) -> Tokenizer:
        """
        The tokenizer.
        """

@final
class StepMetrics:
    """
    What one optimizer step did.

    Attributes:
        step: The step, counted from 1.
        loss: Mean loss in nats over all predicted tokens of the step, before the update.
        learning_rate: The learning rate that was used.
        grad_norm: Norm of all gradients together, before it was cut.
        tokens: Tokens that were predicted, which are those that the loss is about.
        tokens_per_second: Tokens that were processed in a second, predicted or not.
        seconds: How long the step took, without evaluation and saving.
        epoch: How often the data has been gone through, such as 1.5.
        eval_loss: Mean loss over the evaluation data where it was computed after this step, else None.

    Examples:
        >>> import candlewick as cw
        >>> model = cw.Model.from_pretrained("candlewick/tiny")
        >>> metrics = next(cw.Trainer(model, [{"text": "The sun set."}]))
        >>> metrics.step, metrics.eval_loss
        (1, None)
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs__(self, /) -> tuple: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, step: SupportsIndex, loss: SupportsFloat | SupportsIndex, learning_rate: SupportsFloat | SupportsIndex, grad_norm: SupportsFloat | SupportsIndex, tokens: SupportsIndex, tokens_per_second: SupportsFloat | SupportsIndex, seconds: SupportsFloat | SupportsIndex, epoch: SupportsFloat | SupportsIndex, eval_loss: SupportsFloat | SupportsIndex | None = None) -> StepMetrics: ...
    def __repr__(self, /) -> str: ...
    @property
    def epoch(self, /) -> float:
        """
        How often the data has been gone through.
        """
    @property
    def eval_loss(self, /) -> float | None:
        """
        Mean loss over the evaluation data.
        """
    @property
    def grad_norm(self, /) -> float:
        """
        Norm of all gradients before it was cut.
        """
    @property
    def learning_rate(self, /) -> float:
        """
        The learning rate that was used.
        """
    @property
    def loss(self, /) -> float:
        """
        Mean loss over the predicted tokens.
        """
    @property
    def seconds(self, /) -> float:
        """
        How long the step took.
        """
    @property
    def step(self, /) -> int:
        """
        The step, counted from 1.
        """
    def to_dict(self, /) -> dict:
        """
        All fields by name, for loggers and tables.
        """
    @property
    def tokens(self, /) -> int:
        """
        Tokens that were predicted.
        """
    @property
    def tokens_per_second(self, /) -> float:
        """
        Tokens processed in a second.
        """

@final
class StreamToken:
    """
    One generated token.

    Attributes:
        token_id: The token's id.
        text: Text that became final with it; may be empty, and may hold text of earlier tokens.
        index: Counts from 0.
        logit: The logit as the model gave it.
        probability: Probability in the distribution sampled from.
        logprob: Natural logarithm of the probability.
        top_logprobs: The most probable tokens as ``(token_id, logprob)``, best first, where asked for.
        is_eos: Whether it is one of the model's end-of-sequence tokens.
        finish_reason: ``"stop"`` or ``"length"`` on the last token, else None.
    """
    def __repr__(self, /) -> str: ...
    def __str__(self, /) -> str: ...
    @property
    def finish_reason(self, /) -> str | None:
        """
        Set on the last token.
        """
    @property
    def index(self, /) -> int:
        """
        Counts from 0.
        """
    @property
    def is_eos(self, /) -> bool:
        """
        Whether it is an end-of-sequence token.
        """
    @property
    def logit(self, /) -> float:
        """
        The logit as the model gave it.
        """
    @property
    def logprob(self, /) -> float:
        """
        Natural logarithm of the probability.
        """
    @property
    def probability(self, /) -> float:
        """
        Probability in the distribution sampled from.
        """
    @property
    def text(self, /) -> str:
        """
        Text that became final with it.
        """
    @property
    def token_id(self, /) -> int:
        """
        The token's id.
        """
    @property
    def top_logprobs(self, /) -> list[tuple[int, float]]:
        """
        The most probable tokens, best first.
        """

@final
class TokenStream:
    """
    The tokens of one generation, as they come: an iterator and an async iterator.

    Leaving early (``close()``, ``aclose()``, the end of a ``with`` block, or dropping it) cancels the generation
    within one token. ``"".join(token.text for token in stream)`` is the whole text.

    Examples:
        >>> import candlewick as cw
        >>> generator = cw.Generator(cw.Model.from_pretrained("candlewick/tiny"), max_new_tokens=5)
        >>> stream = generator.stream("Once upon a time")
        >>> text = "".join(token.text for token in stream)
        >>> text == stream.result.text
        True
    """
    def __aenter__(self, /) -> Any: ...
    def __aexit__(self, /, *_exc) -> Any: ...
    def __aiter__(self, /) -> TokenStream: ...
    def __anext__(self, /) -> Any: ...
    def __enter__(self, /) -> TokenStream: ...
    def __exit__(self, /, *_exc) -> None: ...
    def __iter__(self, /) -> TokenStream: ...
    def __next__(self, /) -> StreamToken: ...
    def __repr__(self, /) -> str: ...
    def _advance(self, /, future: Any) -> None:
        """
        Called by the event loop when a token may have come.
        """
    def aclose(self, /) -> Any:
        """
        As ``close()``, for ``async with`` and ``contextlib.aclosing``.
        """
    def close(self, /) -> None:
        """
        Ends the generation within one token. Closing twice does nothing.
        """
    @property
    def result(self, /) -> Generation:
        """
        The whole result, once the stream has ended or was closed. If it was closed early, it is what was read until
        then, and its ``finish_reason`` is ``"cancelled"``.

        Raises:
            RuntimeError: The stream has not ended yet.
        """

@final
class Tokenizer:
    """
    Text to token ids and back, with the model's chat template.

    Examples:
        >>> import candlewick as cw
        >>> tokenizer = cw.Model.from_pretrained("candlewick/tiny").tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    def apply_chat_template(self, /, messages: Any, *, add_generation_prompt: bool = True, tools: Any | None = None, tokenize: bool = False, **template_kwargs) -> Any:
        """
        Renders a conversation as the model was trained to read it.

        Args:
            messages: A list of ``{"role": ..., "content": ...}``.
            add_generation_prompt: Whether to end with the beginning of an assistant turn.
            tools: JSON schemas of functions that the model may call.
            tokenize: Whether to return token ids instead of text.
            **template_kwargs: Further variables of the template, such as ``enable_thinking``.

        Returns:
            The text, or its token ids.

        Raises:
            InvalidArgumentError: There is no template, or it refuses the messages.
        """
    @property
    def bos_token_id(self, /) -> int | None:
        """
        The id of the token that begins a text, or None.
        """
    @property
    def chat_template(self, /) -> str | None:
        """
        The source of the chat template, or None.
        """
    def decode(self, /, ids: Any, *, skip_special_tokens: bool = True) -> str:
        """
        The text of token ids.

        Args:
            ids: Token ids. Those without a token, as models with a padded vocabulary can produce, have no text.
            skip_special_tokens: Whether to leave out tokens such as the end of a text.

        Returns:
            The text; bytes that are no UTF-8 become U+FFFD.
        """
    def decode_stream(self, /, *, skip_special_tokens: bool = True) -> DecodeStream:
        """
        A decoder that takes one id at a time and never breaks a character.

        Args:
            skip_special_tokens: Whether to leave out tokens such as the end of a text.

        Examples:
            >>> import candlewick as cw
            >>> tokenizer = cw.Model.from_pretrained("candlewick/tiny").tokenizer
            >>> stream = tokenizer.decode_stream()
            >>> "".join(stream.step(i) for i in tokenizer.encode("a cat")) + stream.flush()
            'a cat'
        """
    def encode(self, /, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """
        Token ids of a text.

        Args:
            text: The text; may be empty.
            add_special_tokens: Whether to add what the model expects around a text, such as a first token.

        Returns:
            The ids.
        """
    def encode_batch(self, /, texts: SupportsGetItem[int, str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """
        Token ids of several texts, computed in parallel.

        Args:
            texts: The texts.
            add_special_tokens: As for ``encode``.

        Returns:
            One list of ids for each text, not padded.
        """
    @property
    def eos_token_ids(self, /) -> list[int]:
        """
        The ids that end a generation.
        """
    def id_to_token(self, /, id: SupportsIndex) -> str | None:
        """
        The vocabulary's spelling of an id, or None.
        """
    @property
    def pad_token_id(self, /) -> int | None:
        """
        The id of the token that fills batches elsewhere, or None; candlewick does not pad.
        """
    def token_to_id(self, /, token: str) -> int | None:
        """
        The id of a token as the vocabulary spells it, or None.
        """
    @property
    def vocab_size(self, /) -> int:
        """
        Number of tokens, added ones included.
        """

@final
class Trainer:
    """
    Trains an adapter of a model, which itself is never changed.

    A trainer is an iterator: each ``next`` is one optimizer step and gives its ``StepMetrics``. ``train()`` takes all
    steps that are left, with callbacks and a progress bar. Between two steps everything may be asked of it; Ctrl-C gives
    up the step under way and leaves adapter and trainer as of the last whole one, ready to go on.

    Rows never see each other and are never padded. With ``packing``, a batch is filled up to ``batch_size * max_length``
    tokens, so that short rows make few and large steps; without it, a batch is ``batch_size`` rows. An epoch has as many
    optimizer steps as batches, divided by ``gradient_accumulation_steps`` and rounded up; ``total_steps`` is their number.

    Args:
        model: The model; quantised ones can be trained on too.
        train_dataset: The path of a file with a JSON object on each line, which is not read into memory if it is large; or
            rows: a list, any iterable of dictionaries (read once, so a generator will do for any number of epochs; with
            ``max_steps``, of one without a length only as many as can be used, so it need not end), or a Hugging Face or
            torch ``Dataset``. Rows are ``{"text"}``; ``{"prompt", "completion"}``, of which the completion is learnt;
            ``{"messages"}``, of which the assistant's turns are learnt; or ``{"input_ids", "labels"}``, where -100 is
            not learnt. Other fields are read over, whatever they hold.
        eval_dataset: Rows to evaluate on, in the same form.
        lora: The adapter, as candlewick's ``LoraConfig`` or PEFT's; default ``LoraConfig()``.
        adapter: Goes on with an adapter instead: a directory of PEFT or mlx-lm, the name of a registered adapter, or an
            ``Adapter``.
        learning_rate: The highest learning rate.
        schedule: How it falls after the warm-up: ``"cosine"``, ``"linear"`` or ``"constant"``, as transformers defines
            them.
        warmup_steps: Optimizer steps over which it rises from 0.
        min_learning_rate: What it does not fall below.
        batch_size: Rows of a batch; with packing, the number of rows of full length that would fit.
        gradient_accumulation_steps: Batches of an optimizer step. Its loss is the mean over all their tokens.
        epochs: How often the data is gone through.
        max_steps: The number of optimizer steps, whatever ``epochs`` says.
        max_length: Tokens after which a row is cut; how many were cut is logged.
        packing: Fill batches by tokens instead of counting rows.
        weight_decay: Decoupled decay of all parameters but biases.
        betas: Decay of AdamW's two averages.
        eps: Keeps AdamW from dividing by 0.
        max_grad_norm: What the norm of all gradients is cut to, or None.
        label_smoothing: The share of each target that is spread over the vocabulary.
        gradient_checkpointing: Whether layers are computed again in the backward pass, which takes less memory and more
            time; ``"auto"`` keeps as many as fit into a budget.
        seed: Decides the adapter's start, the order of rows, and dropout.
        shuffle: Whether rows come in another order in every epoch.
        eval_steps: Optimizer steps between evaluations; None evaluates after every epoch. The last step evaluates always.
        early_stopping_patience: Evaluations without progress after which the run ends.
        save_dir: Where to write the adapter at the end, ``best`` after every evaluation that is better than all before,
            and checkpoints.
        save_steps: Optimizer steps between checkpoints ``checkpoint-<step>``.
        keep_last: Checkpoints that are kept.
        show_progress_bar: Whether ``train()`` shows a bar; None means if the logger ``candlewick`` shows INFO.

    Raises:
        InvalidArgumentError: An argument is out of range.
        DataError: A row cannot be used; the message names file and line.
        AdapterError: The adapter does not fit the model.

    Examples:
        >>> import candlewick as cw
        >>> model = cw.Model.from_pretrained("candlewick/tiny")
        >>> rows = [{"prompt": "The cat", "completion": " sat on a green moon."}]
        >>> trainer = cw.Trainer(model, rows, learning_rate=0.02, max_steps=20, schedule="constant")
        >>> first = next(trainer)
        >>> result = trainer.train()
        >>> (result.steps, result.loss < first.loss)
        (20, True)
        >>> registry = cw.AdapterRegistry(model)
        >>> registry.add("moon", trainer.adapter).rank
        8
    """
    def __enter__(self, /) -> Trainer: ...
    def __exit__(self, /, *_exc) -> None: ...
    def __iter__(self, /) -> Trainer: ...
    def __length_hint__(self, /) -> int: ...
    def __new__(cls, /, model: Model, train_dataset: Any, *, eval_dataset: Any | None = None, lora: LoraConfig | None = None, adapter: Any | None = None, learning_rate: SupportsFloat | SupportsIndex = 1e-4, schedule: str = "cosine", warmup_steps: "SupportsIndex" = 0, min_learning_rate: SupportsFloat | SupportsIndex = 0.0, batch_size: "SupportsIndex" = 4, gradient_accumulation_steps: "SupportsIndex" = 1, epochs: "SupportsIndex" = 1, max_steps: SupportsIndex | None = None, max_length: "SupportsIndex" = 1024, packing: bool = True, weight_decay: SupportsFloat | SupportsIndex = 0.01, betas: SupportsLenAndGetItem[SupportsFloat | SupportsIndex] = ..., eps: SupportsFloat | SupportsIndex = 1e-8, max_grad_norm: SupportsFloat | SupportsIndex | None = 1.0, label_smoothing: SupportsFloat | SupportsIndex = 0.0, gradient_checkpointing: bool | str = ..., seed: "SupportsIndex" = 0, shuffle: bool = True, eval_steps: SupportsIndex | None = None, early_stopping_patience: SupportsIndex | None = None, save_dir: str | PathLike[str] | None = None, save_steps: SupportsIndex | None = None, keep_last: "SupportsIndex" = 3, show_progress_bar: bool | None = None) -> Trainer: ...
    def __next__(self, /) -> StepMetrics: ...
    def __reduce__(self, /) -> Any: ...
    def __repr__(self, /) -> str: ...
    @property
    def adapter(self, /) -> Adapter:
        """
        The adapter as of the last whole step; later steps do not change it.
        """
    def close(self, /) -> None:
        """
        Gives the memory of adapter, optimizer and data back. Closing twice does nothing.
        """
    @property
    def data_stats(self, /) -> dict:
        """
        What was found in the training data: ``rows``, their ``tokens`` after cutting, ``truncated_rows`` and
        ``truncated_tokens``, and ``rows_without_targets``, which are left out. All are 0 for a large file with
        ``max_steps``, which is not looked at beforehand.
        """
    def evaluate(self, /, dataset: Any | None = None) -> float:
        """
        The mean loss over all predicted tokens of a data set, without dropout.

        Args:
            dataset: Data in the form of ``train_dataset``; default: the trainer's ``eval_dataset``.

        Returns:
            The loss in nats.

        Raises:
            InvalidArgumentError: There is no data.
            DataError: A row cannot be used.
        """
    @property
    def history(self, /) -> list[StepMetrics]:
        """
        The metrics of every step that this trainer took.
        """
    @property
    def is_finished(self, /) -> bool:
        """
        Whether no further step will be taken.
        """
    @property
    def last_checkpoint(self, /) -> Path | None:
        """
        The directory of the newest checkpoint that this trainer wrote, or None.
        """
    @property
    def model(self, /) -> Model:
        """
        The model.
        """
    @property
    def num_parameters(self, /) -> int:
        """
        Number of values that are trained.
        """
    @staticmethod
    def resume(model: Model, directory: str | PathLike[str], train_dataset: Any, *, eval_dataset: Any | None = None, lora: LoraConfig | None = None, adapter: Any | None = None, learning_rate: SupportsFloat | SupportsIndex | None = None, schedule: str | None = None, warmup_steps: SupportsIndex | None = None, min_learning_rate: SupportsFloat | SupportsIndex | None = None, batch_size: SupportsIndex | None = None, gradient_accumulation_steps: SupportsIndex | None = None, epochs: SupportsIndex | None = None, max_steps: SupportsIndex | None = None, max_length: SupportsIndex | None = None, packing: bool | None = None, weight_decay: SupportsFloat | SupportsIndex | None = None, betas: SupportsLenAndGetItem[SupportsFloat | SupportsIndex] | None = None, eps: SupportsFloat | SupportsIndex | None = None, max_grad_norm: SupportsFloat | SupportsIndex | None = None, label_smoothing: SupportsFloat | SupportsIndex | None = None, gradient_checkpointing: bool | str | None = None, seed: SupportsIndex | None = None, shuffle: bool | None = None, eval_steps: SupportsIndex | None = None, early_stopping_patience: SupportsIndex | None = None, save_dir: str | PathLike[str] | None = None, save_steps: SupportsIndex | None = None, keep_last: SupportsIndex | None = None, show_progress_bar: bool | None = None) -> Trainer:
        """
        Goes on with a run from a saved state as if it had not been interrupted.

        Args:
            model: The model of before.
            directory: What ``save_state`` wrote, a checkpoint, or a ``save_dir`` with checkpoints, of which the latest
                is taken.
            train_dataset: The data of before.
            eval_dataset: The evaluation data of before, if there was any.
            lora: As it was.
            adapter: What the run began with, if it went on with an adapter; the state has what became of it.
            learning_rate: As for the class, like all that follow; what is not given is as it was. Train longer with
                another ``epochs`` or ``max_steps``.
            schedule: As for the class.
            warmup_steps: As for the class.
            min_learning_rate: As for the class.
            batch_size: As it was: which rows come next depends on it.
            gradient_accumulation_steps: As it was.
            epochs: As for the class.
            max_steps: As for the class.
            max_length: As it was.
            packing: As it was.
            weight_decay: As for the class.
            betas: As for the class.
            eps: As for the class.
            max_grad_norm: As for the class.
            label_smoothing: As for the class.
            gradient_checkpointing: As for the class.
            seed: As it was.
            shuffle: As it was.
            eval_steps: As for the class.
            early_stopping_patience: As for the class.
            save_dir: As for the class.
            save_steps: As for the class.
            keep_last: As for the class.
            show_progress_bar: As for the class.

        Returns:
            The trainer; its ``history`` begins with the next step.

        Raises:
            CheckpointError: There is no state, or it is damaged.
            DataError: The data is not that of before.
            InvalidArgumentError: An argument is out of range, or would change which rows come next.

        Examples:
            >>> import tempfile
            >>> import candlewick as cw
            >>> model = cw.Model.from_pretrained("candlewick/tiny")
            >>> rows = [{"text": "The sun set."}, {"text": "The moon rose."}]
            >>> trainer = cw.Trainer(model, rows, max_steps=3)
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     first = next(trainer)
            ...     trainer.save_state(directory)
            ...     again = cw.Trainer.resume(model, directory, rows)
            >>> [step.loss for step in trainer] == [step.loss for step in again]
            True
        """
    def save(self, /, directory: str | PathLike[str]) -> None:
        """
        Writes the adapter as PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            directory: Where to; it is made if it is not there.
        """
    @property
    def save_dir(self, /) -> Path | None:
        """
        Where checkpoints and the final adapter go, or None.
        """
    def save_state(self, /, directory: str | PathLike[str]) -> None:
        """
        Writes the adapter, and beside it everything that ``resume`` needs.

        Args:
            directory: Where to; it is made if it is not there.
        """
    @property
    def step_count(self, /) -> int:
        """
        Optimizer steps taken, those before ``resume`` included.
        """
    @property
    def total_steps(self, /) -> int:
        """
        Optimizer steps that the run will have taken in the end, unless it stops early.
        """
    def train(self, /, callbacks: Any | None = None) -> Any:
        """
        Takes all steps that are left.

        Args:
            callbacks: A callback, or a list of them. A callback is a function of one argument, which is called with the
                ``StepMetrics`` of each step; or an object with any of the methods ``on_train_begin(trainer)``,
                ``on_step(metrics)``, ``on_evaluate(metrics)``, ``on_save(directory)`` and ``on_train_end(result)``. One
                that returns False ends the run after this step, as does one that raises, whose exception is passed on.

        Returns:
            A ``TrainingResult``.

        Raises:
            TrainingDivergedError: A loss or a gradient was not finite; the adapter is as of the last good step.
            KeyboardInterrupt: Ctrl-C; the adapter is as of the last whole step, and the trainer can go on.
        """

def _connect() -> None:
    """
    Sends logs to Python's `logging` and ends the threads that need Python before Python ends.

    The package calls it once. It is no `#[pymodule_init]`, which would make the generated stub an incomplete one, in
    which a type checker finds every name.
    """

def _selftest(device: str) -> list[tuple[str, str, float, float, float, str | None]]:
    """
    The results of every check on a device; `candlewick.selftest` gives them names.
    """
