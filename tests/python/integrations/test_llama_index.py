"""LlamaIndex: an index that is built, queried and reranked, and what its classes promise."""

import asyncio
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import candlewick as cw
from candlewick.testing import ScriptedModel

pytest.importorskip("llama_index.core")

from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, TextNode

from candlewick.integrations.llama_index import CandlewickEmbedding, CandlewickLLM, CandlewickRerank

pytestmark = pytest.mark.filterwarnings("default")

TINY = "candlewick/tiny"
CPU = {"model_kwargs": {"device": "cpu"}}
RERANKER = Path(__file__).parents[2] / "golden" / "encoders" / "bert" / "rerank"
TEXTS = ["The dog ran home.", "Bread is baked in the oven.", "Add two numbers.", "A cat slept on the mat."]


@pytest.fixture(scope="module")
def embedding():
    return CandlewickEmbedding(TINY, **CPU)


@pytest.fixture(scope="module")
def llm():
    return CandlewickLLM(TINY, temperature=0.0, max_new_tokens=24, **CPU)


def test_bases(embedding, llm):
    assert BaseEmbedding.__name__ in [base.__name__ for base in CandlewickEmbedding.__mro__]
    assert isinstance(embedding, BaseEmbedding)
    assert isinstance(llm, LLM)
    assert issubclass(CandlewickRerank, BaseNodePostprocessor)


async def test_embeddings_are_the_embedder_s(tiny_embedder):
    instructed = {"query_instruction": "find: ", "text_instruction": "text: "}
    for embedding, query, text in (
        (CandlewickEmbedding(TINY, **CPU), "", ""),
        (CandlewickEmbedding(model_name=TINY, **CPU, **instructed), "find: ", "text: "),
    ):
        wanted = tiny_embedder.encode(TEXTS, prompt=text)
        np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), wanted, atol=1e-5)
        np.testing.assert_allclose(await embedding.aget_text_embedding_batch(TEXTS), wanted, atol=1e-5)
        np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[0]), wanted[0], atol=1e-5)
        np.testing.assert_allclose(await embedding.aget_text_embedding(TEXTS[0]), wanted[0], atol=1e-5)
        wanted = tiny_embedder.encode("Who?", prompt=query)
        np.testing.assert_allclose(embedding.get_query_embedding("Who?"), wanted, atol=1e-5)
        np.testing.assert_allclose(await embedding.aget_query_embedding("Who?"), wanted, atol=1e-5)


def test_components_serialise(embedding, llm):
    for component in (embedding, llm, CandlewickRerank(str(RERANKER), top_n=3)):
        written = json.loads(component.to_json())
        again = type(component).from_dict(written)
        assert again.to_dict() == component.to_dict()
        assert pickle.loads(pickle.dumps(component)).to_dict() == component.to_dict()
    assert pickle.loads(pickle.dumps(llm)).complete("Once").text == llm.complete("Once").text
    embedder = cw.Embedder.from_pretrained(TINY, device="cpu", truncate_dim=8)
    again = CandlewickEmbedding.from_dict(CandlewickEmbedding(embedder).to_dict())
    assert len(again.get_query_embedding("a")) == 8


