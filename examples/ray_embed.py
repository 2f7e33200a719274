"""Embed a corpus with Ray Data: one embedder in each worker, which streams over blocks of any number of texts.

On this machine it starts a Ray of its own. On a cluster, run the same file with `ray job submit`, read the corpus with
`ray.data.read_parquet("s3://…")` (or read_text, read_json …) in place of `from_items`, give `--workers` the number of
machines and `--cpus` their cores, and every worker loads the model by its name (a directory that all of them see, or a
hub id, which each machine downloads once).

Needs Ray: pip install 'ray[data]'
"""

import argparse
import sys

import ray

import candlewick as cw


class Embed:
    """What a worker holds: a model, loaded once. An embedder pickles as the name it was loaded from."""

    def __init__(self, embedder):
        self.embedder = embedder

    def __call__(self, batch):
        batch["vector"] = self.embedder.encode_document(batch["text"], normalize=True)
        return batch


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="candlewick/tiny")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of a worker")
    parser.add_argument("--output", help="a directory for Parquet files; without, the vectors are only counted")
    arguments = parser.parse_args()

    ray.init(num_cpus=max(2, arguments.workers * arguments.cpus), include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    corpus = ray.data.from_items([{"id": n, "text": f"Note {n}: the dog ran home."} for n in range(arguments.texts)])
    vectors = corpus.map_batches(
        Embed,
        fn_constructor_args=[cw.Embedder.from_pretrained(arguments.model)],
        batch_size=256,
        concurrency=arguments.workers,
        num_cpus=arguments.cpus,
    )
    if arguments.output:
        vectors.write_parquet(arguments.output)
    else:
        rows = vectors.sort("id").take_all()
        print(f"{len(rows)} texts, vectors of {len(rows[0]['vector'])} numbers")
    ray.shutdown()


if __name__ == "__main__":
    main()
