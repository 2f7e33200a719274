"""Stands in for the library sentence-transformers, without torch.

`SentenceTransformer`, `CrossEncoder` and `util` have that library's names and signatures and give its results, for what
needs no training. Import them from here, or call `install` first in a program, after which code that imports
``sentence_transformers``, one's own or that of a framework, gets these. Nothing happens unasked.

Results are arrays. Where the program has imported torch, those that are tensors there are tensors here too.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType

from . import util
from .cross_encoder import CrossEncoder
from .model import SentenceTransformer
from .util import SimilarityFunction, quantize_embeddings

__all__ = ["CrossEncoder", "SentenceTransformer", "SimilarityFunction", "install", "quantize_embeddings", "util"]

#: The version whose interface this is.
VERSION = "6.2.0"


def install() -> ModuleType:
    """Answer to ``import sentence_transformers`` from now on, in this process.

    Calling it again does nothing.

    Returns:
        The module that stands in.

    Raises:
        RuntimeError: The real library is imported already, so parts of the program would use the one and parts the
            other.

    Examples:
        >>> from candlewick.integrations.sentence_transformers import install
        >>> module = install()
        >>> from sentence_transformers import SentenceTransformer
        >>> SentenceTransformer("candlewick/tiny").encode(["The dog ran home."]).shape
        (1, 128)
    """
    name = "sentence_transformers"
    there = sys.modules.get(name)
    if there is not None:
        if getattr(there, "__candlewick__", False):
            return there
        raise RuntimeError("sentence_transformers is imported already; call install() before anything imports it")
    whole = {key: globals()[key] for key in __all__ if key not in ("install", "util")}
    module = _module(name, whole | {"util": None, "__version__": VERSION, "__candlewick__": True})
    tools = {key: getattr(util, key) for key in util.__all__}
    module.util = _module(f"{name}.util", tools)  # type: ignore[attr-defined]
    for part in ("quantization", "retrieval", "similarity", "tensor"):
        setattr(module.util, part, _module(f"{name}.util.{part}", tools))
    for part, names in _PARTS.items():
        inner = _module(f"{name}.{part}", {key: whole[key] for key in names})
        parent, _, last = part.rpartition(".")
        if last not in whole:
            setattr(sys.modules[f"{name}.{parent}" if parent else name], last, inner)
    return module


#: Modules of older and newer versions that programs import these from.
_PARTS = {
    "SentenceTransformer": ("SentenceTransformer",),
    "sentence_transformer": ("SentenceTransformer",),
    "sentence_transformer.model": ("SentenceTransformer",),
    "cross_encoder": ("CrossEncoder",),
    "cross_encoder.CrossEncoder": ("CrossEncoder",),
    "cross_encoder.model": ("CrossEncoder",),
    "quantization": ("quantize_embeddings",),
    "similarity_functions": ("SimilarityFunction",),
}


def _module(name: str, content: dict[str, object]) -> ModuleType:
    module = ModuleType(name, __doc__)
    # Those who look whether the library is there look for a spec; only packages have parts.
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package="." not in name)
    module.__path__ = []
    module.__dict__.update(content)
    sys.modules[name] = module
    return module
