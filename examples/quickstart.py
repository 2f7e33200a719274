"""Load a model, continue a text, answer a question."""

import candlewick as cw

# "candlewick/tiny" is bundled. Any Qwen, Llama or Mistral works the same: "Qwen/Qwen2.5-0.5B-Instruct", a directory …
model = cw.Model.from_pretrained("candlewick/tiny")
print(model)

generator = cw.Generator(model, max_new_tokens=120, temperature=0.0)

# A text is continued as it stands.
story = generator.generate("Once upon a time")
print("Once upon a time" + story.text)
print(f"{story.generated_tokens} tokens, ended by {story.finish_reason}, {story.tokens_per_second:.0f} tokens/s")

# Messages go through the model's own chat template.
answer = generator.generate([{"role": "user", "content": "What color is the sky?"}])
print(answer.text)

# A list is one batch. Batch-mates never change each other's results.
for result in generator.generate(["The capital of France", "A baby cat"], max_new_tokens=12):
    print(result.text)
