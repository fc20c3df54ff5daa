#!/usr/bin/env bash
# The worked example of docs/upgrade_your_gallery.md, offline: `make upgrade-example`, or with PYTHON=... from here.
# It makes what is missing: the rendered data set and the quickstart's two models (about 2 minutes on two idle cores).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

say() { echo; echo "\$ $*"; }
run() { say "python $*"; "$python" "$@"; }

[ -e data_store/glyphs ] || run prepare_dataset.py --dataset glyphs
for model in old new; do
  [ -e checkpoints/glyphs_$model.pt ] || run train_backbone.py --config configs/glyphs_backbone_$model.yaml
  for split in training validation; do
    file=embeddings/glyphs_${model}_$split.npz
    [ -e $file ] || run embed.py --config configs/glyphs_embed.yaml model_path=checkpoints/glyphs_$model.pt split=$split output_embeddings_path=$file
  done
done

run fit_embeddings.py --config configs/fit_embeddings.yaml \
  old=embeddings/glyphs_old_training.npz new=embeddings/glyphs_new_training.npz method=fastfill inner_dim=512 epochs=10 \
  objective_params.discriminative_loss.mu_disc=1 objective_params.uncertainty_loss.mu_uncertainty=0.5 \
  output=checkpoints/glyphs_embeddings_transformation.pt

upgrade() { run upgrade_gallery.py "$1" --config configs/glyphs_upgrade.yaml "${@:2}"; }
evaluate() {
  run eval.py --config configs/cifar100_files_eval.yaml embeddings_params.query=embeddings/glyphs_new_validation.npz embeddings_params.gallery=upgraded/glyphs
}

upgrade transform
upgrade plan
evaluate

say "two batches of 500 items each, as the order says, one of them a second time"
for batch in 1 2; do
  "$python" - $batch <<'PYTHON'
import sys

import numpy as np

ids = np.load("upgraded/glyphs/order.npy")[:500]  # the new model would embed these items now
new = np.load("embeddings/glyphs_new_validation.npz")
rows = {item: row for row, item in enumerate(new["ids"])}
np.savez(f"upgraded/batch_{sys.argv[1]}.npz", ids=ids, embeddings=new["embeddings"][[rows[item] for item in ids]])
PYTHON
  upgrade apply --batch upgraded/batch_$batch.npz
done
upgrade apply --batch upgraded/batch_1.npz
upgrade status --verify
evaluate

# The transformation once more, with the 1,000 pairs that the batches brought; kept if it is better on held-out pairs.
upgrade refit
upgrade status --verify
evaluate

upgrade rollback --to 1
upgrade rollback
upgrade status --verify