async def test_index_query_rerank(embedding, tmp_path):
    answer = "It ran home."
    documents = [Document(text=text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    index = VectorStoreIndex.from_documents(documents, embed_model=embedding, transformations=[SentenceSplitter()])
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("The dog ran home!")
    assert found.node.metadata["n"] == 0
    (found,) = await index.as_retriever(similarity_top_k=1).aretrieve("Add two numbers!")
    assert found.node.metadata["n"] == 2

    model = ScriptedModel([answer] * 3)
    reranker = CandlewickRerank(RERANKER, top_n=2, **CPU)
    engine = index.as_query_engine(llm=CandlewickLLM(model), similarity_top_k=4, node_postprocessors=[reranker])
    response = engine.query("Where did the dog go?")
    assert str(response) == answer
    assert len(response.source_nodes) == 2
    assert response.source_nodes[0].score >= response.source_nodes[1].score
    assert any(node.text in str(model.requests[0][0]) for node in response.source_nodes)
    assert str(await engine.aquery("Where did the dog go?")) == answer
    streaming = index.as_query_engine(llm=CandlewickLLM(model), streaming=True, similarity_top_k=1)
    assert "".join(streaming.query("Where did the dog go?").response_gen) == answer

    index.storage_context.persist(str(tmp_path))
    again = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=embedding)
    (found,) = again.as_retriever(similarity_top_k=1).retrieve("The dog ran home!")
    assert found.node.metadata["n"] == 0


async def test_rerank_orders_as_the_reranker():
    direct = cw.Reranker.from_pretrained(RERANKER, device="cpu")
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    wanted = direct.rank("dog", TEXTS, top_k=3)
    reranker = CandlewickRerank(direct, top_n=3, keep_retrieval_score=True)
    for found in (
        reranker.postprocess_nodes(nodes, query_str="dog"),
        await reranker.apostprocess_nodes(nodes, query_str="dog"),
    ):
        assert [node.text for node in found] == [TEXTS[row["corpus_id"]] for row in wanted]
        assert [node.score for node in found] == pytest.approx([row["score"] for row in wanted])
        assert found[0].node.metadata["retrieval_score"] == 0.5
    with pytest.raises(ValueError, match="query"):
        reranker.postprocess_nodes(nodes)


async def test_every_way_to_ask(llm, tiny_model):
    generator = cw.Generator(tiny_model, temperature=0.0, max_new_tokens=24)
    wanted = generator.generate("Once upon a time")
    assert llm.complete("Once upon a time").text == wanted.text
    assert (await llm.acomplete("Once upon a time")).text == wanted.text
    parts = list(llm.stream_complete("Once upon a time"))
    assert "".join(part.delta for part in parts) == parts[-1].text == wanted.text
    parts = [part async for part in await llm.astream_complete("Once upon a time")]
    assert "".join(part.delta for part in parts) == parts[-1].text == wanted.text
    assert parts[-1].raw["completion_tokens"] == wanted.generated_tokens

    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage("Who are you?")]
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    wanted = generator.generate(conversation)
    assert llm.chat(messages).message.content == wanted.text
    assert (await llm.achat(messages)).message.content == wanted.text
    parts = list(llm.stream_chat(messages))
    assert "".join(part.delta for part in parts) == parts[-1].message.content == wanted.text
    parts = [part async for part in await llm.astream_chat(messages)]
    assert "".join(part.delta for part in parts) == parts[-1].message.content == wanted.text
    assert parts[-1].raw["finish_reason"] == wanted.finish_reason


async def test_metadata_keywords_and_mistakes(llm, tiny_model):
    assert llm.metadata.context_window == tiny_model.context_length
    assert (llm.metadata.is_chat_model, llm.metadata.num_output, llm.metadata.model_name) == (True, 24, TINY)
    assert llm.complete("Once", max_tokens=2).raw["completion_tokens"] == 2
    with pytest.raises(TypeError, match="temprature"):
        llm.complete("Once", temprature=1)
    plain = CandlewickLLM(TINY, is_chat_model=False, completion_to_prompt=lambda text: f"Q: {text}", **CPU)
    assert plain.complete("Once", temperature=0.0).text == llm.complete("Q: Once", max_tokens=256).text
    assert plain.chat([ChatMessage("Hello")]).message.content
    task = asyncio.create_task(llm.acomplete("Once", max_tokens=400, ignore_eos=True))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_keywords_go_where_they_belong():
    embedding = CandlewickEmbedding(TINY, device="cpu", max_length=8, normalize=True, cache_folder=None)
    assert embedding.model_kwargs == {"device": "cpu", "max_length": 8, "normalize": True}
    np.testing.assert_allclose(np.linalg.norm(embedding.get_query_embedding("The dog " * 20)), 1, atol=1e-6)
    again = CandlewickEmbedding.from_dict(embedding.to_dict())
    assert again.model_kwargs == embedding.model_kwargs
    assert CandlewickLLM(TINY, device="cpu").model_kwargs == {"device": "cpu"}
    assert CandlewickRerank(RERANKER, device="cpu", max_length=16).model_kwargs == {"device": "cpu", "max_length": 16}
    for kind in (CandlewickEmbedding, CandlewickLLM, CandlewickRerank):
        with pytest.raises(TypeError, match="foo"):
            kind(TINY, foo=1)


def test_an_empty_conversation_is_refused(llm):
    for call in (llm.chat, llm.stream_chat):
        with pytest.raises(ValueError, match="empty"):
            call([])
