"""Read a text while it is written, see how sure the model is, and leave early."""

import candlewick as cw

model = cw.Model.from_pretrained("candlewick/tiny")
generator = cw.Generator(model, temperature=0.8, top_p=0.95, seed=7)

print("Once upon a time", end="")
for token in generator.stream("Once upon a time", max_new_tokens=80):
    print(token.text, end="", flush=True)
print("\n")

# Every token knows its probability and the best alternatives.
for token in generator.stream("A baby dog is called", max_new_tokens=5, logprobs=3):
    others = ", ".join(repr(model.tokenizer.decode([id_])) for id_, _ in token.top_logprobs)
    print(f"{token.text!r:12} {token.probability:6.1%}   best: {others}")

# Leaving the block cancels the rest within one token.
with generator.stream("Once upon a time", max_new_tokens=400) as stream:
    for token in stream:
        if "." in token.text:
            break
print(f"\nafter the first sentence: {stream.result.finish_reason}, {stream.result.generated_tokens} tokens")
