"""Run and adapt small language models on your own machine.

Load a checkpoint in Hugging Face layout and generate text, at once, streamed or from an event loop::

    >>> import candlewick as cw
    >>> model = cw.Model.from_pretrained("candlewick/tiny")
    >>> generator = cw.Generator(model, max_new_tokens=8)
    >>> isinstance(generator.generate("Once upon a time").text, str)
    True

Nothing here prints; messages go to the logger ``candlewick``.
"""

import logging

from ._native import (
    Adapter,
    AdapterInfo,
    AdapterRegistry,
    DecodeStream,
    Embedder,
    Generation,
    Generator,
    LoraConfig,
    Model,
    Reranker,
    StepMetrics,
    StreamToken,
    Tokenizer,
    TokenStream,
    Trainer,
    __version__,
    _connect,
)
from ._training import TrainingResult
from .errors import (
    AdapterError,
    CandlewickError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DataError,
    DeviceError,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    OutOfMemoryError,
    TrainingDivergedError,
    UnsupportedModelError,
)

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterInfo",
    "AdapterRegistry",
    "CandlewickError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "DecodeStream",
    "DeviceError",
    "Embedder",
    "Generation",
    "Generator",
    "InternalError",
    "InvalidArgumentError",
    "LoraConfig",
    "Model",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "Reranker",
    "StepMetrics",
    "StreamToken",
    "TokenStream",
    "Tokenizer",
    "Trainer",
    "TrainingDivergedError",
    "TrainingResult",
    "UnsupportedModelError",
    "__version__",
]

logging.getLogger("candlewick").addHandler(logging.NullHandler())
_connect()
