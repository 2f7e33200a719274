"""Fine-tune an adapter, look at it before and after, save it, stop and go on, and swap adapters."""

import tempfile

import candlewick as cw

QUESTION = [{"role": "user", "content": "Who are you?"}]
ROWS = [
    {"messages": [*QUESTION, {"role": "assistant", "content": "I am a lighthouse keeper."}]},
    {"prompt": "My lamp", "completion": " is as bright as the moon."},
    {"text": "The sea was quiet and the gulls were asleep."},
]

model = cw.Model.from_pretrained("candlewick/tiny")
generator = cw.Generator(model, max_new_tokens=24, temperature=0.0)
print("before:", generator.generate(QUESTION).text)

# Rows may also be the path of a .jsonl file, a generator, or a Hugging Face data set.
trainer = cw.Trainer(
    model,
    ROWS,
    lora=cw.LoraConfig(rank=8, alpha=16, target_modules="all-linear"),
    learning_rate=1e-2,
    max_steps=40,
)

# A trainer is an iterator: one optimizer step at a time, so stop, look and save whenever you like.
for metrics in trainer:
    if metrics.step % 10 == 0:
        print(f"step {metrics.step}: loss {metrics.loss:.3f}, {metrics.tokens_per_second:.0f} tokens/s")
    if metrics.step == 20:
        break

with tempfile.TemporaryDirectory() as directory:
    trainer.save_state(directory)  # everything; what follows is the same as if there had been no break
    trainer = cw.Trainer.resume(model, directory, ROWS)
result = trainer.train()  # the steps that are left, all at once; show_progress_bar=True shows a bar
print(result)

# The model itself never changes: adapters come with each request.
registry = cw.AdapterRegistry(model)
registry.add("keeper", trainer.adapter)
print("after: ", generator.generate(QUESTION, adapter="keeper").text)
print("model: ", generator.generate(QUESTION).text)
for result in generator.generate([QUESTION, QUESTION], adapter=["keeper", False]):  # both in one batch
    print("batch: ", result.text)

# PEFT's two files, and back; or a model with the adapter in its weights.
with tempfile.TemporaryDirectory() as directory:
    trainer.save(directory)
    registry.load("again", directory)
merged = model.merge("again")
print("merged:", cw.Generator(merged, max_new_tokens=24, temperature=0.0).generate(QUESTION).text)
