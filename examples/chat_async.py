"""Several conversations at once on one event loop: they share the model's steps, and the loop is never blocked."""

import asyncio

import candlewick as cw

QUESTIONS = ["Who are you?", "What color is the sky?", "What does a dog say?"]


async def ask(generator: cw.Generator, question: str) -> str:
    """Stream one answer and return it."""
    pieces = []
    async for token in generator.stream([{"role": "user", "content": question}]):
        pieces.append(token.text)  # a web application would send it to its client here
    return "".join(pieces)


async def main() -> None:
    model = cw.Model.from_pretrained("candlewick/tiny")
    generator = cw.Generator(model, max_new_tokens=40, temperature=0.0)
    answers = await asyncio.gather(*(ask(generator, question) for question in QUESTIONS))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer}")

    # Not streamed, and not longer than two seconds: a cancelled request stops within one token.
    result = await asyncio.wait_for(generator.agenerate("Once upon a time"), timeout=2)
    print(f"Once upon a time{result.text}")


asyncio.run(main())
