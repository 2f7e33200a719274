"""The ``candlewick`` command.

With the demo it is the one place of the package that writes to standard output. Everything it does goes through the
public names of ``candlewick``, so each command is also an example. Answers go to standard output; everything else (what
is loaded, speeds, errors) goes to standard error, so output can be piped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import candlewick as cw
from candlewick import _demo

from .selftest import run as run_selftest
from .selftest import table as selftest_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

EXIT_DIFFERENT = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# Windows of fewer tokens predict nothing worth the name.
MIN_CONTEXT = 4

CHAT_HELP = "/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments without the program's name; default: those of the process.

    Returns:
        0; 2 after an error, which is one line on standard error; 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (cw.CandlewickError, OSError) as error:
        _note("error: " + " ".join(str(error).split()))
        return EXIT_ERROR
    return code


# --- commands ---------------------------------------------------------------------------------------------


def demo(arguments: argparse.Namespace) -> int:
    """Show what the library does on the bundled model, without any network."""
    _demo.show(arguments.device, arguments.seed)
    return 0


def generate(arguments: argparse.Namespace) -> int:
    """Continue a prompt, or answer it with ``--chat``."""
    prompt: str | list[dict[str, str]] = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if arguments.chat or arguments.system is not None:
        prompt = [*_system(arguments), {"role": "user", "content": str(prompt)}]
    with _load(arguments) as model:
        result = _print_stream(_generator(model, arguments).stream(prompt))
    if arguments.stats:
        _note(
            f"{result.prompt_tokens} prompt tokens at {result.prompt_tokens_per_second:.1f}/s, "
            f"{result.generated_tokens} generated at {result.tokens_per_second:.1f}/s, "
            f"first after {result.time_to_first_token_s:.2f} s ({result.finish_reason})"
        )
    return 0


def chat(arguments: argparse.Namespace) -> int:
    """Talk with a model; the conversation is kept until ``/reset``."""
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
    with _load(arguments) as model:
        generator = _generator(model, arguments)
        if interactive:
            _note(f"{_summary(model)}\n{CHAT_HELP}")
        messages = _system(arguments)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return 0
            if line == "/quit":
                return 0
            if line == "/reset":
                messages = _system(arguments)
            elif line.startswith("/"):
                _note(f"unknown command {line.split()[0]}. {CHAT_HELP}")
            elif line:
                messages = _answer(generator, [*messages, {"role": "user", "content": line}])


def train(arguments: argparse.Namespace) -> int:
    """Train an adapter and write it as PEFT does; ``--resume`` goes on with a run that was stopped."""
    output = Path(arguments.output)
    shared: dict[str, Any] = {"save_dir": output, "show_progress_bar": sys.stderr.isatty()}
    if arguments.eval_data is not None:
        shared["eval_dataset"] = arguments.eval_data
    names = (
        *("learning_rate", "schedule", "warmup_steps", "min_learning_rate", "batch_size", "epochs", "max_steps"),
        *("gradient_accumulation_steps", "max_length", "weight_decay", "max_grad_norm", "label_smoothing", "seed"),
        *("eval_steps", "early_stopping_patience", "save_steps", "keep_last"),
    )
    shared |= {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.no_packing:
        shared["packing"] = False
    with _load(arguments) as model:
        if arguments.resume:
            trainer = cw.Trainer.resume(model, output, arguments.data, **shared)
        elif arguments.adapter is not None:
            trainer = cw.Trainer(model, arguments.data, adapter=arguments.adapter, **shared)
        else:
            trainer = cw.Trainer(model, arguments.data, lora=_lora(arguments), **shared)
        _note(
            f"{_summary(model)}; {trainer.data_stats['rows']:,} rows, {trainer.num_parameters:,} parameters to train, "
            f"{trainer.total_steps} steps"
        )
        try:
            result = trainer.train()
        except KeyboardInterrupt:
            if trainer.step_count:
                trainer.save_state(output / f"checkpoint-{trainer.step_count}")
                _note(f"stopped after step {trainer.step_count}; the same command with --resume goes on")
            raise
    evaluated = "" if result.eval_loss is None else f", evaluation {result.eval_loss:.4f}"
    memory = "" if result.peak_memory_bytes is None else f", at most {_bytes(result.peak_memory_bytes)} of memory"
    _note(
        f"{output}: {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.4f}{evaluated}, "
        f"{result.tokens_per_second:.0f} tokens/s{memory}"
    )
    return 0


def embed(arguments: argparse.Namespace) -> int:
    """Write a vector for each line of a file, as a NumPy file or as lines of JSON."""
    source = sys.stdin if arguments.file == "-" else Path(arguments.file).open(encoding="utf-8")  # noqa: SIM115
    with source:
        try:
            texts = [line.rstrip("\r\n") for line in source]
        except UnicodeDecodeError as error:
            raise cw.DataError(f"{arguments.file} is not text in UTF-8: {error}") from None
    with cw.Embedder.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        revision=arguments.revision,
        local_files_only=arguments.local_files_only,
    ) as embedder:
        encode = {"query": embedder.encode_query, "document": embedder.encode_document}.get(
            arguments.role, embedder.encode
        )
        vectors = encode(
            texts,
            truncate_dim=arguments.truncate_dim,
            normalize=arguments.normalize or None,
            show_progress_bar=sys.stderr.isatty(),
        )
    rows = vectors.tolist()
    if arguments.output is None:
        _write_rows(sys.stdout, rows)
        return 0
    output = Path(arguments.output)
    if output.suffix == ".jsonl":
        with output.open("w", encoding="utf-8") as lines:
            _write_rows(lines, rows)
    elif output.suffix == ".json":
        output.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    else:
        with output.open("wb") as file:
            np.save(file, vectors)
    _note(f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {output}")
    return 0


def _write_rows(file: TextIO, rows: list[list[float]]) -> None:
    for row in rows:
        file.write(json.dumps(row) + "\n")


def selftest(arguments: argparse.Namespace) -> int:
    """Compare every kernel, and the bundled model, on a device with plain operations on the CPU."""
    checks = run_selftest(arguments.device)
    print(selftest_table(checks))
    failed = [check for check in checks if not check.passed]
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed", file=sys.stderr)
    return EXIT_DIFFERENT if failed else 0


def info(arguments: argparse.Namespace) -> int:
    """Describe a model."""
    with _load(arguments) as model:
        rows = {
            "source": model.source,
            "architecture": model.architecture,
            "parameters": f"{model.num_parameters:,}",
            "memory": _bytes(model.size_in_bytes),
            "dtype": model.dtype,
            "device": model.device,
            "context length": f"{model.context_length:,} tokens",
            "vocabulary": f"{model.vocab_size:,} tokens",
            "chat template": _chat_template(model),
            "defaults": ", ".join(f"{k}={v}" for k, v in model.generation_defaults.items()) or "none",
        }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def quantize(arguments: argparse.Namespace) -> int:
    """Convert a model to a quantised format and write it as one GGUF file."""
    arguments.quantize = arguments.format
    with _load(arguments) as model:
        model.save_gguf(arguments.output)
        _note(f"{arguments.output}: {_bytes(model.size_in_bytes)} of weights, mostly {model.dtype}")
    return 0


def perplexity(arguments: argparse.Namespace) -> int:
    """Measure how well a model predicts a text: lower is better, and differences between formats are what they cost.

    The text is cut into windows of ``--context`` tokens; the second half of each window is predicted from all tokens
    before it in the window.
    """
    try:
        text = Path(arguments.file).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise cw.DataError(f"{arguments.file}: is not text in UTF-8 ({error})") from error
    with _load(arguments) as model:
        ids = model.tokenizer.encode(text)
        context = min(512, model.context_length) if arguments.context is None else arguments.context
        if not MIN_CONTEXT <= context <= model.context_length:
            raise cw.InvalidArgumentError(
                f"--context: got {context}, expected {MIN_CONTEXT} to {model.context_length}, the model's context"
            )
        # Where texts begin with a token of their own, every window does, as llama.cpp counts.
        begin = ids[:1] if ids[:1] == [model.tokenizer.bos_token_id] else []
        loss, count = 0.0, 0
        for start in range(0, len(ids) - context + 1, context):
            loss += _window_loss(model, begin + ids[start + len(begin) : start + context])
            count += context - context // 2 - 1
            _note(f"{start + context} of {len(ids)} tokens: {math.exp(loss / max(count, 1)):.4f}")
    if count == 0:
        raise cw.InvalidArgumentError(
            f"{arguments.file}: got {len(ids)} tokens, expected at least {context}, one window; lower --context"
        )
    print(f"{math.exp(loss / count):.4f}")
    return 0


# --- parts of commands ------------------------------------------------------------------------------------


def _answer(generator: cw.Generator, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Stream the answer and return the conversation with it; without the question if it does not fit."""
    try:
        stream = generator.stream(messages)
    except cw.ContextLengthError as error:
        _note(f"error: {error}; /reset starts anew")
        return messages[:-1]
    answer = ""
    with stream:
        try:
            for token in stream:
                answer += token.text
                print(token.text, end="", flush=True)
        except cw.ContextLengthError as error:
            _note(f"error: {error}; /reset starts anew")
            return messages[:-1]
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
    print()
    return [*messages, {"role": "assistant", "content": answer}]


