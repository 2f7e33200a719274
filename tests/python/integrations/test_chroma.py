"""Chroma's own tests of embedding functions, and collections that are made, queried, stored and opened again."""

import inspect
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import candlewick as cw

pytest.importorskip("chromadb")

import chromadb
import jsonschema
from chromadb.api.types import validate_embedding_function
from chromadb.config import Settings
from chromadb.utils.embedding_functions import known_embedding_functions

from candlewick.integrations.chroma import CandlewickEmbeddingFunction

pytestmark = pytest.mark.filterwarnings("default")

MPNET = Path(__file__).parents[2] / "golden" / "encoders" / "bert" / "mean"
TEXTS = ["The dog ran home.", "Bread is baked in the oven.", "Add two numbers."]


@pytest.fixture
def function():
    return CandlewickEmbeddingFunction("candlewick/tiny", device="cpu")


def client(path):
    return chromadb.PersistentClient(str(path), settings=Settings(anonymized_telemetry=False))


def test_chroma_accepts_it(function):
    validate_embedding_function(function)
    assert not function.is_legacy()
    assert known_embedding_functions["candlewick"] is CandlewickEmbeddingFunction
    assert inspect.signature(CandlewickEmbeddingFunction.__call__).parameters.keys() == {"self", "input"}


def test_configuration_round_trip(function):
    config = json.loads(json.dumps(function.get_config()))
    CandlewickEmbeddingFunction.validate_config(config)
    again = CandlewickEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    np.testing.assert_array_equal(again(TEXTS), function(TEXTS))


def test_configurations_that_are_refused(function):
    config = function.get_config()
    for key in config:
        with pytest.raises(jsonschema.ValidationError):
            CandlewickEmbeddingFunction.validate_config({k: v for k, v in config.items() if k != key})
    for wrong in ({"additional_property": 1}, {"kwargs": {"trust_remote_code": True}}, {"device": 3}):
        with pytest.raises(jsonschema.ValidationError):
            CandlewickEmbeddingFunction.validate_config({**config, **wrong})
    with pytest.raises(TypeError, match="speed"):
        CandlewickEmbeddingFunction("candlewick/tiny", speed=3)
    for change in ({"kwargs": {"truncate_dim": 8}}, {"normalize_embeddings": True}):
        with pytest.raises(ValueError, match="comparable"):
            function.validate_config_update(config, {**config, **change})
    function.validate_config_update(config, {**config, "model_name": "elsewhere", "device": "auto"})


THEIRS = """
import sys
import numpy as np
import pytest
import candlewick.integrations.chroma

class Fixtures:
    # Of their conftest.py, which wants a server for its other tests.
    @pytest.fixture
    def mock_embeddings(self):
        return lambda texts: [np.zeros(3, np.float32) for _ in texts]

    @pytest.fixture
    def mock_common_deps(self, monkeypatch):
        return monkeypatch

suite = "chromadb.test.utils.test_embedding_function_schemas"
options = ["-v", "-p", "no:cacheprovider", "--noconftest", "-k", "candlewick or test_schema", "--pyargs", suite]
sys.exit(pytest.main(options, [Fixtures()]))
"""


def test_chroma_s_own_tests_of_configurations(run_python):
    done = run_python("-c", THEIRS)
    assert done.returncode == 0, done.stdout[-3000:]
    for test in ("config_roundtrip[candlewick]", "validate_config_with_schema[candlewick]"):
        assert f"{test} PASSED" in done.stdout


def test_a_token_is_not_stored():
    function = CandlewickEmbeddingFunction("candlewick/tiny", token="secret", truncate_dim=8)
    assert "secret" not in json.dumps(function.get_config())
    assert function([TEXTS[0]])[0].shape == (8,)


def test_vectors_are_the_embedder_s(tiny_embedder):
    embedder = cw.Embedder.from_pretrained(MPNET, device="cpu", prompts={"query": "find: ", "document": "text: "})
    function = CandlewickEmbeddingFunction(embedder)
    np.testing.assert_array_equal(function(TEXTS), embedder.encode_document(TEXTS))
    np.testing.assert_array_equal(function.embed_query(TEXTS), embedder.encode_query(TEXTS))
    again = CandlewickEmbeddingFunction.build_from_config(json.loads(json.dumps(function.get_config())))
    np.testing.assert_array_equal(again.embed_query(TEXTS), function.embed_query(TEXTS))
    copied = pickle.loads(pickle.dumps(function))
    np.testing.assert_array_equal(copied(TEXTS), function(TEXTS))
    unit = CandlewickEmbeddingFunction("candlewick/tiny", device="cpu", normalize_embeddings=True)(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(unit, tiny_embedder.encode(TEXTS, normalize=True), atol=1e-6)


def test_a_collection_that_is_stored_and_opened_again(function, tmp_path):
    collection = client(tmp_path).create_collection("notes", embedding_function=function)
    collection.add(ids=["a", "b", "c"], documents=TEXTS, metadatas=[{"n": n} for n in range(3)])
    wanted = collection.query(query_texts=["The dog ran home!"], n_results=2)
    assert wanted["ids"][0][0] == "a"
    chromadb.api.client.SharedSystemClient.clear_system_cache()
    # Without naming the function: Chroma finds it by its name and configuration.
    again = client(tmp_path).get_collection("notes")
    found = again.query(query_texts=["The dog ran home!"], n_results=2)
    assert found["ids"] == wanted["ids"]
    np.testing.assert_allclose(found["distances"], wanted["distances"], atol=1e-5)
    assert again.configuration_json["hnsw"]["space"] == function.default_space() == "cosine"


OLD = """
import sys
from candlewick.integrations.sentence_transformers import install
install()
import chromadb
from chromadb.config import Settings
from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction
settings = Settings(anonymized_telemetry=False)
function = SentenceTransformerEmbeddingFunction("candlewick/tiny", device="cpu", normalize_embeddings=True)
collection = chromadb.PersistentClient(sys.argv[1], settings).create_collection("old", embedding_function=function)
collection.add(ids=["a", "b"], documents=["The dog ran home.", "Add two numbers."])
chromadb.api.client.SharedSystemClient.clear_system_cache()
collection = chromadb.PersistentClient(sys.argv[1], settings).get_collection("old")
print(collection.query(query_texts=["Add two numbers!"], n_results=1)["ids"], "torch" in sys.modules)
"""


def test_collections_made_with_sentence_transformers_open_through_the_stand_in(run_python, tmp_path):
    done = run_python("-c", OLD, tmp_path / "old")
    assert done.stdout.strip() == "[['b']] False", done.stderr


def test_what_an_open_embedder_was_told_is_stored():
    case = Path(__file__).parents[2] / "golden" / "encoders" / "bert" / "mean"
    function = CandlewickEmbeddingFunction(cw.Embedder.from_pretrained(case, device="cpu", normalize=False))
    again = CandlewickEmbeddingFunction.build_from_config(json.loads(json.dumps(function.get_config())))
    wanted = function(["The dog ran home."])[0]
    assert abs(np.linalg.norm(wanted) - 1) > 0.1
    np.testing.assert_allclose(again(["The dog ran home."])[0], wanted, atol=1e-6)
