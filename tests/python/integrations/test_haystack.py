"""Haystack: components alone, and pipelines that are written, read, run and streamed."""

import asyncio
import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import candlewick as cw

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.serialization import component_from_dict, component_to_dict
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice, Secret

from candlewick.integrations.haystack import (
    CandlewickChatGenerator,
    CandlewickDocumentEmbedder,
    CandlewickRanker,
    CandlewickTextEmbedder,
)

pytestmark = pytest.mark.filterwarnings("default")

TINY = {"model": "candlewick/tiny", "device": "cpu"}
RERANKER = {"model": str(Path(__file__).parents[2] / "golden" / "encoders" / "bert" / "rerank"), "device": "cpu"}
GREEDY = {"temperature": 0.0, "max_new_tokens": 24}
TEXTS = ["The dog ran home.", "Bread is baked in the oven.", "Add two numbers."]
DOCUMENTS = [Document(content=text, meta={"n": n, "title": f"T{n}"}) for n, text in enumerate(TEXTS)]
QUESTION = [ChatMessage.from_system("Be brief."), ChatMessage.from_user("Who are you?")]


def remember(chunk: StreamingChunk) -> None:
    """A callback that can be written into a file."""
    SEEN.append(chunk)


SEEN: list[StreamingChunk] = []

COMPONENTS = [
    CandlewickTextEmbedder(**TINY, prefix="Q: ", truncate_dim=8),
    CandlewickDocumentEmbedder(**TINY, meta_fields_to_embed=["title"], token=Secret.from_env_var("MY_TOKEN")),
    CandlewickRanker(**RERANKER, top_k=2, scale_score=False),
    CandlewickChatGenerator(**TINY, generation_kwargs=GREEDY, streaming_callback=remember),
]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: type(component).__name__)
def test_components_are_written_and_read(component, monkeypatch):
    written = component_to_dict(component, "it")
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", __name__)
    again = component_from_dict(type(component), written, "it")
    assert component_to_dict(again, "it") == written
    assert written["type"] == f"candlewick.integrations.haystack.{type(component).__name__}"
    assert copy.deepcopy(component).to_dict() == pickle.loads(pickle.dumps(component)).to_dict() == written


def test_nothing_is_loaded_before_warm_up():
    embedder = CandlewickTextEmbedder(model="/nowhere")
    embedder.to_dict()
    with pytest.raises(cw.ModelNotFoundError):
        embedder.warm_up()
    embedder = CandlewickTextEmbedder(**TINY)
    embedder.warm_up()
    first = embedder._opened().get()
    embedder.warm_up()
    asyncio.run(embedder.warm_up_async())
    assert embedder._opened().get() is first
    other = CandlewickDocumentEmbedder(**TINY)
    other.warm_up()
    assert other._opened().get() is first


def test_embeddings_are_the_embedder_s(tiny_embedder):
    found = CandlewickTextEmbedder(**TINY).run("Who?")["embedding"]
    assert type(found[0]) is float
    np.testing.assert_allclose(found, tiny_embedder.encode_query("Who?"), atol=1e-5)
    found = CandlewickTextEmbedder(**TINY, prefix="a ", suffix=" z", normalize_embeddings=True).run("Who?")
    wanted = tiny_embedder.encode("a Who? z", normalize=True)
    np.testing.assert_allclose(found["embedding"], wanted, atol=1e-5)
    documents = CandlewickDocumentEmbedder(**TINY, batch_size=2).run(DOCUMENTS)["documents"]
    wanted = tiny_embedder.encode_document(TEXTS)
    np.testing.assert_allclose([document.embedding for document in documents], wanted, atol=1e-5)
    assert all(document.embedding is None for document in DOCUMENTS)
    assert [document.id for document in documents] == [document.id for document in DOCUMENTS]
    titled = CandlewickDocumentEmbedder(**TINY, meta_fields_to_embed=["title", "absent"], embedding_separator="|")
    (found,) = titled.run(DOCUMENTS[:1])["documents"]
    np.testing.assert_allclose(found.embedding, tiny_embedder.encode("T0|The dog ran home."), atol=1e-5)
    assert CandlewickDocumentEmbedder(**TINY).run([]) == {"documents": []}
    packed = CandlewickTextEmbedder(**TINY, precision="ubinary").run("Who?")["embedding"]
    assert len(packed) == 16


async def test_async_is_the_same():
    text, documents = CandlewickTextEmbedder(**TINY), CandlewickDocumentEmbedder(**TINY)
    found = await asyncio.gather(*(text.run_async(one) for one in TEXTS))
    np.testing.assert_allclose(
        [one["embedding"] for one in found], [text.run(one)["embedding"] for one in TEXTS], atol=1e-5
    )
    found = (await documents.run_async(DOCUMENTS))["documents"]
    wanted = documents.run(DOCUMENTS)["documents"]
    np.testing.assert_allclose([one.embedding for one in found], [one.embedding for one in wanted], atol=1e-5)
    ranker = CandlewickRanker(**RERANKER)
    assert await ranker.run_async("dog", DOCUMENTS) == ranker.run("dog", DOCUMENTS)