def _window_loss(model: cw.Model, ids: list[int]) -> float:
    """Sum of the negative log-probabilities of the tokens after the first half of a window."""
    first = len(ids) // 2
    logits = model.logits(ids)[first:-1].astype("float64")
    logits -= logits.max(axis=1, keepdims=True)
    targets = ids[first + 1 :]
    chosen = logits[range(len(targets)), targets]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())


def _print_stream(stream: cw.TokenStream) -> cw.Generation:
    """Print the pieces of a stream as they come, then a line end."""
    with stream:
        for token in stream:
            print(token.text, end="", flush=True)
    print()
    return stream.result


def _load(arguments: argparse.Namespace) -> cw.Model:
    return cw.Model.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        importance=getattr(arguments, "imatrix", None),
        revision=arguments.revision,
        local_files_only=arguments.local_files_only,
    )


def _generator(model: cw.Model, arguments: argparse.Namespace) -> cw.Generator:
    """A generator with what was given; what was not stays the model's own."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    options: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.adapter is not None:
        cw.AdapterRegistry(model).load("adapter", arguments.adapter)
        options["adapter"] = "adapter"
    return cw.Generator(model, **options)


def _chat_template(model: cw.Model) -> str:
    try:
        return "yes" if model.tokenizer.chat_template else "no"
    except cw.CandlewickError:
        return "no, nor a tokenizer"


def _lora(arguments: argparse.Namespace) -> cw.LoraConfig:
    targets = arguments.target_modules
    return cw.LoraConfig(
        rank=arguments.rank,
        alpha=2.0 * arguments.rank if arguments.alpha is None else arguments.alpha,
        dropout=arguments.dropout,
        target_modules=targets.split(",") if "," in targets else targets,
        use_rslora=arguments.rslora,
        use_dora=arguments.dora,
    )


def _system(arguments: argparse.Namespace) -> list[dict[str, str]]:
    return [] if arguments.system is None else [{"role": "system", "content": arguments.system}]


def _summary(model: cw.Model) -> str:
    size = _bytes(model.size_in_bytes)
    return f"{model.source} ({model.architecture}, {model.num_parameters:,} parameters, {size} on {model.device})"


def _bytes(count: int) -> str:
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def _note(message: str) -> None:
    print(f"candlewick: {message}", file=sys.stderr, flush=True)


def _enable_line_editing() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it is what gives input() its history)


# --- arguments --------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="candlewick", description="Run small language models on your own machine.")
    parser.add_argument("--version", action="version", version=f"candlewick {cw.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what the library logs")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("demo", help="see it work, offline, on the bundled model")
    _add_device(command)
    command.add_argument("--seed", type=int, default=7, help="seed of the story (default: %(default)s)")
    command.set_defaults(run=demo)

    command = commands.add_parser("generate", help="continue a prompt, or answer it with --chat")
    _add_model(command)
    command.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads standard input")
    command.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    command.add_argument("--stats", action="store_true", help="say how fast it was on standard error")
    _add_sampling(command)
    command.set_defaults(run=generate)

    command = commands.add_parser("chat", help="talk with a model", description=CHAT_HELP)
    _add_model(command)
    _add_sampling(command)
    command.set_defaults(run=chat)

    command = commands.add_parser("train", help="train an adapter on a file of rows")
    _add_model(command)
    command.add_argument("data", metavar="DATA", help="a .jsonl file: text, prompt and completion, messages, or ids")
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="where the adapter and checkpoints go")
    _add_training(command)
    command.set_defaults(run=train)

    command = commands.add_parser("embed", help="write a vector for each line of a file")
    _add_model(command, quantize=False)
    command.add_argument("file", metavar="FILE", help="a text on each line; - reads standard input")
    command.add_argument(
        "-o", "--output", metavar="FILE", help="a NumPy file, or .json or .jsonl; without it, lines of JSON"
    )
    command.add_argument("--role", choices=("query", "document"), help="use the model's prompt for these")
    command.add_argument("--truncate-dim", type=int, metavar="N", help="keep this many dimensions")
    command.add_argument("--normalize", action="store_true", help="make all vectors as long as 1")
    command.set_defaults(run=embed)

    command = commands.add_parser("info", help="describe a model")
    _add_model(command)
    command.set_defaults(run=info)

    command = commands.add_parser("selftest", help="check that a device computes what the CPU computes")
    _add_device(command)
    command.set_defaults(run=selftest)

    command = commands.add_parser("quantize", help="write a model as a smaller GGUF file")
    _add_model(command, quantize=False)
    command.add_argument("-f", "--format", required=True, metavar="FORMAT", help="such as q8_0, q4_0 or q4_k_m")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="the .gguf file to write")
    command.add_argument("--imatrix", metavar="FILE", help="an importance matrix of llama-imatrix to quantise by")
    command.set_defaults(run=quantize)

    command = commands.add_parser("perplexity", help="measure how well a model predicts a text")
    _add_model(command)
    command.add_argument("file", metavar="FILE", help="a text in UTF-8")
    command.add_argument("--context", type=int, metavar="N", help="tokens of a window (default: 512)")
    command.set_defaults(run=perplexity)
    return parser


def _add_model(command: argparse.ArgumentParser, *, quantize: bool = True) -> None:
    command.add_argument("model", metavar="MODEL", help=f"hub id, directory or .gguf file; {_demo.TINY} is bundled")
    _add_device(command)
    command.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    if quantize:
        command.add_argument("--quantize", metavar="FORMAT", help="store the weights in this format")
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--local-files-only", action="store_true", help="use no network")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, metal or cuda:N (default: %(default)s)")


def _add_sampling(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("sampling", "What is not given is the model's own default.")
    group.add_argument("-n", "--max-new-tokens", type=int, metavar="N")
    group.add_argument("-t", "--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--repetition-penalty", type=float, metavar="R")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    command.add_argument("--system", metavar="TEXT", help="system message")
    command.add_argument("--adapter", metavar="DIR", help="use this adapter, such as one that train wrote")


def _add_training(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("adapter")
    group.add_argument("--rank", type=int, default=8, metavar="R", help="default: %(default)s")
    group.add_argument("--alpha", type=float, metavar="A", help="default: twice the rank")
    group.add_argument("--dropout", type=float, default=0.0, metavar="P")
    group.add_argument(
        "--target-modules",
        default="q_proj,v_proj",
        metavar="NAMES",
        help="names, separated by commas, or all-linear (default: %(default)s)",
    )
    group.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(rank)")
    group.add_argument("--dora", action="store_true", help="learn the lengths of weights separately")
    group.add_argument("--adapter", metavar="DIR", help="go on with this adapter instead of a new one")
    group = command.add_argument_group("run", "What is not given is as for cw.Trainer, or with --resume as it was.")
    group.add_argument("--eval-data", metavar="FILE", help="rows to evaluate on")
    group.add_argument("--epochs", type=int, metavar="N")
    group.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps, whatever --epochs says")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows, or with packing N * max-length tokens")
    group.add_argument("--gradient-accumulation-steps", type=int, metavar="N", help="batches of an optimizer step")
    group.add_argument("--max-length", type=int, metavar="N", help="tokens after which a row is cut")
    group.add_argument("--no-packing", action="store_true", help="count rows instead of filling batches by tokens")
    group.add_argument("--learning-rate", type=float, metavar="X")
    group.add_argument("--schedule", choices=("cosine", "linear", "constant"))
    group.add_argument("--warmup-steps", type=int, metavar="N")
    group.add_argument("--min-learning-rate", type=float, metavar="X")
    group.add_argument("--weight-decay", type=float, metavar="X")
    group.add_argument("--max-grad-norm", type=float, metavar="X")
    group.add_argument("--label-smoothing", type=float, metavar="X")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--eval-steps", type=int, metavar="N", help="steps between evaluations (default: an epoch)")
    group.add_argument("--early-stopping-patience", type=int, metavar="N", help="evaluations without progress")
    group.add_argument("--save-steps", type=int, metavar="N", help="steps between checkpoints")
    group.add_argument("--keep-last", type=int, metavar="N", help="checkpoints that are kept")
    group.add_argument("--resume", action="store_true", help="go on with the latest checkpoint in DIR")


if __name__ == "__main__":
    sys.exit(main())
