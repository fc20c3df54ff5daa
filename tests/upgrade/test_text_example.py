"""docs/upgrade_texts.md on few made-up texts: its commands one after the other, and what a search finds at the end."""

from pathlib import Path

import numpy as np

from docs.text_example import made_up_texts, sums_of_words, write_texts
from tests.tiny import REPOSITORY, fail, succeed

EXAMPLE = "docs/text_example.py"
FIT = ("--config", str(REPOSITORY / "configs/fit_embeddings.yaml"))
UPGRADE = ("--config", str(REPOSITORY / "configs/texts_upgrade.yaml"), "plan_params.k=4")


def test_the_texts_of_one_topic_are_alike() -> None:
    """The oracle is the topic, which no model is told."""
    texts = made_up_texts(400)
    topics = np.array([topic for _, topic in texts])
    vectors = sums_of_words([text for text, _ in texts], "new", 128)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    assert (topics[similarity.argmax(1)] == topics).mean() > 0.8


def test_texts_are_upgraded_and_found(tmp_path: Path) -> None:
    def run(script: str, *arguments: str) -> str:
        return succeed(script, *arguments, cwd=tmp_path, processes=None)

    run(EXAMPLE, "prepare", "texts.csv", "embeddings", "--count", "600", "--pairs", "300", "--plan", "100")
    files = ("old=embeddings/texts_old_pairs.npz", "new=embeddings/texts_new_pairs.npz")
    run("fit_embeddings.py", *FIT, *files, "method=ridge", "output=checkpoints/texts.pt")
    run("upgrade_gallery.py", "transform", *UPGRADE)
    assert "predicted on 100 pairs" in run("upgrade_gallery.py", "plan", *UPGRADE)
    run("upgrade_gallery.py", "export", *UPGRADE, "--next", "next.npy", "--limit", "200")
    run(EXAMPLE, "batch", "texts.csv", "batch.npz", "--ids", "next.npy")
    assert set(np.load(tmp_path / "batch.npz")["ids"]) == set(np.load(tmp_path / "next.npy"))
    assert "200 of 600 items are re-embedded" in run("upgrade_gallery.py", "apply", *UPGRADE, "--batch", "batch.npz")
    # Whole texts as queries: those that are re-embedded are their own nearest.
    number = int(str(np.load(tmp_path / "next.npy")[0]).removeprefix("text-"))
    text = made_up_texts(600)[number][0]
    found = run(EXAMPLE, "search", "texts.csv", "upgraded/texts.lance", text)
    assert found.splitlines()[0].startswith(f"text-{number:06d} (re-embedded): {text[:40]}")
    assert len(found.splitlines()) == 3


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    def refuse(*arguments: str) -> str:
        return fail(EXAMPLE, *arguments, cwd=tmp_path, processes=None)

    assert "gallery: there is no g.lance" in refuse("search", "no.csv", "g.lance", "words")
    write_texts(str(tmp_path / "texts.csv"), 3)
    np.save(tmp_path / "ids.npy", np.array(["text-000001"]))
    assert "no/model" in refuse("batch", "texts.csv", "out.npz", "--ids", "ids.npy", "--new", "no/model")
    assert "texts: no.csv is no CSV file" in refuse("batch", "no.csv", "out.npz", "--ids", "ids.npy")
