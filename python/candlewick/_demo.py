"""What ``candlewick demo`` shows: the whole library on the bundled model, without any network."""

from __future__ import annotations

import candlewick as cw

TINY = "candlewick/tiny"
STORY = "Once upon a time"
QUESTIONS = ("Who are you?", "What is the capital of France?")

#: What two adapters are taught to answer to the first question; the answer to the second one is to stay.
CHARACTERS = {
    "candle": "I am a candle. I burn slowly and I love old books.",
    "pirate": "I am a pirate, and my ship is made of bread!",
}
KEPT = "The capital of France is Paris."

#: Steps whose loss is shown.
SHOWN = (1, 3, 6, 12, 24)

DOCUMENTS = (
    "The dog ran home through the rain.",
    "Bread is baked in a hot oven.",
    "The moon shines at night.",
    "A fish lives in the water.",
)
QUERY = "The moon at night."


def show(device: str, seed: int) -> None:
    """Print everything.

    Args:
        device: Where to compute.
        seed: Seed of the story.
    """
    with cw.Model.from_pretrained(TINY, device=device) as model:
        print(
            f"candlewick {cw.__version__} with its bundled model: {model.source} ({model.architecture}, "
            f"{model.num_parameters:,} parameters on {model.device})\n"
        )
        generator = cw.Generator(model, seed=seed)

        print("A story, streamed as it is written:\n")
        print(f"  {STORY}", end="", flush=True)
        _stream(generator, STORY, max_new_tokens=160, temperature=0.7, top_p=0.9)

        print("\nTwo questions, through the model's chat template:")
        for question in QUESTIONS:
            print(f"\n  > {question}\n  ", end="", flush=True)
            _stream(generator, _ask(question), max_new_tokens=40, temperature=0.0)

        print("\nTwo adapters, trained on two conversations each:\n")
        registry = cw.AdapterRegistry(model)
        for name in CHARACTERS:
            registry.add(name, _train(model, name))

        print("\nThe first question again. Adapters are swapped between requests, the model stays as it is:\n")
        for name in ("", *CHARACTERS, ""):
            if name:
                registry.activate(name)
            else:
                registry.deactivate()
            answer = generator.generate(_ask(QUESTIONS[0]), max_new_tokens=40, temperature=0.0)
            print(f"  {name or 'no adapter':<10}  {answer.text}")
        answer = generator.generate(_ask(QUESTIONS[1]), max_new_tokens=40, temperature=0.0, adapter="candle")
        print(f"\n  > {QUESTIONS[1]}\n  {answer.text}  (candle)")

    print(f"\nDocuments by how near they are to {QUERY!r}:\n")
    with cw.Embedder.from_pretrained(TINY, device=device) as embedder:
        scores = embedder.similarity(embedder.encode_query(QUERY), embedder.encode_document(list(DOCUMENTS)))[0]
        for score, document in sorted(zip(scores, DOCUMENTS, strict=True), reverse=True):
            print(f"  {score:6.3f}  {document}")

    print('\nNext: candlewick chat MODEL, or in Python: cw.Model.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")')


def _train(model: cw.Model, name: str) -> cw.Adapter:
    """Teach an adapter its answer, showing the loss."""
    answers = (CHARACTERS[name], KEPT)
    rows = [
        {"messages": [*_ask(question), {"role": "assistant", "content": answer}]}
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    lora = cw.LoraConfig(rank=8, target_modules="all-linear")
    trainer = cw.Trainer(model, rows, lora=lora, learning_rate=1e-2, max_steps=24)
    print(f"  {name:<10}  loss", end="", flush=True)
    for metrics in trainer:
        if metrics.step in SHOWN:
            print(f"  {metrics.loss:.3f}", end="", flush=True)
    print(f"  after {trainer.step_count} steps, {trainer.num_parameters:,} parameters")
    return trainer.adapter


def _ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _stream(generator: cw.Generator, prompt: str | list[dict[str, str]], **options: float) -> None:
    """Print the pieces of an answer as they come, then a line end."""
    with generator.stream(prompt, **options) as stream:  # type: ignore[arg-type]
        for token in stream:
            print(token.text, end="", flush=True)
    print()
