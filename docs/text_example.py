"""Texts, and their embeddings by an old and a new model, for docs/upgrade_texts.md.

    python -m docs.text_example prepare texts.csv FOLDER --old MODEL --new MODEL --pairs N --plan M
    python -m docs.text_example batch texts.csv OUTPUT.npz --ids FILE.npy --new MODEL
    python -m docs.text_example search texts.csv GALLERY "WORDS" --new MODEL

A model is `old` or `new`, which are made up as the texts are and need nothing, or the name or folder of one of
sentence-transformers'.
"""

import argparse
import csv
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from data.embeddings import read_embeddings
from data.items import Array
from evaluation.files import calibrations_of, upgrade_of
from retrieval import Calibration
from utils.errors import UserError, run_script
from utils.extras import load_extra
from utils.files import atomic_path, write_arrays

TOPICS, WORDS_A_TOPIC = 40, 60
TITLE, BODY = 6, 40  # words
OLD, NEW = ("old", 64), ("new", 128)  # and dimensions
Encode = Callable[[Sequence[str]], Array]  # n texts -> (n, d) float32 of length 1


def made_up_texts(count: int) -> list[tuple[str, int]]:
    """Texts of made-up words, and their topics: a title of few words, a body of more, some of another topic."""
    rng = np.random.default_rng(0)
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    words = ["".join(rng.choice(syllables, 3)) for _ in range(TOPICS * WORDS_A_TOPIC)]
    of_topic = np.array(words).reshape(TOPICS, WORDS_A_TOPIC)
    frequencies = 1 / np.arange(1, WORDS_A_TOPIC + 1)
    texts = []
    for _ in range(count):
        topic, aside = (int(drawn) for drawn in rng.integers(0, TOPICS, 2))
        topics = np.where(rng.random(TITLE + BODY) < 0.7, topic, aside)
        drawn = rng.choice(WORDS_A_TOPIC, TITLE + BODY, p=frequencies / frequencies.sum())
        text = of_topic[topics, drawn]
        texts.append((" ".join(text[:TITLE]) + ". " + " ".join(text[TITLE:]), topic))
    return texts


@cache
def encoder(model: str) -> Encode:
    """A model by its name.

    Raises:
        UserError: sentence-transformers is not installed, or has no such model here.
    """
    if model == OLD[0]:  # the title alone, in few dimensions
        return lambda texts: sums_of_words([text.partition(".")[0] for text in texts], *OLD)
    if model == NEW[0]:
        return lambda texts: sums_of_words([text.replace(".", "") for text in texts], *NEW)
    library = load_extra("sentence_transformers", where=f"model {model}")
    try:
        loaded = library.SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise UserError(f"model {model}: cannot be loaded ({str(error).splitlines()[0][:160]})") from None
    return lambda texts: loaded.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True)


def sums_of_words(texts: Sequence[str], name: str, dim: int) -> Array:
    """The sum of a random vector for each word of a text, (n, dim) float32 of length 1."""

    @cache
    def vector(word: str) -> Array:
        return np.random.default_rng(zlib.crc32(f"{name} {word}".encode())).standard_normal(dim).astype(np.float32)

    sums = np.stack([sum((vector(word) for word in text.split()), np.zeros(dim, np.float32)) for text in texts])
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


@cache
def read_texts(path: str) -> tuple[Array, list[str], Array]:
    """Ids (n,), texts and labels (n,) of a CSV file with these columns.

    Raises:
        UserError: there is none.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return np.array([row["id"] for row in rows]), [row["text"] for row in rows], _labels(rows)
    except (OSError, KeyError, ValueError) as error:
        reason = f"id and text, and perhaps label, whole numbers ({error})"
        raise UserError(f"texts: {path} is no CSV file with the columns {reason}") from None


def _labels(rows: list[dict[str, str]]) -> Array:
    return np.array([int(row.get("label") or -1) for row in rows])


def write_texts(path: str, count: int) -> None:
    """Write made-up texts as CSV: id, text, label."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        writer.writerows([f"text-{number:06d}", *text] for number, text in enumerate(made_up_texts(count)))