def test_mistakes():
    with pytest.raises(TypeError, match="text"):
        CandlewickTextEmbedder(**TINY).run(DOCUMENTS)
    with pytest.raises(TypeError, match="documents"):
        CandlewickDocumentEmbedder(**TINY).run("text")
    with pytest.raises(ValueError, match="top_k"):
        CandlewickRanker(**RERANKER, top_k=0)
    assert CandlewickTextEmbedder(**TINY | {"device": ComponentDevice.from_str("cpu")}).device == "cpu"


def test_ranker_orders_as_the_reranker():
    direct = cw.Reranker.from_pretrained(RERANKER["model"], device="cpu")
    wanted = direct.rank("dog", TEXTS, activation="identity")
    ranker = CandlewickRanker(**RERANKER, scale_score=False)
    found = ranker.run("dog", [*DOCUMENTS, DOCUMENTS[0]])["documents"]
    assert [document.meta["n"] for document in found] == [row["corpus_id"] for row in wanted]
    assert [document.score for document in found] == pytest.approx([row["score"] for row in wanted])
    assert DOCUMENTS[0].score is None
    assert len(ranker.run("dog", DOCUMENTS, top_k=1)["documents"]) == 1
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="top_k"):
            ranker.run("dog", DOCUMENTS, top_k=wrong)
    scaled = ranker.run("dog", DOCUMENTS, scale_score=True)["documents"]
    assert all(0 < document.score < 1 for document in scaled)
    kept = ranker.run("dog", DOCUMENTS, score_threshold=wanted[1]["score"])["documents"]
    assert len(kept) == 2
    assert ranker.run("dog", [])["documents"] == []


async def test_chat(tiny_model):
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    wanted = cw.Generator(tiny_model, **GREEDY).generate(conversation)
    chat = CandlewickChatGenerator(**TINY, generation_kwargs=GREEDY)
    (reply,) = chat.run(QUESTION)["replies"]
    assert reply.text == wanted.text
    assert reply.meta["usage"] == {
        "prompt_tokens": wanted.prompt_tokens,
        "completion_tokens": wanted.generated_tokens,
        "total_tokens": wanted.prompt_tokens + wanted.generated_tokens,
    }
    assert reply.meta["finish_reason"] == wanted.finish_reason
    assert (await chat.run_async(QUESTION))["replies"][0].text == wanted.text
    assert chat.run("Hello", generation_kwargs={"max_tokens": 2})["replies"][0].meta["usage"]["completion_tokens"] == 2

    chunks = []
    assert chat.run(QUESTION, streaming_callback=chunks.append)["replies"][0].text == wanted.text
    assert "".join(chunk.content for chunk in chunks) == wanted.text
    assert [chunk.start for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == wanted.finish_reason
    assert chunks[0].component_info.type.endswith("CandlewickChatGenerator")
    later = []

    async def callback(chunk):
        await asyncio.sleep(0)
        later.append(chunk.content)

    await chat.run_async(QUESTION, streaming_callback=callback)
    assert "".join(later) == wanted.text
    with pytest.raises(ValueError, match="coroutine"):
        chat.run(QUESTION, streaming_callback=callback)


@pytest.fixture
def store():
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", CandlewickDocumentEmbedder(**TINY))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    assert indexing.run({"embedder": {"documents": DOCUMENTS}})["writer"]["documents_written"] == 3
    return store


def rag(store):
    pipeline = Pipeline()
    pipeline.add_component("embedder", CandlewickTextEmbedder(**TINY))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    pipeline.add_component("ranker", CandlewickRanker(**RERANKER, top_k=2))
    template = "Note: {% for document in documents %}{{ document.content }} {% endfor %}Question: {{ question }}"
    prompt = ChatPromptBuilder(template=[ChatMessage.from_user(template)], required_variables="*")
    pipeline.add_component("prompt", prompt)
    pipeline.add_component("chat", CandlewickChatGenerator(**TINY, generation_kwargs=GREEDY))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever", "ranker")
    pipeline.connect("ranker", "prompt.documents")
    pipeline.connect("prompt", "chat.messages")
    return pipeline


async def test_pipeline(store):
    pipeline = rag(store)
    question = "The dog ran home!"
    data = {"embedder": {"text": question}, "ranker": {"query": question}, "prompt": {"question": question}}
    found = pipeline.run(data, include_outputs_from={"retriever"})
    assert found["retriever"]["documents"][0].content == TEXTS[0]
    answer = found["chat"]["replies"][0].text
    assert answer
    written = pipeline.dumps()
    again = Pipeline.loads(written, allowed_modules=[CandlewickRanker.__module__])
    assert again.to_dict()["components"] == pipeline.to_dict()["components"]
    assert (await again.run_async(data))["chat"]["replies"][0].text == answer


def test_an_empty_conversation_is_refused():
    with pytest.raises(ValueError, match="empty"):
        CandlewickChatGenerator(**TINY).run([])
