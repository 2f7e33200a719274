"""Makes what transformers computes with the bundled model.

    python tests/golden/make_tiny_expected.py

`tiny/expected.safetensors` has the same tensors as the decoder checkpoints for two prompts: the
start of a story, and a question in chat format. To be run after tests/tiny/make_tiny.py.
"""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer
import torch

from make_models import greedy, run
from reference import GOLDEN, fresh, pin, write_json, write_tensors

TINY = GOLDEN.parents[1] / "python" / "candlewick" / "tiny"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@torch.no_grad()
def main() -> None:
    pin("torch", "transformers")
    tokenizer = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        TINY, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    texts = [
        "Once upon a time there was a brave mouse named Mia.",
        tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False),
    ]
    tensors, words = {}, []
    for i, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        tensors[f"input_ids_{i}"] = torch.tensor(ids)
        tensors[f"logits_{i}"], tensors[f"hidden_{i}"] = run(model, ids)
        out, margin = greedy(model, ids)
        tensors[f"greedy_{i}"] = torch.tensor(out)
        words.append({"prompt": text, "greedy": tokenizer.decode(out), "smallest_margin": round(margin, 4)})
    directory = fresh(GOLDEN / "tiny")
    write_tensors(directory / "expected.safetensors", tensors)
    write_json(directory / "expected.json", words)
    print(words)


if __name__ == "__main__":
    main()
