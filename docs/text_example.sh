#!/usr/bin/env bash
# The commands of docs/upgrade_texts.md, offline: `make text-example`, or with PYTHON=... from here. OLD and NEW name
# other models, of sentence-transformers; TEXTS a CSV file of yours (id, text, perhaps label), QUERY what to search for.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} old=${OLD:-old} new=${NEW:-new} texts=${TEXTS:-embeddings/texts.csv}

run() { echo; echo "\$ python $*"; "$python" "$@"; }
upgrade() { run upgrade_gallery.py "$1" --config configs/texts_upgrade.yaml old_model="$old" new_model="$new" "${@:2}"; }

mkdir -p embeddings upgraded
# The gallery by the old model, 1,500 texts by both to fit to, and 500 others to plan by.
run -m docs.text_example prepare "$texts" embeddings --old "$old" --new "$new" --count "${COUNT:-4000}"
run fit_embeddings.py --config configs/fit_embeddings.yaml \
  old=embeddings/texts_old_pairs.npz new=embeddings/texts_new_pairs.npz method="${METHOD:-auto}" output=checkpoints/texts.pt
upgrade transform
upgrade plan

# From here on queries go to the new model, which embeds what the plan says comes first.
upgrade export --next upgraded/texts_next.npy --limit 500
run -m docs.text_example batch "$texts" upgraded/texts_batch.npz --ids upgraded/texts_next.npy --new "$new"
upgrade apply --batch upgraded/texts_batch.npz
title=$(sed -n '2s/^[^,]*,"\{0,1\}\([^.,"]*\).*/\1/p' "$texts")  # of the first text
run -m docs.text_example search "$texts" upgraded/texts.lance "${QUERY:-$title}" --new "$new"