def embed(texts: str, output: Path, model: str, rows: Array) -> None:
    """Embed the texts in these rows into an .npz file."""
    ids, contents, labels = read_texts(texts)
    embeddings = encoder(model)([contents[row] for row in rows])
    write_arrays(output, {"embeddings": embeddings.astype(np.float16), "ids": ids[rows], "labels": labels[rows]})
    print(f"{output}: {len(rows):,} texts by {model}")


def prepare(texts: str, folder: Path, old: str, new: str, pairs: int, plan: int) -> None:
    """The gallery by the old model, and two samples of it by both: pairs for the fit, and others for the plan."""
    count = len(read_texts(texts)[0])
    drawn = np.random.default_rng(0).permutation(count)
    embed(texts, folder / "texts_old.npz", old, np.arange(count))
    for sample, rows in (("pairs", drawn[:pairs]), ("plan", drawn[pairs : pairs + plan])):
        for name, model in (("old", old), ("new", new)):
            embed(texts, folder / f"texts_{name}_{sample}.npz", model, np.sort(rows))


def embed_batch(texts: str, output: Path, ids: str, new: str) -> None:
    """Embed the texts of these ids."""
    wanted = np.load(ids, allow_pickle=False)
    embed(texts, output, new, np.flatnonzero(np.isin(read_texts(texts)[0], wanted)))


def search(texts: str, gallery: str, query: str, model: str, count: int = 3) -> None:
    """Print the texts nearest to a query, by cosine, in a gallery that is being upgraded."""
    items = read_embeddings(gallery, where="gallery")
    vectors, asked = items.embeddings.float(), torch.from_numpy(encoder(model)([query])).float()
    calibration = calibrations_of(upgrade_of(gallery)).get("cosine")
    if calibration is not None and items.re_embedded is not None:  # the coordinate, as a store would hold it
        calibrated = Calibration("cosine", calibration["value"])
        vectors, asked = calibrated.mixed(vectors, items.re_embedded), calibrated.exact(asked)
    ids, contents, _ = read_texts(texts)
    content = dict(zip(ids.tolist(), contents, strict=True))
    assert items.ids is not None
    for row in (vectors @ asked[0]).topk(count).indices.tolist():
        state = "re-embedded" if items.re_embedded is not None and items.re_embedded[row] else "transformed"
        print(f"{items.ids[row]} ({state}): {content[items.ids[row]][:70]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    prepared = steps.add_parser("prepare", help="embed the gallery and its samples")
    batch = steps.add_parser("batch", help="embed texts by their ids")
    searched = steps.add_parser("search", help="search the gallery")
    for step in (prepared, batch, searched):
        step.add_argument("texts", help="CSV file with the columns id, text and perhaps label")
        step.add_argument("--new", default=NEW[0], help="new model: `new`, or one of sentence-transformers'")
    prepared.add_argument("folder", type=Path, help="of the embeddings")
    prepared.add_argument("--old", default=OLD[0], help="old model")
    prepared.add_argument("--count", type=int, default=4000, help="texts to make up, where there is no such file")
    prepared.add_argument("--pairs", type=int, default=1500, help="texts to fit the transformation to")
    prepared.add_argument("--plan", type=int, default=500, help="others to make the plan by")
    batch.add_argument("output", type=Path, help="the .npz file to write")
    batch.add_argument("--ids", required=True, help=".npy of the ids to embed")
    searched.add_argument("gallery", help="the table of upgrade_gallery.py")
    searched.add_argument("query", help="words")
    given = parser.parse_args()
    if given.step == "prepare":
        if not Path(given.texts).exists():
            write_texts(given.texts, given.count)
        prepare(given.texts, given.folder, given.old, given.new, given.pairs, given.plan)
    elif given.step == "batch":
        embed_batch(given.texts, given.output, given.ids, given.new)
    else:
        search(given.texts, given.gallery, given.query, given.new)


if __name__ == "__main__":
    run_script(main)
