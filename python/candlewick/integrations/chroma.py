"""An embedding function for Chroma.

Importing this module registers it, so that a stored collection that was made with it opens by itself. It embeds; how
collections are stored and searched is Chroma's.
"""

from __future__ import annotations

import inspect
from typing import Any

import jsonschema
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

import candlewick as cw

from ._opened import Opened, repository

__all__ = ["CandlewickEmbeddingFunction"]

_OPTIONS = set(inspect.signature(cw.Embedder.from_pretrained).parameters) - {"source", "device", "token"}

_SCHEMA = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "device": {"type": "string"},
        "normalize_embeddings": {"type": "boolean"},
        "kwargs": {"type": "object", "propertyNames": {"enum": sorted(_OPTIONS)}},
    },
    "required": ["model_name", "device", "normalize_embeddings", "kwargs"],
    "additionalProperties": False,
}

#: Spaces by the measure that a model was trained for.
_SPACES: dict[str, Space] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


@register_embedding_function
class CandlewickEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds the documents and queries of a collection; takes the place of ``SentenceTransformerEmbeddingFunction``.

    Documents and queries get the prompts that the model has for them. The model is loaded when it is first used.

    Args:
        model_name: A hub id, a directory, ``"candlewick/tiny"``, or an open ``Embedder``.
        device: As for ``Embedder.from_pretrained``.
        normalize_embeddings: Whether vectors get length 1 even if the repository does not say so.
        token: Access token for the hub; never stored.
        **kwargs: Further keywords of ``Embedder.from_pretrained``.

    Examples:
        >>> from candlewick.integrations.chroma import CandlewickEmbeddingFunction
        >>> function = CandlewickEmbeddingFunction("candlewick/tiny")
        >>> [vector.shape for vector in function(["The dog ran home."])]
        [(128,)]
    """

    def __init__(
        self,
        model_name: str | cw.Embedder = "sentence-transformers/all-MiniLM-L6-v2",
        device: str = "auto",
        normalize_embeddings: bool = False,
        *,
        token: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model_name, cw.Embedder):
            self._opened: Opened[cw.Embedder] = Opened.of(model_name)
            options = {key: value for key, value in self._opened.options.items() if value is not None}
            self.model_name, device = self._opened.source, options.pop("device")
            # These are the usual values; another one that is False is meant.
            usual = {"prompts": {}, "local_files_only": False}
            kwargs = {key: value for key, value in options.items() if key not in usual or value != usual[key]}
        else:
            unknown = sorted(kwargs.keys() - _OPTIONS)
            if unknown:
                raise TypeError(f"CandlewickEmbeddingFunction() got an unexpected keyword argument {unknown[0]!r}")
            self.model_name = str(model_name)
            options = {"device": device, **kwargs} | ({} if token is None else {"token": token})
            self._opened = Opened("embedder", repository(model_name), options)
        self.device = device
        self.normalize_embeddings = normalize_embeddings
        self.kwargs = kwargs

    def __call__(self, input: Documents) -> Embeddings:
        """Embed documents.

        Args:
            input: The documents.

        Returns:
            A float32 array for each.
        """
        return list(self._opened.get().encode_document(list(input), normalize=self.normalize_embeddings or None))

    def embed_query(self, input: Documents) -> Embeddings:
        """Embed queries.

        Args:
            input: The queries.

        Returns:
            A float32 array for each.
        """
        return list(self._opened.get().encode_query(list(input), normalize=self.normalize_embeddings or None))

    @staticmethod
    def name() -> str:
        """The name that stored collections know it by.

        Returns:
            ``"candlewick"``.
        """
        return "candlewick"

    def default_space(self) -> Space:
        """The space of the measure that the model was trained for; this loads it.

        Returns:
            ``"cosine"``, ``"ip"`` or ``"l2"``.
        """
        return _SPACES.get(self._opened.get().similarity_fn_name, "cosine")

    def supported_spaces(self) -> list[Space]:
        """The spaces that vectors may be compared in.

        Returns:
            All that Chroma has.
        """
        return ["cosine", "l2", "ip"]

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> CandlewickEmbeddingFunction:
        """Make the function that a stored collection was made with.

        Args:
            config: What ``get_config`` gave.

        Returns:
            The function.
        """
        return CandlewickEmbeddingFunction(
            config["model_name"], config["device"], config["normalize_embeddings"], **config["kwargs"]
        )

    def get_config(self) -> dict[str, Any]:
        """What is stored with a collection.

        Returns:
            Plain JSON values.
        """
        return {
            "model_name": self.model_name,
            "device": self.device,
            "normalize_embeddings": self.normalize_embeddings,
            "kwargs": {key: str(value) if key == "cache_dir" else value for key, value in self.kwargs.items()},
        }

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Check what ``build_from_config`` is given.

        Args:
            config: The configuration.

        Raises:
            jsonschema.ValidationError: Something is missing, unknown or of the wrong type.
        """
        jsonschema.validate(config, _SCHEMA)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Check that a collection's vectors stay comparable. The model may move, and run elsewhere.

        Args:
            old_config: The configuration so far.
            new_config: The configuration to come.

        Raises:
            ValueError: Vectors would not be what they were.
        """
        for name in ("pooling", "normalize", "max_length", "prompts", "default_prompt_name", "truncate_dim"):
            if old_config.get("kwargs", {}).get(name) != new_config.get("kwargs", {}).get(name):
                raise ValueError(f"{name} cannot change: vectors of the collection would not be comparable any more")
        if old_config.get("normalize_embeddings") != new_config.get("normalize_embeddings"):
            raise ValueError("normalize_embeddings cannot change: vectors would not be comparable any more")

    def embedding_dimension(self) -> int:
        """Width of the vectors; this loads the model.

        Returns:
            The number of dimensions.
        """
        return self._opened.get().dimension
