"""Answer questions about a folder of notes, on this machine alone: embed, search in Chroma, rerank, answer.

Everything runs offline on the bundled model, which is tiny and was not made for search. Better ones go by name:

    python rag.py --embedder sentence-transformers/all-MiniLM-L6-v2 --model Qwen/Qwen2.5-0.5B-Instruct \
        --reranker cross-encoder/ms-marco-MiniLM-L6-v2 --folder my_notes "What did we decide on Monday?"

Needs Chroma: pip install 'candlewick[chroma]'
"""

import argparse
import re
from pathlib import Path

import chromadb
import numpy as np

import candlewick as cw
from candlewick.integrations.chroma import CandlewickEmbeddingFunction

QUESTIONS = ["Where does Ben live?", "When does Anna come?", "Where is the key?", "When does Zoe come?"]


def sentences(folder):
    """The sentences of all text files, with the names of their files."""
    for path in sorted(folder.glob("*.txt")):
        for sentence in re.split(r"(?<=[.!?])\s+", path.read_text(encoding="utf-8").strip()):
            yield path.name, sentence


def build(folder, embedder):
    """Put the notes into a collection, which embeds them. A PersistentClient would keep it on disk."""
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection("notes", embedding_function=CandlewickEmbeddingFunction(embedder))
    files, texts = map(list, zip(*sentences(folder)))
    collection.add(ids=[str(n) for n in range(len(texts))], documents=texts, metadatas=[{"file": f} for f in files])
    return collection


def likelihoods(model, question, texts):
    """How well a language model predicts the question after each text: a reranker that needs no model of its own."""
    end = model.tokenizer.encode(f" {question}")
    starts = [model.tokenizer.encode(f"Context: {text}\nQuestion:") for text in texts]
    scores = []
    for start, logits in zip(starts, model.logits([start + end for start in starts])):
        predicted = logits[len(start) - 1 : -1].astype(np.float64)
        predicted -= np.log(np.exp(predicted).sum(axis=1, keepdims=True))
        scores.append(predicted[np.arange(len(end)), end].sum())
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "notes")
    parser.add_argument("--embedder", default="candlewick/tiny")
    parser.add_argument("--reranker", help="a cross-encoder; default: the likelihood of the question")
    parser.add_argument("--model", default="candlewick/tiny")
    arguments = parser.parse_args()

    collection = build(arguments.folder, arguments.embedder)
    model = cw.Model.from_pretrained(arguments.model)
    generator = cw.Generator(model, temperature=0.0, max_new_tokens=32)
    reranker = cw.Reranker.from_pretrained(arguments.reranker) if arguments.reranker else None
    print(f"{collection.count()} notes\n")

    for question in arguments.questions:
        found = collection.query(query_texts=[question], n_results=min(16, collection.count()))
        texts, files = found["documents"][0], [row["file"] for row in found["metadatas"][0]]
        scores = reranker.predict([(question, text) for text in texts]) if reranker else None
        best = int(np.argmax(likelihoods(model, question, texts) if scores is None else scores))
        prompt = [{"role": "user", "content": f"Context: {texts[best]}\nQuestion: {question}"}]
        print(f"{question}\n  {generator.generate(prompt).text}\n  ({files[best]}: {texts[best]})")


if __name__ == "__main__":
    main()
