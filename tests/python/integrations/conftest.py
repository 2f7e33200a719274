"""Nothing that is tested here may phone home."""

import os
import warnings

import pytest

os.environ |= {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def pytest_collectstart():
    """Frameworks warn about themselves while they are imported."""
    warnings.simplefilter("default")


@pytest.fixture(autouse=True)
def no_telemetry():
    """The settings hold while a test runs."""
    assert os.environ["HAYSTACK_TELEMETRY_ENABLED"] == "False"
